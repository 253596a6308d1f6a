"""What all figures share: two themes, a canvas measured in inches, and an SVG writer that gives the same file again."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

#: Every figure is as wide as a column of text.
WIDTH_INCHES = 7.0
#: Points; no text of a figure is smaller.
SMALL = 9.0
NORMAL = 10.0
LARGE = 11.0
_FONTS = ["sans-serif"]
_MONOSPACED = ["monospace"]


@dataclass(frozen=True, kw_only=True)
class Theme:
    """The colours of a figure on a light or on a dark page. The page itself is the background.

    The coloured ones are those of Okabe and Ito, which people with any colour vision can tell apart.

    Attributes:
        name: `light` or `dark`.
        ink: Text and outlines.
        muted: What matters less.
        fill: The inside of boxes.
        grid: Lines behind data.
        blue: The first colour (sky blue on a dark page, where blue is hard to see).
        orange: The second colour.
        green: The third colour.
        vermilion: The fourth colour.
        purple: The fifth colour.
    """

    name: str
    ink: str
    muted: str
    fill: str
    grid: str
    blue: str
    orange: str = "#E69F00"
    green: str = "#009E73"
    vermilion: str = "#D55E00"
    purple: str = "#CC79A7"


LIGHT = Theme(name="light", ink="#1f2328", muted="#5f6670", fill="#eef1f6", grid="#d5d9e0", blue="#0072B2")
DARK = Theme(name="dark", ink="#e8eaf0", muted="#a3a9b8", fill="#31374a", grid="#434a5e", blue="#56B4E9")
THEMES = (LIGHT, DARK)


def new_figure(height: float) -> Figure:
    """An empty figure.

    Args:
        height: In inches.

    Returns:
        The figure, as wide as a column, without a background.
    """
    figure = Figure(figsize=(WIDTH_INCHES, height))
    figure.patch.set_alpha(0)
    FigureCanvasSVG(figure)
    return figure


@contextmanager
def settings(theme: Theme) -> Iterator[None]:
    """Draw in a theme inside the `with`."""
    values = {
        "font.family": _FONTS,
        "font.size": SMALL,
        "svg.fonttype": "none",
        "svg.hashsalt": "hfprune",
        "text.color": theme.ink,
        "axes.edgecolor": theme.muted,
        "axes.facecolor": "none",
        "axes.labelcolor": theme.ink,
        "axes.labelsize": NORMAL,
        "axes.titlesize": LARGE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": theme.muted,
        "ytick.color": theme.muted,
        "xtick.labelcolor": theme.ink,
        "ytick.labelcolor": theme.ink,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "grid.color": theme.grid,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
        "legend.fontsize": SMALL,
        "legend.labelcolor": theme.ink,
    }
    with matplotlib.rc_context(values):
        yield


def svg_of(figure: Figure) -> str:
    """The figure as SVG: text as text, without a date, so that the same figure gives the same file."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    # matplotlib ends some lines with a space
    lines = [line.rstrip() for line in buffer.getvalue().splitlines()]
    return "\n".join(lines) + "\n"


