"""What the stock config of a model type can say of its blocks' sizes."""

import copy
from collections.abc import Sequence

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from hfprune.structure.blocks import Block
from hfprune.structure.modeling_pruned import base_class

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
    values: dict[str, int] = {}
    if not all(units):  # a size of 0 means nothing to a stock config
        return None
    for block, count in zip(blocks, units, strict=True):
        for name, value in _sizes(block, count):
            if values.setdefault(name, value) != value:
                return None
    stock = base_class(type(config))
    fields = copy.deepcopy(config.to_dict())
    fields.update(values, model_type=stock.model_type)
    for ours in ("pruning_config", "auto_map", "architectures", "transformers_weights"):
        fields.pop(ours, None)
    try:
        return stock.from_dict(fields)
    except (StrictDataclassError, ValueError):  # its own checks, such as hidden_size % num_attention_heads
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
    counts: Sequence[int] = range(block.groups, block.units + 1, block.groups)
    if block.kind == "attention":
        for n in counts[:-1]:
            if _sizes(block, n) not in sayable:
                sayable[_sizes(block, n)] = stock_config(config, [block], [n]) is not None
        counts = tuple(n for n in counts if n == block.units or sayable[_sizes(block, n)])
    return Block(**{**vars(block), "portable_units": counts})
