"""A block of a model, with its units, costs and sizes, and the weights of its units."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfprune.errors import PlanMismatchError, StructureError
from hfprune.structure.specs import AttentionUnit, HeadInput, Kind

#: The name, in its layer, of a block whose units are single query heads.
QUERIES = "queries"


class Amount(NamedTuple):
    """A size that follows how many units a block keeps.

    Attributes:
        each: What one unit (one of every group) adds to it.
        fixed: What does not change.
    """

    each: int
    fixed: int = 0

    def of(self, units: int) -> int:
        """The size where so many units (of every group) are kept."""
        return self.fixed + self.each * units


@dataclass(frozen=True, kw_only=True)
class Block:
    """One attention or feed-forward sublayer, and what its units are.

    A unit is a run of `width` consecutive input columns of the consumer: a head, a group of heads that share a
    key/value head, one query head of such a group, or a neuron. Module paths are relative to `model.base_model`.

    Attributes:
        name: Such as `encoder.layer.3.attention`: the layer's path, and the block's name in it.
        layer: Path of the layer that the block is in.
        kind: `attention` or `ffn`.
        uses: How often the layer runs in one forward pass; more than once where layers are shared.
        mask: The argument of the model that says which tokens are no padding, where the consumer is.
        units: How many units the block has now; 0 if the whole block was removed.
        groups: Units stand in so many groups of equal size, which must keep equally many: the key/value heads where
            units are query heads, else 1.
        least: The fewest units that it can have: 0, or 1 (one of every group) where its modules cannot run without any.
        width: Input columns of the consumer that one unit owns.
        heads: Query heads in one unit (0 for neurons).
        head_dim: Width of one head (1 for neurons).
        consumer: Path of the projection that reads the units.
        producers: Paths of the projections that make them.
        producer_rows: For every producer, the output rows of one unit in each of the parts that it stacks.
        sizes: `(module path, attribute, amount)` of every attribute that says how many units there are.
        head_inputs: `(module path, argument, where the heads are)` of every argument with one slice a head.
        config_fields: `(field, amount)` of the stock config fields that say the block's size, for all layers at once.
            Empty where no field says it.
        residual_sum: Path of the module whose input is the consumer's output plus the residual stream, or of the layer
            whose output that is; None where there is no such place.
        bypass: Path of the module that is left out when no unit is left, if one must be.
        unit_params: Parameters that go when one unit goes.
        unit_token_macs: Multiply-adds for one token in the projections of one unit, in all uses of the layer.
        unit_pair_macs: Multiply-adds for one pair of tokens in the attention product of one unit, in all uses.
        unit_cache_bytes: Bytes that one unit keeps of every token in the key/value cache, in the model's dtype, in all
            uses of the layer; 0 where there is no cache. Cross-attention keeps them of every token of the source.
        portable_units: Counts of units that the stock config can say, if all layers have the same.
    """

    name: str
    layer: str
    kind: Kind
    uses: int
    mask: str
    units: int
    groups: int = 1
    least: int
    width: int
    heads: int
    head_dim: int
    consumer: str
    producers: tuple[str, ...]
    producer_rows: tuple[tuple[int, ...], ...]
    sizes: tuple[tuple[str, str, Amount], ...]
    head_inputs: tuple[tuple[str, str, HeadInput], ...]
    config_fields: tuple[tuple[str, Amount], ...]
    residual_sum: str | None
    bypass: str | None
    unit_params: int
    unit_token_macs: int
    unit_pair_macs: int
    portable_units: Sequence[int]
    unit_cache_bytes: int = 0

    def unit_macs(self, sequence_length: int) -> int:
        """Multiply-adds of one unit for one sequence of `sequence_length` tokens.

        Cross-attention is counted as if source and target were both of that length.
        """
        return sequence_length * self.unit_token_macs + sequence_length**2 * self.unit_pair_macs


def attention_unit_of(names: Iterable[str]) -> AttentionUnit:
    """The unit of grouped attention that blocks of these names have.

    >>> attention_unit_of(["layers.0.queries", "layers.0.ffn"]), attention_unit_of(["layers.0.attention"])
    ('query', 'group')
    """
    return "query" if any(name.endswith(f".{QUERIES}") for name in names) else "group"


def check_attention_unit(plan: Iterable[str], units: Iterable[str]) -> None:
    """Refuse a plan by key/value groups where units are query heads, and the other way round.

    Args:
        plan: The names of the plan's blocks.
        units: The names of the blocks that it is to be for.

    Raises:
        PlanMismatchError: They are of two kinds.
    """
    of_plan, wanted = attention_unit_of(plan), attention_unit_of(units)
    if of_plan != wanted:
        raise PlanMismatchError(
            f"the plan has attention_unit={of_plan!r}, but what it is to be used for or combined with has "
            f"attention_unit={wanted!r}. A model is pruned by key/value groups (blocks named 'attention') or by query "
            f"heads ('{QUERIES}'), never by both: use attention_unit={of_plan!r}, or start from the dense model."
        )


def features_of(module: nn.Module) -> tuple[int, int]:
    """`(in_features, out_features)` of a `torch.nn.Linear` or transformers' `Conv1D`."""
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    raise TypeError(f"expected a Linear or Conv1D, got {type(module).__name__}")


def base_model_prefix(model: PreTrainedModel) -> str:
    """What stands before the base model's own names in `model.state_dict()`: `bert.`, or nothing."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."


def unit_slices(model: PreTrainedModel, block: Block, *, gradients: bool = False) -> list[Tensor]:
    """The weights of every unit of a block, or their gradients.

    Args:
        model: The model.
        block: One of its blocks.
        gradients: Give the gradients instead of the weights.

    Returns:
        For every parameter of the producers and for the consumer's weight: `(units, weights of one unit)`.
    """

    def read(module: nn.Module, name: str) -> Tensor:
        value = module.get_parameter(name)
        if not gradients:
            return value
        return torch.zeros_like(value) if value.grad is None else value.grad

    parts = []
    for path, rows in zip(block.producers, block.producer_rows, strict=True):
        module = model.base_model.get_submodule(path)
        weight = read(module, "weight")
        by_row = [weight.T if isinstance(module, Conv1D) else weight]
        by_row += [read(module, "bias")[:, None]] if module.bias is not None else []
        for value in by_row:  # every part (units · rows, inputs) -> (units, rows · inputs), side by side
            split = torch.split(value, [block.units * row for row in rows])
            parts.append(torch.cat([part.reshape(block.units, -1) for part in split], dim=1))
    consumer = model.base_model.get_submodule(block.consumer)
    weight = read(consumer, "weight")
    columns = weight if isinstance(consumer, Conv1D) else weight.T
    parts.append(columns.reshape(block.units, -1))
    return parts


def check_in_one_place(model: PreTrainedModel) -> None:
    """Refuse a model that is spread over devices or offloaded, where weights are to be changed.

    Args:
        model: The model.

    Raises:
        StructureError: It is.
    """
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise StructureError(
            f"the model's weights are on {', '.join(devices)}: surgery and reconstruction need all of them on one "
            "device. Load it without device_map, or with device_map='cpu'. Scoring works as it is: keep what "
            "hfprune.score (Scores.save) or hfprune.plan (to_json) gives, and apply the plan to the model on the CPU."
        )
