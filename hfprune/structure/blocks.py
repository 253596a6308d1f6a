"""A block of a model: its units, and the slices of parameters that they own."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfprune.errors import PlanMismatchError, StructureError
from hfprune.structure.pruned_parts import Emptied
from hfprune.structure.specs import AttentionUnit, HeadInput, Kind, Role, Unit

#: The name, in its layer, of a block whose units are single query heads. Plans and checkpoints hold it.
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
        """The size where so many units (of every group) are kept.

        >>> Amount(each=64, fixed=8).of(units=3)
        200
        """
        return self.fixed + self.each * units


@dataclass(frozen=True, kw_only=True)
class Slice:
    """What the units of a block own of one parameter: along one dimension, a run of rows for every unit.

    A parameter may stack several parts along that dimension, as a query-key-value projection does; each part then holds
    a run for every unit.

    Attributes:
        module: Path of the module that has the parameter, from `model.base_model`.
        parameter: Its name in the module, such as `weight`.
        dimension: Along which the units lie.
        rows: For each part, how many rows of it one unit owns.
        role: `producer`: it makes the units. `consumer`: it reads them. `other`: it follows them.
    """

    module: str
    parameter: str
    dimension: int
    rows: tuple[int, ...]
    role: Role

    @property
    def path(self) -> str:
        """Path of the parameter from `model.base_model`."""
        return f"{self.module}.{self.parameter}"

    def index(self, kept: Tensor, units: int) -> Tensor:
        """The places of some units along the dimension, part by part.

        Args:
            kept: `(k,)` indices of units.
            units: How many units the block has.

        Returns:
            `(k · sum(rows),)` indices.

        Examples:
            >>> import torch
            >>> from hfprune.structure import Slice
            >>> both = Slice(module="m", parameter="weight", dimension=0, rows=(2, 1), role="producer")
            >>> both.index(torch.tensor([0, 2]), units=3).tolist()
            [0, 1, 4, 5, 6, 8]
        """
        starts = accumulate((units * rows for rows in self.rows), initial=0)
        parts = []
        for rows, start in zip(self.rows, starts, strict=False):
            parts.append(start + expanded(kept, rows))
        return torch.cat(parts)

    def by_unit(self, value: Tensor, units: int) -> Tensor:
        """The parameter, or its gradient, with what belongs to one unit in one row.

        Args:
            value: A tensor of the parameter's shape.
            units: How many units the block has.

        Returns:
            `(units, numbers of one unit)`, part beside part.
        """
        along = value.movedim(self.dimension, 0)
        if self.role == "consumer":
            # a view, as one part needs no joining: a copy would cost memory, and change the order of sums over it
            return along.reshape(units, -1)
        parts = torch.split(along, [units * rows for rows in self.rows])
        return torch.cat([part.reshape(units, -1) for part in parts], dim=1)


def expanded(units: Tensor, width: int) -> Tensor:
    """Indices of features from indices of units: `(k,)` -> `(k · width,)`.

    >>> expanded(torch.tensor([0, 2]), width=3).tolist()
    [0, 1, 2, 6, 7, 8]
    """
    return (units[:, None] * width + torch.arange(width, dtype=torch.long, device=units.device)).flatten()


@dataclass(frozen=True, kw_only=True)
class Block:
    """One attention or feed-forward sublayer, and what its units are.

    A unit is a run of `width` consecutive input columns of the consumer: a head, a group of heads that share a
    key/value head, one query head of such a group, or a neuron. Module paths are relative to `model.base_model`.

    Attributes:
        name: Such as `encoder.layer.3.attention`: the layer's path, and the block's name in it.
        layer: Path of the layer that the block is in.
        kind: `attention` or `ffn`: what plans, records and reports call it.
        unit: What one unit is: `group`, a key/value head with its query heads; `query`, one query head of a group;
            `neuron`.
        uses: How often the layer runs in one forward pass: once, or several times if layers are shared.
        mask: The argument of the model that says which of the consumer's tokens are not padding.
        units: How many units the block has now; 0 if the whole block was removed.
        groups: In how many groups of equal size the units stand. Every group must keep equally many units. Query heads
            stand in as many groups as there are key/value heads; all other units stand in one group.
        least: The fewest units that the block can have: 0, or one of every group if its modules cannot run without any.
        width: Input columns of the consumer that one unit owns.
        heads: Query heads in one unit (0 for neurons).
        head_dim: Width of one head (1 for neurons).
        slices: What the units own of each parameter, those of the producers first.
        sizes: `(module path, attribute, amount)` of every attribute that says how many units there are.
        head_inputs: `(module path, argument, where the heads are)` of every argument with one slice a head.
        config_fields: `(field, amount)` of the stock config fields that say the block's size, for all layers at once.
            Empty if no field says it.
        residual_sum: Path of the module that reads the sum of the consumer's output and the residual stream, or of the
            layer if that sum is its output. None if there is no such place.
        bypass: Path of the module that is left out of the pass if the block has no units. None if it can run so.
        unit_params: Parameters that are removed with one unit.
        unit_token_macs: Multiply-adds for one token in the projections of one unit, in all uses of the layer.
        unit_source_macs: Those of them that are for a token of the source: of the projections to key and value.
        unit_pair_macs: Multiply-adds for one pair of tokens in the attention product of one unit, in all uses.
        unit_cache_bytes: Bytes that one unit keeps for every token in the key/value cache, in the model's dtype, in all
            uses of the layer; 0 without a cache. Cross-attention keeps them for every token of the source.
        portable_units: Numbers of units that the stock config can say, if all layers have the same number.
        tokens: How many tokens of one sample the block sees, if the input of the model fixes that: the patches of a
            picture, the frames of a spectrogram. None: as many as the sequence has.
        source_tokens: The same for the tokens that key and value are made of. In cross-attention they are those of the
            encoder, elsewhere the block's own.
    """

    name: str
    layer: str
    kind: Kind
    unit: Unit
    uses: int
    mask: str
    units: int
    groups: int = 1
    least: int
    width: int
    heads: int
    head_dim: int
    slices: tuple[Slice, ...]
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
    unit_source_macs: int = 0
    tokens: int | None = None
    source_tokens: int | None = None

    def unit_macs(self, sequence_length: int) -> int:
        """Multiply-adds of one unit for one sequence of `sequence_length` tokens.

        Where the input of the model fixes how many tokens the block sees, that number counts. Otherwise cross-attention
        is counted as if source and target were both of the given length.
        """
        tokens = self.tokens or sequence_length
        source_tokens = self.source_tokens or sequence_length
        own = tokens * (self.unit_token_macs - self.unit_source_macs)
        of_source = source_tokens * self.unit_source_macs
        return own + of_source + tokens * source_tokens * self.unit_pair_macs

    @property
    def modules(self) -> tuple[str, ...]:
        """Paths of all modules that it has slices of, producers first."""
        return tuple(dict.fromkeys(piece.module for piece in self.slices))

    @property
    def producers(self) -> tuple[str, ...]:
        """Paths of the projections that make the units."""
        return tuple(dict.fromkeys(piece.module for piece in self.slices if piece.role == "producer"))

    @property
    def producer_rows(self) -> tuple[tuple[int, ...], ...]:
        """For every producer, the output rows of one unit in each of the parts that it stacks."""
        rows = {piece.module: piece.rows for piece in self.slices if piece.role == "producer"}
        return tuple(rows.values())

    @property
    def consumer(self) -> str:
        """Path of the projection that reads the units."""
        return next(piece.module for piece in self.slices if piece.role == "consumer")


def sequence_length_of(blocks: Sequence[Block], asked: int) -> int:
    """The length of a sequence that counts for a model.

    Args:
        blocks: The blocks of the model.
        asked: Tokens in a sequence, where the model leaves that free.

    Returns:
        The number of tokens that its input fixes: the largest of all blocks. If some block sees as many as are asked
        for, as the decoder of Whisper does, that number.

    Examples:
        >>> from hfprune.structure import find_blocks
        >>> from hfprune.structure.blocks import sequence_length_of
        >>> sequence_length_of(find_blocks(dense), asked=8)
        8
    """
    fixed = [block.tokens for block in blocks]
    free = any(tokens is None for tokens in fixed)
    if free or not fixed:
        return asked
    return max(tokens for tokens in fixed if tokens is not None)


def attention_unit_of(units: Iterable[Unit | None]) -> AttentionUnit:
    """The unit of grouped attention, from what the units of all blocks are.

    >>> attention_unit_of(["query", "neuron"]), attention_unit_of(["group", "neuron"])
    ('query', 'group')
    """
    return "query" if "query" in set(units) else "group"


def check_attention_unit(of_plan: AttentionUnit, wanted: AttentionUnit) -> None:
    """Refuse a plan by key/value groups where units are query heads, and the other way round.

    Args:
        of_plan: The unit of attention of the plan.
        wanted: That of what it is to be used for.

    Raises:
        PlanMismatchError: They differ.
    """
    if of_plan != wanted:
        raise PlanMismatchError(
            f"the plan has attention_unit={of_plan!r}, but what it is to be used for or combined with has "
            f"attention_unit={wanted!r}. A model is pruned by key/value groups (blocks named 'attention') or by query "
            f"heads ('{QUERIES}'), never by both: use attention_unit={of_plan!r}, or start from the dense model."
        )


def features_of(module: nn.Module) -> tuple[int, int]:
    """`(in_features, out_features)` of a `torch.nn.Linear`, transformers' `Conv1D`, or what an emptied block left."""
    if isinstance(module, Emptied):
        return module.inputs, module.outputs
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    raise TypeError(f"expected a Linear or Conv1D, got {type(module).__name__}")


