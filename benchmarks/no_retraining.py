"""Accuracy without a training step: scorer × allocation × {no repair, repair, rounds} × MACs kept × calibration draws.

    python benchmarks/no_retraining.py [--datasets trec movie_reviews] [--scorers fisher ...] [--seeds 0 1 2]
    python benchmarks/no_retraining.py --quick
    python benchmarks/no_retraining.py --show

MiniLM-L6 is fine-tuned once for each data set and kept in runs/dense. Every cell is pruned from it with 512
calibration samples that are drawn by its seed, and tested on texts that neither saw: accuracy in per cent, and the
divergence KL(dense ‖ pruned) in thousandths of a nat, which is much less noisy. `none` and `repair` are one shot,
without and with reconstruction; `rounds` is as many rounds of score, plan, surgery and reconstruction as keep about
four fifths each. The default of hfprune is marked with *.
Prints the mean and half the range over seeds, and draws the curves. Rows go to runs/no_retraining.json as they are
measured, and what is there already is not measured again (delete the file to start over); `--show` only reports it.
The rows of docs/results/no-retraining.md are kept in docs/results/no_retraining.json.
CPU, float32, 2 threads, MACs of sequences of 64 tokens; `seconds` is score, plan, surgery and repair, null where the
machine did other work (`--untimed`).
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from common import DenseTask, Row, accuracy, curves, dense_task, divergence, predictions, write
from transformers import PreTrainedModel
from transformers.utils import logging

from hfprune import PruningConfig, apply_plan, plan, prune, reconstruct, score
from hfprune.data.packages import resolve_model
from hfprune.pruning.prune import batches_for

KEPT = (80, 70, 60, 50, 40, 30, 20, 10)
SCORERS = ("residual_logit_fisher", "residual_fisher", "logit_fisher", "kl_fisher", "fisher", "random")
REPAIRS = ("none", "repair", "rounds")
#: What makes a row, beside its figures.
NAMES = ("dataset", "scorer", "allocation", "repair", "macs_kept", "seed")


@dataclass(frozen=True)
class Method:
    """One line of the table: what chooses, and what repairs (one of `REPAIRS`)."""

    scorer: str
    allocation: str
    repair: str

    def config(self, kept: int, seed: int) -> PruningConfig:
        """The pruning run of one cell."""
        return PruningConfig(
            sparsity=1 - kept / 100,
            sequence_length=64,
            scorer=self.scorer,
            allocation=self.allocation,
            schedule="geometric" if self.repair == "rounds" else "one_shot",
            reconstruct=self.repair != "none",
            calibration_batch_size=64,
            calibration_batch_tokens=2048,
            # as all rows were measured: the default multiples change less than the draw of samples (kernel_widths.py)
            round_to=1,
            seed=seed,
        )


_CONFIG = PruningConfig()
DEFAULT = Method(
    _CONFIG.scorer,
    _CONFIG.allocation,
    "none" if not _CONFIG.reconstruct else "repair" if _CONFIG.schedule == "one_shot" else "rounds",
)
QUICK = (DEFAULT, Method("fisher", "global", "none"), Method("random", "global", "none"))


def measure(dense: DenseTask, method: Method, costs: Sequence[int], seed: int) -> Iterator[Row]:
    """Prune to every cost, and test. In one shot all costs share one scoring pass, whose seconds count for each."""
    config = method.config(50, seed)
    batches = batches_for(dense.model, dense.train, config, collator=dense.task.collator)
    if method.repair == "rounds" or method.allocation == "layerwise":
        for kept in costs:
            began = time.perf_counter()
            small = prune(dense.model, batches, method.config(kept, seed))
            yield tested(dense, small, kept, time.perf_counter() - began)
        return
    began = time.perf_counter()
    scores = score(dense.model, batches, scorer=method.scorer, seed=seed)
    scoring = time.perf_counter() - began
    for kept in costs:
        began = time.perf_counter()
        small = apply_plan(dense.model, plan(dense.model, scores, config, sparsity=1 - kept / 100))
        if method.repair == "repair":
            reconstruct(small, dense.model, batches)
        yield tested(dense, small, kept, scoring + time.perf_counter() - began)


def tested(dense: DenseTask, small: PreTrainedModel, kept: int, seconds: float) -> Row:
    """The figures of a row."""
    predicted = predictions(small, dense.test)
    return {
        "macs_kept": kept,
        "accuracy": accuracy(predicted, dense.test),
        "kl": round(1000 * divergence(predicted, dense.predicted), 2),
        "seconds": round(seconds, 2),
    }


def table(rows: Sequence[Row], figure: str) -> str:
    """Mean of a figure, and half its range over seeds, of every method at every cost."""
    cells: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row[figure] is not None:
            cells[tuple(row[name] for name in NAMES[:4])][row["macs_kept"]].append(row[figure])
    costs = sorted({row["macs_kept"] for row in rows}, reverse=True)
    lines = [f"| {figure} | scorer | allocation | repair | " + " | ".join(f"{cost} %" for cost in costs) + " |"]
    lines += ["|---|---|---|---|" + "---:|" * len(costs)]
    for names, found in sorted(cells.items()):
        shown = []
        for cost in costs:
            values = found.get(cost)
            spread = f" ±{(max(values) - min(values)) / 2:.1f}" if values and len(values) > 1 else ""
            shown.append(f"{sum(values) / len(values):.1f}{spread}" if values else "")
        mark = " *" if Method(*names[1:]) == DEFAULT else ""
        lines.append("| " + " | ".join((*names[:3], names[3] + mark, *shown)) + " |")
    return "\n".join(lines)


def report(rows: Sequence[Row], output: Path) -> None:
    """Print the tables, and draw accuracy by cost: one panel a data set, one line a method."""
    for dataset, value in sorted({(row["dataset"], round(row["dense_accuracy"], 1)) for row in rows}):
        print(f"\ndense {dataset}: {value:.1f}")
    for figure in ("accuracy", "kl", "seconds"):
        print(f"\n{table(rows, figure)}")
    panels: dict[str, dict[str, dict[int, list[float]]]] = {}
    for row in rows:
        method = Method(row["scorer"], row["allocation"], row["repair"])
        name = f"{row['scorer']}, {row['allocation']}, {row['repair']}" + (" (default)" if method == DEFAULT else "")
        line = panels.setdefault(row["dataset"], {}).setdefault(name, {})
        line.setdefault(row["macs_kept"], []).append(row["accuracy"])
    dense = {row["dataset"]: row["dense_accuracy"] for row in rows}
    picture = output.with_suffix(".png")
    curves(panels, dense, picture, x="MACs kept, %", y="accuracy without training, %")
    print(f"\nRows: {output}; curves: {picture}")


def main() -> None:
    """Measure what is missing, report, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["trec", "movie_reviews"])
    parser.add_argument("--scorers", nargs="+", default=list(SCORERS))
    parser.add_argument("--allocations", nargs="+", default=["global"])
    parser.add_argument("--repairs", nargs="+", default=list(REPAIRS), choices=REPAIRS)
    parser.add_argument("--kept", nargs="+", type=int, default=list(KEPT), help="per cent of prunable MACs kept")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/no_retraining.json"))
    parser.add_argument("--quick", action="store_true", help="TREC, one seed, 60 and 50 %%, three methods")
    parser.add_argument("--untimed", action="store_true", help="leave out seconds, as the machine does other work too")
    parser.add_argument("--show", action="store_true", help="report the rows there are of what is asked")
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(2)
    rows: list[Row] = json.loads(args.output.read_text(encoding="utf-8")) if args.output.is_file() else []
    methods = [Method(s, a, r) for s in args.scorers for a in args.allocations for r in args.repairs]
    if args.quick:
        args.datasets, args.seeds, args.kept, methods = ["trec"], [0], [60, 50], list(QUICK)
    if args.show:
        wanted = {
            (d, *vars(m).values(), k, s) for d in args.datasets for m in methods for k in args.kept for s in args.seeds
        }
        report([row for row in rows if tuple(row[name] for name in NAMES) in wanted], args.output)
        return
    resolve_model("minilm-l6")  # fails at once, with what to do, where it is not installed
    asked: list[Row] = []
    for dataset in args.datasets:
        dense = dense_task(dataset, Path("runs/dense"))
        dense_accuracy = accuracy(dense.predicted, dense.test)
        for method, seed in ((m, s) for m in methods for s in args.seeds):
            names = {"dataset": dataset, **vars(method), "seed": seed}
            there = [row for row in rows if names.items() <= row.items() and row["macs_kept"] in args.kept]
            asked += there
            missing = [kept for kept in args.kept if kept not in {row["macs_kept"] for row in there}]
            for figures in measure(dense, method, missing, seed) if missing else ():
                row = {**names, **figures, "dense_accuracy": dense_accuracy, "is_default": method == DEFAULT}
                if args.untimed:
                    row["seconds"] = None
                rows.append(row)
                asked.append(row)
                write(args.output, rows)
                print(
                    *(row[name] for name in NAMES), f"{row['accuracy']:.1f} {row['kl']} {row['seconds']} s", flush=True
                )
    report(asked, args.output)


if __name__ == "__main__":
    main()
