"""The scalar of a batch that scorers differentiate, a sum over samples.

It is the loss against the labels of the data, the loss against labels drawn from a model's predictions, or a random
projection of the logits.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.loss.loss_utils import ForCausalLMLoss

from hfprune.errors import CalibrationError
from hfprune.scoring.registry import Labels
from hfprune.scoring.token_losses import BeforeHead, before_head, summed_in_parts
from hfprune.structure.batches import LABELS, Batch, count_samples, on_device, predicted_tokens
from hfprune.structure.devices import input_device
from hfprune.structure.predictions import (
    Prediction,
    counting_mask,
    predicted_logits,
    prediction_fields,
    predictions_of,
    predicts_next_token,
    without_padding,
)
from hfprune.structure.running import without_cache

#: The label of tokens that no loss is computed for, as everywhere in transformers.
_NO_LABEL = -100
#: Who asks what a model predicts, for messages.
_TAKER = "this scorer"


def summed_loss(
    labels: Labels, index: int, *, seed: int, teacher: PreTrainedModel
) -> Callable[[PreTrainedModel, Batch], Tensor]:
    """The function that scorers differentiate for one calibration batch: a sum over the samples.

    Args:
        labels: `data` for the loss against true labels, `model` for labels that the teacher draws, `logits` for a
            random projection of the logits.
        index: The batch's place among all batches. Every batch gets a seed of its own, so that a draw does not depend
            on the process that scores the other batches.
        seed: The seed of the run.
        teacher: The model that draws the labels.

    Returns:
        A function of the model and the batch.
    """
    if labels == "data":
        return labelled_loss
    seed_of_batch = seed * 1_000_003 + index
    if labels == "logits":
        return partial(projected_loss, seed=seed_of_batch)
    return partial(sampled_loss, teacher=teacher, seed=seed_of_batch)


def labelled_loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The model's own loss, summed over samples; a token-level loss is summed over the labelled tokens.

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
            f"that needs none, {_without_labels_or_logits(model)}."
        )
    token_loss = _labelled_tokens(model, batch)
    if token_loss is not None:
        return token_loss
    problem = model.config.problem_type
    try:
        output = model(**without_cache(model, batch))
    finally:
        # transformers guesses the problem from the labels, and writes its guess into the config
        model.config.problem_type = problem
    loss = output.get("loss")
    if loss is None:
        raise CalibrationError(
            f"{type(model).__name__} gives no loss for these labels. Load the model with its task head, for example "
            f"AutoModelForSequenceClassification, or use a scorer that needs none, {_without_labels_or_logits(model)}."
        )
    predictions: list[Prediction] = []
    # a model without logits may still have a loss of its own
    if prediction_fields(output):
        predictions = predictions_of(model, output, batch, taker=_TAKER)
    # the loss of a span is one mean over samples, although start and end have logits of their own
    are_of_samples = all(prediction.subject == "sample" for prediction in predictions)
    if len(predictions) > 1 and not are_of_samples:
        return _loss_of_all(predictions, output, batch)
    # the model's loss is a mean
    total: Tensor = loss.float() * _count(model, batch, output, predictions)
    return total


def _without_labels_or_logits(model: PreTrainedModel) -> str:
    """Scorers that a model without labels can be scored by, and without logits where it has no head, in words."""
    if model.base_model is not model:
        return "such as residual_logit_fisher or kl_fisher"
    return (
        "such as obs or fluctuation, as this model has no head; the model in a SentenceTransformer is pruned by its "
        "embeddings: hfprune.prune(SentenceTransformer(...), texts)"
    )


def _loss_of_all(predictions: Sequence[Prediction], output: Any, batch: Batch) -> Tensor:
    """The cross-entropies of several predictions, summed: of words and of pairs of sentences.

    The model's own loss is a sum of means over different things, which no single factor makes a sum over samples.
    """
    losses = []
    for prediction in predictions:
        logits = output[prediction.field].float()
        labels = batch[prediction.labels].flatten().to(logits.device)
        losses.append(F.cross_entropy(logits.reshape(len(labels), -1), labels, reduction="sum"))
    return torch.stack(losses).sum()


def _labelled_tokens(model: PreTrainedModel, batch: Batch) -> Tensor | None:
    """The summed loss of a causal language model, computed a few tokens at a time.

    None for other models, and for a model whose loss is not the plain cross-entropy.
    """
    labels = batch.get("labels")
    if not predicts_next_token(model) or not isinstance(labels, Tensor):
        return None
    # the router logits of a mixture of experts add a term to the loss
    if model.loss_function is not ForCausalLMLoss or getattr(model.config, "output_router_logits", False):
        return None
    before = _before_head(model, _without_labels(model, batch))
    if before is None:
        return None
    next_labels = labels[:, 1:].to(before.hidden.device)
    is_labelled = next_labels != _NO_LABEL
    targets = next_labels[is_labelled]
    head = before.head

    def loss_of_tokens(states: Tensor, rows: Tensor) -> Tensor:
        logits = head(states)
        return F.cross_entropy(logits, targets[rows].to(logits.device), reduction="sum")

    return summed_in_parts(before.hidden[:, :-1][is_labelled], loss_of_tokens, _vocabulary_size(model))


def _before_head(model: PreTrainedModel, inputs: Batch) -> BeforeHead | None:
    """Hidden states and head of a causal language model; None for other models."""
    if not predicts_next_token(model):
        return None
    return before_head(model, without_cache(model, inputs))


def _vocabulary_size(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)


def _real_tokens(model: PreTrainedModel, hidden: Tensor, batch: Batch) -> Tensor:
    """Hidden states without padding: `(samples, tokens, features)` -> `(real tokens, features)`."""
    mask = predicted_tokens(model, batch, hidden)
    return hidden.flatten(0, 1) if mask is None else hidden[mask]


def _count(model: PreTrainedModel, batch: Batch, output: Any, predictions: Sequence[Prediction]) -> int:
    """The number of terms that the model's mean loss averages: labelled tokens, or samples."""
    labels = batch.get("labels")
    if not isinstance(labels, Tensor):
        return count_samples(batch)
    of_tokens = [prediction for prediction in predictions if prediction.subject == "token"]
    if of_tokens and _loss_is_of_sounds(model):
        # the likelihood of a sound's text, of which transformers takes the sum, or the mean over samples
        return 1 if model.config.ctc_loss_reduction == "sum" else count_samples(batch)
    if of_tokens and of_tokens[0].axis is None:
        return _real_numbers(of_tokens[0], model, batch, output)
    if of_tokens and labels.ndim == 2:
        if predicts_next_token(model):
            # the first token is predicted by none
            labels = labels[:, 1:]
        return int((labels != _NO_LABEL).sum())
    # a multiple choice has one label for each question, while a sample is one choice
    if labels.ndim:
        return len(labels)
    return count_samples(batch)


