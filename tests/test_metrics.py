"""Metrics: values by hand, and combined with others through evaluate."""

import evaluate
import numpy as np
import pytest
from transformers import EvalPrediction

from hfprune.measuring.metrics import (
    METRICS,
    Accuracy,
    Entities,
    compute_metrics_for,
    entities,
    entity_metrics_for,
    load_metric,
)


@pytest.mark.parametrize(
    ("name", "predictions", "references", "value"),
    [
        ("accuracy", [0, 1, 1, 0], [0, 1, 0, 0], 0.75),
        ("f1", [0, 1, 1, 0], [0, 1, 0, 0], 2 / 3),
        ("f1", [0, 1, 2], [0, 1, 1], (1 + 2 / 3 + 0) / 3),  # the mean over classes
        ("matthews_correlation", [0, 1, 1, 0], [0, 1, 0, 0], 1 / np.sqrt(3)),
        ("matthews_correlation", [1, 1, 1, 1], [0, 1, 0, 0], 0.0),
        ("pearson", [1.0, 2.0, 3.0], [2.0, 4.0, 6.5], 0.99795),
        ("pearson", [1.0, 1.0, 1.0], [2.0, 4.0, 6.5], 0.0),
        ("spearman", [1.0, 2.0, 3.0], [2.0, 40.0, 6.5], 0.5),
    ],
)
def test_values(name, predictions, references, value):
    found = load_metric(name).compute(predictions=predictions, references=references)
    assert found == {name: pytest.approx(value, abs=1e-4)}


def test_they_combine_and_take_batches():
    both = evaluate.combine([load_metric("accuracy"), load_metric("f1")])
    assert both.compute(predictions=[0, 1], references=[0, 1]) == {"accuracy": 1.0, "f1": 1.0}
    metric = Accuracy()
    for start in (0, 2):
        metric.add_batch(predictions=[0, 1, 1, 0][start : start + 2], references=[0, 1, 0, 0][start : start + 2])
    assert metric.compute() == {"accuracy": 0.75}


def test_for_trainer():
    compute = compute_metrics_for(["accuracy", "matthews_correlation"])
    logits = np.array([[2.0, 1.0], [0.0, 3.0]])
    assert compute(EvalPrediction(predictions=logits, label_ids=np.array([0, 1])))["accuracy"] == 1.0
    regression = compute_metrics_for(["pearson"], regression=True)
    numbers = np.array([[1.0], [2.0], [4.0]])
    found = regression(EvalPrediction(predictions=(numbers, None), label_ids=np.array([1.0, 2.0, 4.0])))
    assert found["pearson"] == pytest.approx(1.0)


def test_every_metric_describes_itself():
    for name, metric in METRICS.items():
        assert metric().info.description == name


@pytest.mark.parametrize(
    ("tags", "found"),
    [
        ("O O", []),
        ("B-A I-A O", [("A", 0, 2)]),
        ("B-A B-A", [("A", 0, 1), ("A", 1, 2)]),
        ("B-A I-B", [("A", 0, 1), ("B", 1, 2)]),  # another type begins another one
        ("O I-A I-A", [("A", 1, 3)]),  # IOB1: I- after O begins one
        ("B-A O I-A", [("A", 0, 1), ("A", 2, 3)]),
        ("O S-A S-A E-A", [("A", 1, 2), ("A", 2, 3), ("A", 3, 4)]),  # IOBES: nothing goes on behind S-
        ("B-A I-A E-A I-A", [("A", 0, 3), ("A", 3, 4)]),
        ("B-A L-A U-B L-B", [("A", 0, 2), ("B", 2, 3), ("B", 3, 4)]),  # BILOU
        ("B-A-b I-A-b", [("A-b", 0, 2)]),
        ("LABEL_3 NOUN B-", []),
    ],
)
def test_entities_in_tags(tags, found):
    assert entities(tags.split()) == found


def test_entities_count_only_when_type_and_both_ends_are_right():
    references = [["B-A", "I-A", "O", "B-B"], ["B-A", "O"], ["O", "O"]]
    predictions = [["B-A", "I-A", "O", "B-A"], ["B-A", "I-A"], ["O", "O"]]
    found = Entities().compute(predictions=predictions, references=references)
    assert found == {"f1": pytest.approx(1 / 3), "precision": 1 / 3, "recall": 1 / 3, "accuracy": 6 / 8}
    nothing = Entities().compute(predictions=[["O"]], references=[["O"]])
    assert nothing == {"f1": 0.0, "precision": 0.0, "recall": 0.0, "accuracy": 1.0}


def test_entities_for_trainer():
    names, compute = entity_metrics_for([], {0: "O", 1: "B-A", 2: "I-A"})
    assert names == ["f1", "precision", "recall", "accuracy"]
    tags, labels = np.array([[0, 1, 2, 1], [1, 1, -100, -100]]), np.array([[-100, 1, -100, 2], [-100, 1, -100, -100]])
    # B-A B-A against B-A I-A, and B-A against B-A
    found = compute(EvalPrediction(predictions=tags, label_ids=labels))
    assert found == {"f1": pytest.approx(0.4), "precision": pytest.approx(1 / 3), "recall": 0.5, "accuracy": 2 / 3}
    assert entity_metrics_for(["recall"], {0: "I-A"})[0] == ["recall"]
    parts, _ = entity_metrics_for([], {0: "NOUN", 1: "VERB"})
    assert parts == ["accuracy"]
    with pytest.raises(ValueError, match="'f1' does not fit these tags; these do: accuracy; .* IOB tags, not NOUN"):
        entity_metrics_for(["f1"], {0: "NOUN"})
