"""The picture of a sweep. Matplotlib is an optional dependency: `pip install hfprune[plot]`."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hfprune.errors import MissingDependencyError
from hfprune.measuring.latency import Latency
from hfprune.sweeping.points import SweepPoint


def require_matplotlib() -> None:
    """Raise an error early, before a long sweep, if matplotlib is missing.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401 (optional, and slow to import)
    except ImportError as error:
        raise MissingDependencyError(
            "matplotlib, which draws the picture of a sweep, is not installed: pip install hfprune[plot]"
        ) from error


def draw(points: Sequence[SweepPoint], knee: SweepPoint | None, *, metric: str) -> bytes:
    """Draw the metric over the multiply-adds kept and, where it was measured, over the latency.

    Args:
        points: The points; the metric of the first is drawn as a horizontal line, too.
        knee: The point to mark, if there is one.
        metric: The name of the metric.

    Returns:
        A PNG.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    panels = [_mac_panel(points)]
    latency = points[0].latency
    if latency is not None:
        panels.append(_latency_panel(points, latency))
    # a Figure without pyplot: no window, no global state
    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        metrics = [point.metric for point in panel.costs]
        axis.axhline(points[0].metric, color="black", linewidth=1, linestyle="--", label="dense")
        axis.plot(list(panel.costs.values()), metrics, marker="o", markersize=4, label="pruned")
        if knee is not None and knee in panel.costs:
            knee_cost = panel.costs[knee]
            axis.plot([knee_cost], [knee.metric], "o", markersize=11, fillstyle="none", color="tab:red", label="knee")
        axis.set(xlabel=panel.label, ylabel=metric)
        # from large models to small ones, so that sparsity grows from left to right
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
        axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """One of the diagrams that stand side by side.

    Attributes:
        label: The label of the horizontal axis.
        costs: By point, its place on that axis.
    """

    label: str
    costs: Mapping[SweepPoint, float]


def _mac_panel(points: Sequence[SweepPoint]) -> _Panel:
    length = points[0].size.sequence_length
    costs = {point: 100 * (1 - point.mac_sparsity) for point in points}
    return _Panel(label=f"prunable MACs kept, % ({length} tokens)", costs=costs)


def _latency_panel(points: Sequence[SweepPoint], latency: Latency) -> _Panel:
    setting = f"batch {latency.batch_size}, {latency.sequence_length} tokens, {latency.device}, {latency.dtype}"
    costs = {point: point.latency_ms for point in points if point.latency_ms is not None}
    return _Panel(label=f"median latency, ms ({setting})", costs=costs)
