"""What is inside a wrapped model, and which arguments it takes: wrappers hide both behind `*args, **kwargs`."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import PreTrainedModel

#: What `torch.compile`, DataParallel, DistributedDataParallel, DeepSpeed and FSDP call the module inside.
_NAMES_INSIDE = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module"})


def inner(model: Any) -> Any:
    """A model without what `torch.compile`, `DataParallel`, DistributedDataParallel, FSDP or DeepSpeed put around it.

    Args:
        model: The model, wrapped or not, or anything else.

    Returns:
        What is inside; anything that is not wrapped as it is.

    Examples:
        >>> import torch
        >>> layer = nn.Linear(2, 2)
        >>> inner(torch.compile(nn.DataParallel(layer))) is layer
        True
    """
    while isinstance(model, nn.Module) and _may_be_wrapped(model):
        inside = extract_model_from_parallel(model, keep_torch_compile=False)
        if inside is model:
            break
        model = inside
    return model


def _may_be_wrapped(module: nn.Module) -> bool:
    """Whether a module holds another by a wrapper's name: a quick question, as every training step asks for `inner`."""
    return "_orig_mod" in vars(module) or not _NAMES_INSIDE.isdisjoint(module._modules)


def unwrapped(model: Any) -> PreTrainedModel:
    """The transformers model itself, of a model that may be wrapped.

    Args:
        model: The model, as it is, or compiled, or made parallel.

    Returns:
        The model inside, whose weights are those of the wrapped one.

    Raises:
        TypeError: It is no transformers model, or one with adapters of peft around it.

    Examples:
        >>> import torch
        >>> from hfprune.structure.wrapping import unwrapped
        >>> unwrapped(torch.compile(dense)) is dense
        True
    """
    inside = inner(model)
    if isinstance(inside, PreTrainedModel):
        return inside
    if hasattr(inside, "merge_and_unload"):
        raise TypeError(
            f"the model is a {type(inside).__name__}: its adapters are a part of what it computes, and no unit owns "
            "them. Merge them first: model = model.merge_and_unload()."
        )
    if hasattr(inside, "peft_config"):
        raise TypeError(
            f"the model is a {type(inside).__name__}: what peft adds to its inputs cannot be merged into its weights. "
            "Take the model without it: model.get_base_model()."
        )
    if type(inside).__module__.startswith("sentence_transformers."):
        raise TypeError(
            f"a model of transformers (PreTrainedModel) is expected, got {type(inside).__name__}. hfprune.prune and "
            "hfprune.save take it as it is; elsewhere pass the model in it: hfprune.encoders.opened(model).model."
        )
    raise TypeError(
        f"a model of transformers (PreTrainedModel) is expected, got {type(inside).__name__}. Load one with "
        "AutoModelForX.from_pretrained(...), and pass the object, not its name."
    )


def argument_names(module: nn.Module) -> set[str]:
    """The names of all arguments that a module's `forward` takes.

    A `forward` with `**kwargs` may hand them on: a patch to the `forward` of the class, and a subclass to that of its
    base class. So their arguments count too.

    Args:
        module: A model, or the base model in one.

    Returns:
        The names, without `*args` and `**kwargs` themselves.

    Examples:
        >>> class Loud(nn.Linear):
        ...     def forward(self, *args, **kwargs):
        ...         return super().forward(*args, **kwargs)
        >>> argument_names(Loud(2, 2))
        {'input'}
    """
    names: set[str] = set()
    for parameters in _signatures(inner(module)):
        hands_on = False
        for parameter in parameters:
            if parameter.kind is parameter.VAR_KEYWORD:
                hands_on = True
            elif parameter.kind is not parameter.VAR_POSITIONAL:
                names.add(parameter.name)
        if not hands_on:
            break
    return names


def label_arguments(model: PreTrainedModel) -> list[str]:
    """The arguments of a model that are labels, by the names that transformers gives them.

    Args:
        model: The model.

    Returns:
        The names, in alphabetical order.
    """
    labels = []
    for name in sorted(argument_names(model)):
        is_of_answers = name in ("start_positions", "end_positions") and "QuestionAnswering" in type(model).__name__
        if "label" in name or is_of_answers:
            labels.append(name)
    return labels


def _signatures(module: nn.Module) -> Iterator[list[inspect.Parameter]]:
    """The parameters of each `forward` that may run, from the outermost to that of the last base class."""
    yield list(inspect.signature(module.forward).parameters.values())
    for cls in type(module).__mro__:
        forward: Callable[..., Any] | None = vars(cls).get("forward")
        # torch's own stands for one that is missing
        if forward is not None and cls is not nn.Module:
            # without `self`
            yield list(inspect.signature(forward).parameters.values())[1:]
