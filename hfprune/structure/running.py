"""Running a model without changing it: frozen, with hooks, without a cache, and layers computed again."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hfprune.structure.batches import Batch, on_device
from hfprune.structure.blocks import Block
from hfprune.structure.devices import input_device


class ForwardEnded(Exception):  # noqa: N818 (no error)
    """What was wanted of a forward pass is there: raised in a hook, it spares the rest of the pass."""


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no weight gradients, inside the `with`; exactly as before afterwards, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    # by name: accelerate makes offloaded parameters anew whenever their module runs
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    try:
        model.eval()
        for name in trainable:
            model.get_parameter(name).requires_grad_(False)
        yield
    finally:
        for name in trainable:
            model.get_parameter(name).requires_grad_(True)
        for module, mode in modes:
            module.training = mode


def inputs_of(module: PreTrainedModel, batch: Batch, *, labels: bool = False) -> Batch:
    """What a model, or the base model in one, takes of a batch, where it wants it and by default without labels.

    Scoring and reconstruction never generate, so a decoder is told not to build a key/value cache. The choices of a
    multiple choice are samples of their own, as its head makes them.
    """
    parameters = inspect.signature(module.forward).parameters
    taken = {name: value for name, value in batch.items() if name in parameters and (labels or name != "labels")}
    taken = on_device(taken, input_device(module))
    ids = taken.get("input_ids")
    if isinstance(ids, Tensor) and ids.ndim == 3:
        taken = {
            name: value.flatten(0, 1) if isinstance(value, Tensor) and value.shape[:2] == ids.shape[:2] else value
            for name, value in taken.items()
        }
    return without_cache(module, taken)


@contextmanager
def same_use_cache(model: PreTrainedModel) -> Iterator[None]:
    """Whatever is written there inside the `with`, `use_cache` of the config is behind it as it was.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    config = model.config
    before = vars(config).get("use_cache")
    try:
        yield
    finally:
        if before is None:
            vars(config).pop("use_cache", None)
        else:
            config.use_cache = before


def without_cache(model: PreTrainedModel, batch: Batch) -> Batch:
    """A batch that tells a decoder to build no key/value cache, which only generation needs.

    Args:
        model: The model.
        batch: Its arguments; if they say whether to build one, that counts.

    Returns:
        The arguments.
    """
    takes_it = "use_cache" in inspect.signature(model.forward).parameters
    return {**batch, "use_cache": False} if takes_it and "use_cache" not in batch else batch


def run_without_head(model: PreTrainedModel, batch: Batch) -> None:
    """Run the base model; an encoder-decoder whole, as its head makes the decoder's inputs of labels."""
    if model.config.is_encoder_decoder:
        model(**inputs_of(model, batch, labels=True))
    else:
        model.base_model(**inputs_of(model.base_model, batch))


@contextmanager
def recomputed(model: PreTrainedModel, blocks: Sequence[Block]) -> Iterator[None]:
    """Gradient checkpointing, inside the `with`: layers are run again in the backward pass instead of kept.

    The same gradients for one more forward pass. transformers' own works in training mode only, where there is dropout.

    Args:
        model: The model.
        blocks: Its blocks; what is kept is the inputs of their layers.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for path in {block.layer for block in blocks}:
            layer = model.base_model.get_submodule(path)
            forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
            stack.enter_context(replaced_forward(layer, forward))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another `forward` for one module; one that was set on the instance before (by accelerate's hooks) comes back."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


@contextmanager
def input_hooks(model: PreTrainedModel, changes: Mapping[Block, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Pass the input of each block's consumer through a function."""

    def hook(change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        return lambda _, args: (change(args[0]), *args[1:])

    with ExitStack() as stack:
        for block, change in changes.items():
            consumer = model.base_model.get_submodule(block.consumer)
            stack.callback(consumer.register_forward_pre_hook(hook(change)).remove)
        yield
