"""A picture: a figure in the colours of a theme, how a notebook shows it, and how it is saved. It needs matplotlib."""

import importlib.util
import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hfprune.errors import MissingDependencyError
from hfprune.showing.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend

#: The names of the themes.
ThemeName = Literal["light", "dark"]
#: Pixels for each inch of a picture.
_DPI = 120
#: By suffix, what a file says of the time at which it was drawn: nothing, so that equal pictures are equal files.
_UNDATED: Mapping[str, dict[str, None]] = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
_SMALL = 8


@dataclass(frozen=True, kw_only=True)
class Theme:
    """The colours of a picture.

    Those of data are of the palette of Okabe & Ito (2008, "Color Universal Design"), which colour-blind readers tell
    apart. Markers, line styles and hatches differ too.

    Attributes:
        background: Behind everything.
        ink: Texts and axes.
        faint: Lines of the grid, and frames.
        empty: What was removed.
        first: The first colour of data.
        second: The second one.
        third: The third one.
    """

    background: str
    ink: str
    faint: str
    empty: str
    first: str
    second: str
    third: str


_THEMES: Mapping[str, Theme] = {
    "light": Theme(
        background="#ffffff",
        ink="#222222",
        faint="#c8c8c8",
        empty="#ececec",
        first="#0072b2",
        second="#d55e00",
        third="#009e73",
    ),
    "dark": Theme(
        background="#1e1e1e",
        ink="#e6e6e6",
        faint="#5a5a5a",
        empty="#343434",
        first="#56b4e9",
        second="#e69f00",
        third="#009e73",
    ),
}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Raise an error early, before long work, if matplotlib is missing.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401 (optional, and slow to import)
    except ImportError as error:
        raise MissingDependencyError(
            "matplotlib, which draws the pictures, is not installed: pip install matplotlib"
        ) from error


def theme_of(name: str) -> Theme:
    """Look up a theme.

    >>> theme_of("dark").background
    '#1e1e1e'

    Args:
        name: `light` or `dark`.

    Returns:
        Its colours.

    Raises:
        ValueError: No theme has that name.
    """
    if name not in _THEMES:
        raise ValueError(f"theme must be one of {', '.join(_THEMES)}, got {name!r}.")
    return _THEMES[name]


def check_picture_path(path: str | Path) -> Path:
    """The path of a picture, if its suffix names a format.

    >>> check_picture_path("plan.svg").suffix
    '.svg'

    Args:
        path: The file to write.

    Returns:
        The path.

    Raises:
        ValueError: The suffix is another.
    """
    path = Path(path)
    if path.suffix.lower() not in _UNDATED:
        raise ValueError(
            f"a picture is saved as {', '.join(_UNDATED)}, got {path.name!r}: give the file one of these suffixes."
        )
    return path


@cache
def _picture_class() -> "type[Figure]":
    """The class of all pictures: a figure that a notebook shows, though pyplot, which has global state, is not used."""
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure that shows itself in a notebook."""

        def _repr_png_(self) -> bytes:
            return drawn(self, ".png")

    # pickle looks a class up by this name, and finds it with the function below
    Picture.__qualname__ = "Picture"
    return Picture


def __getattr__(name: str) -> Any:
    """The class of pictures, which is made when it is asked for, so that matplotlib is not imported before."""
    if name != "Picture":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _picture_class()


def new_picture(width: float, height: float, theme: Theme) -> "Figure":
    """An empty figure.

    Args:
        width: In inches.
        height: In inches.
        theme: Its colours.

    Returns:
        The figure.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    require_matplotlib()
    return _picture_class()(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor=theme.background)


def style(axes: "Axes", theme: Theme, *, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Give a panel its texts, and the colours of a theme.

    Args:
        axes: The panel.
        theme: The colours.
        title: What stands above it.
        xlabel: What the horizontal axis shows, with its unit.
        ylabel: What the vertical axis shows, with its unit.
    """
    axes.set_facecolor(theme.background)
    axes.set_title(title, fontsize=10, color=theme.ink)
    axes.set_xlabel(xlabel, fontsize=9, color=theme.ink)
    axes.set_ylabel(ylabel, fontsize=9, color=theme.ink)
    axes.tick_params(which="both", colors=theme.ink, labelsize=_SMALL)
    for spine in axes.spines.values():
        spine.set_color(theme.faint)


def style_legend(legend: "Legend", theme: Theme) -> None:
    """Give a legend the colours of a theme."""
    legend.get_frame().set(facecolor=theme.background, edgecolor=theme.faint)
    for text in legend.get_texts():
        text.set(color=theme.ink, fontsize=_SMALL)


def save_picture(figure: "Figure", path: str | Path | None) -> "Figure":
    """Write a figure into a file, if one is named. The file is replaced as a whole.

    >>> figure = new_picture(4, 3, theme_of("light"))
    >>> save_picture(figure, None) is figure
    True

    Args:
        figure: The figure.
        path: A file that ends in `.png`, `.svg` or `.pdf`, in a folder that is made if it is not there; None: no file.

    Returns:
        The figure.

    Raises:
        ValueError: The file has another suffix.
    """
    if path is not None:
        checked = check_picture_path(path)
        write_whole(checked, drawn(figure, checked.suffix.lower()))
    return figure


def drawn(figure: "Figure", suffix: str) -> bytes:
    """A figure as the content of a file.

    Args:
        figure: The figure.
        suffix: `.png`, `.svg` or `.pdf`.

    Returns:
        The content. Equal figures give equal bytes.
    """
    import matplotlib as mpl

    buffer = io.BytesIO()
    # without a salt, the ids of an SVG are drawn by chance
    with mpl.rc_context({"svg.hashsalt": "hfprune"}):
        figure.savefig(buffer, format=suffix[1:], metadata=_UNDATED[suffix])
    return buffer.getvalue()
