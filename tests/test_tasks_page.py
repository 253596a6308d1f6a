"""The page of all tasks: what it makes of the rows of its benchmark."""

import json

from docs import tasks


def row(config, seed, **stages):
    return {"config": config, "seed": seed, "metrics": stages, "macs_removed": 0.5}


ROWS = [
    row("smollm2", 0, dense={"perplexity": 20.0}, pruned={"perplexity": 30.0}, recovered={"perplexity": 25.125}),
    row("demo", 0, dense={"accuracy": 0.9, "f1": 0.8}, pruned={"accuracy": 0.8, "f1": 0.7}),
    row("demo", 1, dense={"accuracy": 0.92, "f1": 0.8}, pruned={"accuracy": 0.81, "f1": 0.7}),
]


def test_lines(tmp_path, monkeypatch):
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps(ROWS))
    monkeypatch.setattr(tasks, "ROWS", path)
    lines = tasks.tasks().splitlines()
    first = next(number for number, line in enumerate(lines) if "`accuracy`" in line)
    # classification first, whatever the order of the rows; the mean of both seeds
    assert lines[first].endswith("| `accuracy` | 91.0 | 80.5 |  | 50.0 % | 2 |")
    assert lines[first + 1] == "|  |  |  | `f1` | 80.0 | 70.0 |  |  |  |"
    assert lines[first + 2].endswith("| `perplexity` ↓ | 20.00 | 30.00 | 25.12 | 50.0 % | 1 |")
