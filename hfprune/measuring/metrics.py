"""Metrics that work offline: `evaluate.Metric` modules that combine with the Hub's through `evaluate.combine`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import stats
from sklearn import metrics as sk

_LABELS = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
_NUMBERS = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
_TAGS = {name: datasets.Sequence(datasets.Value("string")) for name in ("predictions", "references")}


class _Metric(evaluate.Metric):
    """What the metrics here share: a description and the type of their columns."""

    title: str
    columns: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"keep_in_memory": True, **kwargs})

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.title,
            citation="",
            inputs_description="predictions and references: lists of the same length",
            features=datasets.Features(self.columns),
        )


class Accuracy(_Metric):
    """The fraction of predictions that equal their reference."""

    title, columns = "accuracy", _LABELS

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(sk.accuracy_score(references, predictions))}


class F1(_Metric):
    """The harmonic mean of precision and recall: of class 1 if there are two classes, else the mean over classes."""

    title, columns = "f1", _LABELS

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], average: str | None = None
    ) -> dict[str, float]:
        binary = set(np.unique([*references, *predictions]).tolist()) <= {0, 1}
        chosen = average or ("binary" if binary else "macro")
        return {"f1": float(sk.f1_score(references, predictions, average=chosen, zero_division=0))}


class MatthewsCorrelation(_Metric):
    """Matthews' correlation coefficient, in [-1, 1]; 0 for a constant prediction."""

    title, columns = "matthews_correlation", _LABELS

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"matthews_correlation": float(sk.matthews_corrcoef(references, predictions))}


class Pearson(_Metric):
    """Pearson's correlation coefficient of numbers, in [-1, 1]; 0 where one side is constant."""

    title, columns = "pearson", _NUMBERS

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"pearson": _correlation(stats.pearsonr, predictions, references)}


class Spearman(_Metric):
    """Spearman's rank correlation of numbers, in [-1, 1]; 0 where one side is constant."""

    title, columns = "spearman", _NUMBERS

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"spearman": _correlation(stats.spearmanr, predictions, references)}


def _correlation(function: Callable[..., Any], a: Sequence[float], b: Sequence[float]) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(function(a, b).statistic)


METRICS: dict[str, type[_Metric]] = {
    "accuracy": Accuracy,
    "f1": F1,
    "matthews_correlation": MatthewsCorrelation,
    "pearson": Pearson,
    "spearman": Spearman,
}


def load_metric(name: str) -> evaluate.EvaluationModule:
    """One of the metrics here by name, or else the Hub's of that name.

    Args:
        name: Such as `accuracy`.

    Returns:
        A metric with `compute` and `add_batch`.
    """
    return METRICS[name]() if name in METRICS else evaluate.load(name)


def default_metrics(num_labels: int) -> list[str]:
    """What to measure where the user did not say: accuracy, or Pearson's correlation for a regression."""
    return ["pearson"] if num_labels == 1 else ["accuracy"]


def compute_metrics_for(names: Sequence[str], *, regression: bool = False) -> Callable[[Any], dict[str, float]]:
    """A `compute_metrics` function for `Trainer`.

    Args:
        names: Metrics, by name.
        regression: Whether the model predicts one number instead of a class.

    Returns:
        A function from `EvalPrediction` to a mapping from metric to value.

    Raises:
        ValueError: A metric here is of classes where numbers are predicted, or the other way round.
    """
    for name in names:
        numbers = getattr(METRICS.get(name), "columns", None)
        if numbers is not None and (numbers is _NUMBERS) != regression:
            fitting = ", ".join(n for n, m in METRICS.items() if (m.columns is _NUMBERS) == regression)
            raise ValueError(
                f"the metric {name!r} does not fit a {'regression' if regression else 'classification'}; "
                f"these do: {fitting}."
            )
    loaded = {name: load_metric(name) for name in names}

    def compute(prediction: Any) -> dict[str, float]:
        logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        guesses = np.squeeze(logits, -1) if regression else np.argmax(logits, axis=-1)
        results: dict[str, float] = {}
        for metric in loaded.values():
            results.update(metric.compute(predictions=guesses, references=prediction.label_ids))
        return results

    return compute


class Entities(_Metric):
    """Precision, recall and F1 of named entities, and the accuracy of tags, from lists of IOB tags.

    An entity is found if its type, its first and its last word are right; all types count together (Tjong Kim Sang & De
    Meulder 2003, "Introduction to the CoNLL-2003 Shared Task").
    """

    title, columns = "entities", _TAGS
    names = ("f1", "precision", "recall", "accuracy")

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        pairs = [(set(entities(p)), set(entities(r))) for p, r in zip(predictions, references, strict=True)]
        right = sum(len(found & real) for found, real in pairs)
        found, real = (sum(len(pair[i]) for pair in pairs) for i in (0, 1))
        tags = [p == r for ps, rs in zip(predictions, references, strict=True) for p, r in zip(ps, rs, strict=True)]
        return {
            "f1": _fraction(2 * right, found + real),
            "precision": _fraction(right, found),
            "recall": _fraction(right, real),
            "accuracy": _fraction(sum(tags), len(tags)),
        }


def _fraction(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def entities(tags: Iterable[str]) -> list[tuple[str, int, int]]:
    """The entities in a sequence of IOB tags: type, first word, and the word after the last.

    B- begins one; so does an I- that continues none of its type, as in the script of CoNLL. Any other tag is outside.

    >>> entities(["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-ORG"])
    [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5), ('ORG', 5, 6)]
    """
    spans: list[tuple[str, int, int]] = []
    for i, tag in enumerate(tags):
        prefix, _, kind = tag.partition("-")
        if prefix == "I" and spans and spans[-1][0] == kind and spans[-1][2] == i:
            spans[-1] = (kind, spans[-1][1], i + 1)
        elif prefix in ("B", "I") and kind:
            spans.append((kind, i, i + 1))
    return spans


def entity_metrics_for(
    names: Sequence[str], tags: Mapping[int, str]
) -> tuple[list[str], Callable[[Any], dict[str, float]]]:
    """What to measure of tags, and a `compute_metrics` function for `Trainer` that does it.

    Args:
        names: Of `f1`, `precision`, `recall` and `accuracy`; if empty, all that the tags allow.
        tags: Names of the tags by the model's numbers.

    Returns:
        The names, and a function from `EvalPrediction` with `(N, tokens)` tags, not logits, to a mapping from metric
        to value. Tokens labelled -100 do not count.

    Raises:
        ValueError: A name is unknown, or is of entities where the tags are not IOB tags.
    """
    iob = any(name.startswith(("B-", "I-")) for name in tags.values())
    fitting = Entities.names if iob else ("accuracy",)
    for name in names:
        if name not in fitting:
            reason = "" if iob else f"; precision, recall and f1 need IOB tags, not {', '.join(tags.values())}"
            raise ValueError(f"the metric {name!r} does not fit these tags; these do: {', '.join(fitting)}{reason}.")
    metric = Entities()

    def compute(prediction: Any) -> dict[str, float]:
        labelled = [row != -100 for row in prediction.label_ids]
        guesses, truth = (
            [[tags[int(tag)] for tag in row[real]] for row, real in zip(rows, labelled, strict=True)]
            for rows in (prediction.predictions, prediction.label_ids)
        )
        found = metric.compute(predictions=guesses, references=truth)
        return {name: found[name] for name in fitting}

    return list(names or fitting), compute
