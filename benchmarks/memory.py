"""What scoring and repair need of memory, next to inference with the same batch; and what larger models would need.

    python benchmarks/memory.py [--batch 8] [--length 256] [--windows 32]

MiniLM-L6 with a classification head and SmolLM2-135M (a 4-bit file, dequantised), on random tokens: memory does not
depend on what they say. CPU, float32, 1 thread. Every figure is taken in a process of its own (Linux): peak memory over
that of the loaded models and data. glibc is told to give freed tensors back (MALLOC_MMAP_THRESHOLD_=65536), so that it
counts tensors, not holes between them. Writes runs/memory.json.

    inference       model(**batch), as it comes: with a key/value cache for SmolLM2
    kl_fisher       score, with gradient_checkpointing
    kl_fisher_kept  score without it
    default         the default scorer, with gradient_checkpointing
    repair          reconstruct, of a model with half of its units; hidden states of all windows in memory
    repair_files    the same with a folder

Beside each is what the formula of `formula` gives; from it comes the table of models that do not fit here.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from common import Batch, Row, memory_over, write
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging

from hfprune import reconstruct, score
from hfprune.data.packages import resolve_model
from hfprune.scoring.activation_scorers import GRAM_BYTES
from hfprune.scoring.token_losses import LOGITS
from hfprune.structure import find_blocks
from hfprune.structure.surgery import keep_units

#: The most that each may take of the memory of inference, weights included.
TARGETS = {"kl_fisher": 1.3, "default": 1.3, "repair": 1.5, "repair_files": 1.5}
WORKS = ("inference", "kl_fisher", "kl_fisher_kept", "default", "repair", "repair_files")


class Shape(NamedTuple):
    """What the formula reads of a model: layers; widths of hidden states, FFN, heads, keys and logits; weights."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    keys: int
    logits: int
    weights: int


#: As in the configs of Llama-3.2-1B, Llama-3-8B and Llama-3-70B.
LARGE = {
    "1 B": Shape(16, 2048, 8192, 2048, 512, 128256, 1_235_814_400),
    "8 B": Shape(32, 4096, 14336, 4096, 1024, 128256, 8_030_261_248),
    "70 B": Shape(80, 8192, 28672, 8192, 1024, 128256, 70_553_706_496),
}


def formula(shape: Shape, *, tokens: int, calibration: int, size: int, kept: float = 0.5) -> dict[str, float]:
    """Bytes over the loaded models, fitted to the shapes of what is held at the peak.

    Args:
        shape: Of the dense model.
        tokens: In a batch.
        calibration: Tokens of all batches.
        size: Bytes of a number in weights and hidden states.
        kept: The share of units that the repaired model has.

    Returns:
        By kind of work.
    """
    layers, hidden, ffn, heads, keys, logits, _ = shape
    state = size * tokens * hidden  # hidden states of a batch
    layer = size * tokens * (8 * hidden + 6 * ffn)  # what one layer holds for its backward pass
    cache = 2 * layers * size * tokens * keys
    inference = cache + 2 * state + max(size * tokens * logits, size * tokens * (2 * hidden + 3 * ffn))
    parts = 24 * min(LOGITS, tokens * logits)  # logits of a few tokens, their gradient, softmax ...: 6 of float32
    scoring = (layers + 2) * state + max(layer, parts)
    squares = layers * (ffn**2 + heads**2)
    grams = 4 * min(squares, max(GRAM_BYTES // 4, ffn**2))
    largest = 8 * (kept * ffn) ** 2
    working = 5 * largest + 2 * 8 * hidden * kept * ffn + size * tokens * (4 * hidden + 3 * ffn)
    consumers = size * layers * kept * hidden * (ffn + heads)
    return {
        "inference": inference,
        "kl_fisher": scoring,
        "kl_fisher_kept": layers * size * tokens * (6 * hidden + 4 * ffn) + max(layer, parts),
        "default": grams + max(scoring, 6 * 8 * ffn**2),
        "repair": 3 * size * calibration * hidden + consumers + working,
        "repair_files": working + 4 * state,
    }


def load(name: str) -> PreTrainedModel:
    """`minilm-l6` or `smollm2-135m`, in evaluation mode."""
    if name == "minilm-l6":
        folder = resolve_model("minilm-l6")
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=6).eval()
    return AutoModelForCausalLM.from_pretrained(resolve_model(name), dtype=torch.float32).eval()


def shape_of(model: PreTrainedModel) -> Shape:
    """What the formula reads."""
    config = model.config
    decoder = model.get_output_embeddings() is not None
    return Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.hidden_size,
        config.num_key_value_heads * config.head_dim if decoder else 0,
        config.vocab_size if decoder else 0,
        sum(parameter.numel() for parameter in model.parameters()),
    )


