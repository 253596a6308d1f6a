"""The picture of a sweep. Matplotlib is an optional dependency."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hfprune.measuring.latency import Latency
from hfprune.showing.curves import CurvePanel, Dot, Series, draw_curves
from hfprune.showing.picture import Theme
from hfprune.sweeping.points import SweepPoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The level of the error bars.
_CONFIDENCE = 0.95
#: The place of a point on the horizontal axis; None if it was not measured.
_CostOf = Callable[[SweepPoint], float | None]


def draw(points: Sequence[SweepPoint], knee: SweepPoint | None, *, metric: str, theme: Theme) -> "Figure":
    """Draw the metric over the multiply-adds kept and, where it was measured, over the latency.

    Where `evaluate` gave one value a sample, every point has an error bar.

    Args:
        points: The points; the metric of the first is drawn as a horizontal line, too.
        knee: The point to mark, if there is one.
        metric: The name of the metric.
        theme: The colours.

    Returns:
        The figure.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    length = points[0].size.sequence_length
    ylabel = _metric_label(points[0], metric)
    xlabel = f"prunable MACs kept, % ({length} tokens)"
    panels = [_panel(points, knee, _macs_kept, xlabel=xlabel, ylabel=ylabel)]
    latency = points[0].latency
    if latency is not None:
        panels.append(_panel(points, knee, _latency_ms, xlabel=_latency_label(latency), ylabel=ylabel))
    return draw_curves(panels, theme)


def _macs_kept(point: SweepPoint) -> float:
    return 100 * (1 - point.mac_sparsity)


def _latency_ms(point: SweepPoint) -> float | None:
    return point.latency_ms


def _latency_label(latency: Latency) -> str:
    setting = f"batch {latency.batch_size}, {latency.sequence_length} tokens, {latency.device}, {latency.dtype}"
    return f"median latency, ms ({setting})"


def _metric_label(dense: SweepPoint, metric: str) -> str:
    """The name of the metric, and what its error bars are."""
    if dense.per_sample is None:
        return metric
    return f"{metric} (bars: {100 * _CONFIDENCE:.0f} % interval of {dense.samples:,} samples)"


def _panel(
    points: Sequence[SweepPoint], knee: SweepPoint | None, cost_of: _CostOf, *, xlabel: str, ylabel: str
) -> CurvePanel:
    """The metric over one cost. Large models stand at the left, so that sparsity grows from left to right."""
    dots = {}
    for point in points:
        cost = cost_of(point)
        if cost is not None:
            dots[point] = Dot(x=cost, y=point.metric, interval=point.interval(confidence=_CONFIDENCE))
    dense, *pruned = dots.values()
    ring = dots.get(knee) if knee is not None else None
    series = [Series(label=f"dense: {dense.y:.4f}", dots=[dense], marker="s")]
    if pruned:
        series.append(Series(label="pruned", dots=pruned, marker="o", line="-"))
    costs = [dot.x for dot in dots.values()]
    # a little free space at both ends, also where there is one point only
    margin = 0.05 * (max(costs) - min(costs)) or 0.05 * max(costs)
    return CurvePanel(
        xlabel=xlabel,
        ylabel=ylabel,
        series=series,
        level=dense.y,
        ring=ring,
        ring_label=f"knee: sparsity {knee.sparsity:g}" if knee is not None else "",
        xlim=(max(costs) + margin, min(costs) - margin),
    )
