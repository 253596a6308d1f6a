"""The loss that compares logits: with a teacher that runs, with its logits, or with its likeliest tokens only."""

import logging
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from hfprune.recovery.columns import TEACHER_LOGITS, TEMPERATURE, TOP_IDS, TOP_LOG_PROBABILITIES
from hfprune.recovery.losses.embeddings import embeddings_loss, similarities_loss
from hfprune.recovery.losses.registry import (
    IGNORED_LABEL,
    OVER_DECODER_TOKENS,
    OVER_LABELS,
    OVER_TOKENS,
    LossInputs,
    Term,
    register_loss,
)
from hfprune.structure.embedder import SENTENCE_EMBEDDING
from hfprune.structure.predictions import (
    Link,
    Prediction,
    counting_mask,
    predicted_logits,
    prediction_fields,
    predictions_of,
    without_padding,
)

logger = logging.getLogger(__name__)

#: How many logits are compared at a time: few enough to nearly fit caches, and for allocators to reuse the buffers.
DIVERGENCE_NUMBERS = 2**22
#: Stands for log 0, which would be NaN in a product with 0.
_LOG_ZERO = -1e30
#: The words of transformers for what logits mean, by their link.
_PROBLEMS: dict[Link, str] = {
    "softmax": "single_label_classification",
    "sigmoid": "multi_label_classification",
    "identity": "regression",
}
#: What terms of samples are means over, in a batch whose labels are of tokens. Batches count alike.
_OVER_SAMPLES = "samples"


