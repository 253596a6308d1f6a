"""NaN and infinity, refused by name: a training with them makes every weight NaN, and logs a loss of 0."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hfprune.recovery.losses.registry import Term


def check_finite_weights(model: nn.Module, role: str) -> None:
    """Refuse a model with weights that are NaN or infinite.

    Args:
        model: The model; weights that are not in memory are not looked at.
        role: What it is called: `model` or `teacher`.

    Raises:
        ValueError: A weight is NaN or infinite; the message names its parameter.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        finite = torch.isfinite(parameter.detach())
        if bool(finite.all()):
            continue
        wrong = int((~finite).sum())
        raise ValueError(
            f"the {role}, {type(model).__name__}, has {wrong} of {parameter.numel()} weights of {name!r} that are NaN "
            f"or infinite: all weights would become NaN in training. Load the {role} anew, and in float32 or bfloat16 "
            "if it was in float16."
        )


def check_finite_teacher(values: Tensor, name: str, source: str) -> None:
    """Refuse what a teacher says where it is NaN or infinite.

    Args:
        values: What it says. A logit of −∞ is of an outcome that never happens, and is no fault.
        name: What that is called.
        source: The class of the teacher, or `the data` where its predictions are a column.

    Raises:
        ValueError: A value is NaN or +∞.

    Examples:
        >>> check_finite_teacher(torch.tensor([1.0, -torch.inf]), "logits", "BertForMaskedLM")
        >>> check_finite_teacher(torch.tensor([1.0, torch.nan]), "logits", "BertForMaskedLM")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ValueError: the teacher's logits (of BertForMaskedLM) have 1 of 2 values that are NaN or infinite: ...
    """
    # NaN is not below anything
    usable = values < torch.inf
    if bool(usable.all()):
        return
    wrong = int((~usable).sum())
    raise ValueError(
        f"the teacher's {name} (of {source}) have {wrong} of {values.numel()} values that are NaN or infinite: the "
        "student would become NaN. Look at the teacher's weights, load it in float32 or bfloat16 if it was in float16, "
        "and see that no text is without tokens."
    )


def check_finite_terms(
    terms: Mapping[str, Sequence[Term]], teacher_says: Iterable[tuple[str, str, Any]], *, allow_overflow: bool
) -> None:
    """Refuse losses of a micro-batch that are NaN or infinite.

    Args:
        terms: The terms by the name of their loss.
        teacher_says: What the teacher says: for each tensor its name, its source, and the tensor. It is looked at where
            a loss is not finite, and is the cause that the message names.
        allow_overflow: Whether to let other causes pass: in float16 the scaler of gradients skips such a step.

    Raises:
        ValueError: A loss is NaN or infinite.
    """
    wrong = []
    for name, of_loss in terms.items():
        value = sum(float(term.value.detach()) for term in of_loss)
        if not math.isfinite(value):
            wrong.append(f"{name} is {value:g}")
    if not wrong:
        return
    for name, source, said in teacher_says:
        if isinstance(said, Tensor) and said.is_floating_point():
            check_finite_teacher(said, name, source)
    if allow_overflow:
        return
    raise ValueError(
        f"the loss of a batch is not a finite number: {', '.join(wrong)}; nothing that a teacher says is the cause. "
        "Look for NaN or infinity in the labels and inputs of the data, and for a learning rate that is too high; a "
        "model that computes in float16 may overflow: use bfloat16 (bf16=True)."
    )
