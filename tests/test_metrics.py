"""Metrics: values by hand, and combined with others through evaluate."""

import evaluate
import numpy as np
import pytest
from transformers import EvalPrediction

from hfprune.metrics import METRICS, Accuracy, compute_metrics_for, load_metric


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
