"""The page of pruned and quantised models in their runtimes: what it makes of the rows of its benchmark."""

import json

from docs import deployment


def row(model, runtime, weights, batch, milliseconds, *, threads=1, accuracy=93.0):
    values = {"model": model, "runtime": runtime, "weights": weights, "batch": batch, "threads": threads}
    return {**values, "accuracy": accuracy, "megabytes": 70.04, "median_ms": milliseconds}


RESULTS = {
    "rows": [
        row("50", "onnx", "int8", 1, 2.0),
        row("dense", "onnx", "float32", 1, 10.0, accuracy=94.06),
        row("50", "onnx", "float32", 1, 5.0),
        row("dense", "compile", "float32", 1, 8.0, accuracy=None),
        row("dense", "eager", "float32", 1, 12.0),
        row("dense", "eager", "float32", 1, 7.0, threads=2),
        row("dense", "openvino", "int8", 1, 12.0),
    ],
    "predicted": [
        {"model": "50", "runtime": "onnx", "batch": 1, "threads": 1, "predicted_speedup": 2.5},
        {"model": "30", "runtime": "onnx", "batch": 1, "threads": 1, "predicted_speedup": 3.0},
    ],
    "versions": {"torch": "2.13.0"},
}


def lines_under(text, heading):
    section = text.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")]


def test_the_pipeline_is_relative_to_the_dense_model_in_the_same_runtime():
    lines = lines_under(deployment.tables(RESULTS), "Prune and quantise")
    assert lines == [
        "| runtime | model | weights | accuracy | MB | × at batch 1 |",
        "| PyTorch | dense | float32 | 93.0 | 70.0 | 1.00 |",
        "| ONNX Runtime | dense | float32 | 94.1 | 70.0 | 1.00 |",
        "| ONNX Runtime | 50 % of the MACs | float32 | 93.0 | 70.0 | 2.00 |",
        "| ONNX Runtime | 50 % of the MACs | int8 | 93.0 | 70.0 | 5.00 |",
    ]


def test_every_variant_has_a_line_for_its_number_of_threads():
    text = deployment.tables(RESULTS)
    assert lines_under(text, "All variants, 2 threads")[1:] == ["| PyTorch | float32 | dense | 93.0 | 70.0 | 7.00 |"]
    lines = lines_under(text, "All variants, 1 thread")
    assert len(lines) == 1 + 6
    assert "| `torch.compile` | float32 | dense |  | 70.0 | 8.00 |" in lines


def test_predictions_stand_beside_what_was_measured():
    lines = lines_under(deployment.tables(RESULTS), "Speed-up, predicted and measured")
    assert lines[1:] == ["| ONNX Runtime | 1 | 50 % of the MACs | 2.50 | 2.00 | 0.80 |"]


def test_the_page_is_drawn_from_a_file(tmp_path, monkeypatch):
    path = tmp_path / "deployment.json"
    path.write_text(json.dumps(RESULTS))
    monkeypatch.setattr(deployment, "ROWS", path)
    page = deployment.deployment()
    assert page.startswith("# Prune, quantise, deploy\n")
    assert "CPU, torch 2.13.0." in page
    assert page.endswith("budget-in-milliseconds.md)\n")
