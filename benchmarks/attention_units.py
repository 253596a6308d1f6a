"""Which unit of grouped attention: key/value heads with their query heads, or query heads? Perplexity at equal size.

    python benchmarks/attention_units.py [--removed 20 40] [--windows 32] [--test-windows 20]

SmolLM2-135M (a 4-bit file, dequantised; 9 query and 3 key/value heads) on the State of the Union, text and windows as
in language_models.py. `kl_fisher`, global, one shot, without and with repair. Removed are per cent of the parameters of
attention and feed-forward, the same number for both units, although keys and values are out of reach of query heads.
Writes runs/attention_units.json. CPU, float32, 2 threads.
"""

import argparse
from pathlib import Path

import torch
from common import Row, write
from language_models import WINDOW, arguments, setting
from transformers.utils import logging

from hfprune import PruningConfig, apply_plan, plan, reconstruct, score
from hfprune.jobs.tasks.causal_text import labelled
from hfprune.measuring.size import kv_cache_bytes, measure_size
from hfprune.pruning.prune import batches_for


def main() -> None:
    """Measure, print and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--removed", nargs="+", type=int, default=[20, 40], help="per cent of prunable parameters")
    parser.add_argument("--windows", type=int, default=32, help="of calibration")
    parser.add_argument("--test-windows", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("runs/attention_units.json"))
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(2)
    run = setting(arguments(["--windows", str(args.windows), "--test-windows", str(args.test_windows)]))
    dense = run.perplexity(run.model)
    whole = measure_size(run.model, sequence_length=WINDOW, attention_unit="group").prunable_params
    print(f"dense perplexity {dense}, {whole:,} prunable parameters", flush=True)
    rows: list[Row] = []
    for unit in ("group", "query"):
        config = PruningConfig(
            budget="params", attention_unit=unit, calibration_samples=args.windows, sequence_length=256
        )
        batches = batches_for(run.model, run.train, config, collator=labelled)
        scores = score(run.model, batches, scorer="kl_fisher", attention_unit=unit)
        own = measure_size(run.model, sequence_length=WINDOW, attention_unit=unit).prunable_params
        for removed in args.removed:
            small = apply_plan(run.model, plan(run.model, scores, config, sparsity=removed / 100 * whole / own))
            row: Row = {
                "unit": unit,
                "removed": removed,
                "dense_perplexity": dense,
                "perplexity": run.perplexity(small),
            }
            reconstruct(small, run.model, batches)
            row |= {
                "repaired": run.perplexity(small),
                "params": small.num_parameters(),
                "cache_bytes_a_token": kv_cache_bytes(small),
            }
            rows.append(row)
            write(args.output, rows)
            print(*(f"{name}={value}" for name, value in row.items()), flush=True)


if __name__ == "__main__":
    main()
