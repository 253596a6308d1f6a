"""Does exchanging units within a block, under the block Fisher, earn its place? Accuracy with it and without.

    python benchmarks/rearrangement.py [--datasets trec] [--kept 60 50 40 30] [--seeds 0 1 2]

From the plan of `fisher` + `global` (512 samples), units of each block change places between removed and kept while
that lowers ‖Σ γ over removed units‖² (Kwon et al. 2022): as published; with the block Fisher shrunk towards its
diagonal by ρ; and so shrunk with a quarter of the samples held out, where only exchanges are taken that lower the
objective on these too. All without and with reconstruction. Prints accuracy, mean over seeds, and the exchanges made.
CPU, float32, 2 threads, MACs of sequences of 64 tokens.
"""

import argparse
from pathlib import Path

import torch
from common import accuracy, dense_task, predictions
from torch import Tensor
from transformers.utils import logging

from hfprune import PruningConfig, PruningPlan, apply_plan, plan, reconstruct
from hfprune.pruning.prune import batches_for
from hfprune.scoring import Scores
from hfprune.scoring.objectives import labelled_loss
from hfprune.structure import find_blocks
from hfprune.structure.gates import gate_gradients
from hfprune.structure.running import frozen

#: Name -> (shrinkage ρ, whether exchanges must help on held-out samples); None leaves the plan as it is.
VARIANTS: dict[str, tuple[float, bool] | None] = {
    "no exchange": None,
    "as published": (0.0, False),
    "ρ = 0.5": (0.5, False),
    "ρ = 0.9": (0.9, False),
    "ρ = 0.5, held out": (0.5, True),
    "ρ = 0.9, held out": (0.9, True),
}
#: So many of the best exchanges in succession that do not help on held-out samples end the search in a block.
REFUSALS = 20


def shrunk_fisher(gamma: Tensor, rho: float) -> Tensor:
    """(1 − ρ) F + ρ diag(F) with F = ΓᵀΓ / N, `(units, units)` float64."""
    fisher = gamma.double().T @ gamma.double() / len(gamma)
    return (1 - rho) * fisher + rho * torch.diag(fisher.diagonal())


def exchange(kept: list[int], gamma: Tensor, *, rho: float, held_out: bool) -> tuple[list[int], int]:
    """Exchange units while the best exchange lowers the objective.

    Args:
        kept: The units of the block that stay.
        gamma: `(samples, units)` gate gradients.
        rho: Shrinkage towards the diagonal.
        held_out: Fit on three quarters of the samples, and take only what lowers the objective on the others too.

    Returns:
        The units that stay, and the number of exchanges.
    """
    chosen = torch.arange(len(gamma)) % 4 == 3 if held_out else torch.zeros(len(gamma), dtype=torch.bool)
    fit = shrunk_fisher(gamma[~chosen], rho)
    check = shrunk_fisher(gamma[chosen], rho) if held_out else None
    removed = torch.ones(len(fit), dtype=torch.bool)
    removed[kept] = False
    refused = torch.zeros_like(fit, dtype=torch.bool)
    done, refusals = 0, 0
    while 0 < len(kept) < len(fit) and refusals < REFUSALS:
        out, stay = removed.nonzero().flatten(), (~removed).nonzero().flatten()
        change = _change(fit, removed, out, stay).masked_fill(refused[out][:, stay], 0.0)
        best = int(change.argmin())
        i, j = int(out[best // len(stay)]), int(stay[best % len(stay)])
        if change.flatten()[best] >= -1e-12 * float(fit.diagonal().sum()):
            break
        if check is not None and _change(check, removed, torch.tensor([i]), torch.tensor([j])) >= 0:
            refused[i, j] = True
            refusals += 1
            continue
        removed[i], removed[j] = False, True
        done, refusals = done + 1, 0
    return (~removed).nonzero().flatten().tolist(), done


def _change(fisher: Tensor, removed: Tensor, out: Tensor, stay: Tensor) -> Tensor:
    """ΔE of putting back i in `out` for j in `stay`: F_ii + F_jj − 2F_ij + 2q_j − 2q_i, `(out, stay)`."""
    q = fisher @ removed.double()
    diagonal = fisher.diagonal()
    own = (diagonal - 2 * q)[out][:, None] + (diagonal + 2 * q)[stay]
    return own - 2 * fisher[out][:, stay]


def main() -> None:
    """Measure and print one table a data set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datasets", nargs="+", default=["trec"])
    parser.add_argument("--kept", nargs="+", type=int, default=[60, 50, 40, 30], help="per cent of prunable MACs kept")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    torch.set_num_threads(2)
    for dataset in args.datasets:
        dense = dense_task(dataset, Path("runs/dense"))
        print(
            f"\n{dataset}: dense {accuracy(dense.predicted, dense.test):.1f}; without / with reconstruction; exchanges"
        )
        found: dict[tuple[str, int], list[tuple[float, float, int]]] = {}
        for seed in args.seeds:
            config = PruningConfig(
                sequence_length=64, seed=seed, calibration_batch_size=64, calibration_batch_tokens=2048
            )
            batches = batches_for(dense.model, dense.train, config, collator=dense.task.collator)
            blocks = find_blocks(dense.model)
            with frozen(dense.model):
                passes = [gate_gradients(dense.model, blocks, batch, labelled_loss) for batch in batches]
            gamma = {block.name: torch.cat([one[block.name] for one in passes]) for block in blocks}
            scores = Scores(
                by_block={name: value.square().mean(0) for name, value in gamma.items()}, scorer="fisher", samples=512
            )
            for kept in args.kept:
                start = plan(dense.model, scores, config, sparsity=1 - kept / 100)
                for variant, how in VARIANTS.items():
                    stay, total = {name: list(units) for name, units in start.kept.items()}, 0
                    if how is not None:
                        for name in stay:
                            stay[name], done = exchange(stay[name], gamma[name], rho=how[0], held_out=how[1])
                            total += done
                    changed = PruningPlan.keep(blocks, stay, model_type=start.model_type, sequence_length=64)
                    small = apply_plan(dense.model, changed)
                    before = accuracy(predictions(small, dense.test), dense.test)
                    reconstruct(small, dense.model, batches)
                    after = accuracy(predictions(small, dense.test), dense.test)
                    found.setdefault((variant, kept), []).append((before, after, total))
        print("| exchange | " + " | ".join(f"{kept} %" for kept in args.kept) + " |\n|---|" + "---:|" * len(args.kept))
        for variant in VARIANTS:
            means = [
                [sum(column) / len(args.seeds) for column in zip(*found[variant, k], strict=True)] for k in args.kept
            ]
            cells = [f"{before:.1f} / {after:.1f}; {total:.0f}" for before, after, total in means]
            print(f"| {variant} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
