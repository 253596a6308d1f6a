"""What an entry of the architecture table says."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["attention", "ffn"]
#: What a size counts: query heads, key/value groups (the units), consumer input features, or one head's width.
Quantity = Literal["heads", "units", "features", "head_dim"]


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """Where one block of a layer keeps its units.

    Attributes:
        producers: Projections whose output rows make the units; of separate ones for attention the query's comes first.
        consumer: The projection whose input columns read them.
        fused: How many equal parts each producer stacks along its output (3 for a query-key-value projection).
        interleaved: How many head widths each head has in a row in each producer (3 where query, key and value rows
            stand head by head).
        head_dim: Attribute that holds the width of one head; None where a unit is a neuron.
        sizes: Attributes of modules that must follow the number of units, and what each counts.
        config_fields: Fields of the stock config that set this block's size for all layers at once, and what each
            counts. Empty where the stock config cannot say another size.
        head_inputs: Arguments of a module that carry one slice for every head, and the dimension it lies in:
            `{module: {argument: dimension}}`.
        residual_sum: The module whose input is the consumer's output plus the residual stream, before any
            normalisation; empty where that is the output of the layer. None where there is no such place:
            reconstruction then aims at the consumer's own output.
        absent: Modules that the entry does not handle: a model that has one is refused.
        bypass: The module that is left out when no unit is left, because it cannot run without any. It takes the
            hidden states first and returns a tuple, whose first item the consumer reads, unless the consumer is inside.
            None where it can run. A block of attention without it keeps at least one unit.
    """

    producers: tuple[str, ...]
    consumer: str
    fused: int = 1
    interleaved: int = 1
    head_dim: str | None = None
    sizes: Mapping[str, Quantity] = field(default_factory=dict)
    config_fields: Mapping[str, Quantity] = field(default_factory=dict)
    head_inputs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    residual_sum: str | None = None
    bypass: str | None = None
    absent: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The blocks of every layer of a model type.

    Attributes:
        layers: Path of the list of layers, from the base model.
        blocks: What each layer holds, by kind.
    """

    layers: str
    blocks: Mapping[Kind, BlockSpec]
