"""PruningConfig: every choice of a pruning run, checked when it is made (names that can be registered when used)."""

from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any, get_args

from hfprune.planning.allocation import get_allocator, known_allocators
from hfprune.planning.costs import BUDGET_NAMES, get_budget
from hfprune.structure.specs import AttentionUnit

#: Fields that are whole numbers, and the least that each may be.
_COUNTS = {
    "sequence_length": 1,
    "rounds": 1,
    "calibration_samples": 1,
    "calibration_batch_size": 1,
    "calibration_batch_tokens": 1,
    "min_units": 0,
    "round_to": 1,
}


def check_sparsity(value: float) -> None:
    """Refuse what is no fraction that can be removed.

    Args:
        value: A sparsity.

    Raises:
        ValueError: It is not in [0, 1).
    """
    if not isinstance(value, Real):
        raise ValueError(f"sparsity must be a number in [0, 1), got {value!r}.")
    if not 0 <= value < 1:
        hint = f" It is a fraction: write {value / 100:g} for {value:g} %." if value > 1 else ""
        raise ValueError(f"sparsity must be in [0, 1), got {value:g}.{hint}")


def _check_count(name: str, value: int | None, least: int) -> None:
    if value is not None and (not isinstance(value, int) or value < least):
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value}.")


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """How to prune.

    Attributes:
        sparsity: The fraction of the dense model's prunable cost to remove, in [0, 1): 0.5 halves it.
        budget: What is counted: `macs` (multiply-adds a sequence), `params`, or for decoders `kv_cache` (bytes of the
            key/value cache a token), of which neurons take nothing: they all stay.
        sequence_length: Tokens in a sequence, for `macs`.
        scorer: Which units matter: `residual_logit_fisher` (no labels needed), any other that
            `hfprune.scoring.known_scorers()` lists, one that you registered, or `hybrid(a, b, rule)` of two.
        attention_unit: Where query heads share key/value heads, the unit of attention: `group`, a key/value head with
            its query heads, or `query`, one query head: as many of every group go, at least one stays in each, and the
            key/value cache stays as it is.
        allocation: Where to remove: `global`, `knapsack`, `threshold`, `uniform`, `layerwise`, `random`, or one that
            you registered.
        schedule: `one_shot`, `linear`, `cubic` or `geometric`.
        rounds: Rounds of score, plan, surgery and reconstruction, for schedules other than `one_shot`. None: as many as
            a geometric schedule needs for every round to keep four fifths of the cost that it finds.
        reconstruct: Re-solve the consumers in closed form after every surgery, from the calibration samples.
        calibration_samples: Samples that a scoring pass sees.
        calibration_batch_size: The most samples in a calibration batch.
        calibration_batch_tokens: The most tokens in one. It bounds the memory of scoring; of the scores
            it changes only what is drawn at random.
        calibration_checkpointing: Score with less memory and more time, as `score` explains.
        min_units: The fewest heads, key/value groups or neurons that a block keeps; with 0 whole blocks may go, where
            the architecture can run without them.
        round_to: Neurons are kept in multiples of this; 16 or 32 suits most kernels.
        exclude: Shell-style patterns of names of blocks to leave whole, such as `*.0.attention`.
        portable: Only widths that the stock config can say, so that the result needs nothing of hfprune to load.
        seed: Of everything that is drawn.
    """

    sparsity: float = field(default=0.5, metadata={"help": "Fraction of the prunable cost to remove, in [0, 1)."})
    budget: str = field(
        default="macs",
        metadata={"help": "What sparsity counts: macs, params or kv_cache.", "choices": BUDGET_NAMES},
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
    round_to: int = field(default=1, metadata={"help": "Keep neurons in multiples of this."})
    exclude: list[str] = field(default_factory=list, metadata={"help": "Patterns of block names to leave whole."})
    portable: bool = field(default=False, metadata={"help": "Only widths that the stock config can say."})
    seed: int = field(default=0, metadata={"help": "Seed of everything that pruning draws."})

    def __post_init__(self) -> None:
        if isinstance(self.exclude, str):
            raise ValueError(
                f"exclude must be a list of patterns, got the string {self.exclude!r}: write [{self.exclude!r}]."
            )
        # a list, as JSON gives it back, so that two configs compare
        object.__setattr__(self, "exclude", list(self.exclude))
        check_sparsity(self.sparsity)
        get_budget(self.budget)
        if self.attention_unit not in get_args(AttentionUnit):
            raise ValueError(f"attention_unit must be 'group' or 'query', got {self.attention_unit!r}.")
        for name, least in _COUNTS.items():
            _check_count(name, getattr(self, name), least)
        self._check_combinations()

    def _check_combinations(self) -> None:
        """Refuse fields that contradict each other."""
        if self.rounds is not None and self.rounds > 1 and self.schedule == "one_shot":
            raise ValueError(
                f"rounds={self.rounds} needs a schedule that spreads them: 'geometric', 'linear' or 'cubic', "
                "not 'one_shot'."
            )
        # an allocation that is registered later is looked at when it is used
        is_known = self.allocation in known_allocators()
        if self.portable and is_known and get_allocator(self.allocation).block_by_block:
            raise ValueError(
                f"portable=True wants the same widths in every layer, and allocation={self.allocation!r} cuts one "
                "layer after the other. Drop one of the two."
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values, for JSON."""
        return asdict(self)
