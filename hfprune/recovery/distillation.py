"""Distillation losses: tensors in, scalar out."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def logits_loss(
    student: Tensor, teacher: Tensor, *, temperature: float, problem: str, mask: Tensor | None = None
) -> Tensor:
    """How far the student's predictions are from the teacher's, a mean over samples (or tokens).

    What: T² · KL(softmax(teacher / T) ‖ softmax(student / T)); for multi-label tasks the same with sigmoids, for
    regressions the mean squared error.
    Inputs: `(N, classes)`, `(N, tokens, classes)` or, for spans, `(N, tokens)` logits of both models.
    Requirements: the same labels, or vocabulary, in the same order.
    Reference: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network".
    Example: `logits_loss(small.logits, dense.logits, temperature=2.0, problem="single_label_classification")`

    Args:
        student: Logits of the student.
        teacher: Logits of the teacher, of the same shape.
        temperature: Above 1 it softens both distributions.
        problem: `single_label_classification`, `multi_label_classification` or `regression`, as `config.problem_type`.
        mask: `(N, tokens)`; which tokens count.

    Returns:
        A scalar.

    Raises:
        ValueError: The shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student logits are {tuple(student.shape)}, teacher logits {tuple(teacher.shape)}: the teacher must have "
            "the student's labels (or vocabulary). Pass the dense model that was pruned as teacher."
        )
    student, teacher = student.float(), teacher.float()
    if mask is not None and student.ndim == 3:
        student, teacher = student[mask.bool()], teacher[mask.bool()]
    if problem == "regression":
        return F.mse_loss(student, teacher)
    if problem == "multi_label_classification":
        soft, log_soft = (teacher / temperature).sigmoid(), student / temperature
        cross = F.binary_cross_entropy_with_logits(log_soft, soft, reduction="none")
        entropy = F.binary_cross_entropy(soft, soft, reduction="none")
        return temperature**2 * (cross - entropy).sum(-1).mean()
    classes = student.shape[-1]
    log_p = F.log_softmax(student.reshape(-1, classes) / temperature, dim=-1)
    log_q = F.log_softmax(teacher.reshape(-1, classes) / temperature, dim=-1)
    return temperature**2 * F.kl_div(log_p, log_q, log_target=True, reduction="batchmean")


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
    return _mean_square(student, teacher, mask, "hidden_states")


def attention_outputs_loss(
    student: Sequence[Tensor], teacher: Sequence[Tensor], *, mask: Tensor | None = None
) -> Tensor:
    """Mean squared error between what attention blocks put out, averaged over blocks, non-padding tokens and features.

    What: mean over blocks of MSE(student, teacher), at the output of the output projection, before the residual sum:
    the heads that stay are pushed to say what all heads said.
    Inputs: `(N, tokens, hidden)` for each attention block that has heads left.
    Requirements: the same blocks and the same hidden size.
    Reference: Wang et al. 2020, "MiniLM", distils attention itself; its output has the same shape with fewer heads.
    Example: `attention_outputs_loss(small_outputs, dense_outputs, mask=attention_mask)`

    Args:
        student: Outputs of the student's attention blocks.
        teacher: Outputs of the teacher's.
        mask: `(N, tokens)`; 0 for padding.

    Returns:
        A scalar.

    Raises:
        ValueError: The numbers of blocks or the shapes differ.
    """
    return _mean_square(student, teacher, mask, "attention_outputs")


def _mean_square(student: Sequence[Tensor], teacher: Sequence[Tensor], mask: Tensor | None, what: str) -> Tensor:
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
