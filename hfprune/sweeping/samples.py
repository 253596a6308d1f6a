"""Metrics that give one number a sample, as a paired comparison of two models needs."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.scoring import Collator, calibration_batches
from hfprune.structure.batches import Batch, on_device
from hfprune.structure.running import frozen
from hfprune.sweeping.evaluation import correctness

#: From `(N, outputs)` logits and `(N,)` labels to `(N,)` values; higher is better.
_Values = Callable[[Tensor, Tensor], Tensor]


def _log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """The logarithm of the probability of the label, in nats."""
    return -F.cross_entropy(logits.float(), labels, reduction="none")


def _negative_squared_error(numbers: Tensor, targets: Tensor) -> Tensor:
    return -(numbers.float().reshape(-1) - targets.float()).square()


def _negative_absolute_error(numbers: Tensor, targets: Tensor) -> Tensor:
    return -(numbers.float().reshape(-1) - targets.float()).abs()


_OF_CLASSES: dict[str, _Values | None] = {"accuracy": None, "log_likelihood": _log_likelihood}
_OF_NUMBERS: dict[str, _Values | None] = {
    "negative_squared_error": _negative_squared_error,
    "negative_absolute_error": _negative_absolute_error,
}


def sample_metrics(num_labels: int) -> list[str]:
    """The metrics of every sample that suit a model, the usual one first.

    >>> sample_metrics(3), sample_metrics(1)
    (['accuracy', 'log_likelihood'], ['negative_squared_error', 'negative_absolute_error'])

    Args:
        num_labels: The number of its outputs; 1 is a regression.

    Returns:
        Their names.
    """
    return list(_OF_NUMBERS if num_labels == 1 else _OF_CLASSES)


def per_sample(
    metric: str,
    num_labels: int,
    data: Dataset | Sequence[Batch],
    *,
    collator: Collator | None = None,
    batch_size: int = 64,
) -> Callable[[PreTrainedModel], Sequence[float]]:
    """An `evaluate` of one number a sample, for models that give a class or a number to a sample.

    Args:
        metric: One of `sample_metrics(num_labels)`.
        num_labels: The number of the model's outputs; 1 is a regression.
        data: A tokenized `datasets.Dataset`, or a list of batches, with labels.
        collator: Makes a batch of rows of a Dataset; `DataCollatorWithPadding(tokenizer)` pads.
        batch_size: The most samples in a batch of a Dataset.

    Returns:
        A function from a model to one number a sample, in an order that is the same for every model.

    Raises:
        ValueError: The metric is not known, or is none of single samples.

    Examples:
        >>> from hfprune.sweeping.samples import per_sample
        >>> evaluate = per_sample("log_likelihood", 3, dataset, collator=collator)
        >>> values = evaluate(dense)
        >>> len(values), max(values) < 0
        (18, True)
    """
    known = _OF_NUMBERS if num_labels == 1 else _OF_CLASSES
    if metric not in known:
        task = "regression" if num_labels == 1 else "classification"
        raise ValueError(
            f"{metric!r} is no metric of single samples of a {task}; these are: {', '.join(known)}. The drop of a "
            "metric of a whole data set, such as f1, has no paired interval."
        )
    values_of = known[metric]
    if values_of is None:
        return correctness(data, collator=collator, batch_size=batch_size)
    compute: _Values = values_of

    def evaluate(model: PreTrainedModel) -> list[float]:
        batches = calibration_batches(
            data,
            model,
            samples=len(data),
            batch_size=batch_size,
            # as in `correctness`: `batch_size` alone decides
            batch_tokens=batch_size * 512,
            collator=collator,
        )
        values: list[float] = []
        with frozen(model), torch.inference_mode():
            for batch in batches:
                here = on_device(batch, model.device)
                inputs = {name: value for name, value in here.items() if name != "labels"}
                values += compute(model(**inputs).logits, here["labels"]).tolist()
        return values

    return evaluate