def _loss_is_of_sounds(model: PreTrainedModel) -> bool:
    """Whether the loss compares the frames of a sound with a text of another length (CTC)."""
    return hasattr(model.config, "ctc_loss_reduction") and any(
        "ForCTC" in ancestor.__name__ for ancestor in type(model).__mro__
    )


def _real_numbers(prediction: Prediction, model: PreTrainedModel, batch: Batch, output: Any) -> int:
    """How many tokens with a single number each are not padding."""
    logits = predicted_logits(prediction, output, model, who="the model")
    mask = counting_mask(prediction, model, batch, logits)
    return logits.numel() if mask is None else int(mask.sum())


def sampled_loss(model: PreTrainedModel, batch: Batch, *, teacher: PreTrainedModel, seed: int) -> Tensor:
    """The negative log-likelihood of labels that are drawn from a teacher's predictions, summed over samples.

    A classifier draws one label for each sample, and a token-level task one for each token that is no padding. A
    multi-label task flips one coin for each label, and ELECTRA's detector one for each token; question answering draws
    a start and an end, and a regression adds N(0, 1) noise to the prediction. `hfprune.structure.predictions` says
    which model predicts what. With the model as its own teacher, the mean square of this loss's gate gradients is in
    expectation the diagonal of the Hessian of KL(dense ‖ gated): the Fisher information of the natural gradient.

    Args:
        model: A model with logits.
        batch: Its arguments. Labels say at most whether a classifier gives several to a sample.
        teacher: The model that draws the labels: the model itself, or the dense model.
        seed: The seed of the draw; the same seed and batch give the same labels on every device.

    Returns:
        A scalar.

    Raises:
        CalibrationError: The model has no logits, or such whose meaning is not known.
    """
    inputs = _without_labels(model, batch)
    generator = torch.Generator().manual_seed(seed)
    before = _before_head(model, inputs)
    if before is not None:
        return _sampled_tokens(model, inputs, before, teacher, generator)
    output = model(**without_cache(model, inputs))
    if teacher is model:
        teacher_output = output
    else:
        with torch.no_grad():
            teacher_output = teacher(**without_cache(teacher, on_device(inputs, input_device(teacher))))
    losses = []
    for prediction in predictions_of(model, output, batch, taker=_TAKER):
        logits = predicted_logits(prediction, output, model, who="the model")
        source = predicted_logits(prediction, teacher_output, teacher, who="the teacher")
        source = source.detach().to(logits.device)
        mask = counting_mask(prediction, model, inputs, logits)
        losses.append(_loss_of_draw(prediction, logits, source, mask, generator))
    return torch.stack(losses).sum()


