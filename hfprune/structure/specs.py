"""What an entry of the architecture table says."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

#: What plans, records and reports call a block.
Kind = Literal["attention", "ffn"]
#: The kind of a block whose units are neurons.
KIND_OF_NEURONS: Kind = "ffn"
#: What a size counts: query heads, key/value heads (the groups), consumer input features, one head's width, or query
#: heads in one group.
Quantity = Literal["heads", "units", "features", "head_dim", "group"]
#: The unit of attention whose key/value heads are shared: a key/value head with its query heads, or one query head, as
#: many of every group.
AttentionUnit = Literal["group", "query"]
#: What one unit of a block is.
Unit = Literal["group", "query", "neuron"]
#: What a parameter does with the units that it has slices of: it makes them, reads them, or follows them.
Role = Literal["producer", "consumer", "other"]


@dataclass(frozen=True, kw_only=True)
class HeadInput:
    """An argument of a module that carries one slice for every head.

    Attributes:
        dimension: Where the heads are. None for an argument that holds nothing (zeros that an earlier layer made in
            its own size): it is left out, and the module makes its own.
        made_by: The method of the module that makes it for all heads of the dense model where the caller gives none.
        returned: Its place in what the module returns, from where later layers get it, for all heads.
    """

    dimension: int | None = None
    made_by: str = ""
    returned: int | None = None


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """Where one block of a layer keeps its units.

    Attributes:
        producers: Projections whose output rows make the units; of separate ones for attention the query's comes first.
        consumer: The projection whose input columns read them.
        fused: How many parts each producer stacks along its output (3 for a query-key-value projection). The first has
            as many features as the consumer reads, the others have equally many.
        interleaved: How many head widths each head has in a row in each producer (3 where query, key and value rows
            stand head by head).
        head_dim: Attribute that holds the width of one head; None where a unit is a neuron.
        sizes: Attributes of modules that must follow the number of units, and what each counts.
        config_fields: Fields of the stock config that set this block's size for all layers at once, and what each
            counts. Empty where the stock config cannot say another size.
        head_inputs: Arguments of a module that carry one slice for every head: `{module: {argument: where}}`.
        residual_sum: The module whose input is the consumer's output plus the residual stream, before any
            normalisation; empty where that is the output of the layer. None where there is no such place:
            reconstruction then aims at the consumer's own output.
        absent: Modules that the entry does not handle: a model that has one is refused.
        bypass: The module that is left out when no unit is left, because it cannot run without any. It takes the
            hidden states first and returns a tuple, whose first item the consumer reads, unless the consumer is inside.
            None where it can run. A block of attention without it keeps at least one unit. A module that is given a
            cache has its index there in `layer_idx` or `layer_id`.
    """

    producers: tuple[str, ...]
    consumer: str
    fused: int = 1
    interleaved: int = 1
    head_dim: str | None = None
    sizes: Mapping[str, Quantity] = field(default_factory=dict)
    config_fields: Mapping[str, Quantity] = field(default_factory=dict)
    head_inputs: Mapping[str, Mapping[str, HeadInput]] = field(default_factory=dict)
    residual_sum: str | None = None
    bypass: str | None = None
    absent: tuple[str, ...] = ()

    @property
    def grouped(self) -> bool:
        """Whether single query heads can be units too: there is an attribute for how many are in a group."""
        return "group" in self.sizes.values()

    @property
    def kind(self) -> Kind:
        """`attention` or `ffn`."""
        return KIND_OF_NEURONS if self.head_dim is None else "attention"


#: What a layer holds, by the block's name in it; of several specs the first counts whose projections are there.
Layer = Mapping[str, BlockSpec | Sequence[BlockSpec]]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The blocks of every layer of a model type.

    Attributes:
        stacks: By path of a list of layers, from the base model: what each layer of it holds. `*` stands for every
            entry of a list on the way. A model may lack some of several stacks (the encoder of an encoder-decoder).
        runs: Where layers are shared, the config field that says how often the outermost list is gone through.
        note: What of the model is not pruned, and why, in a few words.
    """

    stacks: Mapping[str, Layer]
    runs: str = ""
    note: str = ""


def specs_of(layer: Layer) -> dict[str, tuple[BlockSpec, ...]]:
    """The specs of a layer's blocks, always as tuples."""
    return {name: (spec,) if isinstance(spec, BlockSpec) else tuple(spec) for name, spec in layer.items()}


def changed(entry: Architecture, **blocks: Mapping[str, Any]) -> Architecture:
    """An entry with some fields of its blocks changed, in all stacks.

    Args:
        entry: An entry.
        **blocks: By name of a block, the fields that differ.

    Returns:
        Another entry.
    """
    stacks = {
        path: {
            name: tuple(replace(spec, **blocks.get(name, {})) for spec in specs)
            for name, specs in specs_of(layer).items()
        }
        for path, layer in entry.stacks.items()
    }
    return replace(entry, stacks=stacks)
