"""A pruning plan: which units stay in each block. It holds no tensor and is JSON."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, get_args

from hfprune.errors import PlanMismatchError
from hfprune.planning.costs import get_budget
from hfprune.structure.blocks import QUERIES, Block, attention_unit_of, check_attention_unit
from hfprune.structure.specs import KIND_OF_NEURONS, AttentionUnit, Kind, Unit

FORMAT_VERSION = 1
#: What the JSON of a block holds, in this order.
_IN_JSON = ("kind", "units", "kept", "unit_params", "unit_macs", "unit_cache_bytes")


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """What stays of one block.

    Attributes:
        kind: `attention` or `ffn`.
        units: How many units the block had.
        kept: Indices of those that stay, increasing.
        unit_params: Parameters of one unit.
        unit_macs: Multiply-adds of one unit for one sequence of the plan's `sequence_length`.
        unit_cache_bytes: Bytes of one unit for every token in the key/value cache; 0 where it has none.
        unit: What one unit is: `group`, `query` or `neuron`. In JSON the block's kind and name say it.
    """

    kind: Kind
    units: int
    kept: tuple[int, ...]
    unit_params: int
    unit_macs: int
    unit_cache_bytes: int = 0
    unit: Unit = "group"

    def unit_cost(self, budget: str) -> int:
        """The cost of one unit in a budget.

        Args:
            budget: The name of a registered budget.

        Returns:
            Such as parameters, multiply-adds a sequence, or bytes of key/value cache a token.

        Raises:
            ValueError: No budget has that name, or plans do not record what it counts.
        """
        field = get_budget(budget).recorded_as
        if not field:
            raise ValueError(
                f"a plan does not record what a unit costs in the budget {budget!r}: register the budget with "
                "recorded_as=..., or take Anatomy.cost, which asks the model's blocks."
            )
        cost: int = getattr(self, field)
        return cost

    @classmethod
    def from_fields(cls, name: str, fields: Mapping[str, Any]) -> "BlockPlan":
        """What the JSON of a plan holds of a block.

        Args:
            name: The block's name.
            fields: Its fields.

        Returns:
            The block's plan.

        Raises:
            TypeError: A field is missing or unknown.
        """
        return cls(**{**fields, "kept": tuple(fields["kept"])}, unit=_unit_in_json(name, fields["kind"]))

    def to_fields(self) -> dict[str, Any]:
        """What the JSON of a plan holds of a block."""
        return {name: getattr(self, name) for name in _IN_JSON}


def _unit_in_json(name: str, kind: Kind) -> Unit:
    """What a unit is, in the format of the file: query heads are told by the block's name."""
    if kind == KIND_OF_NEURONS:
        return "neuron"
    return "query" if name.endswith(f".{QUERIES}") else "group"


