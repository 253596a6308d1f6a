"""What pruning without training costs: next to an epoch of fine-tuning, and as tokens and layers grow.

    python benchmarks/reconstruction.py

1. The whole default pipeline (score, plan, surgery, repair) to half of the MACs, in one shot and in rounds, with 512
   TREC questions, in turn with one epoch of fine-tuning on all 4,381 of them (batch 32).
2. Seconds and extra peak memory of `reconstruct` alone, for 128 to 1,024 questions and for MiniLM cut to 2 to 6 layers.

MiniLM-L6, CPU, float32, 2 threads. Memory is measured in processes of their own (Linux), over that of the loaded models
and data. Figures go to runs/reconstruction.json.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from common import dense_task, memory_over, training_arguments
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, PreTrainedModel
from transformers.utils import logging

from hfprune import PruningConfig, apply_plan, plan, prune, reconstruct, score
from hfprune.data.classification import load_text_dataset, tokenize
from hfprune.data.packages import resolve_model
from hfprune.scoring import calibration_batches

SAMPLES = (128, 256, 512, 1024)
LAYERS = (2, 4, 6)
Batches = list[dict[str, Any]]


def pipeline_and_epoch() -> dict[str, float]:
    """Seconds of one shot, rounds and an epoch."""
    dense = dense_task("trec", Path("runs/dense"))
    seconds = {}
    for name, schedule in (("one shot", "one_shot"), ("rounds", "geometric")):
        config = PruningConfig(
            schedule=schedule, sequence_length=64, calibration_batch_size=64, calibration_batch_tokens=2048
        )
        began = time.perf_counter()
        prune(dense.model, dense.train, config, collator=dense.task.collator)
        seconds[name] = time.perf_counter() - began
    dense.task.data["train"] = dense.train
    model = AutoModelForSequenceClassification.from_pretrained(resolve_model("minilm-l6"), num_labels=6)
    trainer = dense.task.trainer(model, training_arguments("runs/training", epochs=1, learning_rate=2e-4, seed=0))
    began = time.perf_counter()
    trainer.train()
    seconds["an epoch"] = time.perf_counter() - began
    return seconds


def prepare(samples: int, layers: int) -> tuple[PreTrainedModel, PreTrainedModel, Batches]:
    """A dense model, one with half of its MACs, and calibration batches."""
    folder = resolve_model("minilm-l6")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    dense = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=6, num_hidden_layers=layers).eval()
    data = tokenize(load_text_dataset("trec"), tokenizer)["train"].remove_columns("labels")
    batches = calibration_batches(
        data, dense, samples=samples, batch_size=64, batch_tokens=2048, collator=DataCollatorWithPadding(tokenizer)
    )
    config = PruningConfig(sequence_length=64)
    return dense, apply_plan(dense, plan(dense, score(dense, batches, scorer="l2"), config)), batches


def measure(samples: int, layers: int) -> dict[str, float]:
    """Tokens, seconds and extra peak memory of one reconstruction."""
    dense, pruned, batches = prepare(samples, layers)
    reconstruct(pruned, dense, batches[:1])  # what the libraries set up once
    tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
    began = time.perf_counter()
    extra = memory_over(lambda: reconstruct(pruned, dense, batches))
    seconds = time.perf_counter() - began
    return {"samples": samples, "tokens": tokens, "layers": layers, "seconds": seconds, "extra_peak_bytes": extra}


def main() -> None:
    """Measure, print the tables, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/reconstruction.json"))
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(2)
    if args.one:
        print(json.dumps(measure(*args.one)))
        return
    seconds = pipeline_and_epoch()
    print("MiniLM-L6, TREC, 512 samples, half of the MACs; cpu, float32, 2 threads, batch 32 in the epoch\n")
    print("| | seconds | of an epoch |\n|---|---:|---:|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.1f} | {value / seconds['an epoch']:.2f} |")
    rows = []
    for samples, layers in [*((n, 6) for n in SAMPLES), *((512, n) for n in LAYERS[:-1])]:
        command = [sys.executable, __file__, "--one", str(samples), str(layers)]
        rows.append(
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\n")[-2])
        )
    print("\n| samples | tokens | layers | seconds | extra peak MiB |\n|---:|---:|---:|---:|---:|")
    for row in sorted(rows, key=lambda row: (row["layers"], row["samples"])):
        figures = f"{row['seconds']:.2f} | {row['extra_peak_bytes'] / 2**20:.0f} |"
        print(f"| {row['samples']} | {row['tokens']} | {row['layers']} | {figures}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"pipeline": seconds, "reconstruct": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
