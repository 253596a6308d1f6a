"""Sweep: the measurements of one model at many sparsities, with its knee, its table, its file and its picture."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hfprune.measuring.latency import Latency
from hfprune.measuring.size import Size
from hfprune.showing.files import write_whole
from hfprune.showing.picture import ThemeName, save_picture, theme_of
from hfprune.showing.tables import Table, data_frame
from hfprune.structure.arguments import checked, finite
from hfprune.sweeping.plot import draw
from hfprune.sweeping.points import Drop, SweepPoint, check_max_drop, paired_drop, shown_above

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

FORMAT_VERSION = 1


#: The level of intervals, unless another is asked for.
_CONFIDENCE = 0.95
#: Heights above the chord up to this are rounding errors, not a knee.
_FLAT = 1e-12


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """The measurements that `sweep` and `prune_within` return.

    Attributes:
        points: From the model that was given, which is usually dense, to the highest sparsity.
        settings: Everything that the points depend on: the config, digests of the weights and of the calibration
            samples, and so on.
        scoring_seconds: Time for the one scoring pass; None where every point has scoring passes of its own.

    Examples:
        >>> from hfprune.measuring.size import Size
        >>> from hfprune.sweeping import Sweep, SweepPoint
        >>> def measured(sparsity, right):
        ...     left = round(1000 * (1 - sparsity))
        ...     size = Size(
        ...         params=left + 500,
        ...         prunable_params=left,
        ...         macs=left,
        ...         prunable_macs=left,
        ...         sequence_length=8,
        ...         weight_bytes=4 * left,
        ...     )
        ...     return SweepPoint(
        ...         sparsity=sparsity,
        ...         mac_sparsity=sparsity,
        ...         param_sparsity=sparsity,
        ...         metric=right / 1000,
        ...         per_sample=(1.0,) * right + (0.0,) * (1000 - right),
        ...         size=size,
        ...         seconds=1.5,
        ...         plan_digest="",
        ...     )
        >>> settings = {"metric": "accuracy", "budget": "macs", "scorer": "fisher"}
        >>> curve = Sweep(points=(measured(0.0, 900), measured(0.4, 898), measured(0.8, 700)), settings=settings)
        >>> for line in curve.table().splitlines()[:4]:
        ...     print(line)
        sparsity  MACs kept  params kept  parameters  accuracy    drop  at most  seconds
            0.00     100.0%       100.0%       1,500    0.9000  0.0000               1.5
            0.40      60.0%        60.0%       1,100    0.8980  0.0020   0.0053      1.5  ← knee
            0.80      20.0%        20.0%         700    0.7000  0.2000   0.2205      1.5
        >>> curve.within(0.01).sparsity
        0.4
    """

    points: tuple[SweepPoint, ...]
    settings: Mapping[str, Any]
    scoring_seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.points:
            raise ValueError("a sweep has at least one point: the model that it was given.")

    @property
    def dense(self) -> SweepPoint:
        """The first point: the model that the sweep was given."""
        return self.points[0]

    @property
    def metric(self) -> str:
        """The name of the metric."""
        return str(self.settings["metric"])

    @property
    def knee(self) -> SweepPoint | None:
        """Where the metric begins to fall faster: the point farthest above the chord from the first point to the last.

        It is the knee of a concave curve by Kneedle (Satopaa et al. 2011, "Finding a Kneedle in a haystack"), with the
        metric over the removed fraction of MACs. Kneedle looks for the largest distance from the chord on axes that are
        normalised to [0, 1]. That distance is proportional to the height above the chord, so heights are compared here,
        without normalising. The knee depends on where the sweep ends. It is None if no point is above the chord.

        It is also None where noise could have made it: where the samples do not show, at 95 % confidence, that the
        point is above the chord; or where the point is above the first one, and the samples do not show that either.
        Without values of samples, a point above the first one is none.
        """
        first = self.points[0]
        last = self.points[-1]
        width = last.mac_sparsity - first.mac_sparsity
        # a sweep of one point, or of equal models, has no chord
        if width <= 0:
            return None
        slope = (last.metric - first.metric) / width
        heights = []
        for point in self.points:
            heights.append(point.metric - first.metric - slope * (point.mac_sparsity - first.mac_sparsity))
        highest = max(heights)
        if highest <= _FLAT:
            return None
        candidate = self.points[heights.index(highest)]
        return candidate if self._is_beyond_noise(candidate) else None

    def _is_beyond_noise(self, point: SweepPoint) -> bool:
        """Whether a point above the chord is shown to be there, and not to have risen above the first one by chance."""
        first = self.points[0]
        last = self.points[-1]
        is_risen = point.metric > first.metric
        if first.per_sample is None or last.per_sample is None or point.per_sample is None:
            return not is_risen
        if first.samples != point.samples or first.samples != last.samples or len(first.per_sample) < 2:
            return False
        share = (point.mac_sparsity - first.mac_sparsity) / (last.mac_sparsity - first.mac_sparsity)
        chord = []
        for start, end in zip(first.per_sample, last.per_sample, strict=True):
            chord.append((1 - share) * start + share * end)
        if not shown_above(point.per_sample, chord):
            return False
        return not is_risen or shown_above(point.per_sample, first.per_sample)

    @checked(confidence=finite())
    def drop(self, point: SweepPoint, *, confidence: float = 0.95) -> Drop:
        """How much lower the metric of a point is than that of the first one, on the same samples.

        Args:
            point: A point of the sweep.
            confidence: The level of the one-sided interval that `paired_drop` describes.

        Returns:
            The drop, with the upper end of the interval.

        Raises:
            ValueError: `evaluate` gave one number a model, so that no interval is possible.
        """
        if self.dense.per_sample is None or point.per_sample is None:
            raise ValueError(
                "evaluate gave one number a model, so no confidence interval of the drop is possible. Let it return "
                "one value a sample, such as right or wrong: hfprune.sweeping.correctness(dataset, collator=...) does "
                "for classifiers."
            )
        return paired_drop(self.dense.per_sample, point.per_sample, confidence=confidence)

    @checked(max_drop=finite(), confidence=finite())
    def within(self, max_drop: float, *, confidence: float = 0.95) -> SweepPoint | None:
        """The point of the highest sparsity whose drop is shown to be below a limit: its interval ends below it.

        The interval is that of a single comparison. Choosing among several points makes it a little optimistic: confirm
        the chosen model on samples that were not used for the choice.

        Args:
            max_drop: The limit, in the unit of the metric: 0.01 is one point of an accuracy in [0, 1].
            confidence: The level of the one-sided interval.

        Returns:
            The point; None if only the first one is below the limit.

        Raises:
            ValueError: The limit is not positive, `evaluate` gave one number a model, or there are too few samples to
                show of any model that its drop is below the limit.
        """
        check_max_drop(max_drop, self.drop(self.dense, confidence=confidence))
        best = None
        # up to the last point: drops need not grow with the sparsity, and the highest sparsity counts
        for point in self.points[1:]:
            if self.drop(point, confidence=confidence).upper < max_drop:
                best = point
        return best

    @checked(milliseconds=finite(above=0))
    def within_ms(self, milliseconds: float) -> SweepPoint | None:
        """The point of the best metric among those whose measured latency is at most a limit.

        Args:
            milliseconds: The limit.

        Returns:
            The point; of equal metrics the fastest. None if all points are slower.

        Raises:
            ValueError: The sweep measured no latency.
        """
        if self.dense.latency is None:
            raise ValueError("this sweep measured no latency: give sweep(latency_batch_size=...).")
        fast = [point for point in self.points if point.latency_ms is not None and point.latency_ms <= milliseconds]
        # the fastest is the last one
        return max(reversed(fast), key=lambda point: point.metric, default=None)

    @checked(confidence=finite())
    def table(self, *, confidence: float = 0.95) -> str:
        """The points as a table of plain text, with notes that say how every number was measured.

        Args:
            confidence: The level of the one-sided interval of the drop, where `evaluate` gave one value a sample.

        Returns:
            The table.
        """
        rows = [self._head()]
        for point in self.points:
            rows.append(self._row(point, confidence))
        lines = _aligned(rows)
        knee = self.knee
        if knee is not None:
            # the first line is the head
            lines[1 + self.points.index(knee)] += "  ← knee"
        return "\n".join([*lines, *self._notes(confidence)])

    def _head(self) -> list[str]:
        """The titles of the columns."""
        titles = ["sparsity", "MACs kept", "params kept", "parameters", self.metric, "drop"]
        if self.dense.per_sample is not None:
            titles.append("at most")
        if self.dense.latency is not None:
            titles += ["latency, ms", "speed-up"]
        if self.dense.predicted_ms is not None:
            titles.append("predicted, ms")
        return [*titles, "seconds"]

    def _row(self, point: SweepPoint, confidence: float) -> list[str]:
        """The cells of a point, as many as `_head` has titles."""
        cells = [
            f"{point.sparsity:.2f}",
            f"{1 - point.mac_sparsity:.1%}",
            f"{1 - point.param_sparsity:.1%}",
            f"{point.params:,}",
            f"{point.metric:.4f}",
            f"{self.dense.metric - point.metric:.4f}",
        ]
        if self.dense.per_sample is not None:
            # a model has no drop against itself
            at_most = "" if point is self.dense else f"{self.drop(point, confidence=confidence).upper:.4f}"
            cells.append(at_most)
        if self.dense.latency is not None:
            cells += [f"{point.latency_ms:.1f}", f"{point.speedup:.2f}×"]
        if self.dense.predicted_ms is not None:
            cells.append("" if point.predicted_ms is None else f"{point.predicted_ms:.1f}")
        return [*cells, f"{point.seconds:.1f}"]

    def _notes(self, confidence: float) -> list[str]:
        """A line for every group of columns: what its numbers count, and how they were measured."""
        notes = [self._sizes_note(), self._metric_note(confidence)]
        if self.dense.latency is not None:
            notes.append(_latency_note(self.dense.latency))
        return [*notes, self._seconds_note()]

    def _sizes_note(self) -> str:
        dense = self.dense
        # the first point may be a pruned model, and the fractions refer to the dense one
        macs = _before_pruning(dense.size.prunable_macs, dense.mac_sparsity)
        params = _before_pruning(dense.size.prunable_params, dense.param_sparsity)
        return (
            f"sparsity: asked for, in prunable {self.settings['budget']} of the dense model; MACs kept: of its "
            f"{macs:,} prunable ones for a sequence of {dense.size.sequence_length} tokens; params kept: of its "
            f"{params:,} prunable ones; parameters: all"
        )

    def _metric_note(self, confidence: float) -> str:
        if self.dense.per_sample is None:
            return f"{self.metric}: as evaluate gave it, of unknown samples; drop: from the first row"
        return (
            f"{self.metric}: mean over {self.dense.samples:,} samples, the same in every row; drop: from the first "
            f"row; at most: the upper end of its paired one-sided {confidence:.0%} interval"
        )

    def _seconds_note(self) -> str:
        stages = "surgery, repair, recovery and evaluation"
        scorer = f"scorer: {self.settings['scorer']}"
        if self.scoring_seconds is None:
            return f"seconds: scoring, {stages}; {scorer}"
        return f"seconds: {stages}; one scoring pass before, {self.scoring_seconds:.1f}; {scorer}"

    def __str__(self) -> str:
        return self.table()

    def to_json(self) -> str:
        """The sweep as JSON, with one line for every point."""
        head = {
            "format_version": FORMAT_VERSION,
            "settings": dict(self.settings),
            "scoring_seconds": self.scoring_seconds,
        }
        lines = ",\n  ".join(json.dumps(asdict(point)) for point in self.points)
        # An indented dump of the points would put the value of every sample on its own line. So each point is dumped
        # without indentation, and the list of points is appended to the head in front of the closing brace.
        opened = json.dumps(head, indent=1).removesuffix("\n}")
        return f'{opened},\n "points": [\n  {lines}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> "Sweep":
        """Read a sweep from the text that `to_json` returned.

        Args:
            text: The JSON.

        Returns:
            The sweep.

        Raises:
            ValueError: The text is not a sweep, or its format is newer than this version of hfprune.
        """
        try:
            data = json.loads(text)
            version = data["format_version"]
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"the sweep has format_version {version}, this hfprune reads {FORMAT_VERSION}: upgrade it."
                )
            points = tuple(_point(fields) for fields in data["points"])
            return cls(points=points, settings=data["settings"], scoring_seconds=data["scoring_seconds"])
        # a missing key, a value of another type, or no JSON at all
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a sweep: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write the sweep as JSON; the file is replaced as a whole.

        Args:
            path: The file; folders are made.

        Returns:
            The file.
        """
        return write_whole(Path(path), self.to_json().encode())

    def plot(self, path: str | Path | None = None, *, theme: ThemeName = "light") -> "Figure":
        """Draw the metric over MACs kept and over latency, with the knee and the dense model's level.

        Every point has its 95 % interval, where `evaluate` gave one value a sample. The axis of the metric is so long
        that differences within that interval do not look large.

        Args:
            path: A file to write the picture into, as PNG, SVG or PDF by its suffix; None: no file.
            theme: `light` or `dark`.

        Returns:
            The figure of matplotlib, which a notebook shows.

        Raises:
            MissingDependencyError: Matplotlib is not installed.
            ValueError: The file has another suffix, or the theme is unknown.

        Examples:
            >>> from hfprune.measuring.size import Size
            >>> from hfprune.sweeping import Sweep, SweepPoint
            >>> size = Size(
            ...     params=9, prunable_params=4, macs=9, prunable_macs=4, sequence_length=8, weight_bytes=36
            ... )
            >>> first = SweepPoint(
            ...     sparsity=0.0,
            ...     mac_sparsity=0.0,
            ...     param_sparsity=0.0,
            ...     metric=0.9,
            ...     size=size,
            ...     seconds=1.0,
            ...     plan_digest="",
            ... )
            >>> figure = Sweep(points=(first,), settings={"metric": "accuracy"}).plot()
            >>> figure.axes[0].get_ylabel()
            'accuracy'
        """
        return save_picture(draw(self.points, self.knee, metric=self.metric, theme=theme_of(theme)), path)

    def to_pandas(self) -> "DataFrame":
        """The sweep as a data frame, with a row for each point.

        Returns:
            Columns `sparsity` (asked for), `mac_sparsity`, `param_sparsity`, `params` and `macs` (of the whole model),
            the metric under its name, `low` and `high` (the ends of its 95 % interval; NaN where it is not known),
            `drop` (from the first row), `drop_at_most` (the upper end of its one-sided 95 % interval), `samples`,
            `latency_ms`, `speedup`, `predicted_ms`, `seconds`, `knee` (whether the point is the knee) and
            `plan_digest`.

        Examples:
            >>> from hfprune.measuring.size import Size
            >>> from hfprune.sweeping import Sweep, SweepPoint
            >>> size = Size(
            ...     params=9, prunable_params=4, macs=9, prunable_macs=4, sequence_length=8, weight_bytes=36
            ... )
            >>> first = SweepPoint(
            ...     sparsity=0.0,
            ...     mac_sparsity=0.0,
            ...     param_sparsity=0.0,
            ...     metric=0.9,
            ...     size=size,
            ...     seconds=1.0,
            ...     plan_digest="",
            ... )
            >>> frame = Sweep(points=(first,), settings={"metric": "accuracy"}).to_pandas()
            >>> frame[["sparsity", "params", "accuracy", "drop"]].values.tolist()
            [[0.0, 9.0, 0.9, 0.0]]
        """
        knee = self.knee
        rows = []
        for point in self.points:
            low, high = point.interval() or (math.nan, math.nan)
            row = {
                "sparsity": point.sparsity,
                "mac_sparsity": point.mac_sparsity,
                "param_sparsity": point.param_sparsity,
                "params": point.params,
                "macs": point.size.macs,
                self.metric: point.metric,
                "low": low,
                "high": high,
                "drop": self.dense.metric - point.metric,
                "drop_at_most": self._at_most(point),
                "samples": point.samples,
                "latency_ms": point.latency_ms,
                "speedup": point.speedup,
                "predicted_ms": point.predicted_ms,
                "seconds": point.seconds,
                "knee": point is knee,
                "plan_digest": point.plan_digest,
            }
            rows.append(row)
        return data_frame(rows)

    def _at_most(self, point: SweepPoint) -> float:
        """The upper end of the interval of a point's drop; NaN for the first point, and without values of samples."""
        if point is self.dense or self.dense.per_sample is None:
            return math.nan
        return self.drop(point).upper

    def _repr_html_(self) -> str:
        rows = []
        for point in self.points:
            mark = "knee" if point is self.knee else ""
            rows.append([*self._row(point, _CONFIDENCE), mark])
        return Table(head=[*self._head(), ""], rows=rows, notes=self._notes(_CONFIDENCE)).html()


