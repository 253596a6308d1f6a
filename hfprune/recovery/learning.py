"""What of a model learns, and how: trainable parameters, dropout, learning rates by part, stepwise decay."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from hfprune.recovery.lora import has_adapters
from hfprune.structure.anatomy import find_blocks
from hfprune.structure.blocks import base_model_prefix
from hfprune.structure.devices import input_embeddings

logger = logging.getLogger(__name__)
State = dict[str, tuple[bool, torch.dtype]]
_HALVES = (torch.float16, torch.bfloat16)


def learning_names(model: PreTrainedModel, trainable: Sequence[str], *, freeze_embeddings: bool = False) -> set[str]:
    """Names of the parameters that shall learn.

    Args:
        model: The model.
        trainable: `["all"]`; `["input_output"]`: embeddings, the first and the last layer, and all that is outside of
            the layers (what is nearest to input and output); or shell-style patterns of parameter names.
        freeze_embeddings: The input embeddings do not learn, whatever the patterns say.

    Returns:
        The names.

    Raises:
        ValueError: A pattern matches no parameter, or there are no embeddings to freeze.
    """
    learns = _matching(model, trainable)
    if freeze_embeddings:
        embeddings = input_embeddings(model)
        if embeddings is None:
            raise ValueError(f"freeze_embeddings: {type(model).__name__} has no embeddings. Leave it out.")
        frozen = {id(parameter) for parameter in embeddings.parameters()}
        learns -= {name for name, parameter in model.named_parameters() if id(parameter) in frozen}
    return learns


def _matching(model: PreTrainedModel, trainable: Sequence[str]) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    if list(trainable) == ["all"]:
        return set(names)
    if list(trainable) == ["input_output"]:
        layers = list(dict.fromkeys(block.layer for block in find_blocks(model)))
        inner = tuple(f"{base_model_prefix(model)}{layer}." for layer in layers[1:-1])
        return {name for name in names if not name.startswith(inner)}
    learns: set[str] = set()
    for pattern in trainable:
        found = {name for name in names if fnmatchcase(name, pattern)}
        if not found:
            raise ValueError(
                f"trainable: no parameter matches {pattern!r}. It is `all`, `input_output`, or patterns of "
                f"parameter names, such as *.{names[len(names) // 2].split('.', 1)[-1]}"
            )
        learns |= found
    return learns


def choose_trainable(model: PreTrainedModel, trainable: Sequence[str], *, freeze_embeddings: bool = False) -> None:
    """Freeze what shall not learn, in place; nothing that is frozen already is thawed.

    Args:
        model: The model.
        trainable: As for `learning_names`.
        freeze_embeddings: As for `learning_names`.

    Raises:
        ValueError: A pattern matches no parameter, or there are no embeddings to freeze. Nothing is frozen.
    """
    learns = learning_names(model, trainable, freeze_embeddings=freeze_embeddings)
    for name, parameter in model.named_parameters():
        if name not in learns:
            parameter.requires_grad_(False)


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """What learns is in float32 inside the `with`: half precision would lose most steps, and float16 more than that.

    It stays so behind it, to be merged or cut before it is rounded; `as_before` is for that.

    Args:
        model: The model; as a whole it is made float32, but with adapters, which peft keeps in float32, only what else
            learns (heads), which computes in float32 between a base and a decoder that do not.
    """
    halves = {p.dtype for p in model.parameters() if p.requires_grad and p.dtype in _HALVES}
    if halves:
        logger.info("The model is in %s; what learns is in float32 until training ends.", ", ".join(map(str, halves)))
    with ExitStack() as hooks:
        if halves and has_adapters(model):
            _widen_heads(model, hooks)
        elif halves:
            model.float()
        yield


def _widen_heads(model: nn.Module, hooks: ExitStack) -> None:
    """Modules that learn and are in half precision compute in float32, with inputs and outputs as before."""
    for module in model.modules():
        learns = (p.dtype for p in module.parameters(recurse=False) if p.requires_grad)
        own = next((dtype for dtype in learns if dtype in _HALVES), None)
        if own is not None:
            module.float()
            hooks.callback(module.register_forward_pre_hook(lambda _, args: _cast(args, torch.float32)).remove)
            hooks.callback(module.register_forward_hook(lambda _, __, output, own=own: _cast(output, own)).remove)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(each, dtype) for each in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def state_of(model: nn.Module) -> State:
    """By name of every parameter and buffer, whether it learns and its dtype."""
    return {name: (t.requires_grad, t.dtype) for name, t in (*model.named_parameters(), *model.named_buffers())}


def as_before(model: nn.Module, state: State, *, dtypes: bool = True) -> bool:
    """Let a model, or a smaller one that was cut from it, learn and be in dtypes as before.

    Args:
        model: The model; parameters that have lost all their numbers cannot learn.
        state: What `state_of` found before.
        dtypes: Whether dtypes count.

    Returns:
        Whether some dtype was another.
    """
    changed = False
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        learned, dtype = state.get(name, (tensor.requires_grad, tensor.dtype))
        if dtypes and tensor.dtype != dtype:
            tensor.data, changed = tensor.data.to(dtype), True
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(learned and tensor.numel() > 0)
    return changed


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """No dropout inside the `with`, neither of modules of its own nor of attention, whose rate is a number.

    Args:
        model: The model; its rates come back.
    """
    rates = [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and ("dropout" in name or (name == "p" and isinstance(module, _DropoutNd)))
    ]
    try:
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, value in rates:
            setattr(module, name, value)


def slow_base_model(optimizer: Optimizer, model: PreTrainedModel, factor: float) -> None:
    """Give the parameters of the base model a learning rate of their own, before the first step.

    Args:
        optimizer: The optimizer; its groups are split in place.
        model: The model with its head.
        factor: What the learning rate of the base model is multiplied by.
    """
    base = {id(parameter) for parameter in model.base_model.parameters()}
    groups = []
    for group in optimizer.param_groups:
        for slow in (True, False):
            members = [parameter for parameter in group["params"] if (id(parameter) in base) is slow]
            if members:
                groups.append({**group, "params": members, "lr": group["lr"] * (factor if slow else 1)})
    optimizer.param_groups = groups


def stepwise(optimizer: Optimizer, *, warmup_steps: int, steps: int, drops: Sequence[float], factor: float) -> LambdaLR:
    """A scheduler that warms up linearly and then multiplies the learning rate by a factor after given fractions.

    Args:
        optimizer: The optimizer.
        warmup_steps: Steps of warm-up.
        steps: Steps in all.
        drops: Fractions of the steps, increasing.
        factor: What the rate is multiplied by at each of them.

    Returns:
        The scheduler.
    """

    def rate(step: int) -> float:
        warm = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        return warm * factor ** sum(step >= drop * steps for drop in drops)

    return LambdaLR(optimizer, rate)
