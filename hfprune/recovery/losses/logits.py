"""Distillation losses: tensors in, scalar out."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: So many numbers of logits are compared at a time: what allocators keep and caches nearly hold.
DIVERGENCE_NUMBERS = 2**22
_LOG_ZERO = -1e30


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
    mask = None if mask is None or student.ndim < 3 else mask.bool()
    if problem not in ("regression", "multi_label_classification"):
        student, teacher = (logits.reshape(-1, logits.shape[-1]) for logits in (student, teacher.detach()))
        used = torch.arange(len(student), device=student.device) if mask is None else mask.flatten().nonzero().flatten()
        divergence: Tensor = _Divergence.apply(student, teacher, used, temperature)  # type: ignore[no-untyped-call]
        return divergence
    student, teacher = student.float(), teacher.float()
    if mask is not None:
        student, teacher = student[mask], teacher[mask]
    if problem == "regression":
        return F.mse_loss(student, teacher)
    soft, log_soft = (teacher / temperature).sigmoid(), student / temperature
    cross = F.binary_cross_entropy_with_logits(log_soft, soft, reduction="none")
    entropy = F.binary_cross_entropy(soft, soft, reduction="none")
    return temperature**2 * (cross - entropy).sum(-1).mean()


class _Divergence(torch.autograd.Function):
    """T² · KL(q ‖ p), a mean over `used` rows of logits s of the student (p) and of the teacher (q), or 0 of no rows.

    Some rows at a time, and ∂/∂s = T · (p − q) / rows at once: the float32 copies that a softmax takes of the logits of
    a language model would be several times what the model takes, and to make them again backwards takes as long.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, used: Tensor, temperature: float) -> Tensor:
        wide = torch.float32 if student.dtype == torch.float16 else student.dtype  # float16 would lose small ones
        gradient = torch.zeros_like(student, dtype=wide) if ctx.needs_input_grad[0] else None
        total, count = torch.zeros((), device=student.device), max(1, len(used))
        for rows in torch.split(used, max(1, DIVERGENCE_NUMBERS // student.shape[-1])):
            log_p, log_q = (F.log_softmax(of[rows].float().div_(temperature), dim=-1) for of in (student, teacher))
            q = log_q.exp()
            # log 0, of what is never chosen, would be NaN in a product with 0
            total += log_q.clamp_(min=_LOG_ZERO).sub_(log_p.clamp_(min=_LOG_ZERO)).mul_(q).sum()
            if gradient is not None:
                gradient[rows] = log_p.exp_().sub_(q).mul_(temperature / count).to(gradient.dtype)
        ctx.save_for_backward(gradient)
        ctx.dtype = student.dtype
        return total * (temperature**2 / count)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (upstream * gradient).to(ctx.dtype), None, None, None


def top_k_logits_loss(
    student: Tensor, ids: Tensor, log_probabilities: Tensor, *, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """How far the student is from the teacher's likeliest tokens and all others together, a mean over tokens.

    What: with p the teacher's and q the student's softened probabilities, K the teacher's k likeliest tokens, and
    p_* = 1 − Σ_{i∈K} p_i, q_* alike: T² · (Σ_{i∈K} p_i log(p_i / q_i) + p_* log(p_* / q_*)). It is never more than the
    KL divergence over all tokens, as it does not see how the rest is spread, and 0 where that is 0.
    Inputs: `(N, tokens, words)` logits of the student; `(N, tokens, k)` tokens and `(N, tokens, k + 1)` log p_i, the
    last of them log p_*, of the teacher, as `add_teacher_logits(top_k=k)` keeps them.
    Requirements: the same vocabulary in the same order, and p softened with the same temperature T.
    Reference: the log-sum inequality (Cover & Thomas 2006, "Elements of Information Theory", 2.7) for the bound.
    Example: `top_k_logits_loss(small.logits, ids, log_probabilities, temperature=1.0)`

    Args:
        student: Logits of the student.
        ids: The teacher's likeliest tokens.
        log_probabilities: Their log-probabilities, and that of the rest.
        temperature: Above 1 it softens both distributions.
        mask: `(N, tokens)`; which tokens count.

    Returns:
        A scalar.

    Raises:
        ValueError: The shapes do not fit.
    """
    expected = (*student.shape[:-1], ids.shape[-1])
    if student.ndim != 3 or ids.shape != expected or log_probabilities.shape != (*expected[:-1], expected[-1] + 1):
        raise ValueError(
            f"student logits {tuple(student.shape)}, the teacher's tokens {tuple(ids.shape)} and log-probabilities "
            f"{tuple(log_probabilities.shape)} do not fit: expected (N, tokens, words), (N, tokens, k), "
            "(N, tokens, k + 1) of the same texts. Make them with add_teacher_logits(top_k=k) and do not shorten texts."
        )
    if ids.numel() and int(ids.max()) >= student.shape[-1]:
        raise ValueError(
            f"the teacher's likeliest tokens go up to {int(ids.max())}, and the student has logits of "
            f"{student.shape[-1]} words. Both need the same vocabulary in the same order."
        )
    used = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device) if mask is None else mask.bool()
    logits, top, log_p = student[used].float() / temperature, ids[used].long(), log_probabilities[used].float()
    rest = logits.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    log_q = torch.cat([logits.gather(-1, top), rest], -1) - logits.logsumexp(-1, keepdim=True)
    return temperature**2 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