def measure(args: argparse.Namespace) -> Row:
    """Peak memory of one work on one model, over that of what is loaded before."""
    model = load(args.model)
    ids = torch.randint(1000, 20000, (args.windows, args.length), generator=torch.Generator().manual_seed(0))
    batches: list[Batch] = [
        {"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(args.batch)
    ]
    small = model
    if args.work.startswith("repair"):
        blocks = find_blocks(model)
        small = keep_units(model, {block.name: range((block.units + 1) // 2) for block in blocks}, blocks=blocks)
    with torch.no_grad():
        model(input_ids=ids[:1, :8])  # what the libraries set up once

    @torch.no_grad()
    def inference() -> None:
        for batch in batches[:2]:
            model(**batch)

    with tempfile.TemporaryDirectory() as folder:
        works: dict[str, Callable[[], object]] = {
            "inference": inference,
            "kl_fisher": lambda: score(model, batches[:2], scorer="kl_fisher", gradient_checkpointing=True),
            "kl_fisher_kept": lambda: score(model, batches[:2], scorer="kl_fisher"),
            "default": lambda: score(model, batches[:2], gradient_checkpointing=True),
            "repair": lambda: reconstruct(small, model, batches),
            "repair_files": lambda: reconstruct(small, model, batches, folder=folder),
        }
        extra = memory_over(works[args.work])
    shape = shape_of(model)
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    loaded = weights + (0 if small is model else sum(p.numel() * p.element_size() for p in small.parameters()))
    expected = formula(shape, tokens=args.batch * args.length, calibration=ids.numel(), size=4)[args.work]
    return {
        "model": args.model,
        "work": args.work,
        "extra_bytes": extra,
        "formula_bytes": round(expected),
        "loaded_bytes": loaded,
    }


def main() -> None:
    """Measure, print the tables, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--windows", type=int, default=32, help="windows of calibration, for the repair")
    parser.add_argument("--models", nargs="+", default=["minilm-l6", "smollm2-135m"])
    parser.add_argument("--output", type=Path, default=Path("runs/memory.json"))
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--work", choices=WORKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    if args.work:
        print(json.dumps(measure(args)))
        return
    shapes = f"batches of {args.batch} × {args.length} tokens, {args.windows} windows for the repair"
    print(f"cpu, float32, 1 thread, {shapes}; MiB\n")
    print("| model | work | extra peak | formula | of inference | with weights, of inference | at most |")
    print("|---|---|---:|---:|---:|---:|---:|")
    given = [f"--{n}={getattr(args, n)}" for n in ("batch", "length", "windows")]
    rows: list[Row] = []
    for model in args.models:
        for work in WORKS:
            command = [sys.executable, __file__, f"--model={model}", f"--work={work}", *given]
            environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            row = json.loads(done.stdout.splitlines()[-1])
            base = row if work == "inference" else next(r for r in rows if r["model"] == model)
            row["of_inference"] = row["extra_bytes"] / base["extra_bytes"]
            total = row["loaded_bytes"] + base["extra_bytes"]
            row["with_weights"] = (row["loaded_bytes"] + row["extra_bytes"]) / total
            rows.append(row)
            figures = f"{row['extra_bytes'] / 2**20:.0f} | {row['formula_bytes'] / 2**20:.0f}"
            quotients = f"{row['of_inference']:.2f} | {row['with_weights']:.2f} | {TARGETS.get(work, '')}"
            print(f"| {model} | {work} | {figures} | {quotients} |", flush=True)
            about = {name: getattr(args, name) for name in ("batch", "length", "windows")}
            write(args.output, [{**r, **about, "device": "cpu", "dtype": "float32", "threads": 1} for r in rows])
    print("\nBy the formula, bfloat16, the same batch and calibration; GiB over the weights (repair: of both models)\n")
    print(f"| model | weights | {' | '.join(WORKS)} |\n|---|---:|{'---:|' * len(WORKS)}")
    for name, shape in LARGE.items():
        need = formula(shape, tokens=args.batch * args.length, calibration=args.windows * args.length, size=2)
        figures = " | ".join(f"{need[work] / 2**30:.1f}" for work in WORKS)
        print(f"| {name} | {2 * shape.weights / 2**30:.1f} | {figures} |")


if __name__ == "__main__":
    main()
