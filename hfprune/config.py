"""PruningConfig: all choices of a pruning run.

Values are checked when the config is made. The names of scorer, allocation and schedule are checked when pruning
begins, because scorers and allocators may be registered until then.
"""

from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from hfprune.measuring.latency_table import LatencyTable
from hfprune.planning.allocation import get_allocator, known_allocators
from hfprune.planning.costs import BUDGET_NAMES, LATENCY, get_budget
from hfprune.planning.kernel_widths import TARGET_NAMES, check_multiple
from hfprune.structure.arguments import (
    ATTENTION_UNIT,
    FLAG,
    SEED,
    TEXT,
    TEXTS,
    finite,
    instance,
    optional,
    plain,
    whole,
)
from hfprune.structure.specs import AttentionUnit

#: What fields must be, besides those with checks of their own.
_FIELDS = {
    "sequence_length": whole(least=1),
    "latency_table": optional(instance("a LatencyTable or the path of its file", LatencyTable, str, Path)),
    "speedup": optional(finite(above=0)),
    "milliseconds": optional(finite(above=0)),
    "scorer": TEXT,
    "attention_unit": ATTENTION_UNIT,
    "allocation": TEXT,
    "schedule": TEXT,
    "rounds": optional(whole(least=1)),
    "reconstruct": FLAG,
    "calibration_samples": whole(least=1),
    "calibration_batch_size": whole(least=1),
    "calibration_batch_tokens": whole(least=1),
    "calibration_checkpointing": FLAG,
    "min_units": whole(least=0),
    "round_to": optional(whole(least=1)),
    "target": optional(TEXT),
    "exclude": TEXTS,
    "portable": FLAG,
    "seed": SEED,
}


class _Default(float):
    """A sparsity that nobody asked for. `PruningConfig` tells by it whether a user gave one beside another goal."""


