"""Widths in multiples of 1, 8, 16 and 32: accuracy and time at equal multiply-adds, to choose the default.

    python benchmarks/kernel_widths.py [--kept 70 50 30] [--backends eager onnx eager:bfloat16] [--threads 1]
    python benchmarks/kernel_widths.py --quick
    python benchmarks/kernel_widths.py --show

MiniLM-L6, fine-tuned on TREC (kept in runs/dense). From one scoring pass a draw of calibration samples, the model is
pruned in one shot with repair, with neurons in multiples of each number. All models are timed in turn, pass by pass,
beside the dense one: 64 tokens, batches of 1 and of 32. Accuracy and KL (divergence from the dense model, thousandths
of a nat) are means over the draws; times are those of the first draw's models. Each draw and backend goes to
runs/kernel_widths.json when it is done, and is not measured again. CPU; float32, but for the times of a backend that
names another type; the machine should do nothing else.
"""

import argparse
import copy
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from common import DenseTask, Row, accuracy, dense_task, divergence, predictions, write
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

import hfprune

# registers onnx and openvino
import hfprune.deployment.backends  # noqa: F401
from hfprune import PruningConfig, apply_plan, plan, reconstruct, score
from hfprune.data.packages import resolve_model
from hfprune.measuring.latency import measure_latencies
from hfprune.pruning.prune import batches_for

MULTIPLES = (1, 8, 16, 32)
TOKENS = 64
BATCHES = (1, 32)


def config_of(multiple: int, seed: int) -> PruningConfig:
    """One shot with repair, from 512 samples."""
    return PruningConfig(
        sequence_length=TOKENS,
        scorer="logit_fisher",
        schedule="one_shot",
        round_to=multiple,
        calibration_batch_size=64,
        calibration_batch_tokens=2048,
        seed=seed,
    )


def pruned(dense: DenseTask, kept: Sequence[int], seed: int) -> dict[tuple[int, int], PreTrainedModel]:
    """A model for every share of the multiply-adds that stays, and every multiple."""
    batches = batches_for(dense.model, dense.train, config_of(1, seed), collator=dense.task.collator)
    scores = score(dense.model, batches, scorer="logit_fisher", seed=seed)
    models = {}
    for share in kept:
        for multiple in MULTIPLES:
            chosen = plan(dense.model, scores, config_of(multiple, seed), sparsity=1 - share / 100)
            small = apply_plan(dense.model, chosen)
            reconstruct(small, dense.model, batches)
            models[share, multiple] = small
    return models


