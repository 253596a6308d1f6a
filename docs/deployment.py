"""The page of what a pruned model gives in each runtime, from the rows of `benchmarks/deployment.py`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROWS = Path(__file__).parent / "results" / "deployment.json"
#: How the page calls models and runtimes.
_MODELS = {"dense": "dense", "50": "50 % of the MACs", "30": "30 % of the MACs"}
_RUNTIMES = {"eager": "PyTorch", "compile": "`torch.compile`", "onnx": "ONNX Runtime", "openvino": "OpenVINO"}
#: The kinds of weights of the table prune × quantise, by runtime.
_PIPELINE = (("eager", "int8"), ("onnx", "int8"), ("openvino", "int8-calibrated"))

HEAD = """# Prune, quantise, deploy

What is left of the time, the bytes and the accuracy of a model that is pruned, quantised and run elsewhere than in
PyTorch. Read this page to choose a runtime, and to see whether pruning and int8 go together.

MiniLM-L6 on TREC, fine-tuned once, pruned by the default settings to 50 and to 30 % of the multiply-adds (MACs) of its
heads and neurons. Nothing is trained after pruning. Accuracy is that of 1,000 test questions, measured through the
runtime itself; one standard error is 0.7 to 0.8 points. The times are medians of passes of 64 tokens. All variants of a
setting take turns, so that other work on the machine slows all alike. CPU, {versions}.

- *PyTorch*, *`torch.compile`*: `hfprune.load`; int8 is that of torchao, by `hfprune.quantize`.
- *ONNX Runtime*, *OpenVINO*: `hfprune.export`. In OpenVINO `int8` quantises the weights alone, `int8-calibrated`
  activations too, with ranges measured on training questions.

```bash
python benchmarks/deployment.py
```

"""
TAIL = """
## Next

- [Quantise a pruned model](../how-to/quantise.md)
- [Export to ONNX, OpenVINO and ExecuTorch](../how-to/export.md)
- [A budget in milliseconds](../how-to/budget-in-milliseconds.md)
"""


def deployment() -> str:
    """docs/results/deployment.md, from the rows that the benchmark left."""
    results = json.loads(ROWS.read_text(encoding="utf-8"))
    versions = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    return HEAD.format(versions=versions) + tables(results) + TAIL


def tables(results: Mapping[str, Any]) -> str:
    """All tables, as Markdown.

    Args:
        results: The content of deployment.json.

    Returns:
        Sections with a table each.
    """
    rows: Sequence[Mapping[str, Any]] = results["rows"]
    sections = ["## Prune and quantise\n", *_pipeline(rows)]
    for threads in sorted({row["threads"] for row in rows}):
        name = "thread" if threads == 1 else "threads"
        sections += [f"\n## All variants, {threads} {name}\n", *_variants(rows, threads)]
    if results["predicted"]:
        sections += ["\n## Speed-up, predicted and measured\n", *_predicted(results)]
    return "\n".join(sections) + "\n"


def _pipeline(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Dense, int8, pruned, and pruned with int8, in every runtime, on one thread."""
    batches = sorted({row["batch"] for row in rows})
    yield "On one thread. *Time* is that of the dense model in float32 in the same runtime, over that of the variant.\n"
    yield (
        "| runtime | model | weights | accuracy | MB | " + " | ".join(f"× at batch {batch}" for batch in batches) + " |"
    )
    yield "|---|---|---|---:|---:|" + "---:|" * len(batches)
    for runtime, quantised in _PIPELINE:
        for model in _MODELS:
            for weights in ("float32", quantised):
                found = [_row(rows, model, runtime, weights, batch) for batch in batches]
                if not all(found):
                    continue
                faster = []
                for batch, row in zip(batches, found, strict=True):
                    dense = _row(rows, "dense", runtime, "float32", batch)
                    faster.append(f"{dense['median_ms'] / row['median_ms']:.2f}" if dense else "")
                first = found[0]
                cells = (_RUNTIMES[runtime], _MODELS[model], weights, _accuracy(first), f"{first['megabytes']:.1f}")
                yield "| " + " | ".join((*cells, *faster)) + " |"


def _variants(rows: Sequence[Mapping[str, Any]], threads: int) -> Iterator[str]:
    """Milliseconds of every variant."""
    batches = sorted({row["batch"] for row in rows})
    yield (
        "| runtime | weights | model | accuracy | MB | " + " | ".join(f"ms, batch {batch}" for batch in batches) + " |"
    )
    yield "|---|---|---|---:|---:|" + "---:|" * len(batches)
    seen = dict.fromkeys((row["runtime"], row["weights"], row["model"]) for row in rows)
    for runtime, weights, model in sorted(seen, key=lambda names: (*_order(*names),)):
        found = [_row(rows, model, runtime, weights, batch, threads) for batch in batches]
        if not all(found):
            continue
        first = found[0]
        cells = (_RUNTIMES[runtime], weights, _MODELS[model], _accuracy(first), f"{first['megabytes']:.1f}")
        yield "| " + " | ".join((*cells, *(f"{row['median_ms']:.2f}" for row in found))) + " |"


def _order(runtime: str, weights: str, model: str) -> tuple[int, str, int]:
    """Where a variant stands in the table."""
    return list(_RUNTIMES).index(runtime), weights, list(_MODELS).index(model)


def _predicted(results: Mapping[str, Any]) -> Iterator[str]:
    """The speed-up that a latency table of the dense model predicts, beside the measured one: float32, one thread."""
    yield (
        "float32, one thread. *Predicted* is by a latency table of the dense model in that runtime, *measured* by the "
        "rows above; *realised* is measured over predicted. Between two passes of a variant all others run, so its "
        "weights are not in the caches any more; the table times two models in turn. In PyTorch on single texts that "
        "may be what is missing: with twelve models in turn 97 to 106 % was "
        "[realised](../how-to/budget-in-milliseconds.md#when-it-pays).\n"
    )
    yield "| runtime | batch | model | predicted × | measured × | realised |"
    yield "|---|---:|---|---:|---:|---:|"
    for guess in results["predicted"]:
        names = (guess["runtime"], "float32", guess["batch"], guess["threads"])
        dense = _row(results["rows"], "dense", *names)
        row = _row(results["rows"], guess["model"], *names)
        if not dense or not row:
            continue
        measured = dense["median_ms"] / row["median_ms"]
        yield (
            f"| {_RUNTIMES[guess['runtime']]} | {guess['batch']} | {_MODELS[guess['model']]} "
            f"| {guess['predicted_speedup']:.2f} | {measured:.2f} | {measured / guess['predicted_speedup']:.2f} |"
        )


def _row(
    rows: Sequence[Mapping[str, Any]], model: str, runtime: str, weights: str, batch: int, threads: int = 1
) -> Mapping[str, Any]:
    """The row of a variant in a setting; empty if it was not measured."""
    wanted = {"model": model, "runtime": runtime, "weights": weights, "batch": batch, "threads": threads}
    for row in rows:
        if wanted.items() <= row.items():
            return row
    return {}


def _accuracy(row: Mapping[str, Any]) -> str:
    """Per cent; nothing where it was not measured."""
    return "" if row["accuracy"] is None else f"{row['accuracy']:.1f}"