def check_sparsity(value: float) -> None:
    """Refuse a sparsity that is not in [0, 1).

    Args:
        value: The sparsity.

    Raises:
        ValueError: It is not a number in [0, 1).
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"sparsity must be a number in [0, 1), got {value!r}.")
    if 0 <= value < 1:
        return
    hint = ""
    if value > 1:
        hint = f" It is a fraction: write {value / 100:g} for {value:g} %."
    raise ValueError(f"sparsity must be in [0, 1), got {value:g}.{hint}")


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """All choices of a pruning run.

    Attributes:
        sparsity: The fraction of the dense model's prunable cost to remove, in [0, 1): 0.5 halves the cost.
        budget: The cost that sparsity counts: `macs` (multiply-adds for a sequence), `params`, for decoders
            `kv_cache` (bytes in the key/value cache for a token), or `latency` (milliseconds by a latency table).
            Neurons have no part in that cache, so with it all of them stay.
        latency_table: For the budget `latency`, what `measure_latency_table` returned or the file that `hfprune
            latency-table` wrote. The table is read when the config is made.
        speedup: For that budget, in the place of `sparsity`: how many times as fast as the dense model the pruned one
            shall be, by the table. `sparsity` then says which fraction of the prunable milliseconds goes.
        milliseconds: The same: how long a pass of the pruned model may take.
        sequence_length: Tokens in a sequence, for `macs`. A model of pictures, or of spectrograms of one length, has a
            number of its own, which counts instead.
        scorer: The scorer: `residual_logit_fisher` (needs no labels), another one that
            `hfprune.scoring.known_scorers()` lists, one that you registered, or `hybrid(a, b, rule)` of two.
        attention_unit: The unit of attention if query heads share key/value heads. `group`: a key/value head with its
            query heads. `query`: one query head; every group then keeps equally many, and at least one, and the
            key/value cache does not get smaller.
        allocation: The allocator, which chooses how many units each block keeps: `global`, `knapsack`, `threshold`,
            `uniform`, `layerwise`, `random`, or one that you registered.
        schedule: `one_shot`, `linear`, `cubic` or `geometric`.
        rounds: The number of rounds of scoring, planning, surgery and reconstruction, for schedules other than
            `one_shot`. None: as many as a geometric schedule needs if every round keeps at least four fifths of the
            remaining cost.
        reconstruct: Re-solve the consumers in closed form after every surgery, on the calibration samples.
        calibration_samples: The number of samples for scoring and reconstruction.
        calibration_batch_size: The most samples in a calibration batch.
        calibration_batch_tokens: The most tokens in a calibration batch. This bounds the memory of scoring. Scores
            depend on it only through what is drawn at random.
        calibration_checkpointing: Score with less memory and more time, as `score` explains.
        min_units: The fewest heads, key/value groups or neurons that a block keeps. With 0, whole blocks may be
            removed if the architecture can run without them.
        round_to: Neurons are kept in multiples of this number. None: of what the target takes; without a target of 16,
            which kernels in half precision want, and in language models of 32, which most quantised files take. A
            model whose narrowest feed-forward block has fewer than 32 such steps gets the next smaller of 16, 8 and 1.
        target: What the result becomes: `gguf-q8_0`, `gguf-q4_0` or `gguf-q4_1`, whose rows are quantised 32 weights
            at a time, or `bitsandbytes-4bit`, which takes 64. A `round_to` must be a multiple of the target's.
        exclude: Shell-style patterns of block names, such as `*.0.attention`: blocks that keep all their units.
        all_blocks: Refuse a model if hfprune cannot cut all attention and feed-forward blocks of its layers. By default
            such blocks are left out, with a warning.
        portable: Keep only widths that the stock config can say, so that the result loads without hfprune.
        seed: The seed of all random draws.

    Examples:
        >>> from hfprune import PruningConfig
        >>> config = PruningConfig(sparsity=0.3, exclude=["*.0.attention"])
        >>> config.budget, config.scorer
        ('macs', 'residual_logit_fisher')
        >>> PruningConfig(sparsity=30)
        Traceback (most recent call last):
            ...
        ValueError: sparsity must be in [0, 1), got 30. It is a fraction: write 0.3 for 30 %.
    """

    sparsity: float = field(
        default=_Default(0.5), metadata={"help": "Fraction of the prunable cost to remove, in [0, 1)."}
    )
    budget: str = field(
        default="macs",
        metadata={"help": "What sparsity counts: macs, params, kv_cache or latency.", "choices": BUDGET_NAMES},
    )
    latency_table: LatencyTable | str | Path | None = field(
        default=None, metadata={"help": "File of a latency table, for a budget of latency."}
    )
    speedup: float | None = field(
        default=None, metadata={"help": "For a budget of latency, instead of sparsity: how many times as fast."}
    )
    milliseconds: float | None = field(
        default=None, metadata={"help": "For a budget of latency, instead of sparsity: how long a pass may take."}
    )
    sequence_length: int = field(default=128, metadata={"help": "Tokens in a sequence, for a budget of macs."})
    scorer: str = field(
        default="residual_logit_fisher", metadata={"help": "Which units matter; the default needs no labels."}
    )
    attention_unit: AttentionUnit = field(
        default="group",
        metadata={"help": "Unit of attention with shared key/value heads: group, or query (as many of every group)."},
    )
    allocation: str = field(
        default="global", metadata={"help": "Where to remove: global, knapsack, threshold, uniform, layerwise, random."}
    )
    schedule: str = field(default="geometric", metadata={"help": "one_shot, linear, cubic or geometric."})
    rounds: int | None = field(
        default=None, metadata={"help": "Rounds of score, plan and surgery; by default each keeps four fifths."}
    )
    reconstruct: bool = field(default=True, metadata={"help": "Repair in closed form after every surgery."})
    calibration_samples: int = field(default=512, metadata={"help": "Samples that a scoring pass sees."})
    calibration_batch_size: int = field(default=32, metadata={"help": "The most samples in a calibration batch."})
    calibration_batch_tokens: int = field(default=512, metadata={"help": "The most tokens in a calibration batch."})
    calibration_checkpointing: bool = field(
        default=False, metadata={"help": "Score with less memory: layers run again in the backward pass."}
    )
    min_units: int = field(
        default=1, metadata={"help": "The fewest heads or neurons that a block keeps; 0 lets whole blocks go."}
    )
    round_to: int | None = field(
        default=None,
        metadata={"help": "Keep neurons in multiples of this; by default 16, in language models 32, or the target's."},
    )
    target: str | None = field(
        default=None,
        metadata={"help": "What it becomes: sets the multiples of neurons.", "choices": TARGET_NAMES},
    )
    exclude: list[str] = field(default_factory=list, metadata={"help": "Patterns of block names to leave whole."})
    all_blocks: bool = field(
        default=False, metadata={"help": "Refuse a model with blocks that cannot be cut, instead of leaving them out."}
    )
    portable: bool = field(default=False, metadata={"help": "Only widths that the stock config can say."})
    seed: int = field(default=0, metadata={"help": "Seed of everything that pruning draws."})

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):
            raise ValueError(
                f"exclude must be a list of patterns, got the string {self.exclude!r}: write [{self.exclude!r}]."
            )
        check_sparsity(self.sparsity)
        get_budget(self.budget)
        for name, expected in _FIELDS.items():
            value = getattr(self, name)
            expected.check(name, value)
            # NumPy's numbers are whole, too, but JSON cannot hold them
            if isinstance(value, Integral) and not isinstance(value, bool):
                object.__setattr__(self, name, int(value))
            else:
                object.__setattr__(self, name, plain(value))
        # a list, as in a config that was read from JSON, so that the two compare equal
        object.__setattr__(self, "exclude", list(self.exclude))
        if self.target is not None:
            check_multiple(self.target, self.round_to)
        self._read_goal()
        self._check_combinations()

    def _read_goal(self) -> None:
        """Read the latency table, and turn a goal in time into a sparsity."""
        self._check_goal()
        if isinstance(self.latency_table, str | Path):
            object.__setattr__(self, "latency_table", LatencyTable.load(self.latency_table))
        is_default = isinstance(self.sparsity, _Default)
        sparsity = float(self.sparsity)
        if self.table is not None and (self.speedup is not None or self.milliseconds is not None):
            sparsity = self.table.sparsity(speedup=self.speedup, milliseconds=self.milliseconds)
            # a copy of a config has the sparsity that followed from its goal
            if not is_default and self.sparsity != sparsity:
                raise ValueError(
                    f"sparsity={self.sparsity:g} and a goal in time (speedup or milliseconds) are two goals: give one "
                    f"of them. The goal asks for a sparsity of {sparsity:.4f}, of the prunable milliseconds."
                )
            is_default = True
        # so that a copy may be given another goal
        object.__setattr__(self, "sparsity", _Default(sparsity) if is_default else sparsity)

    def _check_goal(self) -> None:
        """Refuse a table or a goal in time in another budget, and a budget of time without a table."""
        goals = {"latency_table": self.latency_table, "speedup": self.speedup, "milliseconds": self.milliseconds}
        given = [name for name, value in goals.items() if value is not None]
        if self.budget != LATENCY and given:
            raise ValueError(
                f"{', '.join(given)} go with budget='latency', and budget={self.budget!r} has no milliseconds. Write "
                "budget='latency', or drop them."
            )
        if self.budget == LATENCY and self.latency_table is None:
            raise ValueError(
                "budget='latency' needs latency_table: the file that `hfprune latency-table MODEL --output FILE` "
                "writes, or what measure_latency_table returns."
            )
        if self.speedup is not None and self.milliseconds is not None:
            raise ValueError(
                f"speedup={self.speedup:g} and milliseconds={self.milliseconds:g} are two goals: give one of them."
            )

    @property
    def table(self) -> LatencyTable | None:
        """The latency table of the budget `latency`; None in other budgets."""
        return self.latency_table if isinstance(self.latency_table, LatencyTable) else None

    @property
    def goal_in_time(self) -> str:
        """The goal in time as it was asked for, such as `speedup=2`; empty if there is none."""
        if self.speedup is not None:
            return f"speedup={self.speedup:g}"
        if self.milliseconds is not None:
            return f"milliseconds={self.milliseconds:g}"
        return ""

    def with_sparsity(self, sparsity: float) -> "PruningConfig":
        """A copy with another sparsity, and without a goal in time.

        Args:
            sparsity: The fraction of the prunable cost to remove.

        Returns:
            The copy.

        Examples:
            >>> from hfprune import PruningConfig
            >>> PruningConfig(scorer="fisher").with_sparsity(0.3).sparsity
            0.3
        """
        return replace(self, sparsity=sparsity, speedup=None, milliseconds=None)

    def in_budget(self, budget: str) -> "PruningConfig":
        """A copy with another budget, and without a latency table.

        Args:
            budget: The name of a registered budget, other than `latency`.

        Returns:
            The copy.
        """
        return replace(self, budget=budget, latency_table=None, speedup=None, milliseconds=None)

    def _check_combinations(self) -> None:
        """Refuse fields that contradict each other."""
        if self.rounds is not None and self.rounds > 1 and self.schedule == "one_shot":
            raise ValueError(
                f"rounds={self.rounds} needs a schedule that spreads them: 'geometric', 'linear' or 'cubic', "
                "not 'one_shot'."
            )
        # an allocation that is registered later is checked when it is used
        is_known = self.allocation in known_allocators()
        if self.portable and is_known and get_allocator(self.allocation).block_by_block:
            raise ValueError(
                f"portable=True wants the same widths in every layer, and allocation={self.allocation!r} cuts one "
                "layer after the other. Drop one of the two."
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON. Of a latency table they say how it was measured."""
        # the table is long, and a record needs no copy of it
        values = asdict(self.in_budget("macs"))
        values["budget"] = self.budget
        values["sparsity"] = float(self.sparsity)
        # records say it only where it was asked for, so those of earlier releases stay equal
        for name in ("latency_table", "speedup", "milliseconds"):
            del values[name]
            if getattr(self, name) is not None:
                values[name] = getattr(self, name)
        if self.table is not None:
            values["latency_table"] = self.table.summary
        if not self.all_blocks:
            del values["all_blocks"]
        if self.target is None:
            del values["target"]
        return values


#: What functions say that their argument `config` must be.
A_CONFIG = instance("a PruningConfig", PruningConfig, hint="Write PruningConfig(sparsity=0.5, ...).")
CONFIG = optional(A_CONFIG)
