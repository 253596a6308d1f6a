"""Pictures of measurements: a metric against a cost, with intervals, on axes that do not magnify noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hfprune.showing.picture import Theme, new_picture, style, style_legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The least height of an axis of fractions, such as accuracies: ten points.
_LEAST_SPAN = 0.1
#: The least height of another axis, as a share of the largest value.
_LEAST_SHARE = 0.1
#: The least height of an axis, in error bars of the largest size.
_ERROR_BARS = 3
#: What is free above and below the values, as a share of the height.
_MARGIN = 0.08


@dataclass(frozen=True, kw_only=True)
class Dot:
    """One measurement.

    Attributes:
        x: The cost.
        y: The metric.
        interval: The ends of the metric's confidence interval; None if it is not known.
    """

    x: float
    y: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Series:
    """Measurements that share a marker and a colour.

    Attributes:
        label: What the legend says.
        dots: The measurements.
        marker: The marker, in matplotlib's letters.
        line: The style of the line between them; empty for none.
    """

    label: str
    dots: Sequence[Dot]
    marker: str
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class CurvePanel:
    """One of the diagrams that stand side by side.

    Attributes:
        xlabel: The title of the horizontal axis, with its unit.
        ylabel: The title of the vertical axis.
        series: The measurements.
        level: The height of a dashed line, such as the dense model's metric.
        ring: The measurement to mark; None for none.
        ring_label: What the legend says about it.
        xlim: The ends of the horizontal axis; None fits them to the data.
    """

    xlabel: str
    ylabel: str
    series: Sequence[Series]
    level: float | None = None
    ring: Dot | None = None
    ring_label: str = ""
    xlim: tuple[float, float] | None = None


def draw_curves(panels: Sequence[CurvePanel], theme: Theme) -> "Figure":
    """Draw diagrams side by side.

    Args:
        panels: The diagrams.
        theme: The colours.

    Returns:
        The figure.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    figure = new_picture(6 * len(panels), 4.2, theme)
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        _draw_panel(axes, panel, theme)
    return figure


def _draw_panel(axes: "Axes", panel: CurvePanel, theme: Theme) -> None:
    colours = (theme.first, theme.second, theme.third)
    if panel.level is not None:
        axes.axhline(panel.level, color=theme.ink, linewidth=1, linestyle="--", label="level of the dense model")
    for series, colour in zip(panel.series, colours, strict=False):
        _draw_series(axes, series, colour, theme)
    if panel.ring is not None:
        axes.plot(
            [panel.ring.x],
            [panel.ring.y],
            "o",
            markersize=14,
            markeredgewidth=1.5,
            fillstyle="none",
            color=theme.ink,
            label=panel.ring_label,
        )
    if panel.xlim is not None:
        axes.set_xlim(*panel.xlim)
    dots = [dot for series in panel.series for dot in series.dots]
    axes.set_ylim(*span_of(dots))
    axes.grid(color=theme.faint, alpha=0.5, linewidth=0.6)
    axes.set_axisbelow(True)
    style(axes, theme, xlabel=panel.xlabel, ylabel=panel.ylabel)
    style_legend(axes.legend(loc="best"), theme)


def _draw_series(axes: "Axes", series: Series, colour: str, theme: Theme) -> None:
    """Draw markers, the line between them, and the error bars of those that have an interval."""
    below = []
    above = []
    for dot in series.dots:
        low, high = dot.interval or (dot.y, dot.y)
        below.append(dot.y - low)
        above.append(high - dot.y)
    has_bars = any(dot.interval is not None for dot in series.dots)
    axes.errorbar(
        [dot.x for dot in series.dots],
        [dot.y for dot in series.dots],
        yerr=[below, above] if has_bars else None,
        fmt=f"{series.marker}{series.line}",
        color=colour,
        markersize=7,
        markeredgecolor=theme.background,
        markeredgewidth=0.6,
        elinewidth=1.2,
        capsize=3,
        label=series.label,
    )


def span_of(dots: Sequence[Dot]) -> tuple[float, float]:
    """The ends of an axis for some values: wide enough that a difference within the noise does not look large.

    Fractions, such as accuracies, get ten points or more, other values a tenth of the largest. With error bars the
    axis is at least three times as long as the longest of them.

    >>> span_of([Dot(x=1, y=0.90), Dot(x=2, y=0.91)])
    (0.855, 0.955)

    Args:
        dots: The measurements.

    Returns:
        The lower and the upper end.
    """
    lows = []
    highs = []
    longest = 0.0
    for dot in dots:
        low, high = dot.interval or (dot.y, dot.y)
        lows.append(low)
        highs.append(high)
        longest = max(longest, high - low)
    bottom = min(lows)
    top = max(highs)
    are_fractions = bottom >= 0 and top <= 1
    least = _LEAST_SPAN if are_fractions else _LEAST_SHARE * max(abs(bottom), abs(top))
    # two values of 0 leave nothing to take a share of
    needed = max(least, _ERROR_BARS * longest, (top - bottom) * (1 + 2 * _MARGIN)) or 1.0
    middle = (bottom + top) / 2
    low_end = middle - needed / 2
    high_end = middle + needed / 2
    if are_fractions:
        # no accuracy is above 1: the axis moves down, but a marker at 1 is not cut
        overshoot = max(high_end - (1 + _MARGIN * needed), 0.0)
        low_end, high_end = low_end - overshoot, high_end - overshoot
    return round(low_end, 12), round(high_end, 12)
