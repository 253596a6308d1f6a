"""Pictures of units: a panel for the blocks of one kind, in it a row for each layer."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from hfprune.showing.picture import Theme, new_picture, style, style_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Up to so many units have a cell each.
_MOST_SINGLE = 64
#: More units are drawn in runs of equal length, about so many.
_RUNS = 48
#: The most numbers along an axis.
_MOST_TICKS = 16
_MOST_LAYER_TICKS = 40
#: Scores that differ by a larger factor are drawn on a logarithmic scale.
_WIDE = 20


class Place(NamedTuple):
    """Where a block is: `family` is its name without the number of the layer, `layer` is that number as text."""

    family: str
    layer: str


def place_of(block: str) -> Place:
    """The family of a block and the number of its layer, from the block's name.

    >>> place_of("encoder.layer.11.attention")
    Place(family='encoder.layer.*.attention', layer='11')
    >>> place_of("stages.0.layers.1.ffn").layer
    '0.1'
    """
    numbers = []
    words = []
    for word in block.split("."):
        if word.isdecimal():
            numbers.append(word)
            words.append("*")
        else:
            words.append(word)
    return Place(".".join(words), ".".join(numbers))


def layer_number(block: str) -> int | None:
    """The number of a block's layer; None if its name has none, or several.

    >>> layer_number("encoder.layer.11.attention")
    11
    """
    layer = place_of(block).layer
    return int(layer) if layer.isdecimal() else None


@dataclass(frozen=True, kw_only=True)
class UnitRow:
    """One block in a picture.

    Attributes:
        block: The name of the block.
        unit: What one unit is, in words, such as `head`.
        values: A number for every unit.
        note: What stands at the right end of the row.
    """

    block: str
    unit: str
    values: Sequence[float]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class KeptByTwo:
    """How two plans treat the units of one block.

    Attributes:
        block: The name of the block.
        unit: What one unit is, in words.
        both: Units that both plans keep.
        only_a: Units that only the first plan keeps.
        only_b: Units that only the second plan keeps.
        neither: Units that both plans remove.
    """

    block: str
    unit: str
    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def units(self) -> int:
        """How many units the block has."""
        return self.both + self.only_a + self.only_b + self.neither


def plural_of(unit: str) -> str:
    """The plural of what a unit is.

    >>> plural_of("head"), plural_of("head or key/value group")
    ('heads', 'heads or key/value groups')
    """
    return " or ".join(f"{word}s" for word in unit.split(" or "))


def draw_kept(rows: Sequence[UnitRow], theme: Theme) -> "Figure":
    """Draw which units are kept: a cell for every head, and neurons in runs, by the share that is kept.

    Args:
        rows: The blocks; their values are 1 for a unit that is kept, and 0 for another.
        theme: The colours.

    Returns:
        The figure.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    families = _families(rows)
    figure, panels = _grid(families, theme)
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("kept", [theme.empty, theme.first])
    for (family, members), axes in zip(families.items(), panels, strict=True):
        mesh = _draw_cells(axes, members, theme, cmap=colours, vmin=0, vmax=1)
        _label_panel(axes, _title(family, members, families), members, theme)
        _note_rows(axes, members, "kept", theme)
    bar = figure.colorbar(mesh, ax=panels, shrink=0.9, aspect=30)
    _style_bar(bar, "share of units kept", theme)
    return figure


