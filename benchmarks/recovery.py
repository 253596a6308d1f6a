"""Recovery: method × MACs kept × seeds, against the dense model and a dense model of the same size.

    python benchmarks/recovery.py [--datasets trec movie_reviews] [--methods distillation ...] [--seeds 0 1 2]
    python benchmarks/recovery.py --quick
    python benchmarks/recovery.py --show

MiniLM-L6 is fine-tuned once for each data set and kept in runs/dense; it is the teacher. Methods:

    pruned          the default rounds of pruning without the closed-form repair; no training
    reconstructed   the default of hfprune; no training
    fine_tuning     the same, then trained against the labels
    distillation    the same, then trained against the teacher (labels, logits, hidden states)
    unrepaired      pruned without the repair, then trained against the teacher
    rounds          prune(..., recover=...): pruned, repaired and trained in rounds of at most 1.5 × in cost
    gradual         GradualPruning of the dense model while it trains against the teacher
    lora            reconstructed, then adapters trained against the teacher, and merged
    fewer_layers    the honest alternative: the first layers of the dense model, the fewest that have at least these
                    MACs (3, 2 and 2 of 6, so 33 % where 30 and 20 are asked), trained against labels and logits

All that train do so for the same number of steps, embeddings frozen, in batches of texts of about the same length
(`train_sampling_strategy`: half the padding); those with a teacher swap 30 % of the tokens (`token_dropout`), at the
rates that SETTINGS says.
Accuracy in per cent, and the divergence KL(dense ‖ model) in thousandths of a nat, which is less noisy, on texts that
no model saw. Rows go to runs/recovery.json as they are measured, and what is there is not measured again; `--show` only
reports it. CPU, 2 threads, batch 32, training in bfloat16 (autocast) where the processor has it, MACs of 64 tokens;
`seconds` is all that is done to the dense model, null where the machine did other work (`--untimed`).
The rows of docs/results/recovery.md are kept in docs/results/recovery.json.
"""

import argparse
import copy
import itertools
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import DenseTask, Row, accuracy, curves, dense_task, divergence, predictions, write
from transformers import PreTrainedModel, set_seed
from transformers.utils import logging

from hfprune import GradualPruning, PruningConfig, RecoveryArguments, RecoveryTrainer, prune
from hfprune.data.packages import resolve_model
from hfprune.pruning.prune import batches_for

KEPT = (50, 30, 20)
#: Training steps of every method: four epochs of the questions, one of the reviews.
STEPS = {"trec": 548, "movie_reviews": 268}
METHODS = (
    "pruned",
    "reconstructed",
    "fewer_layers",
    "distillation",
    "gradual",
    "lora",
    "fine_tuning",
    "rounds",
    "unrepaired",
)
QUICK = ("reconstructed", "distillation", "fewer_layers")
#: What all have: a low rate, as what was repaired is near already; and no labels where words are swapped.
COMMON = {
    "learning_rate": 5e-5,
    "token_dropout": 0.3,
    "task_weight": 0.0,
    "logits_weight": 1.0,
    "freeze_embeddings": True,
}
SETTINGS: dict[str, dict[str, float]] = {
    "lora": {"learning_rate": 5e-4},  # adapters start from nothing
    "gradual": {"learning_rate": 2e-4},  # nothing is repaired
    "fewer_layers": {"learning_rate": 2e-4, "hidden_states_weight": 0.0},  # layers do not match one to one
    "fine_tuning": {"token_dropout": 0.0, "task_weight": 1.0},
}
NAMES = ("dataset", "method", "macs_kept", "seed")


