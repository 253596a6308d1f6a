"""Metrics of single samples for classifiers and regressions: one number a sample, higher is better."""

from collections.abc import Callable

import numpy as np
from datasets import Dataset
from scipy import special
from transformers import EvalPrediction

from hfprune.jobs.tasks.task import SampleMetric
from hfprune.measuring.label_sets import f1_of_each, log_likelihood_of_each


def sample_metrics_for(*, regression: bool = False) -> dict[str, SampleMetric]:
    """The metrics of single samples of a model that predicts one class, or one number, a sample.

    Args:
        regression: Whether it predicts a number.

    Returns:
        By name: `accuracy`, 1 where the class is right, and `log_likelihood`, the logarithm of its probability in nats;
        of a regression `negative_squared_error` and `negative_absolute_error`.

    Examples:
        >>> sorted(sample_metrics_for()), sorted(sample_metrics_for(regression=True))
        (['accuracy', 'log_likelihood'], ['negative_absolute_error', 'negative_squared_error'])
        >>> right = sample_metrics_for()["accuracy"]
        >>> right(EvalPrediction(predictions=np.array([[2.0, 1.0], [0.0, 3.0]]), label_ids=np.array([0, 0])), None)
        [1.0, 0.0]
    """
    if regression:
        return {"negative_squared_error": _squared_errors, "negative_absolute_error": _absolute_errors}
    return {"accuracy": _right_classes, "log_likelihood": _log_likelihoods}


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


def _without_rows(measure: Callable[[EvalPrediction], list[float]]) -> SampleMetric:
    def of_predictions(prediction: EvalPrediction, rows: Dataset) -> list[float]:  # noqa: ARG001
        return measure(prediction)

    return of_predictions


def _outputs(prediction: EvalPrediction) -> np.ndarray:
    """The logits; a model that returns more than them returns them first."""
    outputs = prediction.predictions
    return np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)


def _right_classes(prediction: EvalPrediction, rows: Dataset) -> list[float]:  # noqa: ARG001 (all metrics get both)
    is_right = _outputs(prediction).argmax(-1) == prediction.label_ids
    return [float(right) for right in is_right]


def _log_likelihoods(prediction: EvalPrediction, rows: Dataset) -> list[float]:  # noqa: ARG001
    likelihoods = special.log_softmax(_outputs(prediction).astype(np.float64), axis=-1)
    labels = np.asarray(prediction.label_ids).astype(np.int64)
    chosen: list[float] = np.take_along_axis(likelihoods, labels[:, None], axis=-1)[:, 0].tolist()
    return chosen


def _errors(prediction: EvalPrediction) -> np.ndarray:
    targets = np.asarray(prediction.label_ids, dtype=np.float64).reshape(-1)
    return np.asarray(_outputs(prediction).reshape(-1).astype(np.float64) - targets)


def _squared_errors(prediction: EvalPrediction, rows: Dataset) -> list[float]:  # noqa: ARG001
    values: list[float] = (-np.square(_errors(prediction))).tolist()
    return values


def _absolute_errors(prediction: EvalPrediction, rows: Dataset) -> list[float]:  # noqa: ARG001
    values: list[float] = (-np.abs(_errors(prediction))).tolist()
    return values
