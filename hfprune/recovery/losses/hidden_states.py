"""The loss that compares hidden states."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def hidden_states_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], *, mask: Tensor | None = None) -> Tensor:
    """Mean squared error between hidden states, averaged over layers, non-padding tokens and features.

    What: mean over layers of MSE(student, teacher); pruning leaves the residual stream's width alone, so layers match
    one to one and no projection has to be learned.
    Inputs: `(N, tokens, hidden)` for each layer.
    Requirements: the same number of layers and the same hidden size.
    Reference: Jiao et al. 2020, "TinyBERT: Distilling BERT for Natural Language Understanding".
    Example: `hidden_states_loss(small.hidden_states[1:], dense.hidden_states[1:], mask=attention_mask)`

    Args:
        student: Hidden states of the student.
        teacher: Hidden states of the teacher.
        mask: `(N, tokens)`; 0 for padding.

    Returns:
        A scalar.

    Raises:
        ValueError: The numbers of layers or the shapes differ.
    """
    return mean_square(student, teacher, mask, "hidden_states")


def mean_square(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None, what: str) -> Tensor:
    """The mean over pairs of tensors of their mean squared difference.

    Args:
        student: Tensors of the student, `(N, tokens, features)` each.
        teacher: Tensors of the teacher, of the same shapes.
        mask: `(N, tokens)`; 0 for padding.
        what: What they are, as the name of their weight says, for the message.

    Returns:
        A scalar.

    Raises:
        ValueError: The numbers of tensors or their shapes differ.
    """
    shapes = [[tuple(t.shape) for t in states] for states in (student, teacher)]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(
            f"{what.replace('_', ' ')} do not match: the student has {len(student)} layers of {shapes[0][:1]}, the "
            f"teacher {len(teacher)} of {shapes[1][:1]}. Set {what}_weight=0, or use the dense model that was pruned."
        )
    losses = []
    for mine, theirs in zip(student, teacher, strict=True):
        if mask is not None:
            mine, theirs = mine[mask.bool()], theirs[mask.bool()]
        losses.append(F.mse_loss(mine.float(), theirs.float()))
    return torch.stack(losses).mean()
