"""Figures of measurements. Every number comes from a file of docs/results, which a script of benchmarks/ wrote."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from style import LARGE, SMALL, Theme, new_figure

RESULTS = Path(__file__).parents[1] / "results"
#: The data sets, and how figures call them.
DATASETS = {"trec": "TREC questions", "movie_reviews": "Movie reviews"}
Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Spread:
    """The accuracies of one method at one size.

    Attributes:
        mean: Their mean.
        below: From the lowest to the mean.
        above: From the mean to the highest.
    """

    mean: float
    below: float
    above: float


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a method is drawn.

    Attributes:
        label: Its name in the legend.
        colour: The name of a colour of the theme.
        marker: The shape of its points.
        shift: How far its points are moved sideways, so that they do not hide others.
    """

    label: str
    colour: str
    marker: str
    shift: float = 0.0


def read(name: str) -> list[Row]:
    """The rows of a file of docs/results."""
    rows: list[Row] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return rows


def chosen(rows: Sequence[Row], **wanted: object) -> list[Row]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def spread_of(rows: Sequence[Row]) -> Spread:
    """Mean and range of the accuracies of some rows."""
    values = [row["accuracy"] for row in rows]
    mean = sum(values) / len(values)
    return Spread(mean=mean, below=mean - min(values), above=max(values) - mean)


def by_size(rows: Sequence[Row]) -> dict[int, Spread]:
    """By the per cent of MACs that are kept: mean and range of the accuracies."""
    sizes = sorted({row["macs_kept"] for row in rows}, reverse=True)
    return {size: spread_of(chosen(rows, macs_kept=size)) for size in sizes}


def draw_series(axes: Axes, theme: Theme, series: Mapping[int, Spread], look: Look, *, joined: bool) -> None:
    """Draw one method: a point for each size, with the range over its draws.

    Args:
        axes: Where.
        theme: The colours.
        series: By the per cent of MACs that are kept, the accuracies.
        look: How.
        joined: Whether a line joins the points.
    """
    axes.errorbar(
        [size + look.shift for size in series],
        [spread.mean for spread in series.values()],
        yerr=[[spread.below for spread in series.values()], [spread.above for spread in series.values()]],
        label=look.label,
        color=getattr(theme, look.colour),
        marker=look.marker,
        markersize=5.5,
        linewidth=1.6,
        linestyle="-" if joined else "none",
        elinewidth=1.2,
        capsize=2.5,
    )


def draw_dense(axes: Axes, theme: Theme, rows: Sequence[Row]) -> None:
    """A line at the accuracy of the dense model."""
    axes.axhline(rows[0]["dense_accuracy"], color=theme.ink, linewidth=1, linestyle=(0, (4, 3)), label="dense model")


def panels(height: float, legend_rows: int, draw: Callable[[Axes, str], None]) -> Figure:
    """Two panels side by side, one for each data set, with one legend below.

    Args:
        height: In inches.
        legend_rows: How many rows the legend has.
        draw: Draws one panel: gets its axes and the name of the data set.

    Returns:
        The figure.
    """
    figure = new_figure(height)
    bottom = (0.6 + 0.2 * legend_rows) / height
    axes_of_all = []
    for place, (dataset, title) in enumerate(DATASETS.items()):
        axes = figure.add_axes((0.085 + 0.485 * place, bottom, 0.42, 1 - bottom - 0.3 / height))
        axes.set_title(title, size=LARGE)
        axes.set_xlabel("MACs kept, %")
        axes.grid(visible=True, axis="y")
        axes.set_axisbelow(True)
        draw(axes, dataset)
        axes_of_all.append(axes)
    axes_of_all[0].set_ylabel("accuracy, %")
    handles, labels = axes_of_all[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=4, columnspacing=1.4, handletextpad=0.5)
    return figure


#: By scorer and repair: how the figure of rounds draws it.
_ROUNDS = {
    ("fisher", "none"): Look(label="one shot, no repair", colour="vermilion", marker="s", shift=-1),
    ("fisher", "repair"): Look(label="one shot, one repair", colour="orange", marker="^", shift=1),
    ("residual_logit_fisher", "rounds"): Look(label="rounds (default)", colour="blue", marker="o"),
}


def rounds_measured(theme: Theme) -> Figure:
    """Accuracy against size: in one shot without and with repair, and in rounds."""
    rows = chosen(read("no_retraining.json"), allocation="global")

    def draw(axes: Axes, dataset: str) -> None:
        of_dataset = chosen(rows, dataset=dataset)
        draw_dense(axes, theme, of_dataset)
        for (scorer, repair), look in _ROUNDS.items():
            series = by_size(chosen(of_dataset, scorer=scorer, repair=repair))
            draw_series(axes, theme, series, look, joined=True)
        axes.set_xlim(85, 5)
        axes.set_ylim(30, 100)

    return panels(3.6, 1, draw)


