"""The summed loss of a batch: against its labels, against labels drawn from a model's predictions, or of its logits."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

from hfprune.errors import CalibrationError
from hfprune.scoring.registry import Labels
from hfprune.scoring.token_losses import Head, before_head, summed_in_parts
from hfprune.structure.batches import LABELS, Batch, count_samples, on_device, predicted_tokens
from hfprune.structure.devices import input_device
from hfprune.structure.running import without_cache


def summed_loss(
    labels: Labels, index: int, *, seed: int, teacher: PreTrainedModel
) -> Callable[[PreTrainedModel, Batch], Tensor]:
    """The loss of a calibration batch, as a function of model and batch: a sum over its samples.

    Args:
        labels: `data` for the true labels, `model` for labels that the teacher draws, `logits` for a random projection
            of the logits.
        index: The batch's place among all. Every batch gets a seed of its own, so that the draw does not depend on who
            scores the other batches.
        seed: Of the draw.
        teacher: Draws the labels.

    Returns:
        The function.
    """
    if labels == "data":
        return labelled_loss
    seed = seed * 1_000_003 + index
    return (
        partial(projected_loss, seed=seed) if labels == "logits" else partial(sampled_loss, teacher=teacher, seed=seed)
    )


def labelled_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The sum over samples of the model's own loss; a token-level loss is summed over the labelled tokens.

    Args:
        model: A model with a task head.
        batch: Its arguments, labels included.

    Returns:
        A scalar.

    Raises:
        CalibrationError: The batch has no labels, or the model gives no loss.
    """
    if not any(name in batch for name in LABELS):
        raise CalibrationError(
            f"this scorer needs labels, and the batch has only {', '.join(batch)}. Pass labelled data, or use a scorer "
            "that needs none, such as residual_logit_fisher or kl_fisher."
        )
    if (found := _labelled_tokens(model, batch)) is not None:
        return found
    problem = getattr(model.config, "problem_type", None)
    try:
        output = model(**without_cache(model, batch))
    finally:
        model.config.problem_type = problem  # transformers guesses it from the labels and writes it down
    loss = output.get("loss")
    if loss is None:
        raise CalibrationError(
            f"{type(model).__name__} gives no loss for these labels. Load the model with its task head, for example "
            "AutoModelForSequenceClassification, or use kl_fisher with a model that has logits."
        )
    total: Tensor = loss.float() * _count(model, batch, output)
    return total


def _labelled_tokens(model: PreTrainedModel, batch: Batch) -> Tensor | None:
    """The same for a causal language model, a few tokens at a time; None for another, or one with a loss of its own."""
    labels = batch.get("labels")
    if not predicts_next_token(model) or not isinstance(labels, Tensor):
        return None
    if model.loss_function is not ForCausalLMLoss or getattr(model.config, "output_router_logits", False):
        return None
    if (split := _split(model, _without_labels(model, batch))) is None:
        return None
    hidden, head = split
    following = labels[:, 1:].to(hidden.device)
    real = following != -100
    targets = following[real]

    def nll(states: Tensor, rows: Tensor) -> Tensor:
        logits = head(states)
        return F.cross_entropy(logits, targets[rows].to(logits.device), reduction="sum")

    return summed_in_parts(hidden[:, :-1][real], nll, _vocabulary(model))


