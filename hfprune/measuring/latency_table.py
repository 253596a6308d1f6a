"""Latency tables: what a sublayer of a model takes by how many units it has, and so what a pruned model will take.

`measure_latency_table` in `block_times` makes one. Here it is only a value: it can be asked, printed, saved and loaded.
"""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hfprune.errors import BudgetError, PlanMismatchError
from hfprune.showing.files import write_whole
from hfprune.showing.tables import Table
from hfprune.structure.arguments import checked, finite, optional, whole
from hfprune.structure.blocks import Block
from hfprune.structure.json_text import read_json
from hfprune.structure.specs import Unit

FORMAT_VERSION = 1
#: Costs are whole numbers, as allocators count them: nanoseconds.
_NANOSECONDS = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SublayerTimes:
    """What sublayers of one shape take, each, by how many units they have.

    Attributes:
        blocks: The names of the blocks of this shape.
        unit: What one unit is: `group`, `query` or `neuron`.
        units: How many units each of them has in the dense model.
        widths: Numbers of units that were measured, increasing: from the fewest that the model can run with to all.
        milliseconds: What one sublayer takes at these widths beyond what it takes at the first, never falling. So the
            first is 0; what a sublayer without units still takes is in the table's `rest_ms`.
        step: Widths that are multiples of this are fast.
        off_step: How many times as long other widths take as `milliseconds` says; 1 if that made no difference.
    """

    blocks: tuple[str, ...]
    unit: Unit
    units: int
    widths: tuple[int, ...]
    milliseconds: tuple[float, ...]
    step: int = 1
    off_step: float = 1.0

    def __post_init__(self) -> None:
        for count in (self.units, *self.widths):
            whole(least=0).check("units and widths of a latency table", count)
        for number in (self.off_step, *self.milliseconds):
            finite().check("off_step and milliseconds of a latency table", number)
        whole().check("step of a latency table", self.step)
        increases = all(low < high for low, high in zip(self.widths, self.widths[1:], strict=False))
        rises = all(low <= high for low, high in zip(self.milliseconds, self.milliseconds[1:], strict=False))
        if len(self.widths) != len(self.milliseconds) or not self.widths or not increases or not rises:
            raise ValueError(
                f"a latency table must have increasing widths and times that never fall, got {self.widths[:8]} and "
                f"{self.milliseconds[:8]} for {self.blocks[:1]}."
            )
        if self.widths[-1] != self.units or self.milliseconds[0] != 0 or self.off_step < 1 or self.step < 1:
            raise ValueError(
                f"the times of {self.blocks[:1]} must begin at 0 ms and end at all {self.units} units, and step and "
                f"off_step be at least 1, got {self.widths[-1]} units, {self.milliseconds[0]:g} ms, {self.step} and "
                f"{self.off_step:g}."
            )

    def at(self, units: int) -> float:
        """What one sublayer takes with so many units, in milliseconds.

        Between two measured widths it is interpolated. The step from no units to the narrowest sublayer is not: all of
        its fixed cost is due with the first unit.

        Args:
            units: The number of units.

        Returns:
            Milliseconds.

        Examples:
            >>> from hfprune.measuring.latency_table import SublayerTimes
            >>> times = SublayerTimes(
            ...     blocks=("l.0.ffn",), unit="neuron", units=64, widths=(0, 16, 64), milliseconds=(0.0, 1.0, 2.5)
            ... )
            >>> times.at(0), times.at(1), times.at(16), times.at(40)
            (0.0, 1.0, 1.0, 1.75)
        """
        place = bisect_left(self.widths, units)
        if units <= self.widths[0]:
            return self.milliseconds[0]
        if units >= self.units:
            return self.milliseconds[-1]
        low, high = self.widths[place - 1], self.widths[place]
        below, above = self.milliseconds[place - 1], self.milliseconds[place]
        time = above
        if place > 1:
            time = below + (above - below) * (units - low) / (high - low)
        return time if units % self.step == 0 else time * self.off_step