def logits_loss(
    student: Tensor, teacher: Tensor, *, temperature: float, problem: str, mask: Tensor | None = None
) -> Tensor:
    """How far the student's predictions are from the teacher's, a mean over samples (or tokens).

    - What: T² · KL(softmax(teacher / T) ‖ softmax(student / T)); for multi-label tasks the same with sigmoids, for
      regressions the mean squared error.
    - Inputs: `(N, classes)`, `(N, tokens, classes)` or, for spans, `(N, tokens)` logits of both models.
    - Requirements: the same labels, or vocabulary, in the same order.
    - Reference: Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network".

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

    Examples:
        >>> teacher = torch.tensor([[2.0, 0.0]])
        >>> undecided = torch.zeros(1, 2)
        >>> logits_loss(undecided, teacher, temperature=1.0, problem="single_label_classification")
        tensor(0.3278)
        >>> logits_loss(teacher, teacher, temperature=1.0, problem="single_label_classification")
        tensor(0.)
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student logits are {tuple(student.shape)}, teacher logits {tuple(teacher.shape)}: the teacher must have "
            "the student's labels (or vocabulary). Pass the dense model that was pruned as teacher."
        )
    if student.ndim < 3:
        # one vector for every sample: a mask of tokens says nothing about it
        mask = None
    if problem not in ("regression", "multi_label_classification"):
        return _divergence(student, teacher, mask, temperature)
    student = student.float()
    teacher = teacher.float()
    if mask is not None:
        student = student[mask.bool()]
        teacher = teacher[mask.bool()]
    if problem == "regression":
        return F.mse_loss(student, teacher)
    probabilities = (teacher / temperature).sigmoid()
    cross = F.binary_cross_entropy_with_logits(student / temperature, probabilities, reduction="none")
    entropy = F.binary_cross_entropy(probabilities, probabilities, reduction="none")
    return temperature**2 * (cross - entropy).sum(-1).mean()


def _divergence(student: Tensor, teacher: Tensor, mask: Tensor | None, temperature: float) -> Tensor:
    """T² · KL(softmax(teacher / T) ‖ softmax(student / T)), a mean over the vectors of logits that count."""
    student = student.reshape(-1, student.shape[-1])
    teacher = teacher.detach().reshape(-1, teacher.shape[-1])
    if mask is None:
        used = torch.arange(len(student), dtype=torch.long, device=student.device)
    else:
        used = mask.bool().flatten().nonzero().flatten()
    divergence: Tensor = _Divergence.apply(student, teacher, used, temperature)  # type: ignore[no-untyped-call]
    return divergence


class _Divergence(torch.autograd.Function):
    """T² · KL(q ‖ p), a mean over `used` rows of logits s of the student (p) and of the teacher (q), or 0 of no rows.

    Some rows at a time, and ∂/∂s = T · (p − q) / rows at once: the float32 copies that a softmax takes of the logits of
    a language model would be several times what the model takes, and to make them again backwards takes as long.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, used: Tensor, temperature: float) -> Tensor:
        gradient: Tensor | None = None
        if ctx.needs_input_grad[0]:
            # float16 would lose small gradients before the loss scale multiplies them
            wide = torch.float32 if student.dtype == torch.float16 else student.dtype
            gradient = torch.zeros_like(student, dtype=wide)
        total = torch.zeros((), dtype=torch.float32, device=student.device)
        count = max(1, len(used))
        rows_at_once = max(1, DIVERGENCE_NUMBERS // student.shape[-1])
        for rows in torch.split(used, rows_at_once):
            # rows are copies, so they can be divided in place
            log_p = F.log_softmax(student[rows].float().div_(temperature), dim=-1)
            log_q = F.log_softmax(teacher[rows].float().div_(temperature), dim=-1)
            q = log_q.exp()
            # log 0, of what is never chosen, would be NaN in a product with 0
            log_q.clamp_(min=_LOG_ZERO)
            log_p.clamp_(min=_LOG_ZERO)
            total += log_q.sub_(log_p).mul_(q).sum()
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

    - What: with p the teacher's and q the student's softened probabilities, K the teacher's k likeliest tokens, and
      `p_* = 1 − Σ_{i∈K} p_i`, `q_*` alike: `T² · (Σ_{i∈K} p_i log(p_i / q_i) + p_* log(p_* / q_*))`. It is never more
      than the KL divergence over all tokens, as it does not see how `p_*` is spread over the others, and 0 where that
      is 0.
    - Inputs: `(N, tokens, words)` logits of the student; `(N, tokens, k)` tokens and `(N, tokens, k + 1)` log p_i, the
      last of them log `p_*`, of the teacher, as `add_teacher_logits(top_k=k)` keeps them.
    - Requirements: the same vocabulary in the same order, and p softened with the same temperature T.
    - Reference: the log-sum inequality (Cover & Thomas 2006, "Elements of Information Theory", 2.7) for the bound.

    Args:
        student: Logits of the student.
        ids: The teacher's likeliest tokens.
        log_probabilities: Their log-probabilities, and that of all others together.
        temperature: Above 1 it softens both distributions.
        mask: `(N, tokens)`; which tokens count.

    Returns:
        A scalar.

    Raises:
        ValueError: The shapes do not fit, or the student has no logit for a token.

    Examples:
        >>> ids = torch.tensor([[[1]]])
        >>> certain = torch.tensor([[[0.9, 0.1]]]).log()
        >>> top_k_logits_loss(torch.zeros(1, 1, 2), ids, certain, temperature=1.0)
        tensor(0.3681)
    """
    _check_top_k(student, ids, log_probabilities)
    if mask is None:
        mask = torch.ones(student.shape[:-1], dtype=torch.bool, device=student.device)
    used = mask.bool()
    logits = student[used].float() / temperature
    top = ids[used].long()
    log_p = log_probabilities[used].float()
    others = logits.scatter(-1, top, -torch.inf).logsumexp(-1, keepdim=True)
    total = logits.logsumexp(-1, keepdim=True)
    log_q = torch.cat([logits.gather(-1, top), others], -1) - total
    return temperature**2 * F.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def _check_top_k(student: Tensor, ids: Tensor, log_probabilities: Tensor) -> None:
    places = student.shape[:-1]
    top_k = ids.shape[-1]
    ids_fit = ids.shape == (*places, top_k)
    log_probabilities_fit = log_probabilities.shape == (*places, top_k + 1)
    if student.ndim != 3 or not ids_fit or not log_probabilities_fit:
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


@register_loss("logits", weight_field="logits_weight", needs=["teacher_logits"])
def compare_logits(inputs: LossInputs) -> list[Term]:
    """The divergence from what the teacher says of this batch, or said of it before; none of a model without logits.

    Of embeddings it is their distance, and that of the similarities between the texts of a batch.
    """
    if not prediction_fields(inputs.outputs):
        _say_that_there_are_none(type(inputs.student).__name__, inputs.args.logits_weight)
        return []
    if inputs.teacher_outputs is not None:
        return _against(inputs, inputs.teacher_outputs)
    if TEACHER_LOGITS in inputs.teacher_columns:
        return _against(inputs, {"logits": inputs.teacher_columns[TEACHER_LOGITS]})
    return _against_likeliest(inputs)


@cache
def _say_that_there_are_none(model: str, weight: float) -> None:
    """Once for every kind of model, the warning that it has no logits."""
    logger.warning(
        "%s has no logits, so logits_weight=%g has no effect: it learns from the other losses only. Load it with a "
        "head, or set logits_weight=0.",
        model,
        weight,
    )


def _against(inputs: LossInputs, teacher_output: Mapping[str, Tensor]) -> list[Term]:
    """A term for every prediction that the student makes: two of a model that finds spans, else mostly one."""
    teacher = inputs.teacher or inputs.student
    terms = []
    for prediction in _predictions(inputs):
        student_logits = predicted_logits(prediction, inputs.outputs, inputs.student, who="the student")
        teacher_logits = predicted_logits(prediction, teacher_output, teacher, who="the teacher")
        if prediction.field == SENTENCE_EMBEDDING:
            terms += _of_embeddings(student_logits, teacher_logits)
            continue
        mask = _counted_tokens(prediction, inputs, student_logits)
        if prediction.axis == "tokens":
            # of a span the softmax goes over the tokens of a text, where padding must not be chosen
            student_logits = without_padding(student_logits, mask)
            teacher_logits = without_padding(teacher_logits, mask)
        value = logits_loss(
            student_logits,
            teacher_logits,
            temperature=inputs.args.temperature,
            problem=_PROBLEMS[prediction.link],
            mask=mask,
        )
        terms.append(Term(value, _mean_over(prediction, inputs)))
    return terms


def _of_embeddings(student: Tensor, teacher: Tensor) -> list[Term]:
    """The terms of embeddings: of each text on its own, and of every text beside the others of the batch."""
    terms = [Term(embeddings_loss(student, teacher), OVER_LABELS)]
    if len(student) > 1:
        terms.append(Term(similarities_loss(student, teacher), OVER_LABELS))
    return terms


def _against_likeliest(inputs: LossInputs) -> list[Term]:
    """The term against the likeliest tokens, which columns of the data hold."""
    columns = inputs.teacher_columns
    temperature = inputs.args.temperature
    kept_with = columns[TEMPERATURE].float()
    if not torch.allclose(kept_with, torch.full_like(kept_with, temperature)):
        raise ValueError(
            f"the teacher's log-probabilities in the data are softened with a temperature of {float(kept_with[0]):g}, "
            f"and temperature={temperature:g}. Set that, or keep them anew: add_teacher_logits(temperature=...)."
        )
    (prediction,) = _predictions(inputs)
    logits = predicted_logits(prediction, inputs.outputs, inputs.student, who="the student")
    value = top_k_logits_loss(
        logits,
        columns[TOP_IDS],
        columns[TOP_LOG_PROBABILITIES],
        temperature=temperature,
        mask=_counted_tokens(prediction, inputs, logits),
    )
    return [Term(value, mean_over=_mean_over(prediction, inputs))]


def _predictions(inputs: LossInputs) -> list[Prediction]:
    """What the student predicts, by the config of the teacher where its own does not say it."""
    return predictions_of(
        inputs.student, inputs.outputs, inputs.batch, taker="logits_weight above 0", teacher=inputs.teacher
    )


def _mean_over(prediction: Prediction, inputs: LossInputs) -> str:
    """What a term is a mean over: the labels, or the tokens where it is of tokens and they are not labelled."""
    if prediction.subject != "token":
        labels = inputs.batch.get(prediction.labels)
        has_token_labels = isinstance(labels, Tensor) and labels.ndim == 2 and not labels.is_floating_point()
        # the labels that are counted are those named `labels`
        is_alone = prediction.labels == "labels" or "labels" not in inputs.batch
        return OVER_LABELS if is_alone and not has_token_labels else _OVER_SAMPLES
    if _labels_of(prediction, inputs) is not None:
        return OVER_LABELS
    if inputs.student.config.is_encoder_decoder:
        return OVER_DECODER_TOKENS
    return OVER_TOKENS


def _labels_of(prediction: Prediction, inputs: LossInputs) -> Tensor | None:
    """Labels that say which tokens count."""
    # a detector judges all tokens, whatever it is told of them
    if prediction.axis is None:
        return None
    labels: Tensor | None = inputs.batch.get(prediction.labels)
    return labels


def _counted_tokens(prediction: Prediction, inputs: LossInputs, logits: Tensor) -> Tensor | None:
    """Which tokens' predictions count: the labelled ones, else those that are not padding. None: there is no choice."""
    labels = _labels_of(prediction, inputs)
    of_tokens = prediction.subject == "token"
    # a label for something else than a token, such as a sentence, says nothing of single tokens
    if not of_tokens or labels is None or labels.is_floating_point() or labels.shape != logits.shape[:2]:
        return counting_mask(prediction, inputs.student, inputs.batch, logits)
    labelled = labels != IGNORED_LABEL
    if not inputs.shifts_labels:
        return labelled
    # the last token predicts a label that is not in the batch
    mask = torch.zeros_like(labelled)
    mask[:, :-1] = labelled[:, 1:]
    return mask
