"""MiniLM-L6 on TREC: dense and pruned, in four runtimes, in float32 and in int8: accuracy, bytes, and time.

    python benchmarks/deployment.py
    python benchmarks/deployment.py --quick
    python benchmarks/deployment.py --show

The dense model is fine-tuned once (kept in runs/dense) and pruned to 50 and 30 % of its multiply-adds by the default
settings (kept in runs/deployment, with all exports and quantised checkpoints). Every one of the three becomes

- a model in PyTorch, eager and compiled, in float32 and in int8 of torchao (hfprune.quantize);
- a file of ONNX Runtime and one of OpenVINO, in float32 and in int8 (hfprune.export). OpenVINO has two kinds of int8:
  of the weights, and calibrated, of weights and activations.

Accuracy is that of the 1,000 test questions, padded to 64 tokens, through the runtime itself. Then all of them are
timed in turn, pass by pass, for every setting: batches of 1 and 32 with 64 tokens, on one thread and on two; medians.
So what else the machine does slows all alike.

For every backend and batch size in --tables a latency table of the dense model is measured at one thread (kept in
runs/latency_tables): the speed-up that it predicts for the pruned models stands beside the measured one.

Writes docs/results/deployment.json, from which `python -m docs.draw` draws docs/results/deployment.md, and prints the
tables. A setting that is there is not measured again: delete the file to start over. The machine should do nothing
else. `torch.compile` with int8 is timed on one thread only, as every compilation takes a quarter of a minute or more.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from common import Row, dense_task, write
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

import hfprune

# registers onnx and openvino for latency tables
import hfprune.deployment.backends
from docs.deployment import tables
from hfprune.data import load_text_dataset, resolve_model, tokenize
from hfprune.deployment.by_transformers import opening_of_onnx, opening_of_openvino
from hfprune.errors import HfpruneError
from hfprune.measuring.block_times import measure_latency_table
from hfprune.structure.anatomy import anatomy_of

TOKENS = 64
#: Per cent of the multiply-adds that stay.
KEPT = (50, 30)
# the larger first, as a compiled model is tested with it
BATCHES = (32, 1)
THREADS = (1, 2)
#: Runtime and quantisation of every variant.
VARIANTS = (
    ("eager", "float32"),
    ("eager", "int8"),
    ("compile", "float32"),
    ("compile", "int8"),
    ("onnx", "float32"),
    ("onnx", "int8"),
    ("openvino", "float32"),
    ("openvino", "int8"),
    ("openvino", "int8-calibrated"),
)
QUICK_VARIANTS = (("eager", "float32"), ("eager", "int8"), ("onnx", "float32"), ("onnx", "int8"))
PACKAGES = ("torch", "transformers", "onnxruntime", "openvino", "torchao")
#: From `input_ids` and `attention_mask` to logits.
Run = Callable[[Mapping[str, Tensor]], Any]


@dataclass(frozen=True)
class Material:
    """What everything is made of.

    Attributes:
        checkpoints: By name (`dense`, or the per cent that stay), the folder of a model.
        tokenizer: Of all of them.
        train: Questions for calibration, tokenized.
        test: Batches of 32 questions, padded to 64 tokens; the last is filled with the first questions again.
        labels: Of the test questions.
        folder: Where exports and quantised checkpoints are kept.
    """

    checkpoints: Mapping[str, Path]
    tokenizer: PreTrainedTokenizerBase
    train: Dataset
    test: Sequence[Mapping[str, Tensor]]
    labels: Tensor
    folder: Path


class Variant(NamedTuple):
    """A model in a runtime."""

    model: str
    runtime: str
    weights: str
    source: Path
    megabytes: float


def full_material(folder: Path) -> Material:
    """The fine-tuned model, pruned by the default settings."""
    dense = dense_task("trec", Path("runs/dense"))
    return _material(
        folder,
        dense.model,
        dense.task.tokenizer,
        train=dense.train,
        test=dense.task.data["test"],
        kept=KEPT,
        settings={},
    )


def quick_material(folder: Path) -> Material:
    """A model that nobody fine-tuned, pruned by the size of its weights: its accuracy says nothing."""
    source = resolve_model("minilm-l6")
    tokenizer = AutoTokenizer.from_pretrained(source)
    data = tokenize(load_text_dataset("trec"), tokenizer)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=6).eval()
    settings = {"scorer": "l2", "schedule": "one_shot", "reconstruct": False}
    return _material(
        folder,
        model,
        tokenizer,
        train=data["train"],
        test=data["test"].select(range(64)),
        kept=(50,),
        settings=settings,
    )


def _material(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    train: Dataset,
    test: Dataset,
    kept: Sequence[int],
    settings: Mapping[str, Any],
) -> Material:
    """Prune a model, unless an earlier run did, and pad the test questions."""
    checkpoints = {"dense": folder / "dense"}
    if not checkpoints["dense"].is_dir():
        model.save_pretrained(checkpoints["dense"])
        tokenizer.save_pretrained(checkpoints["dense"])
    collator = DataCollatorWithPadding(tokenizer)
    for share in kept:
        place = checkpoints[str(share)] = folder / f"kept{share}"
        if place.is_dir():
            continue
        config = hfprune.PruningConfig(sparsity=1 - share / 100, sequence_length=TOKENS, **settings)
        hfprune.save(hfprune.prune(model, train, config, collator=collator), place, tokenizer=tokenizer)
    return Material(
        checkpoints=checkpoints,
        tokenizer=tokenizer,
        train=train,
        test=padded(test, tokenizer),
        labels=torch.tensor(test["labels"]),
        folder=folder,
    )


def padded(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Tensor]]:
    """Batches of 32 rows, each of 64 tokens."""
    batches = []
    for start in range(0, len(rows), max(BATCHES)):
        chosen = [rows[number % len(rows)]["input_ids"] for number in range(start, start + max(BATCHES))]
        batch = tokenizer.pad({"input_ids": chosen}, padding="max_length", max_length=TOKENS, return_tensors="pt")
        batches.append({name: batch[name] for name in ("input_ids", "attention_mask")})
    return batches


def made(material: Material, variants: Sequence[tuple[str, str]]) -> list[Variant]:
    """Export and quantise every model, unless an earlier run did."""
    found = []
    for model, checkpoint in material.checkpoints.items():
        for runtime, weights in variants:
            try:
                source = _source(material, model, checkpoint, runtime, weights)
            except HfpruneError as error:
                print(f"{model}, {runtime}, {weights}: {error}", flush=True)
                continue
            megabytes = _bytes_of(source) / 1e6
            found.append(Variant(model, runtime, weights, source, round(megabytes, 1)))
    return found


def _source(material: Material, model: str, checkpoint: Path, runtime: str, weights: str) -> Path:
    """The folder that a variant is opened from."""
    is_pytorch = runtime in ("eager", "compile")
    if is_pytorch and weights == "float32":
        return checkpoint
    place = material.folder / f"{model}-{'torchao' if is_pytorch else runtime}-{weights}"
    if place.is_dir():
        return place
    if is_pytorch:
        hfprune.quantize(checkpoint, place, method=weights, threads=1)
        return place
    hfprune.export(
        checkpoint,
        runtime,
        place,
        quantize=None if weights == "float32" else weights,
        calibration=material.train if weights == "int8-calibrated" else None,
        threads=1,
    )
    return place


def _bytes_of(folder: Path) -> int:
    """The bytes of weights and graph."""
    endings = (".safetensors", ".onnx", ".data", ".xml", ".bin")
    return sum(path.stat().st_size for path in folder.iterdir() if path.name.endswith(endings))


def opened(variant: Variant, threads: int) -> Run:
    """A variant in its runtime, on some threads. PyTorch's number of threads is that of the process."""
    if variant.runtime == "onnx":
        return _in_onnx(variant.source, threads)
    if variant.runtime == "openvino":
        return _in_openvino(variant.source, threads)
    model = _loaded(variant.source)
    run = torch.compile(model, dynamic=False) if variant.runtime == "compile" else model
    return lambda batch: run(**batch).logits


