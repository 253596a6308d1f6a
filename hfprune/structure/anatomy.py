"""Everything that is known of the structure of one model, read once and handed on."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.structure.architectures import Support, base_model_type, support_of
from hfprune.structure.arguments import ATTENTION_UNIT, checked, optional
from hfprune.structure.blocks import Block, attention_unit_of, check_attention_unit, sequence_length_of
from hfprune.structure.embedder import body_of
from hfprune.structure.lengths import with_fixed_lengths
from hfprune.structure.reading import heads_in_group, left_out_of, read_blocks
from hfprune.structure.sites import sites_of
from hfprune.structure.specs import AttentionUnit
from hfprune.structure.wrapping import unwrapped

logger = logging.getLogger(__name__)
#: The cost of one unit of a block, in whatever a budget counts.
UnitCost: TypeAlias = Callable[[Block], int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Anatomy:
    """A model with all that is known of its structure. `anatomy_of` makes it.

    Reading a model checks every path and size of its entry, so it is done once: `prune` hands the anatomy on, and
    `score`, `plan`, `apply_plan` and `reconstruct` take it in the place of the model. It holds for as long as modules
    and shapes of the model stay; weights may change.

    Attributes:
        model: The model.
        support: How it is known where its blocks are: by the table, or by proof.
        attention_unit: What units of attention with shared key/value heads are. `group` too where none are shared.
        blocks: In the order in which they run, encoders first.
        left_out: Which blocks are left out because hfprune cannot cut them, and why; empty if none is.
    """

    model: PreTrainedModel
    support: Support
    attention_unit: AttentionUnit
    blocks: tuple[Block, ...]
    left_out: str = ""

    @property
    def model_type(self) -> str:
        """The dense model's type, such as `bert`."""
        return base_model_type(self.model.config.model_type)

    @property
    def units(self) -> dict[str, int]:
        """How many units each block has now, by name."""
        return {block.name: block.units for block in self.blocks}

    @cached_property
    def dense_units(self) -> dict[str, int]:
        """How many units each block of the dense model has, by name: by the plan that a pruned model carries.

        Returns:
            By block name, the number of units.

        Raises:
            PlanMismatchError: The model was pruned by other units.
        """
        attached = getattr(self.model, "pruning_plan", None)
        if attached is None:
            return self.units
        check_attention_unit(attached.attention_unit, self.attention_unit)
        before: dict[str, int] = attached.units_before
        return before

    def sequence_length(self, asked: int) -> int:
        """The length of a sequence that counts for this model.

        Args:
            asked: Tokens in a sequence, where the model leaves that free.

        Returns:
            The number of tokens that the input of the model fixes, if it does, as a model of pictures; else `asked`.
        """
        return sequence_length_of(self.blocks, asked)

    def cost(self, unit_cost: UnitCost) -> int:
        """What all units together cost now.

        Args:
            unit_cost: The cost of one unit of a block, as a budget counts it.

        Returns:
            The sum over all units.
        """
        return sum(block.units * unit_cost(block) for block in self.blocks)

    def dense_cost(self, unit_cost: UnitCost) -> int:
        """What the units of the dense model cost together, at this model's cost of a unit.

        Args:
            unit_cost: The cost of one unit of a block.

        Returns:
            The sum over all units that the dense model has.

        Raises:
            PlanMismatchError: The model was pruned by other units.
        """
        return sum(self.dense_units[block.name] * unit_cost(block) for block in self.blocks)

    def sparsity(self, unit_cost: UnitCost) -> float:
        """The fraction of the dense model's prunable cost that is gone from this model.

        Args:
            unit_cost: The cost of one unit of a block.

        Returns:
            A fraction in [0, 1]; 0 if no unit costs anything.

        Raises:
            PlanMismatchError: The model was pruned by other units.
        """
        dense_cost = self.dense_cost(unit_cost)
        if not dense_cost:
            return 0.0
        return 1 - self.cost(unit_cost) / dense_cost

    def zeros(self) -> dict[str, Tensor]:
        """`(units,)` zeros by block name: scores that favour no unit, enough to find how many may stay."""
        return {block.name: torch.zeros(block.units, dtype=torch.float32, device="cpu") for block in self.blocks}


#: What the steps of pruning take: a model, which is then read, or what was read of it.
ModelOrAnatomy: TypeAlias = PreTrainedModel | Anatomy


