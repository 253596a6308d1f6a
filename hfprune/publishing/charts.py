"""The pictures of a card: the share of units kept in every layer, and accuracy against size. They need matplotlib."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from hfprune.planning.plan import PruningPlan
from hfprune.publishing.record import PruningRecord
from hfprune.showing.curves import CurvePanel, Dot, Series, draw_curves
from hfprune.showing.picture import Theme, save_picture, theme_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: File names of the pictures.
KEPT_UNITS = "kept_units.png"
ACCURACY = "accuracy_against_size.png"
#: The marker of each stage in the picture of accuracy against size.
_MARKERS = {"dense": "s", "pruned": "o", "recovered": "^"}
#: Metrics of which less is better: the axis says so.
_FALLING = ("perplexity", "loss")


def draw_pictures(record: PruningRecord, plan: PruningPlan, folder: Path) -> list[str]:
    """Draw the pictures that the record and the plan have data for. It needs matplotlib: ask `can_draw` before.

    Args:
        record: The record of the pruned model.
        plan: The plan of the pruned model.
        folder: The folder that the PNG files are written into.

    Returns:
        The names of the files.
    """
    names = pictures_of(record)
    plan.plot(folder / KEPT_UNITS)
    if ACCURACY in names:
        save_picture(draw_accuracy(record, theme_of("light")), folder / ACCURACY)
    return names


def pictures_of(record: PruningRecord) -> list[str]:
    """The names of the pictures that a record has data for."""
    if record.sizes and _values_of_first_metric(record):
        return [KEPT_UNITS, ACCURACY]
    return [KEPT_UNITS]


def _values_of_first_metric(record: PruningRecord) -> dict[str, float]:
    """By stage, the values of the dense model's first metric that can be drawn."""
    values: dict[str, float] = {}
    for metric in list(record.metrics.get("dense", {}))[:1]:
        for stage in _MARKERS:
            value = record.metrics.get(stage, {}).get(metric)
            # no axis reaches infinity, and the file of a record has null for it
            if value is not None and math.isfinite(value):
                values[stage] = value
    return values


def draw_accuracy(record: PruningRecord, theme: Theme) -> "Figure":
    """Draw the first metric at every stage against the multiply-adds, in percent of the dense model's.

    There are no error bars: a record does not say how many samples a metric is a mean of.

    Args:
        record: A record with sizes, and with a metric of the dense model that is finite at one stage or more.
        theme: The colours.

    Returns:
        The figure.
    """
    metric = next(iter(record.metrics["dense"]))
    dense_size = record.sizes["dense"]
    series = []
    for stage, value in _values_of_first_metric(record).items():
        # recovery changes weights only, so a recovered model has the size of the pruned one
        size = record.sizes["dense" if stage == "dense" else "pruned"]
        share = 100 * size["macs"] / dense_size["macs"]
        label = f"{stage}: {value:.4f} at {share:.0f} % of the multiply-adds"
        series.append(Series(label=label, dots=[Dot(x=share, y=value)], marker=_MARKERS[stage]))
    length = dense_size["sequence_length"]
    panel = CurvePanel(
        xlabel=f"multiply-adds of the dense model, % ({length} tokens)",
        ylabel=f"{metric} (less is better)" if metric in _FALLING else metric,
        series=series,
        xlim=(0, 108),
    )
    return draw_curves([panel], theme)
