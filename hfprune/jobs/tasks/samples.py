"""Metrics of single samples for classifiers and regressions, as a task has them."""

from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from transformers import EvalPrediction

from hfprune.jobs.tasks.task import SampleMetric, logits_of
from hfprune.measuring.label_sets import f1_of_each, log_likelihood_of_each
from hfprune.sweeping.samples import SampleValues, sample_values


def sample_metrics_for(*, regression: bool = False) -> dict[str, SampleMetric]:
    """The metrics of single samples of a model that predicts one class, or one number, a sample.

    Args:
        regression: Whether it predicts a number.

    Returns:
        By name, the usual one first, as `hfprune.sweeping.samples.sample_metrics` lists them.

    Examples:
        >>> list(sample_metrics_for()), list(sample_metrics_for(regression=True))
        (['accuracy', 'log_likelihood'], ['negative_squared_error', 'negative_absolute_error'])
        >>> right = sample_metrics_for()["accuracy"]
        >>> right(EvalPrediction(predictions=np.array([[2.0, 1.0], [0.0, 3.0]]), label_ids=np.array([0, 0])), None)
        [1.0, 0.0]
    """
    return {name: _of_predictions(values) for name, values in sample_values(regression=regression).items()}


def sample_metrics_of_label_sets() -> dict[str, SampleMetric]:
    """The metrics of single samples of a model that gives several classes to a text, or none.

    Returns:
        By name: `f1` of the classes of a text, and `log_likelihood`, the mean over classes in nats.

    Examples:
        >>> f1 = sample_metrics_of_label_sets()["f1"]
        >>> f1(EvalPrediction(predictions=np.array([[2.0, 1.0]]), label_ids=np.array([[1.0, 1.0]])), None)
        [1.0]
    """
    return {"f1": _without_rows(f1_of_each), "log_likelihood": _without_rows(log_likelihood_of_each)}


def check_label_set_sample_metric(metric: str | None) -> None:
    """Refuse a metric that is none of single texts with several classes each.

    Args:
        metric: The name; None for the usual one.

    Raises:
        ValueError: It is not one of `sample_metrics_of_label_sets`.
    """
    known = sample_metrics_of_label_sets()
    if metric is not None and metric not in known:
        raise ValueError(
            f"{metric!r} is no metric of single texts with several classes each; these are: {', '.join(known)}."
        )


def _without_rows(measure: Callable[[EvalPrediction], list[float]]) -> SampleMetric:
    def of_predictions(prediction: EvalPrediction, rows: Dataset) -> list[float]:  # noqa: ARG001
        return measure(prediction)

    return of_predictions


def _of_predictions(values: SampleValues) -> SampleMetric:
    """A metric of logits and labels, in the form that a task has it in."""

    def of_predictions(prediction: EvalPrediction, rows: Dataset) -> list[float]:  # noqa: ARG001 (all metrics get both)
        logits = torch.from_numpy(np.asarray(logits_of(prediction.predictions)))
        labels = torch.from_numpy(np.asarray(prediction.label_ids))
        found: list[float] = values(logits, labels).tolist()
        return found

    return of_predictions