def _loaded(folder: Path) -> PreTrainedModel:
    """A checkpoint of hfprune, or a dense one."""
    if (folder / "pruning_plan.json").is_file():
        return hfprune.load(folder, verify=False).eval()
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def _in_onnx(folder: Path, threads: int) -> Run:
    import onnxruntime

    options = opening_of_onnx(threads)["session_options"]
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    return lambda batch: session.run(None, _arrays(batch, names))[0]


def _in_openvino(folder: Path, threads: int) -> Run:
    import openvino

    compiled = openvino.Core().compile_model(
        folder / "openvino_model.xml", "CPU", opening_of_openvino(threads)["config"]
    )
    request = compiled.create_infer_request()
    names = [argument.get_any_name() for argument in compiled.inputs]
    return lambda batch: request.infer(_arrays(batch, names), share_inputs=True)[0]


def _arrays(batch: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Any]:
    """The arguments of a graph; token types are 0."""
    arrays = {}
    for name in names:
        value = batch.get(name)
        arrays[name] = (torch.zeros_like(batch["input_ids"]) if value is None else value).numpy()
    return arrays


def accuracy_of(run: Run, material: Material) -> float:
    """Per cent of the test questions."""
    chosen = [torch.as_tensor(run(batch)).float().argmax(-1) for batch in material.test]
    predicted = torch.cat(chosen)[: len(material.labels)]
    return round(100 * float((predicted == material.labels).double().mean()), 2)