def in_order(points: Iterable[SweepPoint]) -> tuple[SweepPoint, ...]:
    """Points from the lowest sparsity to the highest."""
    return tuple(sorted(points, key=lambda point: point.sparsity))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of text, with columns of equal width."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells))
    return lines


def _latency_note(latency: Latency) -> str:
    return (
        f"latency: median of {latency.runs} runs each, in turn; {latency.device}, {latency.dtype}, "
        f"{latency.threads} threads, batch {latency.batch_size}, {latency.sequence_length} tokens; "
        "speed-up: over the first row"
    )


def _before_pruning(remaining: int, sparsity: float) -> int:
    """The count of the dense model, from the count that remains and the fraction that was removed."""
    # nothing remains to compute the count from
    if sparsity >= 1:
        return 0
    return round(remaining / (1 - sparsity))


def _point(fields: Mapping[str, Any]) -> SweepPoint:
    """A point from its fields as JSON has them: plain dictionaries and lists."""
    nested: dict[str, Any] = {"size": Size(**fields["size"])}
    if fields["latency"] is not None:
        nested["latency"] = Latency(**fields["latency"])
    if fields["per_sample"] is not None:
        # JSON gives a list, which would not be equal to the tuple of the point that was saved
        nested["per_sample"] = tuple(fields["per_sample"])
    return SweepPoint(**{**fields, **nested})