def _split(model: PreTrainedModel, inputs: Batch) -> tuple[Tensor, Head] | None:
    """Hidden states and head of a causal language model; None for another."""
    return before_head(model, without_cache(model, inputs)) if predicts_next_token(model) else None


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _real(model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
    """`(tokens, features)` without padding of `(samples, tokens, features)`."""
    mask = predicted_tokens(model, batch, hidden)
    return hidden.flatten(0, 1) if mask is None else hidden[mask]


def _count(model: PreTrainedModel, batch: Batch, output: Any) -> int:
    """How many terms the model's mean loss averages: labelled tokens, or samples."""
    labels, logits = batch.get("labels"), output.get("logits")
    token_level = logits is not None and logits.ndim == 3 and isinstance(labels, Tensor) and labels.ndim == 2
    if not token_level or labels is None or labels.is_floating_point():
        # of a multiple choice the mean is over questions, not over choices
        return len(labels) if isinstance(labels, Tensor) and labels.ndim else count_samples(batch)
    if predicts_next_token(model):
        labels = labels[:, 1:]
    return int((labels != -100).sum())


def predicts_next_token(model: PreTrainedModel) -> bool:
    """Whether logits at position i are for token i + 1 (a causal language model, not an encoder-decoder)."""
    loss = LOSS_MAPPING.get(getattr(model, "loss_type", None))
    causal = loss is ForCausalLMLoss or type(model).__name__.endswith("LMHeadModel")  # these have no loss_type
    return causal and not model.config.is_encoder_decoder


def sampled_loss(model: PreTrainedModel, batch: Batch, *, teacher: PreTrainedModel, seed: int) -> Tensor:
    """The sum over samples of the negative log-likelihood of labels drawn from a teacher's predictions.

    A classification draws one label an example, a token-level task one a token (padding excluded), multi-label tasks
    one coin a label, question answering a start and an end, a regression adds N(0, 1) noise to the prediction. With
    the model as its own teacher, the mean square of this loss's gate gradients is in expectation the Hessian of
    KL(dense ‖ gated): the natural-gradient Fisher.

    Args:
        model: A model with logits.
        batch: Its arguments; labels are not used.
        teacher: Draws the labels: the model itself, or the dense model.
        seed: Of the draw; the same seed and batch give the same labels on every device.

    Returns:
        A scalar.

    Raises:
        CalibrationError: The model has no logits.
    """
    inputs = _without_labels(model, batch)
    generator = torch.Generator().manual_seed(seed)
    if (split := _split(model, inputs)) is not None:
        return _sampled_tokens(model, inputs, split, teacher, generator)
    output = model(**without_cache(model, inputs))
    if teacher is model:
        drawn_from = output
    else:
        with torch.no_grad():
            drawn_from = teacher(**without_cache(teacher, on_device(inputs, input_device(teacher))))
    losses = []
    for name in _logits_in(model, output):
        mine = output[name]
        source = drawn_from[name].detach().to(mine.device)
        if name != "logits":
            mine, source = without_padding(mine, inputs), without_padding(source, inputs)
        losses.append(_draw(model, inputs, mine, source, generator))
    return torch.stack(losses).sum()


def _sampled_tokens(
    model: PreTrainedModel,
    inputs: Batch,
    split: tuple[Tensor, Head],
    teacher: PreTrainedModel,
    generator: torch.Generator,
) -> Tensor:
    """The same for a causal language model, a few tokens at a time."""
    hidden, head = _real(model, split[0], inputs), split[1]
    uniform = torch.rand((len(hidden), 1), generator=generator)
    draws: tuple[Tensor, Head] | None = None
    if teacher is not model:
        with torch.no_grad():
            found = _split(teacher, on_device(inputs, input_device(teacher)))
        assert found is not None  # a model of the same kind
        draws = _real(teacher, found[0], inputs), found[1]

    def nll(states: Tensor, rows: Tensor) -> Tensor:
        logits = head(states)
        with torch.no_grad():
            source = logits.detach() if draws is None else draws[1](draws[0][rows.to(draws[0].device)])
            labels = _drawn(source, uniform[rows.cpu()])
        return F.cross_entropy(logits, labels.to(logits.device), reduction="sum")

    return summed_in_parts(hidden, nll, _vocabulary(model))


def projected_loss(model: PreTrainedModel, batch: Batch, *, seed: int) -> Tensor:
    """The sum over samples of v · z: the logits z, projected on v ~ N(0, 1) that is drawn for each of them.

    The mean square of its gate gradients is in expectation the Hessian of half the squared distance between the logits
    of the dense and of the gated model (of a multiple choice for every choice alone). Where the logits pass through a
    softmax v is centred, as it ignores their mean. Padding is left out.

    Args:
        model: A model with logits.
        batch: Its arguments; labels are not used.
        seed: Of the draw; the same seed and batch give the same projection on every device.

    Returns:
        A scalar.

    Raises:
        CalibrationError: The model has no logits.
    """
    inputs = _without_labels(model, batch)
    generator = torch.Generator().manual_seed(seed)
    if (split := _split(model, inputs)) is not None:
        hidden, head = split

        def projected(states: Tensor, _: Tensor) -> Tensor:
            logits = head(states)
            direction = torch.randn(logits.shape, generator=generator).to(logits.device)
            return ((direction - direction.mean(-1, keepdim=True)) * logits).sum()

        return summed_in_parts(_real(model, hidden, inputs), projected, _vocabulary(model))
    output = model(**without_cache(model, inputs))
    losses = []
    for name in _logits_in(model, output):
        logits = output[name].float()
        real: Tensor | None = None
        if (mask := predicted_tokens(model, batch, logits)) is not None:
            if name != "logits":  # a span: the softmax goes over the tokens of a text
                real = mask.to(logits)
            elif logits.ndim == 3:
                logits = logits[mask]
        # in place, and a dot product: logits of a language model are large, and so is every copy of them
        direction = torch.randn(logits.shape, generator=generator).to(logits.device)
        direction = direction if real is None else direction.mul_(real)
        if _has_softmax(model, logits):
            count = logits.shape[-1] if real is None else real.sum(-1, keepdim=True).clamp(min=1)
            direction.sub_(direction.sum(-1, keepdim=True) / count)
            direction = direction if real is None else direction.mul_(real)
        losses.append(torch.dot(direction.flatten(), logits.flatten()))
    return torch.stack(losses).sum()


def _without_labels(model: PreTrainedModel, batch: Batch) -> Batch:
    if model.config.is_encoder_decoder:  # there, labels make the decoder's inputs
        return batch
    return {name: value for name, value in batch.items() if name not in LABELS}


def _logits_in(model: PreTrainedModel, output: Any) -> list[str]:
    """What of an output is logits."""
    names = [name for name in ("logits", "start_logits", "end_logits") if output.get(name) is not None]
    if not names:
        raise CalibrationError(
            f"this scorer goes by the model's logits, and {type(model).__name__} has none. Load the model with "
            "a head: AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForCausalLM ..."
        )
    return names


def _has_softmax(model: PreTrainedModel, logits: Tensor) -> bool:
    """Whether the logits go through a softmax: no regression, and not one coin a label."""
    problem = getattr(model.config, "problem_type", None)
    return logits.shape[-1] > 1 and problem not in ("regression", "multi_label_classification")


def without_padding(logits: Tensor, batch: Batch) -> Tensor:
    """Logits over the tokens of a text, `(N, tokens)`, so low where there is padding that it is never chosen."""
    mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != logits.shape:
        return logits
    return logits.masked_fill(mask.to(logits.device) == 0, torch.finfo(logits.dtype).min)


def _draw(model: PreTrainedModel, batch: Batch, logits: Tensor, source: Tensor, generator: torch.Generator) -> Tensor:
    logits = logits.float()
    if logits.ndim == 3:
        if (mask := predicted_tokens(model, batch, logits)) is not None:
            logits, source = logits[mask], source[mask]
        logits, source = logits.reshape(-1, logits.shape[-1]), source.reshape(-1, source.shape[-1])
    problem = getattr(model.config, "problem_type", None)
    if problem == "regression" or logits.shape[-1] == 1:
        noise = torch.randn(source.shape, generator=generator).to(source.device)
        return 0.5 * (logits - source.float() - noise).square().sum()
    if problem == "multi_label_classification":
        coins = torch.rand(source.shape, generator=generator).to(source.device)
        return F.binary_cross_entropy_with_logits(logits, (coins < source.float().sigmoid()).float(), reduction="sum")
    labels = _drawn(source, torch.rand((*source.shape[:-1], 1), generator=generator))
    return F.cross_entropy(logits, labels, reduction="sum")


def _drawn(source: Tensor, uniform: Tensor) -> Tensor:
    """Classes drawn from logits `(..., classes)` with uniform numbers `(..., 1)`."""
    cumulative = source.float().softmax(-1).cumsum(-1)
    return (cumulative < uniform.to(source.device) * cumulative[..., -1:]).sum(-1)