def timed(runs: Sequence[Run], batch: Mapping[str, Tensor], passes: int) -> list[list[float]]:
    """Milliseconds of every pass: all take turns."""
    milliseconds: list[list[float]] = [[] for _ in runs]
    for number in range(-2, passes):
        for run, measured in zip(runs, milliseconds, strict=True):
            began = time.perf_counter()
            run(batch)
            if number >= 0:
                measured.append(1000 * (time.perf_counter() - began))
    return milliseconds


def measured_setting(
    material: Material,
    variants: Sequence[Variant],
    accuracies: dict[tuple[str, str, str], float | None],
    setting: Mapping[str, int],
) -> list[Row]:
    """The rows of one setting."""
    threads, batch_size, passes = setting["threads"], setting["batch"], setting["passes"]
    torch.set_num_threads(threads)
    if threads > 1:
        variants = [variant for variant in variants if variant[1:3] != ("compile", "int8")]
    # a compiled function has its number of threads in it, and its sizes
    torch._dynamo.reset()
    runs = [opened(variant, threads) for variant in variants]
    batch = {
        "input_ids": material.test[0]["input_ids"][:batch_size].clamp(min=5),
        "attention_mask": torch.ones(batch_size, TOKENS, dtype=torch.long),
    }
    with torch.inference_mode():
        for variant, run in zip(variants, runs, strict=True):
            run(batch)
            # a compiled model would be compiled once more for another size of batches
            if variant[:3] not in accuracies and (variant.runtime != "compile" or batch_size == max(BATCHES)):
                accuracies[variant[:3]] = accuracy_of(run, material)
        milliseconds = timed(runs, batch, passes)
    rows = []
    for variant, times in zip(variants, milliseconds, strict=True):
        low, _, high = statistics.quantiles(times, n=4)
        rows.append(
            {
                "model": variant.model,
                "runtime": variant.runtime,
                "weights": variant.weights,
                "accuracy": accuracies.get(variant[:3]),
                "megabytes": variant.megabytes,
                **setting,
                "median_ms": round(statistics.median(times), 3),
                "low_ms": round(low, 3),
                "high_ms": round(high, 3),
            }
        )
    return rows


