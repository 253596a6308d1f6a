"""Checks of labels, for scorers that go by the loss against the labels of the data."""

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.errors import CalibrationError
from hfprune.structure.batches import Batch
from hfprune.structure.class_labels import fitting_labels
from hfprune.structure.predictions import predicts_next_token

logger = logging.getLogger(__name__)
#: The label of tokens that no loss is computed for.
_NO_LABEL = -100
#: Heads with one of `num_labels` classes for a sample or a token.
_CLASSIFIERS = ("SequenceClassification", "TokenClassification", "ImageClassification", "AudioClassification")


def labelled_batches(batches: Sequence[Batch], model: PreTrainedModel) -> list[Batch]:
    """The batches with a label that counts, with labels checked.

    Args:
        batches: Batches, checked one by one.
        model: The model.

    Returns:
        The batches, with labels as the loss of the model takes them, without those whose labels are all -100: the loss
        of nothing is no number.

    Raises:
        CalibrationError: A label is no class of the model, labels are not as many as it predicts, or none counts.
    """
    kept = []
    for index, given in enumerate(batches):
        batch = fitting_labels(model, given)
        labels = batch.get("labels")
        if not isinstance(labels, Tensor) or labels.is_floating_point():
            kept.append(batch)
            continue
        counted = _counted(labels, model)
        _check_classes(labels[labels != _NO_LABEL], model, index)
        if counted.numel():
            kept.append(batch)
    if not kept:
        raise CalibrationError(
            "no label of the calibration data counts: all are -100, the mark of tokens without a label. A scorer that "
            "goes by labels cannot tell units apart. Look at the collator, or use a scorer that needs no labels, such "
            "as residual_logit_fisher or kl_fisher."
        )
    if len(kept) < len(batches):
        logger.warning("%d batches whose labels are all -100 were left out", len(batches) - len(kept))
    return kept


def _counted(labels: Tensor, model: PreTrainedModel) -> Tensor:
    """The labels that a loss is computed for."""
    if labels.ndim == 2 and predicts_next_token(model):
        # the first token is predicted by none
        labels = labels[:, 1:]
    return labels[labels != _NO_LABEL]


def _check_classes(labels: Tensor, model: PreTrainedModel, index: int) -> None:
    """Refuse classes that the model has no logit for: on a GPU they stop the whole process."""
    classes = number_of_classes(model)
    if classes is None or not labels.numel():
        return
    least = int(labels.min())
    largest = int(labels.max())
    if least >= 0 and largest < classes:
        return
    wrong = least if least < 0 else largest
    raise CalibrationError(
        f"calibration batch {index} has the label {wrong}, and {type(model).__name__} predicts {classes} classes, 0 to "
        f"{classes - 1}. Number the labels as the model does (config.label2id), load it with "
        "num_labels=..., or mark what has no label by -100."
    )


def number_of_classes(model: PreTrainedModel) -> int | None:
    """How many classes whole-number labels of a model may be; None where labels are something else."""
    name = type(model).__name__
    if any(head in name for head in _CLASSIFIERS):
        numbers = getattr(model.config, "problem_type", None) in ("regression", "multi_label_classification")
        # one output is a number
        return None if numbers or model.config.num_labels == 1 else int(model.config.num_labels)
    is_of_words = predicts_next_token(model) or "MaskedLM" in name or "ConditionalGeneration" in name
    output = model.get_output_embeddings() if is_of_words else None
    weight = getattr(output, "weight", None)
    return len(weight) if isinstance(weight, torch.Tensor) else None
