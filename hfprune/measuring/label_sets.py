"""Metrics of texts with several classes each, or none (multi-label): those with logits above 0 are given."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import special
from sklearn import metrics as sk


def _f1_micro(given: np.ndarray, real: np.ndarray) -> float:
    return float(sk.f1_score(real, given, average="micro", zero_division=0))


def _f1_macro(given: np.ndarray, real: np.ndarray) -> float:
    return float(sk.f1_score(real, given, average="macro", zero_division=0))


def _precision_micro(given: np.ndarray, real: np.ndarray) -> float:
    return float(sk.precision_score(real, given, average="micro", zero_division=0))


def _recall_micro(given: np.ndarray, real: np.ndarray) -> float:
    return float(sk.recall_score(real, given, average="micro", zero_division=0))


def _exact_match(given: np.ndarray, real: np.ndarray) -> float:
    return float((given == real).all(-1).mean())


#: By name, from the classes that texts are given and those that they have, `(N, classes)` bool, to a number.
LABEL_SET_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "f1_micro": _f1_micro,
    "f1_macro": _f1_macro,
    "precision_micro": _precision_micro,
    "recall_micro": _recall_micro,
    "exact_match": _exact_match,
}
#: What is measured by default.
USUAL = ("f1_micro", "f1_macro")


def label_set_metrics_for(names: Sequence[str]) -> tuple[list[str], Callable[[Any], dict[str, float]]]:
    """Choose metrics of texts with several classes, and make a `compute_metrics` function for `Trainer`.

    Args:
        names: Of `f1_micro` (over all pairs of a text and a class), `f1_macro` (the mean over classes),
            `precision_micro`, `recall_micro` and `exact_match` (the fraction of texts with all classes right); if
            empty, the first two.

    Returns:
        The names, and a function from `EvalPrediction` with logits and labels, `(N, classes)`, to a mapping from metric
        to value.

    Raises:
        ValueError: A name is unknown.

    Examples:
        >>> from transformers import EvalPrediction
        >>> names, compute = label_set_metrics_for(["f1_micro", "exact_match"])
        >>> logits, labels = np.array([[2.0, -1.0], [1.0, 3.0]]), np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> compute(EvalPrediction(predictions=logits, label_ids=labels))
        {'f1_micro': 0.8, 'exact_match': 0.5}
    """
    for name in names:
        if name not in LABEL_SET_METRICS:
            known = ", ".join(LABEL_SET_METRICS)
            raise ValueError(f"the metric {name!r} does not fit texts with several classes each; these do: {known}.")
    chosen = list(names or USUAL)

    def compute(prediction: Any) -> dict[str, float]:
        given, real = _given_and_real(prediction)
        return {name: LABEL_SET_METRICS[name](given, real) for name in chosen}

    return chosen, compute


def f1_of_each(prediction: Any) -> list[float]:
    """For every text the harmonic mean of precision and recall of its classes.

    Args:
        prediction: Logits and labels, `(N, classes)`.

    Returns:
        A number a text; 1 where it has no class and is given none.

    Examples:
        >>> from transformers import EvalPrediction
        >>> logits, labels = np.array([[2.0, -1.0], [1.0, 3.0]]), np.array([[0.0, 0.0], [0.0, 1.0]])
        >>> f1_of_each(EvalPrediction(predictions=logits, label_ids=labels))
        [0.0, 0.6666666666666666]
    """
    given, real = _given_and_real(prediction)
    right = (given & real).sum(-1)
    all_classes = given.sum(-1) + real.sum(-1)
    values: list[float] = np.where(all_classes > 0, 2 * right / np.maximum(all_classes, 1), 1.0).tolist()
    return values


def log_likelihood_of_each(prediction: Any) -> list[float]:
    """For every text the mean over classes of the logarithm of the probability of what is true of it, in nats.

    Args:
        prediction: Logits and labels, `(N, classes)`.

    Returns:
        A number a text.
    """
    logits = _logits(prediction)
    _, real = _given_and_real(prediction)
    # the probability that a text has a class is the sigmoid of its logit
    likelihoods: list[float] = special.log_expit(np.where(real, logits, -logits)).mean(-1).tolist()
    return likelihoods


def _logits(prediction: Any) -> np.ndarray:
    """The logits; a model that returns more than them returns them first."""
    outputs = prediction.predictions
    return np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs, dtype=np.float64)


def _given_and_real(prediction: Any) -> tuple[np.ndarray, np.ndarray]:
    return _logits(prediction) > 0, np.asarray(prediction.label_ids) > 0.5