def predictions_of(material: Material, asked: Sequence[str], runs: int) -> list[Row]:
    """What latency tables of the dense model predict of the pruned ones, at one thread."""
    dense = _loaded(material.checkpoints["dense"])
    rows = []
    for text in asked:
        backend, batch = text.split(":")
        batch_size = int(batch)
        began = time.perf_counter()
        table = measure_latency_table(
            dense,
            batch_size=batch_size,
            sequence_length=TOKENS,
            threads=1,
            backend=backend,
            runs=_passes(runs, batch_size),
            warmup=1,
            cache=Path("runs/latency_tables"),
        )
        print(f"latency table of {backend}, batch {batch_size}: {time.perf_counter() - began:.0f} s", flush=True)
        for model, checkpoint in material.checkpoints.items():
            if model == "dense":
                continue
            predicted_ms = table.milliseconds(anatomy_of(_loaded(checkpoint)).units)
            rows.append(
                {
                    "model": model,
                    "runtime": backend,
                    "batch": batch_size,
                    "threads": 1,
                    "predicted_speedup": round(table.dense_ms / predicted_ms, 3),
                }
            )
    return rows


def _passes(asked: int, batch_size: int) -> int:
    """A third of the passes for large batches, which take long and vary little."""
    return asked if batch_size == 1 else max(asked // 3, 2)


def results_of(
    material: Material,
    found: Sequence[Variant],
    settings: Sequence[tuple[int, int]],
    *,
    passes: int,
    output: Path,
) -> dict[str, Any]:
    """Measure every setting that the file does not have, and write the file after each."""
    results: dict[str, Any] = {"rows": [], "predicted": []}
    if output.is_file():
        results = json.loads(output.read_text(encoding="utf-8"))
    rows = results["rows"]
    accuracies = {(row["model"], row["runtime"], row["weights"]): row["accuracy"] for row in rows}
    for threads, batch_size in settings:
        if any((row["threads"], row["batch"]) == (threads, batch_size) for row in rows):
            continue
        began = time.perf_counter()
        setting = {"batch": batch_size, "threads": threads, "tokens": TOKENS, "passes": _passes(passes, batch_size)}
        rows += measured_setting(material, found, accuracies, setting)
        results["versions"] = {package: version(package) for package in PACKAGES}
        write(output, results)
        print(f"{setting}: {time.perf_counter() - began:.0f} s", flush=True)
    return results


def main() -> None:
    """Measure what is missing, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=45, help="timed passes of every variant; a third at batch 32")
    parser.add_argument(
        "--tables", nargs="*", default=["eager:1", "eager:32", "onnx:1"], help="latency tables: backend:batch"
    )
    parser.add_argument("--table-runs", type=int, default=15, help="timed passes of every width; a third at batch 32")
    parser.add_argument("--output", type=Path, default=Path("docs/results/deployment.json"))
    parser.add_argument("--quick", action="store_true", help="one setting, no training: whether it runs")
    parser.add_argument("--show", action="store_true", help="print the tables of what there is")
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    if args.show:
        print(tables(json.loads(args.output.read_text(encoding="utf-8"))))
        return
    folder, variants, batches, threads = Path("runs/deployment"), VARIANTS, BATCHES, THREADS
    if args.quick:
        folder, variants, batches, threads = Path("runs/deployment_quick"), QUICK_VARIANTS, (1,), (1,)
        args.output, args.passes, args.table_runs, args.tables = folder / "rows.json", 5, 2, ["eager:1"]
    began = time.perf_counter()
    material = quick_material(folder) if args.quick else full_material(folder)
    found = made(material, variants)
    print(f"models and files: {time.perf_counter() - began:.0f} s", flush=True)
    settings = [(thread_count, batch_size) for thread_count in threads for batch_size in batches]
    results = results_of(material, found, settings, passes=args.passes, output=args.output)
    results["predicted"] = predictions_of(material, args.tables, args.table_runs)
    write(args.output, results)
    print(f"all: {time.perf_counter() - began:.0f} s")
    print(tables(results))


if __name__ == "__main__":
    main()