@checked(attention_unit=optional(ATTENTION_UNIT))
def anatomy_of(model: ModelOrAnatomy, attention_unit: AttentionUnit | None = None) -> Anatomy:
    """Read the structure of a model.

    Args:
        model: A transformers model, dense or pruned, with or without a task head. An anatomy is returned as it is; of
            a model that is compiled or made parallel, what is inside counts.
        attention_unit: What units of attention with shared key/value heads are: `group`, or `query` for blocks that are
            named `queries` instead of `attention`. None: what the model was pruned by, or else `group`.

    Returns:
        The anatomy.

    Raises:
        UnsupportedArchitectureError: The model type has no entry in the table, and none could be proven.
        StructureError: The model does not look as its entry says; all problems are listed together.

    Examples:
        >>> import hfprune
        >>> from hfprune.structure import anatomy_of
        >>> anatomy = anatomy_of(dense)
        >>> anatomy.model_type, len(anatomy.blocks), anatomy.units["encoder.layer.0.ffn"]
        ('bert', 4, 32)
        >>> scores = hfprune.score(anatomy, batches, scorer="l2")  # the structure is not read again
        >>> plan = hfprune.plan(anatomy, scores, config)

        Query heads that share a key/value head are one unit of a group, or a unit each:

        >>> anatomy_of(decoder).units["layers.0.attention"]
        2
        >>> anatomy_of(decoder, attention_unit="query").units["layers.0.queries"]
        4
    """
    if isinstance(model, Anatomy):
        return model
    model = unwrapped(model)
    support = support_of(body_of(model))
    unit = _present_unit(model, attention_unit)
    blocks = with_fixed_lengths(model, read_blocks(model, support.entry, unit))
    left_out = support.entry.left_out
    not_handled = left_out_of(sites_of(model, support.entry, unit))
    if not_handled:
        left_out = not_handled
        _warn_once(f"{type(model).__name__}: {left_out} The other blocks can be pruned.")
    return Anatomy(
        model=model,
        support=support,
        attention_unit=attention_unit_of(block.unit for block in blocks),
        blocks=blocks,
        left_out=left_out,
    )


@cache
def _warn_once(message: str) -> None:
    """Log a warning, once in a process: a model is read again after every round."""
    logger.warning(message)


def model_of(model: ModelOrAnatomy) -> PreTrainedModel:
    """The model itself, of a model, of one that is compiled or made parallel, or of an anatomy."""
    if isinstance(model, Anatomy):
        return model.model
    return unwrapped(model)


def _present_unit(model: PreTrainedModel, asked: AttentionUnit | None) -> AttentionUnit:
    """What units of attention are in a model: as asked, if it can tell query heads from groups."""
    attached = getattr(model, "pruning_plan", None)
    own: AttentionUnit | None = None if attached is None else attached.attention_unit
    if (asked or own) != "query":
        return "group"
    # if a group has one query head, groups are heads anyway, unless pruning by query heads left that one
    if own == "query" or heads_in_group(model.config) > 1:
        return "query"
    return "group"


@checked(attention_unit=optional(ATTENTION_UNIT))
def find_blocks(model: ModelOrAnatomy, attention_unit: AttentionUnit | None = None) -> list[Block]:
    """List the prunable blocks of a model, in the order in which they run, encoders first.

    Args:
        model: A transformers model, dense or pruned, with or without a task head.
        attention_unit: As for `anatomy_of`.

    Returns:
        Two blocks a layer, three where there is cross-attention; fewer where the entry says so.

    Raises:
        UnsupportedArchitectureError: The model type has no entry in the table, and none could be proven.
        StructureError: The model does not look as its entry says; all problems are listed together.

    Examples:
        >>> from hfprune.structure import find_blocks
        >>> for block in find_blocks(decoder):
        ...     print(f"{block.name}: {block.units} × {block.unit}, {block.unit_params} parameters each")
        layers.0.attention: 2 × group, 384 parameters each
        layers.0.ffn: 32 × neuron, 48 parameters each
        layers.1.attention: 2 × group, 384 parameters each
        layers.1.ffn: 32 × neuron, 48 parameters each
    """
    return list(anatomy_of(model, attention_unit).blocks)


def dense_units(model: ModelOrAnatomy, attention_unit: AttentionUnit | None = None) -> Mapping[str, int]:
    """How many units the dense model has, by block name: by the plan that a pruned model carries.

    Args:
        model: A model, pruned or not.
        attention_unit: As for `anatomy_of`.

    Returns:
        By block name, the number of units.

    Raises:
        PlanMismatchError: The model was pruned by other units.
    """
    return anatomy_of(model, attention_unit).dense_units