@dataclass(frozen=True, kw_only=True)
class PruningPlan:
    """Which units stay, block by block, in the numbering of the model that the plan is for.

    A plan attached to a pruned model, or published, is in dense numbering: that of the model before any pruning.

    Attributes:
        model_type: The dense model's type.
        sequence_length: Tokens in a sequence, for the multiply-adds.
        blocks: By block name, in layer order.
    """

    model_type: str
    sequence_length: int
    blocks: Mapping[str, BlockPlan]

    def __post_init__(self) -> None:
        for name, block in self.blocks.items():
            kept = block.kept
            increases = all(a < b for a, b in pairwise(kept))
            in_range = not kept or (kept[0] >= 0 and kept[-1] < block.units)
            if not (increases and in_range):
                raise ValueError(
                    f"the plan of block {name!r} must keep increasing indices from 0 to {block.units - 1}, got "
                    f"{list(kept[:8])}{' ...' if len(kept) > 8 else ''}."
                )

    @classmethod
    def keep(
        cls, blocks: Sequence[Block], kept: Mapping[str, Sequence[int]], *, model_type: str, sequence_length: int
    ) -> "PruningPlan":
        """The plan that keeps these units; blocks that `kept` does not name stay whole."""
        return cls(
            model_type=model_type,
            sequence_length=sequence_length,
            blocks={
                block.name: BlockPlan(
                    kind=block.kind,
                    unit=block.unit,
                    units=block.units,
                    kept=tuple(kept.get(block.name, range(block.units))),
                    unit_params=block.unit_params,
                    unit_macs=block.unit_macs(sequence_length),
                    unit_cache_bytes=block.unit_cache_bytes,
                )
                for block in blocks
            },
        )

    @property
    def kept(self) -> dict[str, tuple[int, ...]]:
        """The kept indices, by block name."""
        return {name: block.kept for name, block in self.blocks.items()}

    @property
    def attention_unit(self) -> AttentionUnit:
        """What units of attention with shared key/value heads are: `group`, or `query` for single query heads."""
        return attention_unit_of(block.unit for block in self.blocks.values())

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """`(kept, before)` units, by block name."""
        return {name: (len(block.kept), block.units) for name, block in self.blocks.items()}

    def cost(self, budget: str) -> tuple[int, int]:
        """`(kept, before)` cost of all prunable units: parameters, multiply-adds a sequence, or cache bytes a token."""
        blocks = self.blocks.values()
        kept = sum(len(block.kept) * block.unit_cost(budget) for block in blocks)
        return kept, sum(block.units * block.unit_cost(budget) for block in blocks)

    def sparsity(self, budget: str = "macs") -> float:
        """The fraction of the prunable cost that is removed, in [0, 1)."""
        kept, before = self.cost(budget)
        return 1 - kept / before if before else 0.0

    @property
    def digest(self) -> str:
        """SHA-256 of what stays: equal for equal plans, whoever made them."""
        essence = {name: [block.units, list(block.kept)] for name, block in sorted(self.blocks.items())}
        return hashlib.sha256(json.dumps(essence, separators=(",", ":")).encode()).hexdigest()

    def then(self, second: "PruningPlan") -> "PruningPlan":
        """The one plan that does what this plan and then `second`, in the smaller model's numbering, do.

        Args:
            second: A plan for the model that this plan leaves.

        Returns:
            A plan in this plan's numbering.

        Raises:
            PlanMismatchError: `second` is not for what this plan leaves.
        """
        left = {name: len(block.kept) for name, block in self.blocks.items()}
        check_match(second, left, attention_unit=self.attention_unit)
        blocks = {}
        for name, block in self.blocks.items():
            kept = tuple(block.kept[place] for place in second.blocks[name].kept)
            blocks[name] = replace(block, kept=kept)
        return PruningPlan(model_type=self.model_type, sequence_length=self.sequence_length, blocks=blocks)

    def to_json(self) -> str:
        """The plan as JSON, one line a block, so that two plans can be compared with `diff`."""
        lines = [f"  {json.dumps(name)}: {json.dumps(block.to_fields())}" for name, block in self.blocks.items()]
        head = {
            "format_version": FORMAT_VERSION,
            "model_type": self.model_type,
            "sequence_length": self.sequence_length,
            "digest": self.digest,
        }
        opening = json.dumps(head, indent=1)[:-2]
        return opening + ',\n "blocks": {\n' + ",\n".join(lines) + "\n }\n}\n"

    @classmethod
    def from_json(cls, text: str) -> "PruningPlan":
        """Read what `to_json` wrote.

        Args:
            text: JSON.

        Returns:
            The plan.

        Raises:
            ValueError: It is not a plan, is of a newer format, or its digest does not match its content.
        """
        try:
            data = json.loads(text)
            version = data["format_version"]
            if version != FORMAT_VERSION:
                raise ValueError(
                    f"the pruning plan has format_version {version!r:.50}, this hfprune reads {FORMAT_VERSION}: "
                    "upgrade it (pip install -U hfprune)."
                )
            blocks = {name: BlockPlan.from_fields(name, fields) for name, fields in data["blocks"].items()}
            plan = cls(model_type=data["model_type"], sequence_length=data["sequence_length"], blocks=blocks)
        except (AttributeError, KeyError, RecursionError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not a pruning plan: {type(error).__name__}: {error}") from error
        for name, block in plan.blocks.items():
            _check_values(name, block, plan.sequence_length)
        if data.get("digest", plan.digest) != plan.digest:
            raise ValueError(
                f"the pruning plan was changed: its digest says {data['digest'][:12]}..., its content gives "
                f"{plan.digest[:12]}... Restore the file, or delete the digest if the change was meant."
            )
        return plan

    def __str__(self) -> str:
        width = max(len(name) for name in self.blocks)
        lines = []
        for name, (kept, before) in self.counts.items():
            bar = "█" * round(20 * kept / max(before, 1))
            lines.append(f"{name:<{width}}  {kept:>5} of {before:<5}  {bar:░<20}")
        cache = f", {self.sparsity('kv_cache'):.1%} of its key/value cache" if self.cost("kv_cache")[1] else ""
        lines.append(
            f"removed {self.sparsity('macs'):.1%} of prunable MACs (sequences of {self.sequence_length} tokens), "
            f"{self.sparsity('params'):.1%} of prunable parameters{cache}; digest {self.digest[:12]}"
        )
        return "\n".join(lines)


def _check_values(name: str, block: BlockPlan, sequence_length: int) -> None:
    """Refuse values of a file that no plan has."""
    numbers = (block.units, block.unit_params, block.unit_macs, sequence_length, *block.kept)
    wrong = [number for number in numbers if type(number) is not int or number < 0]
    kinds = get_args(Kind)
    if wrong or block.kind not in kinds:
        raise ValueError(
            f"not a pruning plan: block {name!r:.100} must be of kind {' or '.join(kinds)}, got {block.kind!r:.50},"
            f" and its numbers whole ones from 0, got {wrong[:3]!r:.100}."
        )


def check_match(plan: PruningPlan, units: Mapping[str, int], *, attention_unit: AttentionUnit) -> None:
    """Refuse a plan that was made for other blocks.

    Args:
        plan: The plan.
        units: By block name, how many units the model has.
        attention_unit: What units of attention are in the model.

    Raises:
        PlanMismatchError: Block names or numbers of units differ.
    """
    check_attention_unit(plan.attention_unit, attention_unit)
    if set(plan.blocks) != set(units):
        extra = sorted(set(plan.blocks) - set(units))
        missing = sorted(set(units) - set(plan.blocks))
        named = []
        if extra:
            named.append(f"the model has no {extra[0]!r}")
        if missing:
            named.append(f"the plan lacks {missing[0]!r}")
        raise PlanMismatchError(
            f"the plan is for a {plan.model_type} model with {len(plan.blocks)} blocks, this model has {len(units)}: "
            f"{'; '.join(named)}. Score this model and make a plan of its own."
        )
    for name, block in plan.blocks.items():
        have = units[name]
        if have == block.units:
            continue
        if have < block.units:
            cause = (
                f"The model is already pruned ({have} of {block.units}). Apply the plan to the dense model, or score "
                "this one again."
            )
        else:
            cause = "It is for a smaller model, or for this one after pruning: combine plans with first.then(second)."
        raise PlanMismatchError(
            f"block {name!r} has {have} units in this model, but the plan was made for {block.units}. {cause}"
        )