def _sampled_tokens(
    model: PreTrainedModel,
    inputs: Batch,
    before: BeforeHead,
    teacher: PreTrainedModel,
    generator: torch.Generator,
) -> Tensor:
    """The sampled loss of a causal language model, computed a few tokens at a time."""
    hidden = _real_tokens(model, before.hidden, inputs)
    head = before.head
    # all at once, so that the draw does not depend on how many tokens go at a time
    uniform = torch.rand((len(hidden), 1), dtype=torch.float32, device="cpu", generator=generator)
    # None: the model is its own teacher, and its logits serve twice
    teacher_before = None if teacher is model else _teacher_before_head(teacher, inputs)

    def loss_of_tokens(states: Tensor, rows: Tensor) -> Tensor:
        logits = head(states)
        with torch.no_grad():
            if teacher_before is None:
                source = logits.detach()
            else:
                teacher_states = teacher_before.hidden[rows.to(teacher_before.hidden.device)]
                source = teacher_before.head(teacher_states)
            labels = _drawn_classes(source, uniform[rows.cpu()])
        return F.cross_entropy(logits, labels.to(logits.device), reduction="sum")

    return summed_in_parts(hidden, loss_of_tokens, _vocabulary_size(model))


def _teacher_before_head(teacher: PreTrainedModel, inputs: Batch) -> BeforeHead:
    """A teacher's hidden states of real tokens, `(real tokens, features)`, and its head; without gradients."""
    with torch.no_grad():
        before = _before_head(teacher, on_device(inputs, input_device(teacher)))
    # a teacher is a model of the same kind, which has run up to its head already
    assert before is not None
    return BeforeHead(_real_tokens(teacher, before.hidden, inputs), before.head)


def projected_loss(model: PreTrainedModel, batch: Batch, *, seed: int) -> Tensor:
    """Σ v · z over samples: the logits z, projected on a direction v ~ N(0, 1) that is drawn for every sample.

    The mean square of its gate gradients is in expectation the diagonal of the Hessian of half the squared distance
    between the logits of the dense and of the gated model. For a multiple choice this holds for every choice on its
    own. Where the logits pass through a softmax, which ignores their mean, v is centred. Padding is left out.

    Args:
        model: A model with logits.
        batch: Its arguments. Labels say at most whether a classifier gives several to a sample.
        seed: The seed of the draw; the same seed and batch give the same projection on every device.

    Returns:
        A scalar.

    Raises:
        CalibrationError: The model has no logits, or such whose meaning is not known.
    """
    inputs = _without_labels(model, batch)
    generator = torch.Generator().manual_seed(seed)
    before = _before_head(model, inputs)
    if before is not None:
        return _projected_tokens(model, inputs, before, generator)
    output = model(**without_cache(model, inputs))
    losses = []
    for prediction in predictions_of(model, output, batch, taker=_TAKER):
        logits = predicted_logits(prediction, output, model, who="the model").float()
        mask = counting_mask(prediction, model, batch, logits)
        weights = None
        if mask is not None and prediction.axis == "tokens":
            # one vector over the tokens of a text, so padding must stay in its place
            weights = mask.to(logits)
        elif mask is not None:
            logits = logits[mask]
        losses.append(_projected(prediction, logits, weights, generator))
    return torch.stack(losses).sum()


