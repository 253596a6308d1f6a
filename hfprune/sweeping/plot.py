"""The picture of a sweep. Matplotlib is an optional dependency: `pip install hfprune[plot]`."""

import io
from collections.abc import Sequence

from hfprune.errors import MissingDependencyError
from hfprune.sweeping.points import SweepPoint


def require_matplotlib() -> None:
    """Fail early, before a long sweep, if there is nothing to draw with.

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
    """Draw the metric against the multiply-adds kept and, where it was measured, against the latency.

    Args:
        points: The points; the first is drawn as a level, too.
        knee: The point to mark.
        metric: What the metric is called.

    Returns:
        A PNG.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    length = points[0].size.sequence_length
    panels = {f"prunable MACs kept, % ({length} tokens)": {p: 100 * (1 - p.mac_sparsity) for p in points}}
    timed = points[0].latency
    if timed is not None:
        how = f"batch {timed.batch_size}, {timed.sequence_length} tokens, {timed.device}, {timed.dtype}"
        panels[f"median latency, ms ({how})"] = {p: p.latency_ms for p in points if p.latency_ms is not None}
    figure = Figure(figsize=(6 * len(panels), 4.5), layout="constrained")
    for axis, (label, costs) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        axis.axhline(points[0].metric, color="black", linewidth=1, linestyle="--", label="dense")
        axis.plot(list(costs.values()), [p.metric for p in costs], marker="o", markersize=4, label="pruned")
        if knee in costs:
            axis.plot([costs[knee]], [knee.metric], "o", markersize=11, fillstyle="none", color="tab:red", label="knee")
        axis.set(xlabel=label, ylabel=metric)
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
        axis.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return buffer.getvalue()