def draw_scores(rows: Sequence[UnitRow], title: str, theme: Theme) -> "Figure":
    """Draw scores: a cell for every head, and neurons in runs, by the mean of a run. Each panel has its own scale.

    Args:
        rows: The blocks; their values are scores.
        title: What stands above all panels.
        theme: The colours.

    Returns:
        The figure.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    families = _families(rows)
    figure, panels = _grid(families, theme)
    from matplotlib.colors import LogNorm

    for (family, members), axes in zip(families.items(), panels, strict=True):
        means = _cells(members)
        of_what = "score" if means.run == 1 else "mean score of a run"
        least, largest = float(np.nanmin(means.table)), float(np.nanmax(means.table))
        label = of_what
        options: dict[str, Any] = {"vmin": least, "vmax": largest}
        if least > 0 and largest / least > _WIDE:
            options = {"norm": LogNorm(least, largest)}
            label += ",\nlogarithmic"
        mesh = _draw_cells(axes, members, theme, cmap="cividis", **options)
        _label_panel(axes, _title(family, members, families), members, theme)
        _style_bar(figure.colorbar(mesh, ax=axes, aspect=30), label, theme)
    figure.suptitle(title, fontsize=10, color=theme.ink)
    return figure


def draw_kept_by_two(rows: Sequence[KeptByTwo], theme: Theme) -> "Figure":
    """Draw, for every block, the shares of units that two plans keep: both, only the first, only the second, neither.

    Args:
        rows: The blocks.
        theme: The colours.

    Returns:
        The figure.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    families = _families(rows)
    figure, panels = _grid(families, theme)
    parts = (
        ("both", "kept by both", theme.first, ""),
        ("only_a", "only by A", theme.second, "////"),
        ("only_b", "only by B", theme.third, "...."),
        ("neither", "by neither", theme.empty, ""),
    )
    for (family, members), axes in zip(families.items(), panels, strict=True):
        starts = np.zeros(len(members))
        # a block that was removed by an earlier pruning has no units
        units = np.array([max(member.units, 1) for member in members])
        for field, label, colour, hatch in parts:
            shares = 100 * np.array([getattr(member, field) for member in members]) / units
            axes.barh(
                range(len(members)),
                shares,
                left=starts,
                height=0.8,
                color=colour,
                hatch=hatch,
                edgecolor=theme.background,
                linewidth=0.5,
                label=label,
            )
            starts += shares
        axes.set_xlim(0, 100)
        axes.set_ylim(len(members) - 0.5, -0.5)
        _number_layers(axes, members)
        unit = members[0].unit
        xlabel = f"share of the block's {plural_of(unit)}, %"
        style(axes, theme, title=_title(family, members, families), xlabel=xlabel, ylabel="layer")
    handles, labels = panels[0].get_legend_handles_labels()
    style_legend(figure.legend(handles, labels, loc="outside lower center", ncols=len(parts)), theme)
    return figure


def _families(rows: Sequence[Any]) -> Mapping[str, list[Any]]:
    """The blocks that share a panel, by what their names have in common, in the order in which they come."""
    families: dict[str, list[Any]] = {}
    for row in rows:
        families.setdefault(place_of(row.block).family, []).append(row)
    return families


def _title(family: str, members: Sequence[Any], families: Mapping[str, Any]) -> str:
    """What stands above a panel; its stack is named where the model has several, as an encoder-decoder.

    >>> row = UnitRow(block="encoder.layer.0.ffn", unit="neuron", values=())
    >>> _title("encoder.layer.*.ffn", [row], {"encoder.layer.*.ffn": [row]})
    'feed-forward: neurons'
    """
    stack, _, block = family.rpartition(".")
    stacks = {name.rpartition(".")[0] for name in families}
    name = "feed-forward" if block == "ffn" else block.replace("_", "-")
    title = f"{name}: {plural_of(members[0].unit)}"
    if len(stacks) > 1:
        title = f"{re.sub(r'[.][*].*', '', stack)}, {title}"
    return title


