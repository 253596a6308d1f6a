"""Run a model without changing it: frozen, with hooks, without a cache, or with layers that are computed again."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hfprune.errors import StructureError
from hfprune.structure.batches import Batch, on_device
from hfprune.structure.blocks import Block
from hfprune.structure.devices import input_device, refuse_inference_weights
from hfprune.structure.sharing import alone_with
from hfprune.structure.wrapping import argument_names

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class ForwardEnded(Exception):  # noqa: N818 (no error)
    """Ends a forward pass early: a hook raises it when the pass has given all that its caller wants."""


def outside_inference_mode(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """A function that works as ever inside `torch.inference_mode`, in which no gradient flows.

    Args:
        function: The function.

    Returns:
        The same, which leaves that mode for as long as it runs.
    """

    @wraps(function)
    def outside(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if not torch.is_inference_mode_enabled():
            return function(*args, **kwargs)
        with torch.inference_mode(mode=False):
            return function(*args, **kwargs)

    return outside


def refuse_tuples(model: PreTrainedModel) -> None:
    """Refuse a model whose outputs have no names, where predictions are taken from them.

    Args:
        model: The model.

    Raises:
        StructureError: Its config asks for tuples.
    """
    if getattr(model.config, "return_dict", True) is False:
        raise StructureError(
            f"the config of this {type(model).__name__} has return_dict=False, so that it returns a tuple, and which "
            "part of it are the logits is not known. Set model.config.return_dict = True."
        )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without weight gradients, inside the `with`.

    Behind it every module and parameter is as it was, also after an error. Another thread that wants the same model
    waits until then.

    Args:
        model: The model.

    Yields:
        Nothing.

    Raises:
        StructureError: Its weights were made inside `torch.inference_mode`, so that they could not be thawed again.

    Examples:
        >>> from hfprune.structure import frozen
        >>> weight = dense.classifier.weight
        >>> _ = dense.train()
        >>> with frozen(dense):
        ...     dense.training, weight.requires_grad
        (False, False)
        >>> dense.training, weight.requires_grad
        (True, True)
    """
    refuse_inference_weights(model)
    with alone_with(model):
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
    """The arguments that a model takes of a batch, on the device where it wants them.

    Scoring and reconstruction never generate, so a decoder is told not to build a key/value cache. The choices of a
    multiple choice become samples, as the model's head makes them.

    Args:
        module: A model, or the base model in one.
        batch: Arguments of the whole model.
        labels: Whether `labels` are among the arguments to take.

    Returns:
        Arguments by name.
    """
    taken = argument_names(module)
    names = [name for name in batch if name in taken]
    if not labels:
        names = [name for name in names if name != "labels"]
    inputs = on_device({name: batch[name] for name in names}, input_device(module))
    ids = inputs.get("input_ids")
    if isinstance(ids, Tensor) and ids.ndim == 3:
        for name, value in inputs.items():
            if isinstance(value, Tensor) and value.shape[:2] == ids.shape[:2]:
                inputs[name] = value.flatten(0, 1)
    return without_cache(module, inputs)


@contextmanager
def same_use_cache(model: PreTrainedModel) -> Iterator[None]:
    """Keep `config.use_cache` as it is: it is put back when the `with` ends, whatever was written there meanwhile.

    Trainer and gradient checkpointing switch it off and leave it so.

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


@contextmanager
def same_generation(model: PreTrainedModel) -> Iterator[None]:
    """Keep the settings of generation as they are: they are put back when the `with` ends.

    Seq2SeqTrainer writes the defaults of generation into them, where they would be saved.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    before = copy.deepcopy(getattr(model, "generation_config", None))
    try:
        yield
    finally:
        if before is not None:
            model.generation_config = before


def without_cache(model: PreTrainedModel, batch: Batch) -> Batch:
    """Tell a decoder to build no key/value cache, which only generation needs.

    Args:
        model: The model.
        batch: Its arguments. If `use_cache` is among them, it stays.

    Returns:
        The arguments, with `use_cache=False` where the model takes that.
    """
    if "use_cache" in argument_names(model) and "use_cache" not in batch:
        return {**batch, "use_cache": False}
    return batch


def run_without_head(model: PreTrainedModel, batch: Batch) -> None:
    """Run the base model, without its task head.

    An encoder-decoder runs whole, because its head makes the inputs of the decoder from the labels.

    Args:
        model: The model.
        batch: Its arguments.
    """
    if model.config.is_encoder_decoder:
        model(**inputs_of(model, batch, labels=True))
    else:
        model.base_model(**inputs_of(model.base_model, batch))


@contextmanager
def recomputed(model: PreTrainedModel, blocks: Sequence[Block]) -> Iterator[None]:
    """Gradient checkpointing inside the `with`: only the inputs of layers are kept for the backward pass.

    The gradients are the same, for one more forward pass. The gradient checkpointing of transformers works in training
    mode only, in which there is dropout.

    Args:
        model: The model.
        blocks: Blocks whose layers are run again in the backward pass.

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
    """Another `forward` for one module, inside the `with`.

    Args:
        module: The module. A `forward` that was set on the instance before, as the hooks of accelerate do, comes back.
        forward: What runs in its place.

    Yields:
        Nothing.
    """
    earlier = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if earlier is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = earlier


@contextmanager
def input_hooks(model: PreTrainedModel, changes: Mapping[Block, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Pass the input of each block's consumer through a function, inside the `with`.

    Args:
        model: The model.
        changes: By block, a function from the consumer's input to the input that the consumer gets.

    Yields:
        Nothing.
    """

    def hook(change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        return lambda _, args: (change(args[0]), *args[1:])

    with ExitStack() as stack:
        for block, change in changes.items():
            consumer = model.base_model.get_submodule(block.consumer)
            stack.callback(consumer.register_forward_pre_hook(hook(change)).remove)
        yield
