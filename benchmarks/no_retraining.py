"""Accuracy without a training step: scorer × allocation × {no repair, repair} × MACs kept × calibration draws.

    python benchmarks/no_retraining.py [--datasets trec movie_reviews] [--scorers fisher ...] [--seeds 0 1 2]
    python benchmarks/no_retraining.py --quick

MiniLM-L6 is fine-tuned once for each data set and kept in runs/dense. Every cell is pruned from it with 512
calibration samples that are drawn by its seed, and tested on texts that neither saw. `rounds` stands where pruning goes
in rounds of score, plan, surgery and reconstruction, each of which keeps about 0.8 of what is left.
Prints the mean and the range over seeds; rows go to runs/no_retraining.json as they are measured, and what is there
already is not measured again (delete the file to start over). CPU, float32, 2 threads, MACs of sequences of 64 tokens.
"""

import argparse
import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from common import DenseTask, accuracy, dense_task
from transformers.utils import logging

from hfprune import PruningConfig, prune
from hfprune.data import resolve_model
from hfprune.pipeline import batches_for

KEPT = (80, 70, 60, 50, 40, 30)
#: Share of the cost that one round keeps at least.
STEP = 0.8


@dataclass(frozen=True)
class Method:
    """One row of the table: what chooses, and what repairs (`none`, `repair` in one shot, or `rounds`)."""

    scorer: str
    allocation: str
    repair: str

    def config(self, kept: int, seed: int) -> PruningConfig:
        """The pruning run of one cell."""
        rounds = max(1, math.ceil(math.log(kept / 100) / math.log(STEP))) if self.repair == "rounds" else 1
        return PruningConfig(
            sparsity=1 - kept / 100,
            sequence_length=64,
            scorer=self.scorer,
            allocation=self.allocation,
            schedule="geometric",
            rounds=rounds,
            reconstruct=self.repair != "none",
            calibration_batch_size=64,
            calibration_batch_tokens=2048,
            seed=seed,
        )


DEFAULT = Method(
    PruningConfig().scorer, PruningConfig().allocation, "repair" if PruningConfig().reconstruct else "none"
)
QUICK = [
    DEFAULT,
    Method("residual_fisher", "global", "rounds"),
    Method("fisher", "global", "none"),
    Method("random", "global", "none"),
]


def measure(dense: DenseTask, method: Method, kept: int, seed: int) -> dict[str, Any]:
    """Prune, and test: one row without the names."""
    config = method.config(kept, seed)
    batches = batches_for(dense.model, dense.train, config, collator=dense.task.collator)
    began = time.perf_counter()
    small = prune(dense.model, batches, config)
    seconds = time.perf_counter() - began
    return {"accuracy": accuracy(small, dense.test), "seconds": round(seconds, 2)}


def table(rows: list[dict[str, Any]]) -> str:
    """Mean accuracy, and the range over seeds, of every method at every cost."""
    cells: dict[tuple[str, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    dense: dict[str, float] = {}
    for row in rows:
        key = (row["dataset"], row["scorer"], row["allocation"], row["repair"])
        cells[key][row["macs_kept"]].append(row["accuracy"])
        dense[row["dataset"]] = row["dense_accuracy"]
    costs = sorted({row["macs_kept"] for row in rows}, reverse=True)
    lines = [f"dense {name}: {value:.1f}" for name, value in dense.items()]
    lines += ["", "| data | scorer | allocation | repair | " + " | ".join(f"{cost} %" for cost in costs) + " |"]
    lines += ["|---|---|---|---|" + "---:|" * len(costs)]
    for names, found in sorted(cells.items()):
        shown = []
        for cost in costs:
            values = found.get(cost)
            spread = f" ±{(max(values) - min(values)) / 2:.1f}" if values and len(values) > 1 else ""
            shown.append(f"{sum(values) / len(values):.1f}{spread}" if values else "")
        lines.append("| " + " | ".join((*names, *shown)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure what is missing, print the table, keep the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["trec", "movie_reviews"])
    parser.add_argument("--scorers", nargs="+", default=["residual_fisher", "kl_fisher", "fisher", "l2", "random"])
    parser.add_argument("--allocations", nargs="+", default=["global"])
    parser.add_argument("--repairs", nargs="+", default=["none", "repair", "rounds"])
    parser.add_argument("--kept", nargs="+", type=int, default=list(KEPT), help="per cent of prunable MACs kept")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("runs/no_retraining.json"))
    parser.add_argument("--quick", action="store_true", help="TREC, one seed, 60 and 50 %%, four methods")
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(2)
    methods = [Method(s, a, r) for s in args.scorers for a in args.allocations for r in args.repairs]
    if args.quick:
        args.datasets, args.seeds, args.kept, methods = ["trec"], [0], [60, 50], list(dict.fromkeys(QUICK))
    resolve_model("minilm-l6")  # fails at once, with what to do, where it is not installed
    rows: list[dict[str, Any]] = json.loads(args.output.read_text()) if args.output.is_file() else []
    asked = []
    for dataset in args.datasets:
        dense = dense_task(dataset, Path("runs/dense"))
        dense_accuracy = accuracy(dense.model, dense.test)
        for method, kept, seed in ((m, k, s) for m in methods for k in args.kept for s in args.seeds):
            names: dict[str, Any] = {"dataset": dataset, **vars(method), "macs_kept": kept, "seed": seed}
            row = next((row for row in rows if names.items() <= row.items()), None)
            if row is None:
                row = {**names, **measure(dense, method, kept, seed), "dense_accuracy": dense_accuracy}
                rows.append({**row, "is_default": method == DEFAULT})
                draft = args.output.with_suffix(".part")
                args.output.parent.mkdir(parents=True, exist_ok=True)
                draft.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
                draft.replace(args.output)
                print(*names.values(), f"{row['accuracy']:.1f}", f"{row['seconds']:.0f} s", flush=True)
            asked.append(row)
    print(f"\n{table(asked)}\n\nRows: {args.output}")


if __name__ == "__main__":
    main()