def weight_dimensions(module: nn.Module) -> tuple[int, int]:
    """Which dimension of a projection's weight holds its inputs, and which its outputs.

    >>> weight_dimensions(nn.Linear(2, 3)), weight_dimensions(Conv1D(nf=3, nx=2))
    ((1, 0), (0, 1))
    """
    # Conv1D of GPT-2 is a Linear whose weight is transposed
    return (0, 1) if isinstance(module, Conv1D) else (1, 0)


def is_biased(module: nn.Module) -> bool:
    """Whether a projection has a bias, or had one before its block lost all of its units."""
    if isinstance(module, Emptied):
        return module.is_biased
    return module.bias is not None


def base_model_prefix(model: PreTrainedModel) -> str:
    """What stands before the base model's own names in `model.state_dict()`: `bert.`, or nothing."""
    if model.base_model is model:
        return ""
    return f"{model.base_model_prefix}."


def unit_slices(model: PreTrainedModel, block: Block, *, gradients: bool = False) -> list[Tensor]:
    """The weights of every unit of a block, or their gradients.

    Args:
        model: The model.
        block: One of its blocks.
        gradients: Give the gradients instead of the weights.

    Returns:
        For every slice of the block, in order, `(units, weights of one unit)`.
    """
    if not block.units:
        # no unit, and no weight that could be one's
        return [next(model.parameters()).new_zeros(0, 1)] * len(block.slices)
    by_slice = []
    for piece in block.slices:
        value: Tensor = model.base_model.get_parameter(piece.path)
        if gradients:
            # a parameter that the loss does not depend on has none
            value = torch.zeros_like(value) if value.grad is None else value.grad
        by_slice.append(piece.by_unit(value, block.units))
    return by_slice


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