def timed(
    dense: PreTrainedModel, models: dict[tuple[int, int], PreTrainedModel], backend: str, threads: int, runs: int
) -> list[Row]:
    """The median of every model, and of the dense one, in a backend such as `eager` or `eager:bfloat16`."""
    rows = []
    name, _, dtype = backend.partition(":")
    timed_models = [dense, *models.values()]
    if dtype:
        timed_models = [copy.deepcopy(model).to(getattr(torch, dtype)) for model in timed_models]
    for batch_size in BATCHES:
        latencies = measure_latencies(
            timed_models,
            batch_size=batch_size,
            sequence_length=TOKENS,
            threads=threads,
            runs=runs if batch_size == 1 else max(runs // 3, 3),
            backend=name,
        )
        for (share, multiple), latency in zip(((100, 0), *models), latencies, strict=True):
            row = {"backend": backend, "batch": batch_size, "threads": threads, "kept": share, "multiple": multiple}
            rows.append({"of": "time", **row, "median_ms": round(latency.median_ms, 3)})
    return rows


def tested(dense: DenseTask, models: dict[tuple[int, int], PreTrainedModel], seed: int) -> list[Row]:
    """The accuracy of every model, and what is left of the multiply-adds."""
    rows: list[Row] = []
    for (share, multiple), small in models.items():
        predicted = predictions(small, dense.test)
        row = {"of": "accuracy", "seed": seed, "kept": share, "multiple": multiple}
        row["accuracy"] = accuracy(predicted, dense.test)
        row["kl"] = round(1000 * divergence(predicted, dense.predicted), 2)
        row["macs_kept"] = round(100 * (1 - small.pruning_plan.sparsity("macs")), 2)
        rows.append(row)
    return rows


def report(rows: Sequence[Row]) -> None:
    """Print a table: accuracy, and time relative to multiples of 1."""
    times = [row for row in rows if row["of"] == "time"]
    settings = list(dict.fromkeys((row["backend"], row["batch"]) for row in times))
    heads = [f"{backend}, batch {batch}: ms" for backend, batch in settings]
    print("| MACs kept | round_to | accuracy, % | KL | " + " | ".join(heads) + " |")
    print("|---:|---:|---:|---:|" + "---:|" * len(heads))
    found = [row for row in rows if row["of"] == "accuracy"]
    for share, multiple in dict.fromkeys((row["kept"], row["multiple"]) for row in found):
        same = [row for row in found if (row["kept"], row["multiple"]) == (share, multiple)]
        cells = [
            f"{statistics.mean(row['macs_kept'] for row in same):.1f} %",
            str(multiple),
            f"{statistics.mean(row['accuracy'] for row in same):.1f}",
            f"{statistics.mean(row['kl'] for row in same):.1f}",
        ]
        for setting in settings:
            exact = _median_ms(times, setting, share, 1)
            this = _median_ms(times, setting, share, multiple)
            cells.append(f"{this:.2f} ({100 * (this / exact - 1):+.0f} %)")
        print("| " + " | ".join(cells) + " |")
    for setting in settings:
        print(f"dense, {setting[0]}, batch {setting[1]}: {_median_ms(times, setting, 100, 0):.2f} ms")


def _median_ms(times: Sequence[Row], setting: tuple[str, int], share: int, multiple: int) -> float:
    """A time from the rows."""
    for row in times:
        if (row["backend"], row["batch"]) == setting and (row["kept"], row["multiple"]) == (share, multiple):
            return float(row["median_ms"])
    return float("nan")


def main() -> None:
    """Measure what is missing, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", nargs="+", type=int, default=[70, 50, 30], help="per cent of the MACs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="draws of calibration samples")
    parser.add_argument("--backends", nargs="*", default=["eager"], help="such as eager onnx eager:bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=60, help="timed passes of each model; a third at batch 32")
    parser.add_argument("--output", type=Path, default=Path("runs/kernel_widths.json"))
    parser.add_argument("--quick", action="store_true", help="times only, of a model that nobody fine-tuned")
    parser.add_argument("--show", action="store_true", help="report the rows there are")
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    source = resolve_model("minilm-l6")  # fails at once, with what to do, where it is not installed
    if args.quick:
        quick(source, args.threads)
        return
    rows: list[Row] = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else []
    if not args.show:
        dense = dense_task("trec", Path("runs/dense"))
        for seed in args.seeds:
            is_first = seed == args.seeds[0]
            backends = [name for name in args.backends if all(row.get("backend") != name for row in rows)]
            has_accuracy = any(row.get("seed") == seed for row in rows)
            if has_accuracy and not (is_first and backends):
                continue
            models = pruned(dense, args.kept, seed)
            if not has_accuracy:
                rows += tested(dense, models, seed)
            for backend in backends if is_first else ():
                rows += timed(dense.model, models, backend, args.threads, args.runs)
            write(args.output, rows)
    report(rows)


def quick(source: str, threads: int) -> None:
    """Prune by the size of weights, and time."""
    dense = AutoModelForSequenceClassification.from_pretrained(source, num_labels=6).eval()
    scores = score(dense, [{"input_ids": torch.full((1, 8), 5)}], scorer="l2")
    models = {}
    for multiple in MULTIPLES:
        chosen = plan(dense, scores, config_of(multiple, 0), sparsity=0.5)
        models[50, multiple] = apply_plan(dense, chosen)
    for row in timed(dense, models, "eager", threads, runs=6):
        print(row)


if __name__ == "__main__":
    main()
