"""What the stock config of a model type can say of its blocks' sizes."""

import copy
from collections.abc import Sequence
from dataclasses import replace

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from hfprune.structure.blocks import Block
from hfprune.structure.modeling_pruned import base_class
from hfprune.structure.pruned_layers import without_sizes

#: Fields of a stock config, and a value for each.
Sizes = tuple[tuple[str, int], ...]


def stock_config(config: PretrainedConfig, blocks: Sequence[Block], units: Sequence[int]) -> PretrainedConfig | None:
    """The stock config that says these sizes, or None where its fields or its own checks cannot.

    Args:
        config: The model's config, stock or pruned; it stays as it is.
        blocks: The blocks whose sizes are to be said.
        units: How many units each of them shall have.

    Returns:
        A copy of the config with the sizes set. Sizes that no field can say are left as they are, so compare the
        shapes of a model built from it.
    """
    # a size of 0 means nothing to a stock config
    if not all(units):
        return None
    values: dict[str, int] = {}
    for block, count in zip(blocks, units, strict=True):
        for name, value in _sizes(block, count):
            # one field says the size of all layers, so they must agree
            if values.setdefault(name, value) != value:
                return None
    stock = base_class(type(config))
    fields = copy.deepcopy(without_sizes(config).to_dict())
    fields.update(values, model_type=stock.model_type)
    for ours in ("pruning_config", "auto_map", "architectures", "transformers_weights"):
        fields.pop(ours, None)
    try:
        return stock.from_dict(fields)
    except (StrictDataclassError, ValueError):
        # its own checks, such as hidden_size % num_attention_heads
        return None


def _sizes(block: Block, units: int) -> Sizes:
    """Fields of the stock config, and what they are for that many units of a block."""
    return tuple((name, amount.of(units // block.groups)) for name, amount in block.config_fields)


def with_portable_units(block: Block, config: PretrainedConfig, sayable: dict[Sizes, bool]) -> Block:
    """Ask the stock config which counts it accepts: every one for neurons, some for heads, none where no field is.

    Args:
        block: A block.
        config: The model's config.
        sayable: The answers so far, added to: a config takes milliseconds, and most layers have the same sizes.

    Returns:
        The block with its `portable_units`.
    """
    if not block.config_fields:
        return block
    every = range(block.groups, block.units + 1, block.groups)
    # any number of neurons will do; configs have checks of their own on numbers of heads
    if block.unit == "neuron":
        return replace(block, portable_units=every)
    counts: list[int] = []
    for count in every:
        sizes = _sizes(block, count)
        if count < block.units and sizes not in sayable:
            sayable[sizes] = stock_config(config, [block], [count]) is not None
        # the present number needs no check: a config that says it built the model
        if count == block.units or sayable[sizes]:
            counts.append(count)
    return replace(block, portable_units=tuple(counts))
