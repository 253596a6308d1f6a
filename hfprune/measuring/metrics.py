"""Metrics that need no network.

They are `evaluate.Metric` modules, so `evaluate.combine` combines them with the Hub's.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from scipy import special, stats
from sklearn import metrics as sk

# Types of the columns that a metric compares. Whether a metric suits a regression is told by its columns.
_LABELS = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
_NUMBERS = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
_SCORES = {
    "prediction_scores": datasets.Sequence(datasets.Value("float64")),
    "references": datasets.Value("int64"),
}
_TAG_LISTS = datasets.Sequence(datasets.Value("string"))
_TAGS = {"predictions": _TAG_LISTS, "references": _TAG_LISTS}


class _Metric(evaluate.Metric):
    """Base of the metrics here: a subclass gives its name, and the types of its columns."""

    title: str
    columns: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Otherwise evaluate writes the predictions to a file in the user's cache.
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

    title = "accuracy"
    columns = _LABELS

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(sk.accuracy_score(references, predictions))}


class _OfClasses(_Metric):
    """Base of the metrics that are computed for one class, or for each class and then averaged.

    Attributes:
        score: The function of sklearn.
        average: How the classes are averaged; None: class 1 counts if there are two classes, else their mean.
    """

    columns = _LABELS
    score: Callable[..., Any]
    average: str | None = None

    def _compute(
        self, predictions: Sequence[int], references: Sequence[int], average: str | None = None
    ) -> dict[str, float]:
        average = average or self.average
        if not average:
            classes = set(np.unique([*references, *predictions]).tolist())
            average = "binary" if classes <= {0, 1} else "macro"
        value = type(self).score(references, predictions, average=average, zero_division=0)
        return {self.title: float(value)}


class F1(_OfClasses):
    """The harmonic mean of precision and recall: of class 1 if there are two classes, else the mean over classes."""

    title = "f1"
    score = sk.f1_score


class F1Macro(F1):
    """The mean of the F1 of all classes, each of the same weight."""

    title = "f1_macro"
    average = "macro"


class F1Weighted(F1):
    """The mean of the F1 of all classes, weighted by how many samples are of each."""

    title = "f1_weighted"
    average = "weighted"


class Precision(_OfClasses):
    """How many of the samples that are said to be of a class are: of class 1 if there are two, else the mean."""

    title = "precision"
    score = sk.precision_score


class PrecisionMacro(Precision):
    """The mean of the precision of all classes."""

    title = "precision_macro"
    average = "macro"


class Recall(_OfClasses):
    """How many of the samples of a class are found: of class 1 if there are two classes, else the mean over classes."""

    title = "recall"
    score = sk.recall_score


class RecallMacro(Recall):
    """The mean of the recall of all classes: the balanced accuracy."""

    title = "recall_macro"
    average = "macro"


class RocAuc(_Metric):
    """The area under the receiver operating characteristic, from the probabilities of the classes.

    Of two classes it is how often a sample of class 1 gets a higher probability of it than a sample of class 0. Of more
    it is the mean over classes, each against all others.
    """

    title = "roc_auc"
    columns = _SCORES

    def _compute(self, prediction_scores: Sequence[Sequence[float]], references: Sequence[int]) -> dict[str, float]:
        scores = np.asarray(prediction_scores, dtype=np.float64)
        real = np.asarray(references)
        areas: list[float] = []
        # of two classes both areas are the same one
        for number in range(scores.shape[1]):
            is_of_class = real == number
            if is_of_class.all() or not is_of_class.any():
                raise ValueError(
                    f"roc_auc compares samples of a class with all others, but of class {number} there are "
                    f"{int(is_of_class.sum())} of {len(real)}. Evaluate on more samples, or take another metric."
                )
            areas.append(float(sk.roc_auc_score(is_of_class, scores[:, number])))
        return {"roc_auc": float(np.mean(areas))}


class MatthewsCorrelation(_Metric):
    """Matthews' correlation coefficient, in [-1, 1]; 0 for a constant prediction."""

    title = "matthews_correlation"
    columns = _LABELS

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"matthews_correlation": float(sk.matthews_corrcoef(references, predictions))}


class Pearson(_Metric):
    """Pearson's correlation coefficient of numbers, in [-1, 1]; 0 if predictions or references are constant."""

    title = "pearson"
    columns = _NUMBERS

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"pearson": _correlation(stats.pearsonr, predictions, references)}


class Spearman(_Metric):
    """Spearman's rank correlation of numbers, in [-1, 1]; 0 if predictions or references are constant."""

    title = "spearman"
    columns = _NUMBERS

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"spearman": _correlation(stats.spearmanr, predictions, references)}


def _correlation(coefficient: Callable[..., Any], predictions: Sequence[float], references: Sequence[float]) -> float:
    # A constant has no variance, and the coefficient would be 0/0.
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return float(coefficient(predictions, references).statistic)


