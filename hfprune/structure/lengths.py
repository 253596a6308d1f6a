"""How many tokens each block sees: as many as are asked for, or a number that the input of the model fixes.

A picture of one size is cut into patches of one size, so a model of pictures sees the same number of tokens whatever
length is asked for. So does an encoder of spectrograms.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.errors import StructureError, UnsupportedArchitectureError
from hfprune.structure.blocks import Block
from hfprune.structure.devices import check_can_run
from hfprune.structure.examples import example_inputs
from hfprune.structure.running import frozen, without_cache

logger = logging.getLogger(__name__)
#: Two lengths to ask for. Every model with positions has as many.
_LENGTHS = (2, 4)
# the first ids of most vocabularies are special tokens
_ORDINARY_TOKEN = 5


def with_fixed_lengths(model: PreTrainedModel, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Find out which blocks see a fixed number of tokens, by running a model of pictures or sounds on two lengths.

    Args:
        model: The model. A model of texts is not run: its blocks see as many tokens as the text has. Nor is a model
            without weights, which is only read.
        blocks: Its blocks.

    Returns:
        The blocks. Those that see equally many tokens in both runs have their `tokens` and `source_tokens`.
    """
    if model.main_input_name == "input_ids":
        return tuple(blocks)
    try:
        check_can_run(model)
    except StructureError:
        return tuple(blocks)
    try:
        runs = [_tokens_seen(model, blocks, length) for length in _LENGTHS]
    except UnsupportedArchitectureError:
        # no example input can be made, so neither can its size be measured; scoring needs no lengths
        return tuple(blocks)
    found = []
    for block in blocks:
        # keys and values of cross-attention read the tokens of the encoder
        tokens = _fixed(block, [_tokens_at(block, block.consumer, seen) for seen in runs])
        source_tokens = _fixed(block, [_tokens_at(block, block.producers[-1], seen) for seen in runs])
        found.append(replace(block, tokens=tokens, source_tokens=source_tokens))
    return tuple(found)


def _tokens_at(block: Block, path: str, seen: Mapping[str, int]) -> int:
    """How many tokens one of the block's projections reads; of one that does not run, what its layer reads."""
    return seen.get(path, seen[block.layer])


def _fixed(block: Block, tokens: Sequence[int]) -> int | None:
    """The number of tokens that does not follow the lengths asked for; None for one that does."""
    short, long = tokens
    if short == long:
        return short
    if (short, long) != _LENGTHS:
        logger.warning(
            "%s sees %d and %d tokens where %d and %d were asked for. Its multiply-adds are counted for as many tokens "
            "as are asked for.",
            block.name,
            short,
            long,
            *_LENGTHS,
        )
    return None


def _tokens_seen(model: PreTrainedModel, blocks: Sequence[Block], length: int) -> dict[str, int]:
    """By path of a layer or a projection of the blocks, how many tokens of one sample it reads in one run.

    Paths of projections that do not run, as of blocks without units, are left out.
    """
    seen: dict[str, int] = {}

    def counting(path: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            features = args[0] if args else kwargs.get("hidden_states")
            if isinstance(features, Tensor):
                seen[path] = features.shape[:-1].numel()

        return hook

    modules = dict(model.base_model.named_modules())
    batch = example_inputs(model, torch.full((1, length), _ORDINARY_TOKEN, dtype=torch.long, device="cpu"))
    with ExitStack() as stack:
        stack.enter_context(frozen(model))
        stack.enter_context(torch.no_grad())
        for path in {path for block in blocks for path in (block.layer, *block.modules)}:
            if path in modules:
                hook = modules[path].register_forward_pre_hook(counting(path), with_kwargs=True)
                stack.callback(hook.remove)
        model(**without_cache(model, batch))
    return seen
