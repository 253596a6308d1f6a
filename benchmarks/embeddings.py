"""Sentence embeddings: how near pruned embeddings are to the dense ones, without training and after recovery.

    python benchmarks/embeddings.py [--removed 30 50] [--scorers residual_logit_fisher ...] [--seeds 0 1 2]
    python benchmarks/embeddings.py --show

all-MiniLM-L6-v2, with its mean pooling and normalisation, is pruned by texts alone: sentences of movie reviews and
questions (TREC), as `hfprune.data.named` splits them by the seed. It is measured on 500 held-out texts of each: the
mean cosine to the dense embedding and its 5 % quantile, Spearman's correlation between the similarities of all pairs,
and nDCG@10 and recall@10 of the dense model's neighbours. Stages: `pruned` (reconstruction, no training), `recovered`
(`--steps` of distillation from the dense embeddings by `RecoveryTrainer`, in batches of 32 training texts), and
`vocabulary` (then only the tokens of the training texts, with `--vocabulary`).
Rows go to runs/embeddings.json as they are measured, and what is there already is not measured again; `--show` only
reports it. The rows of docs/results/embeddings.md are kept in docs/results/embeddings.json.
CPU, float32 (with `--bf16` training steps in bfloat16 autocast), MACs of sequences of 64 tokens. Needs
sentence-transformers.
"""

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import torch
from common import Row, write
from sentence_transformers import SentenceTransformer
from transformers.utils import logging

import hfprune
from hfprune import PruningConfig, RecoveryArguments, RecoveryTrainer
from hfprune.data.named import named_splits
from hfprune.data.packages import resolve_model
from hfprune.encoders import opened
from hfprune.measuring.embeddings import embedding_metrics

DATASETS = ("movie_reviews", "trec")
#: Held-out texts of each data set.
HELD_OUT = 500
#: What makes a row, beside its figures.
NAMES = ("removed", "scorer", "samples", "stage", "seed")
FIGURES = ("cosine", "cosine_5", "spearman", "ndcg_10", "recall_10")


@dataclass(frozen=True)
class Texts:
    """The texts of one seed: to prune and to learn from, and to measure on."""

    train: list[str]
    test: list[str]


def texts_of(seed: int) -> Texts:
    """The splits of a seed, of all data sets together, in random order."""
    train: list[str] = []
    test: list[str] = []
    for name in DATASETS:
        splits = named_splits(name, seed)
        train += splits["train"]["text"]
        test += splits["test"]["text"][:HELD_OUT]
    random.Random(seed).shuffle(train)
    return Texts(train, test)


def recovery_arguments(folder: str, *, steps: int, bf16: bool, seed: int) -> RecoveryArguments:
    """Distillation of embeddings: nothing but their distance, and that of their similarities."""
    return RecoveryArguments(
        output_dir=folder,
        max_steps=steps,
        learning_rate=3e-4,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
        per_device_train_batch_size=32,
        task_weight=0.0,
        logits_weight=1.0,
        hidden_states_weight=0.0,
        disable_dropout=True,
        save_strategy="no",
        logging_strategy="no",
        seed=seed,
        bf16=bf16,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
    )


def measure(dense: Any, names: Row, args: argparse.Namespace) -> Iterator[Row]:
    """The rows of one model: pruned, recovered and, if asked for, with a smaller vocabulary."""
    texts = texts_of(names["seed"])
    config = PruningConfig(
        sparsity=names["removed"] / 100,
        sequence_length=64,
        scorer=names["scorer"],
        calibration_samples=names["samples"],
        calibration_batch_size=64,
        calibration_batch_tokens=2048,
        seed=names["seed"],
    )
    expected = opened(dense).embed(texts.test)
    small = hfprune.prune(dense, texts.train, config)
    yield {**names, "stage": "pruned", **figures(small, texts, expected)}
    if not args.steps:
        return
    with TemporaryDirectory() as folder:
        settings = recovery_arguments(folder, steps=args.steps, bf16=args.bf16, seed=names["seed"])
        trainer = RecoveryTrainer(small, settings, teacher=dense, train_dataset=texts.train)
        trainer.train()
    recovery = {"steps": args.steps, "bf16": args.bf16}
    yield {**names, "stage": "recovered", **recovery, **figures(small, texts, expected)}
    if args.vocabulary:
        smaller, _ = hfprune.prune_vocabulary(small, small.tokenizer, texts.train)
        yield {**names, "stage": "vocabulary", **recovery, **figures(smaller, texts, expected)}


def figures(small: Any, texts: Texts, expected: torch.Tensor) -> Row:
    """The figures of a model."""
    measured = embedding_metrics(opened(small).embed(texts.test), expected)
    row: Row = {name: round(measured[name], 4) for name in FIGURES}
    row["bytes"] = sum(parameter.nbytes for parameter in small.parameters())
    return row


def table(rows: Sequence[Row]) -> str:
    """The mean of every figure over seeds, and half its range."""
    cells: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        cells[tuple(row[name] for name in NAMES[:-1])].append(row)
    lines = ["| removed | scorer | samples | stage | " + " | ".join(FIGURES) + " | MB | seeds |"]
    lines.append("|---:|---|---:|---|" + "---:|" * (len(FIGURES) + 2))
    for names, found in sorted(cells.items()):
        shown = [f"{names[0]} %", *map(str, names[1:])]
        for figure in FIGURES:
            values = [row[figure] for row in found]
            spread = f" ±{(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
            shown.append(f"{sum(values) / len(values):.3f}{spread}")
        size = sum(row["bytes"] for row in found) / len(found) / 1e6
        lines.append("| " + " | ".join([*shown, f"{size:.1f}", str(len(found))]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, report, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--removed", nargs="+", type=int, default=[30, 50], help="per cent of prunable MACs removed")
    parser.add_argument("--scorers", nargs="+", default=[PruningConfig().scorer])
    parser.add_argument("--samples", nargs="+", type=int, default=[PruningConfig().calibration_samples])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300, help="steps of recovery; 0: without")
    parser.add_argument("--bf16", action="store_true", help="training steps in bfloat16 autocast")
    parser.add_argument("--vocabulary", action="store_true", help="prune the vocabulary too, after recovery")
    parser.add_argument("--output", type=Path, default=Path("runs/embeddings.json"))
    parser.add_argument("--show", action="store_true", help="report the rows there are")
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    rows: list[Row] = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else []
    if not args.show:
        dense = SentenceTransformer(resolve_model("minilm-l6"), device="cpu")
        for seed in args.seeds:
            for scorer in args.scorers:
                for samples in args.samples:
                    for removed in args.removed:
                        names = {"removed": removed, "scorer": scorer, "samples": samples, "seed": seed}
                        if any(names.items() <= row.items() for row in rows):
                            continue
                        for row in measure(dense, names, args):
                            rows.append(row)
                            write(args.output, rows)
                            print(*(row[name] for name in (*NAMES, *FIGURES)), flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