def _projected_tokens(model: PreTrainedModel, inputs: Batch, before: BeforeHead, generator: torch.Generator) -> Tensor:
    """The projected logits of a causal language model, computed a few tokens at a time."""
    head = before.head

    def projection_of_tokens(states: Tensor, _: Tensor) -> Tensor:
        logits = head(states)
        direction = torch.randn(logits.shape, dtype=torch.float32, device="cpu", generator=generator).to(logits.device)
        centred = direction - direction.mean(-1, keepdim=True)
        return (centred * logits).sum()

    hidden = _real_tokens(model, before.hidden, inputs)
    return summed_in_parts(hidden, projection_of_tokens, _vocabulary_size(model))


def _projected(prediction: Prediction, logits: Tensor, weights: Tensor | None, generator: torch.Generator) -> Tensor:
    """Logits, projected on one random direction.

    Logits are large, and so is every copy of them: the direction changes in place, and a dot product makes no copy.

    Args:
        prediction: What the logits mean.
        logits: Float32 logits.
        weights: 0 for the entries that do not count and 1 for the others, in the shape of the logits; None: all count.
        generator: Draws the direction.

    Returns:
        A scalar.
    """
    direction = torch.randn(logits.shape, dtype=torch.float32, device="cpu", generator=generator).to(logits.device)
    if weights is not None:
        direction.mul_(weights)
    if prediction.link == "softmax":
        if weights is None:
            direction.sub_(direction.sum(-1, keepdim=True) / logits.shape[-1])
        else:
            counts = weights.sum(-1, keepdim=True).clamp(min=1)
            direction.sub_(direction.sum(-1, keepdim=True) / counts)
            # the mean was subtracted from entries that do not count, too
            direction.mul_(weights)
    return torch.dot(direction.flatten(), logits.flatten())


def _without_labels(model: PreTrainedModel, batch: Batch) -> Batch:
    """A batch without labels, so that the model computes no loss."""
    # an encoder-decoder makes the decoder's inputs from the labels
    if model.config.is_encoder_decoder:
        return batch
    return {name: value for name, value in batch.items() if name not in LABELS}


def _loss_of_draw(
    prediction: Prediction, logits: Tensor, source: Tensor, mask: Tensor | None, generator: torch.Generator
) -> Tensor:
    """The negative log-likelihood, summed over samples, of labels that are drawn from the logits `source`.

    Args:
        prediction: What the logits mean.
        logits: The model's, with the outcomes last.
        source: The teacher's, of the same shape.
        mask: Which tokens have a prediction, or can be chosen, `(samples, tokens)`; None: all.
        generator: Of the draw.

    Returns:
        A scalar.
    """
    logits = logits.float()
    if prediction.axis == "tokens":
        # an answer neither starts nor ends in padding
        logits = without_padding(logits, mask)
        source = without_padding(source, mask)
    elif mask is not None:
        logits = logits[mask]
        source = source[mask]
    logits = logits.reshape(-1, logits.shape[-1])
    source = source.reshape(-1, source.shape[-1])
    if prediction.link == "identity":
        noise = torch.randn(source.shape, dtype=torch.float32, device="cpu", generator=generator).to(source.device)
        return 0.5 * (logits - source.float() - noise).square().sum()
    if prediction.link == "sigmoid":
        uniform = torch.rand(source.shape, dtype=torch.float32, device="cpu", generator=generator).to(source.device)
        labels = (uniform < source.float().sigmoid()).float()
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
    labels = _drawn_classes(
        source, torch.rand((*source.shape[:-1], 1), dtype=torch.float32, device="cpu", generator=generator)
    )
    return F.cross_entropy(logits, labels, reduction="sum")


def _drawn_classes(source: Tensor, uniform: Tensor) -> Tensor:
    """Draw classes from logits `(..., classes)` by uniform random numbers `(..., 1)`.

    >>> _drawn_classes(torch.zeros(2, 4), torch.tensor([[0.1], [0.6]])).tolist()
    [0, 2]
    """
    # a class is drawn where the cumulative probability first reaches the uniform number; the last entry is 1 but for
    # rounding, which must not lead behind the last class
    cumulative = source.float().softmax(-1).cumsum(-1)
    is_below = cumulative < uniform.to(source.device) * cumulative[..., -1:]
    return is_below.sum(-1)