METRICS: dict[str, type[_Metric]] = {
    "accuracy": Accuracy,
    "f1": F1,
    "f1_macro": F1Macro,
    "f1_weighted": F1Weighted,
    "precision": Precision,
    "precision_macro": PrecisionMacro,
    "recall": Recall,
    "recall_macro": RecallMacro,
    "roc_auc": RocAuc,
    "matthews_correlation": MatthewsCorrelation,
    "pearson": Pearson,
    "spearman": Spearman,
}


def load_metric(name: str) -> evaluate.EvaluationModule:
    """Load a metric by name.

    Nothing is loaded from the Hub or from a file of that name: a metric there is code, which would run.

    Args:
        name: One of `METRICS`, such as `accuracy`.

    Returns:
        A metric with `compute` and `add_batch`.

    Raises:
        ValueError: There is none of that name; the message lists those that there are.

    Examples:
        >>> load_metric("f1").compute(predictions=[0, 1, 1, 0], references=[0, 1, 0, 0])
        {'f1': 0.6666666666666666}
    """
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}; there are: {', '.join(METRICS)}.")
    return METRICS[name]()


def default_metrics(*, regression: bool = False) -> list[str]:
    """The metrics to measure by default: accuracy, or Pearson's correlation for a regression.

    >>> default_metrics(), default_metrics(regression=True)
    (['accuracy'], ['pearson'])
    """
    return ["pearson"] if regression else ["accuracy"]


def check_metrics(names: Sequence[str], *, regression: bool = False) -> None:
    """Refuse metrics that are unknown, or that do not suit what a model predicts, before it is loaded.

    Args:
        names: Names of metrics.
        regression: Whether the model predicts one number instead of a class.

    Raises:
        ValueError: A metric compares classes where numbers are predicted, or the other way round; or there is none of
            that name.
    """
    for name in names:
        _check_suits(name, regression=regression)


def compute_metrics_for(names: Sequence[str], *, regression: bool = False) -> Callable[[Any], dict[str, float]]:
    """Make a `compute_metrics` function for `Trainer`.

    Args:
        names: Names of metrics.
        regression: Whether the model predicts one number instead of a class.

    Returns:
        A function from `EvalPrediction` to a mapping from metric to value. It raises a ValueError where predictions
        and labels are not one class, or one number, a sample.

    Raises:
        ValueError: A metric compares classes where numbers are predicted, or the other way round.

    Examples:
        >>> from transformers import EvalPrediction
        >>> compute = compute_metrics_for(["accuracy"])
        >>> logits = np.array([[2.0, 1.0], [0.0, 3.0]])
        >>> compute(EvalPrediction(predictions=logits, label_ids=np.array([0, 0])))
        {'accuracy': 0.5}
    """
    check_metrics(names, regression=regression)
    metrics = list(map(load_metric, names))

    def compute(prediction: Any) -> dict[str, float]:
        _check_shapes(prediction.predictions, prediction.label_ids, regression=regression)
        outputs = prediction.predictions
        # Models that return more than logits, such as hidden states, return the logits first.
        logits = outputs[0] if isinstance(outputs, tuple) else outputs
        results: dict[str, float] = {}
        for metric in metrics:
            inputs = _inputs_of(metric, logits)
            results.update(metric.compute(**inputs, references=prediction.label_ids))
        return results

    return compute


def _inputs_of(metric: evaluate.EvaluationModule, logits: Any) -> dict[str, Any]:
    """What a metric compares with the labels: numbers, probabilities, or the class of the largest logit."""
    if metric.columns is _NUMBERS:
        return {"predictions": np.reshape(logits, -1)}
    if metric.columns is _SCORES:
        return {"prediction_scores": special.softmax(np.asarray(logits, dtype=np.float64), axis=-1)}
    inputs: dict[str, Any] = {"predictions": np.argmax(logits, axis=-1)}
    if isinstance(metric, _OfClasses):
        # the model's number of classes counts, not how many of them occur among these samples
        inputs["average"] = metric.average or ("binary" if logits.shape[-1] == 2 else "macro")
    return inputs