class Run:
    """One data set and one seed: what is pruned once is used by several methods."""

    def __init__(self, dense: DenseTask, seed: int, steps: int) -> None:
        self.dense, self.seed, self.steps = dense, seed, steps
        self.seconds: dict[tuple[int, bool], float] = {}
        self.models: dict[tuple[int, bool], PreTrainedModel] = {}
        self.shallow: dict[int, tuple[PreTrainedModel, float]] = {}
        self.batches = batches_for(dense.model, dense.train, self.config(50), collator=dense.task.collator)

    def config(self, kept: int, *, repair: bool = True) -> PruningConfig:
        """The pruning, the defaults apart from the batches and the length of texts."""
        return PruningConfig(
            sparsity=1 - kept / 100,
            sequence_length=64,
            reconstruct=repair,
            calibration_batch_size=64,
            calibration_batch_tokens=2048,
            # as all rows were measured: the default multiples change less than the draw of samples (kernel_widths.py)
            round_to=1,
            seed=self.seed,
        )

    def pruned(self, kept: int, *, repair: bool = True) -> PreTrainedModel:
        """A copy of the dense model's pruning, which is done once."""
        key = (kept, repair)
        if key not in self.models:
            began = time.perf_counter()
            self.models[key] = prune(self.dense.model, self.batches, self.config(kept, repair=repair))
            self.seconds[key] = time.perf_counter() - began
        return copy.deepcopy(self.models[key])

    def train(
        self,
        model: PreTrainedModel,
        method: str,
        *,
        steps: int | None = None,
        number: int = 0,
        callbacks: Sequence[Any] = (),
    ) -> PreTrainedModel:
        """Train for the steps that all methods have; rounds by their number, so that they see other data."""
        set_seed(self.seed + number)
        args = RecoveryArguments(
            output_dir="runs/recovery_training",
            max_steps=steps or self.steps,
            per_device_train_batch_size=32,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,
            weight_decay=0.01,
            lora_rank=16 if method == "lora" else 0,
            bf16=torch.cpu._is_avx512_bf16_supported(),
            save_strategy="no",
            seed=self.seed + number,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            train_sampling_strategy="group_by_length",  # half the padding
            logging_steps=10_000,
            **{**COMMON, **SETTINGS.get(method, {})},
        )
        trainer = RecoveryTrainer(
            model,
            args,
            teacher=None if method == "fine_tuning" else self.dense.model,
            train_dataset=self.dense.train,
            data_collator=self.dense.task.collator,
            processing_class=self.dense.task.tokenizer,
            callbacks=list(callbacks),
        )
        trainer.train()
        return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)

    def make(self, method: str, kept: int) -> tuple[PreTrainedModel, float]:
        """The model of a method, and the seconds it took."""
        repaired = method != "unrepaired"
        ready: dict[str, Callable[[], PreTrainedModel]] = {
            "pruned": lambda: self.pruned(kept, repair=False),
            "reconstructed": lambda: self.pruned(kept),
            "rounds": lambda: self.in_rounds(kept),
            "gradual": lambda: self.train(
                copy.deepcopy(self.dense.model), method, callbacks=[GradualPruning(self.config(kept))]
            ),
        }
        if method == "fewer_layers":
            return self.fewer_layers(math.ceil(kept / 100 * 6))
        if method in ready:
            began = time.perf_counter()
            model = ready[method]()
            spent = time.perf_counter() - began
            key = (kept, method == "reconstructed")
            return model, self.seconds[key] if method in ("pruned", "reconstructed") else spent
        model = self.pruned(kept, repair=repaired)
        began = time.perf_counter()
        model = self.train(model, method)
        return model, time.perf_counter() - began + self.seconds[kept, repaired]

    def fewer_layers(self, count: int) -> tuple[PreTrainedModel, float]:
        """The first layers, trained once for all budgets that they stand for; and the seconds it took."""
        if count not in self.shallow:
            began = time.perf_counter()
            model = self.train(first_layers(self.dense.model, count), "fewer_layers")
            self.shallow[count] = model, time.perf_counter() - began
        return self.shallow[count]

    def in_rounds(self, kept: int) -> PreTrainedModel:
        """Rounds of pruning, repair and an equal share of the training steps."""
        rounds, numbers = math.ceil(math.log(kept / 100) / math.log(2 / 3) - 1e-9), itertools.count()
        return prune(
            self.dense.model,
            self.batches,
            self.config(kept),
            recover=lambda small, _: self.train(small, "rounds", steps=self.steps // rounds, number=next(numbers)),
        )


def first_layers(model: PreTrainedModel, count: int) -> PreTrainedModel:
    """The model with its last layers left out (Sajjad et al. 2020, "Poor Man's BERT")."""
    small = copy.deepcopy(model)
    small.bert.encoder.layer = small.bert.encoder.layer[:count]
    small.config.num_hidden_layers = count
    return small


def measure(run: Run, method: str, kept: int) -> Row:
    """One row."""
    model, seconds = run.make(method, kept)
    trains = method not in ("pruned", "reconstructed")
    predicted = predictions(model, run.dense.test)
    return {
        "macs_kept": kept,
        "accuracy": accuracy(predicted, run.dense.test),
        "kl": round(1000 * divergence(predicted, run.dense.predicted), 1),
        "steps": run.steps if trains else 0,  # rounds leave out a remainder
        "seconds": round(seconds, 1),
    }


def report(rows: Sequence[Row], output: Path) -> None:
    """Print means and half the range over seeds; draw the curves."""
    for dataset in sorted({row["dataset"] for row in rows}):
        mine = [row for row in rows if row["dataset"] == dataset]
        costs = sorted({row["macs_kept"] for row in mine}, reverse=True)
        print(f"\n{dataset}, dense {mine[0]['dense_accuracy']:.1f}; accuracy (mean ± half the range), KL, seconds")
        print("| method | steps | " + " | ".join(f"{cost} %" for cost in costs) + " |")
        print("|---|---:|" + "---:|" * len(costs))
        for method in (m for m in METHODS if any(row["method"] == m for row in mine)):
            cells, steps = [], max(row["steps"] for row in mine if row["method"] == method)
            for cost in costs:
                found = [row for row in mine if row["method"] == method and row["macs_kept"] == cost]
                values = [row["accuracy"] for row in found] or [math.nan]
                spread = f" ±{(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""
                kl, spent = ([row[name] for row in found if row[name] is not None] for name in ("kl", "seconds"))
                timed = f", {sum(spent) / len(spent):.0f} s" if spent else ""
                cells.append(
                    f"{sum(values) / len(values):.1f}{spread}, {sum(kl) / len(kl):.0f}{timed}" if found else ""
                )
            print(f"| {method} | {steps} | " + " | ".join(cells) + " |")
    panels: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for row in rows:
        panels[row["dataset"]][row["method"]][row["macs_kept"]].append(row["accuracy"])
    picture = output.with_suffix(".png")
    curves(panels, {row["dataset"]: row["dense_accuracy"] for row in rows}, picture, x="MACs kept, %", y="accuracy, %")
    print(f"\nRows: {output}; curves: {picture}")


def main() -> None:
    """Measure what is missing, report, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["trec", "movie_reviews"])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--kept", nargs="+", type=int, default=list(KEPT), help="per cent of prunable MACs kept")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help=f"training steps of every method, by default {STEPS}")
    parser.add_argument("--output", type=Path, default=Path("runs/recovery.json"))
    parser.add_argument("--quick", action="store_true", help="TREC, one seed, 50 and 30 %%, two methods that train")
    parser.add_argument("--untimed", action="store_true", help="the machine does other work: rows get no seconds")
    parser.add_argument("--show", action="store_true", help="report the rows there are of what is asked")
    args = parser.parse_args()
    if args.quick:
        args.datasets, args.seeds, args.kept, args.methods = ["trec"], [0], [50, 30], list(QUICK)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(2)
    rows: list[Row] = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else []
    wanted = [(d, m, k, s) for d in args.datasets for s in args.seeds for k in args.kept for m in args.methods]
    there = {tuple(row[name] for name in NAMES) for row in rows}
    missing = [] if args.show else [key for key in wanted if key not in there]
    if missing:
        resolve_model("minilm-l6")  # fails at once, with what to do, where it is not installed
    run: Run | None = None
    for dataset, method, kept, seed in missing:
        if run is None or (run.dense.name, run.seed) != (dataset, seed):
            run = Run(dense_task(dataset, Path("runs/dense")), seed, args.steps or STEPS[dataset])
        figures = measure(run, method, kept)
        if args.untimed:
            figures["seconds"] = None
        dense_accuracy = accuracy(run.dense.predicted, run.dense.test)
        row = {"dataset": dataset, "method": method, "seed": seed, **figures, "dense_accuracy": dense_accuracy}
        rows.append(row)
        write(args.output, rows)
        print(*(row[name] for name in NAMES), f"{row['accuracy']:.1f}", flush=True)
    report([row for row in rows if tuple(row[name] for name in NAMES) in set(wanted)], args.output)


if __name__ == "__main__":
    main()
