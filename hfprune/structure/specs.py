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
#: The unit of attention whose key/value heads are shared. `group`: a key/value head with its query heads. `query`: one
#: query head; every group then keeps equally many.
AttentionUnit = Literal["group", "query"]
#: What one unit of a block is.
Unit = Literal["group", "query", "neuron"]
#: What a parameter does with the units that it has slices of: it makes them, reads them, or follows them.
Role = Literal["producer", "consumer", "other"]


@dataclass(frozen=True, kw_only=True)
class HeadInput:
    """An argument of a module that carries one slice for every head.

    Attributes:
        dimension: The dimension along which the heads lie. None for an argument of zeros, which an earlier layer made
            in its own size: it is left out of the call, and the module makes zeros of its own size.
        made_by: The method of the module that makes the argument if the caller gives none, for all heads of the dense
            model.
        returned: The place of the argument in the tuple that the module returns. Later layers get it from there, for
            all heads.
    """

    dimension: int | None = None
    made_by: str = ""
    returned: int | None = None


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """The projections of a layer that hold the units of one block, and everything that follows their number.

    Attributes:
        producers: Projections whose output rows make the units. If query, key and value have a projection each, the
            query's comes first.
        consumer: The projection whose input columns read them.
        fused: How many parts each producer stacks along its output: 3 for a query-key-value projection. The first part
            has as many features as the consumer reads; the other parts are of one size.
        interleaved: How many kinds of head stand in a row in each producer: 3 if the rows of query, key and value stand
            head by head. Where heads share a key and a value, the row has the queries of all of them, then the two.
        head_dim: Attribute that holds the width of one head; None if a unit is a neuron.
        sizes: Attributes of modules that must follow the number of units, and what each counts.
        config_fields: Fields of the stock config that set this block's size for all layers at once, and what each
            counts. Empty if the stock config cannot say another size.
        head_inputs: Arguments of a module that carry one slice for every head: `{module: {argument: where}}`.
        head_parameters: Parameters with one number for every query head, beside the projections, such as the attention
            sinks of GPT-OSS. A number goes with its head.
        residual_sum: The module that reads the sum of the consumer's output and the residual stream, before any
            normalisation. Empty if that sum is the output of the layer. None if no module reads it: reconstruction
            then aims at the consumer's own output.
        absent: Modules that the entry does not handle: the block of a layer that has one of them is left out.
        optional: Whether layers of the list may lack the block: one that has none of its projections is passed over.
        of_positions: Producers that read no tokens, but embeddings of positions, so that their multiply-adds do not
            follow the length of a sequence.
        cached_by_head: Attribute that says whether the key/value cache holds key and value once for every query head,
            also where heads share them. None: once for those that share them.
        bypass: The module that is left out of the pass if the block has lost all its units, because it cannot run
            without any. It takes the hidden states as its first argument and returns a tuple. The consumer reads the
            first item of that tuple, or is itself inside the module. None for a module that runs without units.
            Attention without a bypass keeps at least one unit. A module that is given a cache holds the index of its
            layer there in `layer_idx` or `layer_id`.
    """

    producers: tuple[str, ...]
    consumer: str
    fused: int = 1
    interleaved: int = 1
    head_dim: str | None = None
    sizes: Mapping[str, Quantity] = field(default_factory=dict)
    config_fields: Mapping[str, Quantity] = field(default_factory=dict)
    head_inputs: Mapping[str, Mapping[str, HeadInput]] = field(default_factory=dict)
    head_parameters: tuple[str, ...] = ()
    residual_sum: str | None = None
    bypass: str | None = None
    absent: tuple[str, ...] = ()
    optional: bool = False
    of_positions: tuple[str, ...] = ()
    cached_by_head: str | None = None

    @property
    def of_neurons(self) -> bool:
        """Whether a unit of the block is a neuron; otherwise it is a head, or several."""
        return self.head_dim is None

    @property
    def grouped(self) -> bool:
        """Whether single query heads can be units too: an attribute says how many of them share a key/value head."""
        return "group" in self.sizes.values()

    @property
    def kind(self) -> Kind:
        """`attention` or `ffn`."""
        return KIND_OF_NEURONS if self.of_neurons else "attention"


#: The blocks of a layer, by name. If a block has several specs, the first one counts whose projections the layer has.
Layer = Mapping[str, BlockSpec | Sequence[BlockSpec]]


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The blocks of every layer of a model type.

    Attributes:
        stacks: By path of a list of layers, from the base model: the blocks of each layer in it. `*` in a path stands
            for every entry of a list. A model may lack some of several stacks, such as the encoder of an
            encoder-decoder.
        runs: For models that share layers, the config field that says how often the outermost list runs in one pass.
        note: Which parts of the model are not pruned, and why, in a few words.
        left_out: Which blocks are not here although the layers have their projections, and why: what discovery could
            not prove.
    """

    stacks: Mapping[str, Layer]
    runs: str = ""
    note: str = ""
    left_out: str = ""


def specs_of(layer: Layer) -> dict[str, tuple[BlockSpec, ...]]:
    """The specs of a layer's blocks by name, each as a tuple, whether the entry gives one spec or several."""
    specs: dict[str, tuple[BlockSpec, ...]] = {}
    for name, choices in layer.items():
        specs[name] = (choices,) if isinstance(choices, BlockSpec) else tuple(choices)
    return specs


def changed(entry: Architecture, **blocks: Mapping[str, Any]) -> Architecture:
    """A new entry like another one, with some fields of its blocks changed in all stacks.

    Args:
        entry: The other entry.
        **blocks: By name of a block, the fields that differ.

    Returns:
        The new entry.
    """
    stacks: dict[str, Layer] = {}
    for path, layer in entry.stacks.items():
        specs: dict[str, tuple[BlockSpec, ...]] = {}
        for name, choices in specs_of(layer).items():
            fields = blocks.get(name, {})
            specs[name] = tuple(replace(spec, **fields) for spec in choices)
        stacks[path] = specs
    return replace(entry, stacks=stacks)