class Canvas:
    """A drawing in inches, from the lower left corner.

    Attributes:
        figure: The figure.
        theme: Its colours.

    Args:
        theme: The colours.
        height: In inches.
    """

    def __init__(self, theme: Theme, height: float) -> None:
        self.theme = theme
        self.figure = new_figure(height)
        self._axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self._axes.set_xlim(0, WIDTH_INCHES)
        self._axes.set_ylim(0, height)
        self._axes.set_axis_off()

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = SMALL,
        colour: str | None = None,
        bold: bool = False,
        align: str = "center",
        code: bool = False,
    ) -> None:
        """Write words around a point, or beside it.

        Args:
            x: Inches from the left.
            y: Inches from below, of the middle of the words.
            words: What to write; it may have several lines.
            size: In points.
            colour: A colour; None for ink.
            bold: Whether the letters are bold.
            align: `center`, `left` (the words begin at x) or `right` (they end there).
            code: Whether the letters are those of code.
        """
        lines = words.split("\n")
        line_height = 1.35 * size / 72
        top = y + line_height * (len(lines) - 1) / 2
        for place, line in enumerate(lines):
            self._axes.text(
                x,
                top - line_height * place,
                line,
                size=size,
                color=colour or self.theme.ink,
                weight="bold" if bold else "normal",
                ha=align,
                # letters that reach below the line must not lift the others
                va="center_baseline",
                family=_MONOSPACED if code else _FONTS,
            )

    def cell(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        colour: str | None = None,
        hatched: bool = False,
    ) -> None:
        """A rectangle with sharp corners.

        Args:
            x: Of the lower left corner.
            y: Of the lower left corner.
            width: In inches.
            height: In inches.
            colour: The inside; None for the fill of the theme.
            hatched: Draw it as something that is removed.
        """
        patch = Rectangle(
            (x, y),
            width,
            height,
            facecolor="none" if hatched else colour or self.theme.fill,
            edgecolor=self.theme.vermilion if hatched else self.theme.ink,
            linewidth=0.8,
            linestyle="--" if hatched else "-",
            hatch="////" if hatched else None,
        )
        self._axes.add_patch(patch)

    def rows(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colours: Sequence[str | None],
        *,
        hatched: Sequence[int] = (),
    ) -> None:
        """A weight as rows, the first one on top.

        Args:
            x: Of the lower left corner.
            y: Of the lower left corner.
            width: Of the weight.
            height: Of the weight.
            colours: One for each row.
            hatched: Which rows are removed.
        """
        step = height / len(colours)
        for place, colour in enumerate(colours):
            top = y + height - step * place
            self.cell(x, top - step, width, step, colour=colour, hatched=place in hatched)

    def columns(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        colours: Sequence[str | None],
        *,
        hatched: Sequence[int] = (),
    ) -> None:
        """A weight as columns, the first one on the left; the arguments are those of `rows`."""
        step = width / len(colours)
        for place, colour in enumerate(colours):
            self.cell(x + step * place, y, step, height, colour=colour, hatched=place in hatched)

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        words: str,
        *,
        colour: str | None = None,
        bold: bool = False,
    ) -> None:
        """A box with round corners and words in it.

        Args:
            x: Of the lower left corner.
            y: Of the lower left corner.
            width: In inches.
            height: In inches.
            words: What to write in it.
            colour: The outline; None for ink.
            bold: Whether the letters are bold.
        """
        patch = FancyBboxPatch(
            (x, y),
            width,
            height,
            boxstyle="round,pad=0,rounding_size=0.08",
            facecolor=self.theme.fill,
            edgecolor=colour or self.theme.ink,
            linewidth=1.6 if colour else 1.0,
        )
        self._axes.add_patch(patch)
        self.text(x + width / 2, y + height / 2, words, size=NORMAL if bold else SMALL, bold=bold)

    def arrow(
        self,
        start: tuple[float, float],
        end: tuple[float, float],
        *,
        colour: str | None = None,
        bend: float = 0.0,
        both: bool = False,
    ) -> None:
        """An arrow.

        Args:
            start: Where it begins.
            end: Where it points.
            colour: A colour; None for ink.
            bend: 0 for a straight arrow; how far a curved one leaves the straight line, as a share of its length.
            both: Whether it points both ways.
        """
        patch = FancyArrowPatch(
            start,
            end,
            arrowstyle="<|-|>" if both else "-|>",
            mutation_scale=10,
            connectionstyle=f"arc3,rad={bend}",
            color=colour or self.theme.ink,
            linewidth=1.2,
            shrinkA=0,
            shrinkB=0,
        )
        self._axes.add_patch(patch)

    def line(self, start: tuple[float, float], end: tuple[float, float], *, colour: str | None = None) -> None:
        """A straight line between two points."""
        self._axes.plot(
            [start[0], end[0]], [start[1], end[1]], color=colour or self.theme.ink, linewidth=1.2, solid_capstyle="butt"
        )
