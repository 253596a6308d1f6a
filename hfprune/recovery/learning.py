"""What of a model learns, and how: trainable parameters, dropout, learning rates by part, stepwise decay."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel

from hfprune.structure.blocks import base_model_prefix
from hfprune.structure.devices import input_embeddings
from hfprune.structure.reading import find_blocks


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