def _grid(families: Mapping[str, Sequence[Any]], theme: Theme) -> "tuple[Figure, list[Axes]]":
    """A figure with a panel for each family, two beside each other."""
    columns = min(len(families), 2)
    lines = -(-len(families) // columns)
    most_rows = max(len(members) for members in families.values())
    figure = new_picture(1 + 4.8 * columns, lines * (1.4 + 0.2 * max(most_rows, 5)), theme)
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for unused in panels[len(families) :]:
        unused.remove()
    return figure, panels[: len(families)]


class _Cells(NamedTuple):
    """The means of runs of units, `(rows, cells)`, NaN where a block has no such unit; and the units in a run."""

    table: NDArray[np.float64]
    run: int


def _most_units(members: Sequence[UnitRow]) -> int:
    # one cell is left where an earlier pruning removed all units
    return max(1, *(len(member.values) for member in members))


def _cells(members: Sequence[UnitRow]) -> _Cells:
    """The mean of every run of units.

    >>> row = UnitRow(block="a", unit="head", values=(1, 0, 1))
    >>> _cells([row]).table.tolist(), _cells([row]).run
    ([[1.0, 0.0, 1.0]], 1)
    """
    most = _most_units(members)
    run = 1 if most <= _MOST_SINGLE else -(-most // _RUNS)
    table = np.full((len(members), -(-most // run)), np.nan)
    for number, member in enumerate(members):
        values = np.asarray(member.values, dtype=float)
        for cell, start in enumerate(range(0, len(values), run)):
            table[number, cell] = values[start : start + run].mean()
    return _Cells(table, run)


def _draw_cells(axes: "Axes", members: Sequence[UnitRow], theme: Theme, **options: Any) -> Any:
    """Draw the cells of a panel, and the numbers of units and layers along its axes.

    Args:
        axes: The panel.
        members: Its blocks.
        theme: The colours.
        **options: How numbers become colours, as `pcolormesh` takes it.

    Returns:
        What a colour bar can explain.
    """
    table, run = _cells(members)
    most = _most_units(members)
    # a unit's number stands in the middle of its cell; the last run may be shorter than the others
    edges = np.minimum(np.arange(table.shape[1] + 1) * run, most) - 0.5
    lines = np.arange(len(members) + 1) - 0.5
    mesh = axes.pcolormesh(
        edges, lines, np.ma.masked_invalid(table), edgecolors=theme.background, linewidth=0.6, **options
    )
    axes.set_ylim(len(members) - 0.5, -0.5)
    if run == 1:
        axes.set_xticks(range(0, most, -(-most // _MOST_TICKS)))
    else:
        # at the first unit of a run
        step = run * (-(-table.shape[1] // 6))
        starts = range(0, most, step)
        axes.set_xticks([start - 0.5 for start in starts], [str(start) for start in starts])
    _number_layers(axes, members)
    return mesh


def _number_layers(axes: "Axes", members: Sequence[Any]) -> None:
    """Write the numbers of layers at the left axis."""
    step = -(-len(members) // _MOST_LAYER_TICKS)
    shown = range(0, len(members), step)
    axes.set_yticks(shown, [place_of(members[number].block).layer for number in shown])


def _label_panel(axes: "Axes", title: str, members: Sequence[UnitRow], theme: Theme) -> None:
    """Say above a panel what its blocks are, and along its axes what their numbers count."""
    unit = members[0].unit
    run = _cells(members).run
    xlabel = f"{unit}, by its number"
    if run > 1:
        xlabel = f"{unit}, by its number (each cell: {run} {plural_of(unit)})"
    style(axes, theme, title=title, xlabel=xlabel, ylabel="layer")


def _note_rows(axes: "Axes", members: Sequence[UnitRow], label: str, theme: Theme) -> None:
    """Write the notes of the rows at the right axis."""
    # the same scale as at the left; by matplotlib's own functions for it, the figure could not be pickled
    right = axes.secondary_yaxis("right", functions=(np.positive, np.positive))
    step = -(-len(members) // _MOST_LAYER_TICKS)
    shown = range(0, len(members), step)
    right.set_yticks(shown, [members[number].note for number in shown])
    right.tick_params(length=0, labelsize=7, colors=theme.ink)
    right.set_ylabel(label, fontsize=9, color=theme.ink)
    right.spines["right"].set_color(theme.faint)


def _style_bar(bar: Any, label: str, theme: Theme) -> None:
    """Give a colour bar its text, and the colours of a theme."""
    bar.set_label(label, fontsize=9, color=theme.ink)
    bar.ax.tick_params(which="both", colors=theme.ink, labelsize=7)
    bar.outline.set_edgecolor(theme.faint)
