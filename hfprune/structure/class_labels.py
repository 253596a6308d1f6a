"""Labels as the loss of a model takes them: of the right kind of number, and as many as the model predicts."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.errors import CalibrationError
from hfprune.structure.batches import LABELS, Batch
from hfprune.structure.predictions import classifies_samples

_MULTI_LABEL = "multi_label_classification"
_SET_MULTI_LABEL = f"model.config.problem_type = {_MULTI_LABEL!r}"


def fitting_labels(model: PreTrainedModel, batch: Mapping[str, Any]) -> Batch:
    """A copy of a batch with labels as the loss of the model takes them; their values are the same.

    Several labels a sample (0 or 1 for each class) become floats, and the numbers of classes 64-bit integers, which
    are the only ones that torch's losses take.

    Args:
        model: The model.
        batch: Its arguments. Labels that are no tensors stay as they are.

    Returns:
        The copy.

    Raises:
        CalibrationError: A classifier of samples has labels of another shape, or of other numbers, than it predicts.

    Examples:
        >>> from hfprune.structure.class_labels import fitting_labels
        >>> dense.config.problem_type = "multi_label_classification"
        >>> batch = {"labels": torch.ones(2, dense.config.num_labels, dtype=torch.long)}
        >>> fitting_labels(dense, batch)["labels"].dtype
        torch.float32
        >>> dense.config.problem_type = None
        >>> fitting_labels(dense, {"labels": torch.tensor([1, 0], dtype=torch.int32)})["labels"].dtype
        torch.int64
    """
    fitting = dict(batch)
    labels = batch.get("labels")
    if isinstance(labels, Tensor) and classifies_samples(model):
        fitting["labels"] = _of_samples(model, labels)
    for name in LABELS:
        value = fitting.get(name)
        if isinstance(value, Tensor) and not value.is_floating_point():
            fitting[name] = value.long()
    return fitting


def _of_samples(model: PreTrainedModel, labels: Tensor) -> Tensor:
    """The labels of a classifier of samples, checked; several labels a sample as floats."""
    classes = int(model.config.num_labels)
    problem = model.config.problem_type
    if problem is None and classes == 1:
        problem = "regression"
    if problem == "regression":
        _check_numbers(model, labels, classes)
        return labels
    # transformers takes truth values, and floats, for several labels a sample
    is_hot = labels.ndim == 2 and labels.shape[1] == classes
    of_its_kind = labels.is_floating_point() or labels.dtype == torch.bool
    if problem == _MULTI_LABEL or (problem is None and is_hot and of_its_kind):
        _check_hot(model, labels, classes)
        return labels if labels.is_floating_point() else labels.float()
    _check_classes(model, labels, classes)
    return labels


def _check_numbers(model: PreTrainedModel, labels: Tensor, numbers: int) -> None:
    """Refuse labels of a regression that are not as many as the model says numbers of a sample."""
    of_one_sample = labels[0].numel() if len(labels) else numbers
    if of_one_sample == numbers:
        return
    raise CalibrationError(
        f"labels in a batch have the shape {tuple(labels.shape)}, and {type(model).__name__} predicts {numbers} "
        f"numbers a sample (regression). Give labels of shape (samples, {numbers}), or load the model with "
        "num_labels=..."
    )


def _check_hot(model: PreTrainedModel, labels: Tensor, classes: int) -> None:
    """Refuse several labels a sample that are not a number from 0 to 1 for each class."""
    if labels.ndim != 2 or labels.shape[1] != classes:
        raise CalibrationError(
            f"labels in a batch have the shape {tuple(labels.shape)}, and {type(model).__name__} says of each of "
            f"{classes} classes whether a sample has it (problem_type={_MULTI_LABEL!r}). Give labels of shape "
            f"(samples, {classes}), 1 for the classes of a sample and 0 for the others; or set "
            "model.config.problem_type = 'single_label_classification' for one class a sample."
        )
    is_wrong = ~((labels >= 0) & (labels <= 1))
    if is_wrong.any():
        raise CalibrationError(
            f"labels in a batch hold {labels[is_wrong][0].item():g}, and labels of {type(model).__name__} with "
            f"problem_type={_MULTI_LABEL!r} are from 0 to 1: 1 for the classes of a sample and 0 for the others."
        )


def _check_classes(model: PreTrainedModel, labels: Tensor, classes: int) -> None:
    """Refuse labels that are not one class a sample."""
    per_sample = labels[0].numel() if len(labels) and labels.ndim else 1
    what = f"{type(model).__name__} predicts one of {classes} classes for a sample"
    if per_sample != 1:
        raise CalibrationError(
            f"labels in a batch have the shape {tuple(labels.shape)} and the dtype {labels.dtype}, and {what}. If they "
            f"say of each of {classes} classes whether a sample has it, set {_SET_MULTI_LABEL}; else give one number "
            "of a class a sample."
        )
    if labels.is_floating_point():
        raise CalibrationError(
            f"labels in a batch have the dtype {labels.dtype}, and {what}, whose numbers are whole: convert them by "
            "labels.long(); or load the model with num_labels=1 to predict a number."
        )
