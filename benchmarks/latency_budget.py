"""A budget in milliseconds against a budget of MACs: accuracy and measured latency.

    python benchmarks/latency_budget.py [--settings 1x32 1x64 32x64] [--speedups 1.5 2 3] [--threads 1]
    python benchmarks/latency_budget.py --rounds [--settings 1x32 1x64] [--speedups 2 3]
    python benchmarks/latency_budget.py --quick
    python benchmarks/latency_budget.py --show

MiniLM-L6, fine-tuned on TREC (kept in runs/dense). For each setting (sequences in a batch × tokens) a latency table is
measured, and kept in runs/latency_tables. From one scoring pass the model is then pruned to each speed-up that the
table predicts, by a budget of MACs and by a budget of latency, each in one shot with repair. The MACs budget is the one
whose plan takes, by the same table, as many milliseconds as the latency budget's plan does at most. So both have the
same goal, and the table of results has what came of it: all models of one setting are timed in turn, beside the dense
one. `realised` is the measured speed-up over the predicted one. `gone` is how many of the 12 sublayers were removed
whole; `macs` keeps a unit of each, as is the default, and `macs, blocks` may remove them.

With --rounds the model is pruned as hfprune does it by default: by the default scorer, in rounds of score, plan,
surgery and repair. The MACs budget is then that of one shot, corrected once by what the table says of the result.

Widths in multiples are compared by benchmarks/kernel_widths.py.

Rows go to runs/latency_budget.json when a setting is done; what is there is not measured again (delete the file to
start over). Prints the table. CPU, float32; the machine should do nothing else.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from common import DenseTask, Row, accuracy, dense_task, divergence, predictions, write
from transformers import PreTrainedModel
from transformers.utils import logging

from hfprune import PruningConfig, PruningPlan, apply_plan, plan, prune, reconstruct, score
from hfprune.data.packages import resolve_model
from hfprune.errors import BudgetError
from hfprune.measuring.block_times import measure_latency_table
from hfprune.measuring.latency import measure_latencies
from hfprune.measuring.latency_table import LatencyTable
from hfprune.pruning.prune import batches_for
from hfprune.scoring import Scores

#: Budgets that are compared: name, budget, allocation, and the fewest units of a block.
BUDGETS = (
    ("macs", "macs", "global", 1),
    ("macs, blocks", "macs", "global", 0),
    ("latency", "latency", "global", 0),
    ("latency, knapsack", "latency", "knapsack", 0),
)
#: Steps of the bisection over sparsities: a thousandth of the MACs.
STEPS = 10


class Setting(NamedTuple):
    """How models are timed."""

    batch_size: int
    sequence_length: int
    threads: int

    @classmethod
    def of(cls, text: str, threads: int) -> "Setting":
        """From such as `32x64`."""
        batch_size, sequence_length = text.split("x")
        return cls(int(batch_size), int(sequence_length), threads)

    def __str__(self) -> str:
        return f"{self.batch_size} × {self.sequence_length}, {self.threads} threads"


class Made(NamedTuple):
    """A pruned model that is to be measured: what its row says beside the figures, and the model."""

    names: Row
    model: PreTrainedModel


class Planned(NamedTuple):
    """A plan that is to be measured: what its row says beside the figures, and the plan."""

    names: Row
    plan: PruningPlan


def config_of(setting: Setting, seed: int, **fields: object) -> PruningConfig:
    """One shot with repair, from 512 samples."""
    return PruningConfig(
        sequence_length=setting.sequence_length,
        scorer="logit_fisher",
        schedule="one_shot",
        calibration_batch_size=64,
        calibration_batch_tokens=2048,
        seed=seed,
        **fields,
    )


def with_milliseconds(make: Callable[[float], PruningPlan], table: LatencyTable, goal_ms: float) -> PruningPlan | None:
    """The plan of the lowest sparsity that takes, by the table, no more than the goal; None if there is none."""
    low, high = 0.0, 1.0
    best = None
    for _ in range(STEPS):
        middle = (low + high) / 2
        try:
            candidate = make(middle)
        except BudgetError:
            # with a unit of each block, no more can go
            high = middle
            continue
        if table.milliseconds(candidate.units_after) <= goal_ms:
            high, best = middle, candidate
        else:
            low = middle
    return best


def plans_by_budget(
    dense: DenseTask, scores: Scores, table: LatencyTable, setting: Setting, speedups: Sequence[float], seed: int
) -> list[Planned]:
    """Plans of every budget for every speed-up that the table predicts."""
    found = []
    for speedup in speedups:
        goal_ms = table.dense_ms / speedup
        for name, budget, allocation, least in BUDGETS:
            if budget == "latency":
                config = config_of(
                    setting,
                    seed,
                    budget="latency",
                    latency_table=table,
                    milliseconds=goal_ms,
                    allocation=allocation,
                    min_units=least,
                )
                chosen = plan(dense.model, scores, config)
            else:
                config = config_of(setting, seed, allocation=allocation, min_units=least)
                chosen = with_milliseconds(
                    lambda sparsity, config=config: plan(dense.model, scores, config, sparsity=sparsity), table, goal_ms
                )
            if chosen is None:
                print(f"{name}: no plan is {speedup:g} times as fast, by the table")
                continue
            found.append(Planned({"method": name, "goal": f"{speedup:g} ×"}, chosen))
    return found


def in_one_shot(dense: DenseTask, planned: Sequence[Planned], setting: Setting, seed: int) -> list[Made]:
    """Prune by every plan, and repair."""
    config = config_of(setting, seed)
    batches = batches_for(dense.model, dense.train, config, collator=dense.task.collator)
    made = []
    for names, chosen in planned:
        small = apply_plan(dense.model, chosen)
        reconstruct(small, dense.model, batches)
        made.append(Made(names, small))
    return made


def in_rounds(
    dense: DenseTask, planned: Sequence[Planned], table: LatencyTable, setting: Setting, seed: int
) -> list[Made]:
    """Prune to the goal of every plan of the global allocation, in rounds and by the default scorer."""
    settings = {"sequence_length": setting.sequence_length, "seed": seed, "min_units": 0}
    made = []
    for names, chosen in planned:
        goal_ms = table.milliseconds(chosen.units_after)
        if names["method"] == "latency":
            config = PruningConfig(**settings, budget="latency", latency_table=table, milliseconds=goal_ms)
            small = prune(dense.model, dense.train, config, collator=dense.task.collator)
        elif names["method"] == "macs, blocks":
            small = _by_macs(dense, PruningConfig(**settings), chosen.sparsity("macs"), table, goal_ms)
        else:
            continue
        print(f"{names}: {table.milliseconds(small.pruning_plan.units_after):.3f} of {goal_ms:.3f} ms", flush=True)
        made.append(Made({**names, "method": f"{names['method']}, rounds"}, small))
    return made


def _by_macs(
    dense: DenseTask, config: PruningConfig, sparsity: float, table: LatencyTable, goal_ms: float
) -> PreTrainedModel:
    """Prune by MACs, look at the table, and prune again by as many MACs as should take the milliseconds."""
    small = prune(dense.model, dense.train, config.with_sparsity(sparsity), collator=dense.task.collator)
    spent_ms = table.milliseconds(small.pruning_plan.units_after)
    corrected = 1 - (1 - sparsity) * (goal_ms - table.rest_ms) / (spent_ms - table.rest_ms)
    return prune(dense.model, dense.train, config.with_sparsity(corrected), collator=dense.task.collator)


def measured(
    dense: DenseTask, made: Sequence[Made], table: LatencyTable, setting: Setting, runs: int, seed: int
) -> list[Row]:
    """Test and time every model."""
    first, *latencies = measure_latencies(
        [dense.model, *(small for _, small in made)],
        batch_size=setting.batch_size,
        sequence_length=setting.sequence_length,
        threads=setting.threads,
        runs=runs,
    )
    rows = []
    for (names, small), latency in zip(made, latencies, strict=True):
        chosen = small.pruning_plan
        predicted_ms = table.milliseconds(chosen.units_after)
        predicted = predictions(small, dense.test)
        speedup = first.median_ms / latency.median_ms
        row = {
            **names,
            "setting": str(setting),
            "seed": seed,
            "macs_kept": round(100 * (1 - chosen.sparsity("macs")), 1),
            "gone": sum(not kept for kept, _ in chosen.counts.values()),
            "accuracy": accuracy(predicted, dense.test),
            "kl": round(1000 * divergence(predicted, dense.predicted), 1),
            "predicted_ms": round(predicted_ms, 3),
            "measured_ms": round(latency.median_ms, 3),
            "dense_ms": round(first.median_ms, 3),
            "speedup": round(speedup, 3),
            "predicted_speedup": round(table.dense_ms / predicted_ms, 3),
            "dense_accuracy": accuracy(dense.predicted, dense.test),
        }
        rows.append({**row, "realised": round(row["speedup"] / row["predicted_speedup"], 3)})
    return rows


def report(rows: Sequence[Row]) -> None:
    """Print the table."""
    columns = {
        "macs_kept": "MACs kept, %",
        "gone": "gone",
        "accuracy": "accuracy, %",
        "kl": "KL, thousandths of a nat",
        "predicted_ms": "predicted, ms",
        "measured_ms": "measured, ms",
        "predicted_speedup": "predicted ×",
        "speedup": "measured ×",
        "realised": "realised",
    }
    print("\n| batch × tokens | goal | budget | " + " | ".join(columns.values()) + " |")
    print("|---|---|---|" + "---:|" * len(columns))
    for row in rows:
        shown = [f"{row[name]:.1f}" if name in ("accuracy", "kl") else str(row[name]) for name in columns]
        print("| " + " | ".join([row["setting"], row["goal"], row["method"], *shown]) + " |")
    for setting in dict.fromkeys(row["setting"] for row in rows):
        first = next(row for row in rows if row["setting"] == setting)
        print(f"\n{setting}: dense {first['dense_ms']:.1f} ms, {first['dense_accuracy']:.1f} %")


def main() -> None:
    """Measure what is missing, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", default=["1x32", "1x64", "32x64"], help="batch x tokens")
    parser.add_argument("--speedups", nargs="+", type=float, default=[1.5, 2.0, 3.0])
    parser.add_argument("--rounds", action="store_true", help="prune in rounds, as by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", type=int, default=50, help="timed passes of each model, and of each width")
    parser.add_argument("--seed", type=int, default=0, help="of the calibration samples")
    parser.add_argument("--output", type=Path, default=Path("runs/latency_budget.json"))
    parser.add_argument("--quick", action="store_true", help="two settings, two speed-ups, 10 passes")
    parser.add_argument("--show", action="store_true", help="report the rows there are")
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    rows: list[Row] = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else []
    if args.show:
        report(rows)
        return
    if args.quick:
        args.settings, args.speedups, args.runs = ["1x32", "32x64"], [1.5, 2.0], 10
    resolve_model("minilm-l6")  # fails at once, with what to do, where it is not installed
    dense = dense_task("trec", Path("runs/dense"))
    for text in args.settings:
        setting = Setting.of(text, args.threads)
        there = [row for row in rows if row["setting"] == str(setting) and row["seed"] == args.seed]
        if any(("rounds" in row["method"]) == args.rounds for row in there):
            continue
        table = measure_latency_table(
            dense.model,
            batch_size=setting.batch_size,
            sequence_length=setting.sequence_length,
            threads=setting.threads,
            runs=args.runs,
            warmup=1,
            cache=Path("runs/latency_tables"),
        )
        print(f"\n{table}", flush=True)
        config = config_of(setting, args.seed)
        batches = batches_for(dense.model, dense.train, config, collator=dense.task.collator)
        scores = score(dense.model, batches, scorer=config.scorer, seed=args.seed)
        planned = plans_by_budget(dense, scores, table, setting, args.speedups, args.seed)
        if args.rounds:
            made = in_rounds(dense, planned, table, setting, args.seed)
        else:
            made = in_one_shot(dense, planned, setting, args.seed)
        rows += measured(dense, made, table, setting, args.runs, args.seed)
        write(args.output, rows)
    report(rows)


if __name__ == "__main__":
    main()
