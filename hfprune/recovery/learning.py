"""Which parameters of a model learn, and how: in which dtype, with which dropout and at which learning rates."""

import logging
from collections.abc import Callable, Iterator, Sequence
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
from hfprune.structure.anatomy import anatomy_of
from hfprune.structure.blocks import base_model_prefix
from hfprune.structure.devices import input_embeddings

logger = logging.getLogger(__name__)
#: By name of every parameter and buffer, whether it learns and its dtype.
State = dict[str, tuple[bool, torch.dtype]]
_HALVES = (torch.float16, torch.bfloat16)


def learning_names(model: PreTrainedModel, trainable: Sequence[str], *, freeze_embeddings: bool = False) -> set[str]:
    """Names of the parameters that shall learn.

    Args:
        model: The model.
        trainable: `["all"]`; `["input_output"]`: the embeddings, the first and the last layer, and everything outside
            of the layers; or shell-style patterns of parameter names.
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
        # by identity: a head that shares the embeddings has them under another name
        frozen = set(map(id, embeddings.parameters()))
        for name, parameter in model.named_parameters():
            if id(parameter) in frozen:
                learns.discard(name)
    return learns


def _matching(model: PreTrainedModel, trainable: Sequence[str]) -> set[str]:
    names = [name for name, _ in model.named_parameters()]
    if list(trainable) == ["all"]:
        return set(names)
    if list(trainable) == ["input_output"]:
        inner = _inner_layers(model)
        return {name for name in names if not name.startswith(inner)}
    learns: set[str] = set()
    for pattern in trainable:
        matches = {name for name in names if fnmatchcase(name, pattern)}
        if not matches:
            example = names[len(names) // 2].split(".", 1)[-1]
            raise ValueError(
                f"trainable: no parameter matches {pattern!r}. It is `all`, `input_output`, or patterns of "
                f"parameter names, such as *.{example}"
            )
        learns |= matches
    return learns


def _inner_layers(model: PreTrainedModel) -> tuple[str, ...]:
    """With what the names of parameters begin in all layers but the first and the last."""
    layers: list[str] = []
    for block in anatomy_of(model).blocks:
        if block.layer not in layers:
            layers.append(block.layer)
    prefix = base_model_prefix(model)
    return tuple(f"{prefix}{layer}." for layer in layers[1:-1])


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
    """Keep the parameters that learn in float32 inside the `with`: half precision would round most steps away.

    They are still in float32 afterwards, so that adapters are merged and units are cut before anything is rounded.
    `restore_state` then rounds them.

    Args:
        model: The model. Without adapters all of it is made float32. With adapters, which peft keeps in float32 itself,
            only heads that learn are; they then compute in float32 beside a base model in half precision.

    Yields:
        Nothing.
    """
    halves = {parameter.dtype for parameter in model.parameters() if _learns_in_half(parameter)}
    if halves:
        logger.info("The model is in %s; what learns is in float32 until training ends.", ", ".join(map(str, halves)))
    with ExitStack() as hooks:
        if halves and has_adapters(model):
            _widen_heads(model, hooks)
        elif halves:
            model.float()
        yield


def _learns_in_half(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad and parameter.dtype in _HALVES


def _widen_heads(model: nn.Module, hooks: ExitStack) -> None:
    """Let modules that learn in half precision compute in float32, with inputs and outputs in the dtype as before."""
    for module in model.modules():
        halves = [parameter.dtype for parameter in module.parameters(recurse=False) if _learns_in_half(parameter)]
        if not halves:
            continue
        module.float()
        hooks.callback(module.register_forward_pre_hook(_casts_inputs(torch.float32)).remove)
        hooks.callback(module.register_forward_hook(_casts_output(halves[0])).remove)


def _casts_inputs(dtype: torch.dtype) -> Callable[[nn.Module, Any], Any]:
    return lambda _, args: _cast(args, dtype)


def _casts_output(dtype: torch.dtype) -> Callable[[nn.Module, Any, Any], Any]:
    return lambda _, __, output: _cast(output, dtype)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, tuple):
        return tuple(_cast(item, dtype) for item in value)
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype)
    return value


def _named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def state_of(model: nn.Module) -> State:
    """By name of every parameter and buffer, whether it learns and its dtype."""
    return {name: (tensor.requires_grad, tensor.dtype) for name, tensor in _named_tensors(model)}


def restore_state(model: nn.Module, state: State, *, dtypes: bool = True) -> bool:
    """Let a model, or a smaller one that was cut from it, learn and be in dtypes as before.

    Args:
        model: The model. Parameters without elements, whose units were all removed, stay frozen.
        state: What `state_of` gave before.
        dtypes: Whether dtypes count.

    Returns:
        Whether the dtype of a tensor was changed.
    """
    changed = False
    for name, tensor in list(_named_tensors(model)):
        learned, dtype = state.get(name, (tensor.requires_grad, tensor.dtype))
        if dtypes and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)
            changed = True
        if isinstance(tensor, nn.Parameter):
            tensor.requires_grad_(learned and tensor.numel() > 0)
    return changed


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Train without dropout inside the `with`: of dropout modules, and of attention, whose rate is a plain number.

    Args:
        model: The model; its rates come back.

    Yields:
        Nothing.

    Examples:
        >>> layer = nn.Sequential(nn.Dropout(0.1))
        >>> with without_dropout(layer):
        ...     layer[0].p
        0.0
        >>> layer[0].p
        0.1
    """
    rates = list(_dropout_rates(model))
    try:
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)


def _dropout_rates(model: nn.Module) -> Iterator[tuple[nn.Module, str, float]]:
    """Every attribute that is a dropout rate: its module, its name and the rate."""
    for module in model.modules():
        for name, value in vars(module).items():
            is_rate = "dropout" in name or (name == "p" and isinstance(module, _DropoutNd))
            if is_rate and isinstance(value, float):
                yield module, name, value


def slow_base_model(optimizer: Optimizer, model: PreTrainedModel, factor: float) -> None:
    """Give the parameters of the base model a learning rate of their own, before the first step.

    Args:
        optimizer: The optimizer; its groups are split in place.
        model: The model with its head.
        factor: What the learning rate of the base model is multiplied by.
    """
    base = set(map(id, model.base_model.parameters()))
    groups = []
    for group in optimizer.param_groups:
        of_base = []
        of_head = []
        for parameter in group["params"]:
            if id(parameter) in base:
                of_base.append(parameter)
            else:
                of_head.append(parameter)
        if of_base:
            groups.append({**group, "params": of_base, "lr": group["lr"] * factor})
        if of_head:
            groups.append({**group, "params": of_head})
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
        warm_up = min(1.0, step / warmup_steps) if warmup_steps else 1.0
        drops_so_far = sum(step >= drop * steps for drop in drops)
        return warm_up * factor**drops_so_far

    return LambdaLR(optimizer, rate)
