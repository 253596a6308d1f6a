"""Sweep: many sizes of one model, as a table, a file and a picture; its knee, and which size is good enough."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hfprune.measuring.latency import Latency
from hfprune.measuring.size import Size
from hfprune.sweeping.plot import draw
from hfprune.sweeping.points import Drop, SweepPoint, check_max_drop, paired_drop

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What `sweep` and `prune_within` measured.

    Attributes:
        points: From the model that was given, which is usually dense, to the highest sparsity.
        settings: What the points depend on: the config, digests of the weights and of the calibration samples ...
        scoring_seconds: What the one scoring pass took; None where every point has passes of its own.
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
        """What the metric is called."""
        return str(self.settings["metric"])

    @property
    def knee(self) -> SweepPoint | None:
        """Where the metric begins to fall faster: the point farthest above the chord from the first point to the last.

        The knee of a concave curve by Kneedle (Satopaa et al. 2011, "Finding a Kneedle in a haystack"), of the metric
        over the removed fraction of MACs. On axes that are normalised to [0, 1] the distance from the chord is
        proportional to the height above it, so the heights decide. It depends on where the sweep ends. None if no
        point is above the chord.
        """
        first, last = self.points[0], self.points[-1]
        width = last.mac_sparsity - first.mac_sparsity
        if width <= 0:
            return None
        slope = (last.metric - first.metric) / width
        heights = [p.metric - first.metric - slope * (p.mac_sparsity - first.mac_sparsity) for p in self.points]
        highest = max(heights)
        return self.points[heights.index(highest)] if highest > 1e-12 else None

    def drop(self, point: SweepPoint, *, confidence: float = 0.95) -> Drop:
        """How much a point lost against the first one, on the same samples.

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

    def within(self, max_drop: float, *, confidence: float = 0.95) -> SweepPoint | None:
        """The point of the highest sparsity whose drop is shown to be below a limit: the upper end of its interval is.

        The interval is of one comparison. The choice among several points makes it a little optimistic: confirm the
        chosen model on samples that did not choose it.

        Args:
            max_drop: The limit, in the unit of the metric: 0.01 is one point of an accuracy in [0, 1].
            confidence: The level of the one-sided interval.

        Returns:
            The point; None if there is none but the first.

        Raises:
            ValueError: The limit is not positive, `evaluate` gave one number a model, or there are too few samples to
                show it of any model.
        """
        check_max_drop(max_drop, self.drop(self.dense, confidence=confidence))
        drops = [(point, self.drop(point, confidence=confidence)) for point in self.points[1:]]
        return next((point for point, drop in reversed(drops) if drop.upper < max_drop), None)

    def table(self, *, confidence: float = 0.95) -> str:
        """The points as a table of plain text, and what every number in it is of.

        Args:
            confidence: The level of the one-sided interval of the drop, where `evaluate` gave one value a sample.

        Returns:
            The table.
        """
        paired, timed = self.dense.per_sample is not None, self.dense.latency is not None
        head = ["sparsity", "MACs kept", "params kept", "parameters", self.metric, "drop"]
        rows = [[*head, *(["at most"] if paired else []), *(["latency, ms", "speed-up"] if timed else []), "seconds"]]
        for point in self.points:
            row = [f"{point.sparsity:.2f}", f"{1 - point.mac_sparsity:.1%}", f"{1 - point.param_sparsity:.1%}"]
            row += [f"{point.params:,}", f"{point.metric:.4f}", f"{self.dense.metric - point.metric:.4f}"]
            if paired:
                row.append("" if point is self.dense else f"{self.drop(point, confidence=confidence).upper:.4f}")
            if timed:
                row += [f"{point.latency_ms:.1f}", f"{point.speedup:.2f}×"]
            rows.append([*row, f"{point.seconds:.1f}"])
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        if self.knee is not None:
            lines[1 + self.points.index(self.knee)] += "  ← knee"
        return "\n".join([*lines, *self._notes(confidence)])

    def _notes(self, confidence: float) -> list[str]:
        dense, settings = self.dense, self.settings
        macs, params = (
            _whole(dense.size.prunable_macs, dense.mac_sparsity),
            _whole(dense.size.prunable_params, dense.param_sparsity),
        )
        notes = [
            f"sparsity: asked for, in prunable {settings['budget']} of the dense model; MACs kept: of its {macs:,} "
            f"prunable ones for a sequence of {dense.size.sequence_length} tokens; params kept: of its {params:,} "
            "prunable ones; parameters: all",
            f"{self.metric}: as evaluate gave it, of unknown samples; drop: from the first row",
        ]
        if dense.per_sample is not None:
            notes[-1] = (
                f"{self.metric}: mean over {dense.samples:,} samples, the same in every row; drop: from the first row; "
                f"at most: the upper end of its paired one-sided {confidence:.0%} interval"
            )
        if dense.latency is not None:
            how = dense.latency
            notes.append(
                f"latency: median of {how.runs} runs each, in turn; {how.device}, {how.dtype}, {how.threads} threads, "
                f"batch {how.batch_size}, {how.sequence_length} tokens; speed-up: over the first row"
            )
        before = "scoring, " if self.scoring_seconds is None else ""
        after = "" if self.scoring_seconds is None else f"; one scoring pass before, {self.scoring_seconds:.1f}"
        notes.append(f"seconds: {before}surgery, repair, recovery and evaluation{after}; scorer: {settings['scorer']}")
        return notes

    def __str__(self) -> str:
        return self.table()

    def to_json(self) -> str:
        """The sweep as JSON, one line a point."""
        head = {
            "format_version": FORMAT_VERSION,
            "settings": dict(self.settings),
            "scoring_seconds": self.scoring_seconds,
        }
        lines = ",\n  ".join(json.dumps(asdict(point)) for point in self.points)
        return json.dumps(head, indent=1)[:-2] + ',\n "points": [\n  ' + lines + "\n ]\n}\n"

    @classmethod
    def from_json(cls, text: str) -> "Sweep":
        """Read what `to_json` wrote.

        Args:
            text: JSON.

        Returns:
            The sweep.

        Raises:
            ValueError: It is not a sweep, or of a newer format.
        """
        try:
            data = json.loads(text)
            version = data["format_version"]
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"the sweep has format_version {version}, this hfprune reads {FORMAT_VERSION}: upgrade it."
                )
            points = tuple(_point(values) for values in data["points"])
            return cls(points=points, settings=data["settings"], scoring_seconds=data["scoring_seconds"])
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a sweep: {type(error).__name__}: {error}") from error

    def save(self, path: str | Path) -> Path:
        """Write the sweep as JSON; the file is replaced as a whole.

        Args:
            path: The file; folders are made.

        Returns:
            The file.
        """
        return _write_whole(Path(path), self.to_json().encode())

    def plot(self, path: str | Path) -> Path:
        """Draw the metric against MACs kept and latency into a PNG, with the knee and the dense model's level.

        Args:
            path: The file; folders are made.

        Returns:
            The file.

        Raises:
            MissingDependencyError: Matplotlib is not installed.
        """
        return _write_whole(Path(path), draw(self.points, self.knee, metric=self.metric))


def in_order(points: Iterable[SweepPoint]) -> tuple[SweepPoint, ...]:
    """Points from the lowest sparsity to the highest."""
    return tuple(sorted(points, key=lambda point: point.sparsity))


def _whole(kept: int, sparsity: float) -> int:
    """What the dense model has, from what is kept and the fraction that is gone."""
    return round(kept / (1 - sparsity)) if sparsity < 1 else 0


def _point(values: Mapping[str, Any]) -> SweepPoint:
    latency, samples = values["latency"], values["per_sample"]
    nested = {
        "size": Size(**values["size"]),
        "latency": None if latency is None else Latency(**latency),
        "per_sample": None if samples is None else tuple(samples),
    }
    return SweepPoint(**{**values, **nested})


def _write_whole(path: Path, content: bytes) -> Path:
    """Write beside the file, then put it in its place: a run that is killed leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.saving")
    try:
        with draft.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
