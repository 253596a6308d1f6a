"""Metrics that give one number a sample, as a paired comparison of two models needs."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

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
SampleValues: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where the class with the highest logit is the label, 0 elsewhere."""
    return (logits.argmax(-1) == labels).float()


def _log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """The logarithm of the probability of the label, in nats."""
    return -F.cross_entropy(logits.float(), labels, reduction="none")


def _negative_squared_error(numbers: Tensor, targets: Tensor) -> Tensor:
    return -(numbers.float().reshape(-1) - targets.float()).square()


def _negative_absolute_error(numbers: Tensor, targets: Tensor) -> Tensor:
    return -(numbers.float().reshape(-1) - targets.float()).abs()


_OF_CLASSES: dict[str, SampleValues] = {"accuracy": _accuracy, "log_likelihood": _log_likelihood}
_OF_NUMBERS: dict[str, SampleValues] = {
    "negative_squared_error": _negative_squared_error,
    "negative_absolute_error": _negative_absolute_error,
}


def sample_metrics(*, regression: bool = False) -> list[str]:
    """The metrics of every sample that suit a model, the usual one first.

    >>> sample_metrics(), sample_metrics(regression=True)
    (['accuracy', 'log_likelihood'], ['negative_squared_error', 'negative_absolute_error'])

    Args:
        regression: Whether it predicts one number instead of a class.

    Returns:
        Their names.
    """
    return list(_OF_NUMBERS if regression else _OF_CLASSES)


def sample_values(*, regression: bool = False) -> dict[str, SampleValues]:
    """What computes the metrics of every sample, from logits and labels.

    >>> sample_values()["accuracy"](torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([0, 0])).tolist()
    [1.0, 0.0]

    Args:
        regression: Whether the model predicts one number instead of a class.

    Returns:
        By name, functions from `(N, outputs)` logits and `(N,)` labels to `(N,)` values.
    """
    return dict(_OF_NUMBERS if regression else _OF_CLASSES)


def check_sample_metric(metric: str, *, regression: bool = False) -> None:
    """Refuse a metric that is none of single samples, or does not suit what a model predicts, before it is loaded.

    Args:
        metric: The name.
        regression: Whether the model predicts one number instead of a class.

    Raises:
        ValueError: It is not one of `sample_metrics`.
    """
    known = sample_metrics(regression=regression)
    if metric in known:
        return
    task = "regression" if regression else "classification"
    raise ValueError(
        f"{metric!r} is no metric of single samples of a {task}; these are: {', '.join(known)}. The drop of a "
        "metric of a whole data set, such as f1, has no paired interval."
    )


def per_sample(
    metric: str,
    data: Dataset | Sequence[Batch],
    *,
    regression: bool = False,
    collator: Collator | None = None,
    batch_size: int = 64,
) -> Callable[[PreTrainedModel], Sequence[float]]:
    """An `evaluate` of one number a sample, for models that give a class or a number to a sample.

    Args:
        metric: One of `sample_metrics()`; of a regression one of `sample_metrics(regression=True)`.
        data: A tokenized `datasets.Dataset`, or a list of batches, with labels.
        regression: Whether the model predicts one number instead of a class.
        collator: Makes a batch of rows of a Dataset; `DataCollatorWithPadding(tokenizer)` pads.
        batch_size: The most samples in a batch of a Dataset.

    Returns:
        A function from a model to one number a sample, in an order that is the same for every model.

    Raises:
        ValueError: The metric is not known, or is none of single samples.

    Examples:
        >>> from hfprune.sweeping.samples import per_sample
        >>> evaluate = per_sample("log_likelihood", dataset, collator=collator)
        >>> values = evaluate(dense)
        >>> len(values), max(values) < 0
        (18, True)
    """
    check_sample_metric(metric, regression=regression)
    if metric == "accuracy":
        # which looks whether the model predicts one class a sample
        return correctness(data, collator=collator, batch_size=batch_size)
    compute = sample_values(regression=regression)[metric]

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