@dataclass(frozen=True, kw_only=True)
class PredictedLatency:
    """What a latency table says of a pruned model before it is made.

    Attributes:
        pruned_ms: What a pass of the pruned model will take.
        dense_ms: What one of the dense model takes, by the same table.
    """

    pruned_ms: float
    dense_ms: float

    @property
    def speedup(self) -> float:
        """How many times as fast as the dense model.

        Examples:
            >>> from hfprune.measuring.latency_table import PredictedLatency
            >>> print(PredictedLatency(pruned_ms=8.0, dense_ms=20.0))
            8.00 ms predicted, dense 20.00 ms: 2.50× faster
        """
        return self.dense_ms / self.pruned_ms

    def __str__(self) -> str:
        return f"{self.pruned_ms:.2f} ms predicted, dense {self.dense_ms:.2f} ms: {self.speedup:.2f}× faster"


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """What a model takes on one machine, by how many units each of its blocks has.

    A model takes `rest_ms`, and for every block what `sublayers` says. `hfprune latency-table` and
    `measure_latency_table` make one; `PruningConfig(budget="latency", latency_table=...)` prunes by it.

    Attributes:
        model_type: The dense model's type.
        sublayers: The times of sublayers, one entry for each shape.
        rest_ms: What a pass takes beside them: embeddings, norms, head, and what emptied sublayers still take.
        backend: How the model was run.
        device: Such as `cpu`.
        dtype: Such as `float32`.
        threads: Threads of PyTorch on the CPU.
        batch_size: Sequences in a batch.
        sequence_length: Tokens in a sequence.
        runs: Timed passes for every width.
        fingerprint: What the times depend on, such as the processor, the versions of packages and the model's shapes.

    Examples:
        >>> from hfprune.measuring.latency_table import LatencyTable, SublayerTimes
        >>> attention = SublayerTimes(
        ...     blocks=("l.0.attention", "l.1.attention"),
        ...     unit="group",
        ...     units=2,
        ...     widths=(0, 1, 2),
        ...     milliseconds=(0.0, 2.0, 3.0),
        ... )
        >>> table = LatencyTable(
        ...     model_type="bert", sublayers=(attention,), rest_ms=1.0, batch_size=1, sequence_length=8
        ... )
        >>> table.dense_ms, table.milliseconds({"l.0.attention": 1, "l.1.attention": 0})
        (7.0, 3.0)
        >>> table.sparsity(speedup=2.0)  # 3.5 of the 6 ms that can be removed
        0.5833333333333334
        >>> LatencyTable.from_json(table.to_json()) == table
        True
    """

    model_type: str
    sublayers: tuple[SublayerTimes, ...]
    rest_ms: float
    batch_size: int
    sequence_length: int
    backend: str = "eager"
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1
    runs: int = 0
    fingerprint: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        finite(least=0).check("rest_ms of a latency table", self.rest_ms)
        for name in ("threads", "batch_size", "sequence_length"):
            whole(least=1).check(f"{name} of a latency table", getattr(self, name))
        whole(least=0).check("runs of a latency table", self.runs)

    @cached_property
    def by_block(self) -> Mapping[str, SublayerTimes]:
        """The times of every block by its name."""
        found = {}
        for times in self.sublayers:
            found.update(dict.fromkeys(times.blocks, times))
        return found

    @property
    def prunable_ms(self) -> float:
        """What all units of the dense model take together."""
        return sum(times.milliseconds[-1] * len(times.blocks) for times in self.sublayers)

    @property
    def dense_ms(self) -> float:
        """What the dense model takes."""
        return self.rest_ms + self.prunable_ms

    def milliseconds(self, units: Mapping[str, int]) -> float:
        """What a model takes whose blocks have so many units: a prediction.

        Args:
            units: By block name, the number of units, such as `plan.units_after`.

        Returns:
            Milliseconds.

        Raises:
            PlanMismatchError: The table is of a model with other blocks.
        """
        check_blocks(self, units)
        return self.rest_ms + sum(self.by_block[name].at(count) for name, count in units.items())

    def predict(self, units: Mapping[str, int]) -> PredictedLatency:
        """What a model takes whose blocks have so many units, beside what the dense model takes.

        Args:
            units: By block name, the number of units, such as `plan.units_after`.

        Returns:
            The prediction.

        Raises:
            PlanMismatchError: The table is of a model with other blocks.
        """
        return PredictedLatency(pruned_ms=self.milliseconds(units), dense_ms=self.dense_ms)

    def costs(self, block: Block) -> Callable[[int], int]:
        """What one block takes by how many units it has, in nanoseconds: the cost that allocators count.

        Args:
            block: The block.

        Returns:
            A function from a number of units to nanoseconds.

        Raises:
            PlanMismatchError: The table has no such block.
        """
        times = self.by_block.get(block.name)
        if times is None:
            raise other_model(self, f"it has no block {block.name!r}")
        return lambda units: round(times.at(units) * _NANOSECONDS)

    @checked(speedup=optional(finite()), milliseconds=optional(finite()))
    def sparsity(self, *, speedup: float | None = None, milliseconds: float | None = None) -> float:
        """The fraction of the prunable milliseconds that must go for a goal. Give one of the two.

        Args:
            speedup: How many times as fast as the dense model.
            milliseconds: How long a pass may take.

        Returns:
            A fraction in [0, 1).

        Raises:
            BudgetError: The goal is no faster than the dense model, or faster than the model without any unit.
        """
        if speedup is not None:
            if speedup <= 1:
                raise BudgetError(f"speedup must be above 1, got {speedup:g}: 2.0 is twice as fast as the dense model.")
            return self.sparsity_at(self.dense_ms / speedup, f"speedup={speedup:g}")
        if milliseconds is None:
            raise ValueError("give speedup or milliseconds.")
        return self.sparsity_at(milliseconds, f"milliseconds={milliseconds:g}")

    def sparsity_at(self, goal_ms: float, asked: str) -> float:
        """The fraction of the prunable milliseconds that must go so that a pass takes `goal_ms`.

        Args:
            goal_ms: How long a pass may take.
            asked: What the user asked for, for the message of an error.

        Returns:
            A fraction in [0, 1).

        Raises:
            BudgetError: As for `sparsity`.
        """
        if goal_ms <= self.rest_ms:
            highest = ""
            if self.rest_ms > 0:
                highest = f", at most {self.dense_ms / self.rest_ms:.2f} times as fast as the dense model"
            raise BudgetError(
                f"{asked} cannot be reached: {goal_ms:.3f} ms are asked for, and embeddings, norms and head alone take "
                f"{self.rest_ms:.3f} ms by the latency table, which no pruning of units removes. Ask for more than "
                f"that{highest}."
            )
        if goal_ms >= self.dense_ms:
            raise BudgetError(
                f"{asked} asks for nothing: the dense model takes {self.dense_ms:.3f} ms by the latency table. Ask for "
                "fewer milliseconds."
            )
        return (self.dense_ms - goal_ms) / self.prunable_ms

    @property
    def setting(self) -> str:
        """How the times were measured, in words."""
        return (
            f"{self.backend}, {self.device}, {self.dtype}, {self.threads} threads, batch {self.batch_size}, "
            f"{self.sequence_length} tokens"
        )

    @property
    def timing(self) -> dict[str, Any]:
        """How models are to be timed so that they compare with the table: arguments of `measure_latencies`."""
        return {
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
            "backend": self.backend,
            "threads": self.threads,
        }

    @property
    def summary(self) -> dict[str, Any]:
        """What a record says of the table: its digest, how it was measured, and the dense model's milliseconds."""
        return {
            "digest": hashlib.sha256(self.to_json().encode()).hexdigest(),
            "backend": self.backend,
            "device": self.device,
            "dtype": self.dtype,
            "threads": self.threads,
            "batch_size": self.batch_size,
            "sequence_length": self.sequence_length,
            "dense_ms": self.dense_ms,
            "rest_ms": self.rest_ms,
        }

    def to_json(self) -> str:
        """The table as JSON."""
        return json.dumps({"format_version": FORMAT_VERSION, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "LatencyTable":
        """Read what `to_json` wrote.

        Args:
            text: JSON.

        Returns:
            The table.

        Raises:
            ValueError: The text is no latency table, or has a newer format.
        """
        try:
            data = read_json(text)
            version = data.pop("format_version")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a latency table: {type(error).__name__}: {error}") from error
        if version != FORMAT_VERSION:
            raise ValueError(
                f"the latency table has format_version {version!r:.50}, this hfprune reads {FORMAT_VERSION}: upgrade "
                "it, or measure the table again."
            )
        try:
            sublayers = []
            for fields in data.pop("sublayers"):
                lists = {name: tuple(fields[name]) for name in ("blocks", "widths", "milliseconds")}
                sublayers.append(SublayerTimes(**{**fields, **lists}))
            table = cls(**data, sublayers=tuple(sublayers))
            # values of another type show here, and not in the middle of a pruning
            table.sparsity_at((table.dense_ms + table.rest_ms) / 2, "half")
        except (AttributeError, KeyError, TypeError, ValueError, BudgetError) as error:
            raise ValueError(f"not a latency table: {type(error).__name__}: {error}") from error
        return table

    def save(self, path: str | Path) -> Path:
        """Write the table as JSON; the file is replaced as a whole.

        Args:
            path: The file; folders are made.

        Returns:
            The file.
        """
        return write_whole(Path(path), self.to_json().encode())

    @classmethod
    def load(cls, path: str | Path) -> "LatencyTable":
        """Read a table that `save` wrote.

        Args:
            path: The file.

        Returns:
            The table.

        Raises:
            ValueError: There is no such file, or it holds something else.
        """
        if not Path(path).is_file():
            raise ValueError(
                f"latency_table must be the file of a latency table, and there is no file {str(path)!r}. "
                "`hfprune latency-table MODEL --output FILE` makes one."
            )
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def __str__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        rows = []
        for times in self.sublayers:
            name = times.blocks[0].rpartition(".")[2]
            dense = times.milliseconds[-1]
            for width, milliseconds in zip(times.widths, times.milliseconds, strict=True):
                share = milliseconds / dense if dense else 0.0
                row = (
                    f"{name}, {times.unit}",
                    str(len(times.blocks)),
                    str(width),
                    f"{milliseconds:.4f}",
                    f"{share:.1%}",
                )
                rows.append(row)
        head = ("sublayer", "of them", "units", "ms each", "of the dense")
        return Table(head=head, rows=rows, notes=self._notes())

    def _notes(self) -> list[str]:
        notes = [
            f"dense {self.dense_ms:.3f} ms: {self.prunable_ms:.3f} ms of units, {self.rest_ms:.3f} ms of the rest "
            "(embeddings, norms, head)",
        ]
        for times in self.sublayers:
            if times.off_step > 1:
                name = times.blocks[0].rpartition(".")[2]
                notes.append(f"{name}: widths off a multiple of {times.step} take {times.off_step:.2f} times as long")
        return [*notes, f"{self.setting}; {self.runs} passes for every width, in turn with the dense model"]


def check_blocks(table: LatencyTable, units: Mapping[str, int]) -> None:
    """Refuse a table of a model with other blocks.

    Args:
        table: The table.
        units: Number of units by block name.

    Raises:
        PlanMismatchError: The blocks have other names.
    """
    missing = sorted(set(units) - set(table.by_block))
    more = sorted(set(table.by_block) - set(units))
    if missing:
        raise other_model(table, f"it has no block {missing[0]!r}")
    if more:
        raise other_model(table, f"its block {more[0]!r} is not in this model")


def other_model(table: LatencyTable, difference: str) -> PlanMismatchError:
    """The error of a table of another model.

    Args:
        table: The table.
        difference: What it is of, and the model is not.

    Returns:
        The error.
    """
    return PlanMismatchError(
        f"the latency table ({table.setting}) is of another model: {difference}. Measure one of this model: "
        "`hfprune latency-table MODEL --output FILE`, with the attention_unit that it is pruned by."
    )
