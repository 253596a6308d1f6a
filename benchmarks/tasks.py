"""Every task on real data: the metrics of the dense, the pruned and the recovered model, for several seeds.

    python benchmarks/tasks.py [--configs demo question_answering ...] [--seeds 0 1 2]
    python benchmarks/tasks.py --show

A job is a file of scripts/configs that names its task. It runs as `hfprune run FILE --seed SEED` runs it: the dense
model is trained or fine-tuned with that seed, pruned, and recovered. A row has all metrics of the test split. Rows are
added to docs/results/tasks.json as they are measured; a job that ran to its end is run again only with `--again`. CPU;
two jobs at a time would slow each other, so they run in turn.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "scripts" / "configs"
ROWS = ROOT / "docs" / "results" / "tasks.json"


def named_jobs() -> dict[str, dict[str, Any]]:
    """The settings of the jobs that name their task, by the name of their file."""
    jobs = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "task" in settings:
            jobs[path.stem] = settings
    return jobs


def measured(config: str, settings: dict[str, Any], seed: int, folder: Path, *, again: bool) -> dict[str, Any]:
    """Make a row of what a job wrote; it is run unless it ran to its end before."""
    output = folder / f"{config}_seed{seed}"
    if again or not (output / "results.json").is_file():
        subprocess.run(
            [
                *(sys.executable, "-m", "hfprune", "run", str(CONFIGS / f"{config}.yaml")),
                *("--seed", str(seed), "--output_dir", str(output), "--overwrite", "true"),
            ],
            check=True,
            cwd=ROOT,
        )
    record = json.loads((output / "model" / "pruning_record.json").read_text(encoding="utf-8"))
    results = json.loads((output / "results.json").read_text(encoding="utf-8"))
    return {
        "config": config,
        "task": settings["task"],
        "seed": seed,
        "metrics": record["metrics"],
        "macs_removed": round(results["mac_sparsity"], 4),
        "speedup": round(results["speedup"], 2),
        "seconds": round(results["seconds"]),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as plain text."""
    lines = []
    for row in rows:
        stages = {stage: {name: round(value, 4) for name, value in of.items()} for stage, of in row["metrics"].items()}
        lines.append(f"{row['config']:22} seed {row['seed']}  {row['seconds']:5} s  {stages}")
    return "\n".join(lines)


def main() -> None:
    """Measure what is asked for and is not there yet, and print all rows."""
    jobs = named_jobs()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", default=list(jobs), choices=list(jobs))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "tasks")
    parser.add_argument("--again", action="store_true", help="measure what is there already")
    parser.add_argument("--show", action="store_true", help="print the rows that are there")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(ROWS.read_text(encoding="utf-8")) if ROWS.is_file() else []
    if not args.show:
        for config in args.configs:
            for seed in args.seeds:
                there = [row for row in rows if (row["config"], row["seed"]) == (config, seed)]
                if there and not args.again:
                    continue
                row = measured(config, jobs[config], seed, args.folder, again=args.again)
                rows = [other for other in rows if other not in there] + [row]
                rows.sort(key=lambda row: (row["config"], row["seed"]))
                ROWS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