def _check_shapes(outputs: Any, labels: Any, *, regression: bool) -> None:
    """Refuse logits and labels that are not one class, or one number, a sample."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    samples = len(labels)
    one_number = np.shape(logits) in ((samples, 1), (samples,))
    one_of_classes = np.ndim(logits) == 2 and not one_number
    fits = one_number if regression else one_of_classes
    # several labels of a sample, as of a multi-label task, or a class for every token
    if fits and np.shape(labels) in ((samples,), (samples, 1)):
        return
    expected = "(N, 1) with one number" if regression else "(N, classes) with one class"
    raise ValueError(
        f"these metrics take logits {expected} a sample as labels, got logits of shape {np.shape(logits)} and labels "
        f"of shape {np.shape(labels)}. For other tasks write a compute_metrics function of your own."
    )


def _check_suits(name: str, *, regression: bool) -> None:
    """Refuse an unknown metric, one of classes for a regression, and one of numbers for a classification."""
    if name in METRICS and _is_for_regression(METRICS[name]) == regression:
        return
    suitable: list[str] = []
    for other, metric in METRICS.items():
        if _is_for_regression(metric) == regression:
            suitable.append(other)
    task = "regression" if regression else "classification"
    raise ValueError(f"the metric {name!r} does not fit a {task}; these do: {', '.join(suitable)}.")


def _is_for_regression(metric: type[_Metric]) -> bool:
    return metric.columns is _NUMBERS


#: How the tags of the first word of an entity begin, those of its other words, and those of its last.
_FIRST_WORDS = ("B", "S", "U")
_FURTHER_WORDS = ("I", "E", "L")
_LAST_WORDS = ("E", "L", "S", "U")


class Entities(_Metric):
    """Precision, recall and F1 of named entities, and the accuracy of tags, from lists of IOB tags.

    A predicted entity is correct if its type, its first and its last word are; entities of all types count together
    (Tjong Kim Sang & De Meulder 2003, "Introduction to the CoNLL-2003 Shared Task").

    Attributes:
        names: Names of its values.
    """

    title = "entities"
    columns = _TAGS
    names = ("f1", "precision", "recall", "accuracy")

    def _compute(self, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> dict[str, float]:
        predicted = 0
        real = 0
        correct = 0
        tags = 0
        correct_tags = 0
        for predicted_tags, real_tags in zip(predictions, references, strict=True):
            predicted_entities = set(entities(predicted_tags))
            real_entities = set(entities(real_tags))
            predicted += len(predicted_entities)
            real += len(real_entities)
            correct += len(predicted_entities & real_entities)
            tags += len(real_tags)
            for predicted_tag, real_tag in zip(predicted_tags, real_tags, strict=True):
                correct_tags += predicted_tag == real_tag
        return {
            "f1": _fraction(2 * correct, predicted + real),
            "precision": _fraction(correct, predicted),
            "recall": _fraction(correct, real),
            "accuracy": _fraction(correct_tags, tags),
        }


def _fraction(part: int, whole: int) -> float:
    # Nothing was predicted, or there was nothing to find.
    if not whole:
        return 0.0
    return part / whole


def entities(tags: Iterable[str]) -> list[tuple[str, int, int]]:
    """Find the entities in a sequence of tags: IOB in its variants, or IOBES (BILOU), where tags also mark last words.

    A tag B- begins an entity. So does a tag I- that continues no entity of its type, as in the script of CoNLL. E- and
    L- are the last word of an entity, S- and U- are its only one. Any other tag is outside.

    Args:
        tags: A tag for each word, such as `B-PER`, `I-PER` or `O`.

    Returns:
        For each entity its type, its first word, and the word after its last.

    Examples:
        >>> entities(["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "I-ORG"])
        [('PER', 0, 2), ('LOC', 3, 4), ('LOC', 4, 5), ('ORG', 5, 6)]
        >>> entities(["S-PER", "B-PER", "E-PER", "S-LOC"])
        [('PER', 0, 1), ('PER', 1, 3), ('LOC', 3, 4)]
    """
    spans: list[tuple[str, int, int]] = []
    # whether the last entity may go on with the next word
    is_open = False
    for word, tag in enumerate(tags):
        prefix, _, entity_type = tag.partition("-")
        if prefix not in _FIRST_WORDS + _FURTHER_WORDS or not entity_type:
            is_open = False
            continue
        goes_on = is_open and prefix in _FURTHER_WORDS and spans[-1][0] == entity_type
        first = spans.pop()[1] if goes_on else word
        spans.append((entity_type, first, word + 1))
        is_open = prefix not in _LAST_WORDS
    return spans


def entity_metrics_for(
    names: Sequence[str], tags: Mapping[int, str]
) -> tuple[list[str], Callable[[Any], dict[str, float]]]:
    """Choose the metrics of a tagging task, and make a `compute_metrics` function for `Trainer`.

    Args:
        names: Of `f1`, `precision`, `recall` and `accuracy`; if empty, all that suit the tags.
        tags: Names of the tags by the model's numbers.

    Returns:
        The names, and a function from `EvalPrediction` with `(N, tokens)` tags, not logits, to a mapping from metric
        to value. Tokens labelled -100 do not count.

    Raises:
        ValueError: A name is unknown, or needs entities where the tags are not IOB tags.
    """
    are_iob = any(name.startswith(("B-", "I-")) for name in tags.values())
    suitable = Entities.names if are_iob else ("accuracy",)
    reason = ""
    if not are_iob:
        reason = f"; precision, recall and f1 need IOB tags, not {', '.join(tags.values())}"
    for name in names:
        if name not in suitable:
            raise ValueError(f"the metric {name!r} does not fit these tags; these do: {', '.join(suitable)}{reason}.")
    metric = Entities()

    def names_of(numbers: Iterable[Any]) -> list[str]:
        return [tags[int(number)] for number in numbers]

    def compute(prediction: Any) -> dict[str, float]:
        predicted_tags: list[list[str]] = []
        real_tags: list[list[str]] = []
        for predicted, labels in zip(prediction.predictions, prediction.label_ids, strict=True):
            labelled = labels != -100
            predicted_tags.append(names_of(predicted[labelled]))
            real_tags.append(names_of(labels[labelled]))
        results = metric.compute(predictions=predicted_tags, references=real_tags)
        return {name: results[name] for name in suitable}

    return list(names or suitable), compute