#: The scorers by the family that a colour shows, as docs/explanations/scorers.md sorts them.
FAMILIES = {
    "gates": ("blue", ("fisher", "logit_fisher", "kl_fisher", "taylor", "sensitivity")),
    "gradients of weights": ("purple", ("gradient", "weight_sensitivity", "movement")),
    "activations": ("green", ("obs", "fluctuation", "activation_norm", "apoz")),
    "weights": ("orange", ("l1", "l2", "sparsity_measure")),
}
DEFAULT = "default, in rounds"
_DEFAULT_SCORER = "residual_logit_fisher"


def scorers_measured(theme: Theme) -> Figure:
    """For every scorer: the accuracy at half of the MACs without and with one repair, and the seconds of scoring."""
    rows = chosen(read("no_retraining.json"), allocation="global", macs_kept=50)
    names = _ranked_scorers(rows)
    figure = new_figure(5.4)
    for place, (dataset, title) in enumerate(DATASETS.items()):
        axes = figure.add_axes((0.215 + 0.355 * place, 0.17, 0.3, 0.745))
        axes.set_title(title, size=LARGE)
        axes.set_xlabel("accuracy, %")
        axes.grid(visible=True, axis="x")
        axes.set_axisbelow(True)
        axes.set_xlim(20, 100)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_yticks(range(len(names)), names if place == 0 else [])
        axes.tick_params(axis="y", length=0)
        of_dataset = chosen(rows, dataset=dataset)
        axes.axvline(of_dataset[0]["dense_accuracy"], color=theme.ink, linewidth=1, linestyle=(0, (4, 3)))
        for height, name in enumerate(names):
            _draw_scorer(axes, theme, of_dataset, name, height)
        if place == 1:
            _write_seconds(axes, rows, names)
    _scorer_legend(figure, theme)
    return figure


def _ranked_scorers(rows: Sequence[Row]) -> list[str]:
    """The default, and then all scorers from the best to the worst mean accuracy after repair on both data sets."""
    names = [name for _, members in FAMILIES.values() for name in members]
    means = {name: spread_of(chosen(rows, scorer=name, repair="repair")).mean for name in names}
    return [DEFAULT, *sorted(names, key=means.__getitem__, reverse=True)]


def _colour_of(theme: Theme, name: str) -> str:
    """The colour of a scorer's family."""
    for colour, members in FAMILIES.values():
        if name in members:
            found: str = getattr(theme, colour)
            return found
    return theme.ink


def _draw_scorer(axes: Axes, theme: Theme, rows: Sequence[Row], name: str, height: int) -> None:
    """One row of the figure: an open point without repair, a full one after it."""
    colour = _colour_of(theme, name)
    if name == DEFAULT:
        repaired = spread_of(chosen(rows, scorer=_DEFAULT_SCORER, repair="rounds"))
    else:
        repaired = spread_of(chosen(rows, scorer=name, repair="repair"))
        bare = spread_of(chosen(rows, scorer=name, repair="none"))
        axes.plot([bare.mean, repaired.mean], [height, height], color=theme.grid, linewidth=1.2, zorder=1)
        _draw_point(axes, bare, height, colour, filled=False)
    _draw_point(axes, repaired, height, colour, filled=True)


def _draw_point(axes: Axes, spread: Spread, height: int, colour: str, *, filled: bool) -> None:
    """A mean and its range, at a height."""
    axes.errorbar(
        [spread.mean],
        [height],
        xerr=[[spread.below], [spread.above]],
        color=colour,
        marker="o",
        markersize=5.5,
        markerfacecolor=colour if filled else "none",
        linestyle="none",
        elinewidth=1.2,
        capsize=2,
    )


def _write_seconds(axes: Axes, rows: Sequence[Row], names: Sequence[str]) -> None:
    """A column of seconds on TREC, to the right of the axes."""
    right = 1.3
    axes.text(right, 1.015, "seconds,\nTREC", transform=axes.transAxes, ha="right", va="bottom", size=SMALL)
    for height, name in enumerate(names):
        if name == DEFAULT:
            timed = chosen(rows, dataset="trec", scorer=_DEFAULT_SCORER, repair="rounds")
        else:
            timed = chosen(rows, dataset="trec", scorer=name, repair="none")
        seconds = [row["seconds"] for row in timed]
        words = f"{sum(seconds) / len(seconds):.1f}"
        axes.text(
            right, height, words, transform=axes.get_yaxis_transform(), ha="right", va="center_baseline", size=SMALL
        )


def _scorer_legend(figure: Figure, theme: Theme) -> None:
    """What colours and points mean, below the axes."""
    axes = figure.axes[0]
    handles = []
    for family, (colour, _) in FAMILIES.items():
        (handle,) = axes.plot([], [], color=getattr(theme, colour), marker="o", linestyle="none", label=family)
        handles.append(handle)
    for label, inside in (("one shot, no repair", "none"), ("after one repair", theme.ink)):
        (handle,) = axes.plot(
            [], [], color=theme.ink, marker="o", markerfacecolor=inside, linestyle="none", label=label
        )
        handles.append(handle)
    figure.legend(handles=handles, loc="lower center", ncols=3, columnspacing=1.6, handletextpad=0.3)


#: By method: how the figure of recovery draws it. The shifts are in per cent of MACs.
_RECOVERY = {
    "pruned": Look(label="pruned", colour="muted", marker="X", shift=4.5),
    "reconstructed": Look(label="+ repair", colour="blue", marker="o", shift=3),
    "fine_tuning": Look(label="+ repair, fine-tuning", colour="orange", marker="^", shift=1.5),
    "distillation": Look(label="+ repair, distillation", colour="green", marker="D"),
    "lora": Look(label="+ repair, LoRA", colour="purple", marker="v", shift=-1.5),
    "gradual": Look(label="gradual", colour="vermilion", marker="s", shift=-3),
    "fewer_layers": Look(label="fewer layers", colour="ink", marker="*", shift=-4.5),
}


def recovery_measured(theme: Theme) -> Figure:
    """Accuracy after each method of recovery, at three sizes."""
    rows = read("recovery.json")
    sizes = (50, 30, 20)
    # side by side with room for seven points each: these are categories, so their distance says nothing
    places = {50: 60, 30: 40, 20: 20}

    def draw(axes: Axes, dataset: str) -> None:
        of_dataset = chosen(rows, dataset=dataset)
        draw_dense(axes, theme, of_dataset)
        for method, look in _RECOVERY.items():
            series = by_size(chosen(of_dataset, method=method))
            at_places = {places[size]: series[size] for size in sizes}
            draw_series(axes, theme, at_places, look, joined=False)
        axes.set_xlim(68, 12)
        axes.set_xticks(list(places.values()), [str(size) for size in sizes])
        axes.set_ylim(76, 96)
        axes.set_yticks(range(76, 97, 4))

    return panels(3.8, 2, draw)


#: From the best to the worst mean accuracy.
_ALLOCATIONS = ("global", "knapsack", "uniform", "layerwise", "threshold")
#: By the per cent of MACs that are kept: how the figure of allocations draws it. The shifts are upwards, in rows.
_SIZES = {
    50: Look(label="50 % of MACs kept", colour="blue", marker="o", shift=-0.14),
    30: Look(label="30 % of MACs kept", colour="vermilion", marker="s", shift=0.14),
}


def allocations_measured(theme: Theme) -> Figure:
    """Accuracy after one repair by allocation, at two sizes, with the scorer `fisher`."""
    rows = chosen(read("no_retraining.json"), scorer="fisher", repair="repair")
    figure = new_figure(3.0)
    for place, (dataset, title) in enumerate(DATASETS.items()):
        axes = figure.add_axes((0.135 + 0.44 * place, 0.31, 0.4, 0.58))
        axes.set_title(title, size=LARGE)
        axes.set_xlabel("accuracy, %")
        axes.grid(visible=True, axis="x")
        axes.set_axisbelow(True)
        axes.set_xlim(74, 96)
        axes.set_xticks(range(74, 97, 4))
        axes.set_ylim(len(_ALLOCATIONS) - 0.4, -0.6)
        axes.set_yticks(range(len(_ALLOCATIONS)), _ALLOCATIONS if place == 0 else [])
        axes.tick_params(axis="y", length=0)
        of_dataset = chosen(rows, dataset=dataset)
        axes.axvline(
            of_dataset[0]["dense_accuracy"],
            color=theme.ink,
            linewidth=1,
            linestyle=(0, (4, 3)),
            label="dense model",
        )
        for size, look in _SIZES.items():
            _draw_allocations(axes, theme, chosen(of_dataset, macs_kept=size), look)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=3, columnspacing=1.6, handletextpad=0.5)
    return figure


def _draw_allocations(axes: Axes, theme: Theme, rows: Sequence[Row], look: Look) -> None:
    """The points of one size: for every allocation the mean, and the range over draws."""
    spreads = [spread_of(chosen(rows, allocation=name)) for name in _ALLOCATIONS]
    axes.errorbar(
        [spread.mean for spread in spreads],
        [place + look.shift for place in range(len(spreads))],
        xerr=[[spread.below for spread in spreads], [spread.above for spread in spreads]],
        label=look.label,
        color=getattr(theme, look.colour),
        marker=look.marker,
        markersize=5.5,
        linestyle="none",
        elinewidth=1.2,
        capsize=2.5,
    )
