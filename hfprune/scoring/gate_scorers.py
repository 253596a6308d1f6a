"""Gate scorers: all from one pass of per-sample gate gradients.

Notation: γ[n, u] is the derivative of sample n's loss by the gate of unit u.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.utils.logging import tqdm

from hfprune.distributed import add_over_processes, failing_together, share_of
from hfprune.scoring.activation_scorers import (
    GramStatistics,
    consumer_device,
    groups_of,
    read_gram,
    regularised_inverse,
)
from hfprune.scoring.objectives import summed_loss
from hfprune.scoring.registry import ScoringRun, register_scorer, register_statistic
from hfprune.scoring.scores import check_finite
from hfprune.structure.batches import count_samples, on_device
from hfprune.structure.blocks import Block
from hfprune.structure.devices import input_device
from hfprune.structure.gates import gate_gradients
from hfprune.structure.running import frozen


@dataclass(frozen=True, kw_only=True)
class GateStatistics:
    """What a scorer that reads `gates` gets of one block.

    Attributes:
        block: The block.
        mean: Mean over samples of γ, `(units,)` float32.
        mean_abs: Mean over samples of |γ|, `(units,)` float32.
        mean_square: Mean over samples of γ², `(units,)` float32.
    """

    block: Block
    mean: Tensor
    mean_abs: Tensor
    mean_square: Tensor


def residual_maps(grams: Iterable[tuple[str, GramStatistics]]) -> dict[str, Tensor]:
    """From a block's inputs to what is left of each unit after the best linear prediction from the others.

    With H = [X 1]ᵀ[X 1] + λI the residual of the columns M of a unit is [X 1] (H⁻¹)_{:,M} ((H⁻¹)_{MM})⁻¹.

    Args:
        grams: Gram matrices of the blocks' inputs.

    Returns:
        By block name: `(columns + 1, columns)` float32, for `gate_gradients`.
    """
    maps = {}
    for name, statistics in grams:
        width = statistics.block.width
        inverse = regularised_inverse(statistics.gram_with_ones)
        residuals = []
        # the last column is that of the ones, which belong to no unit
        for unit, columns in enumerate(torch.split(inverse[:, :-1], width, dim=1)):
            own = columns[unit * width : (unit + 1) * width]
            residuals.append(columns @ torch.linalg.inv(own))
        maps[name] = torch.cat(residuals, 1).float()
    return maps


@register_statistic("gates", needs=["gradients"])
def read_gates(run: ScoringRun) -> Iterable[tuple[str, GateStatistics]]:
    """The moments of γ of every block, from one backward pass over the batches."""
    return _read_group(run, run.blocks, maps=None).items()


@register_statistic("residual_gates", needs=["gradients", "activations"])
def read_residual_gates(run: ScoringRun) -> Iterable[tuple[str, GateStatistics]]:
    """The same of residuals, with one backward pass for every group of blocks whose maps fit in memory."""
    statistics: dict[str, GateStatistics] = {}
    for group in groups_of(run.blocks):
        maps = residual_maps(read_gram(run.model, group, run.batches))
        for block in group:
            maps[block.name] = maps[block.name].to(consumer_device(run.model, block))
        statistics |= _read_group(run, group, maps=maps)
    return statistics.items()


def _read_group(
    run: ScoringRun, blocks: Sequence[Block], *, maps: Mapping[str, Tensor] | None
) -> dict[str, GateStatistics]:
    """One backward pass for some blocks."""
    # Σγ, Σ|γ| and Σγ²
    sums = {block.name: torch.zeros(3, block.units, dtype=torch.float64) for block in blocks}
    device = input_device(run.model)
    with frozen(run.model), frozen(run.teacher), failing_together():
        for index, batch in tqdm(share_of(run.batches), desc="Scoring", unit="batch"):
            loss = summed_loss(run.scorer.labels, index, seed=run.seed, teacher=run.teacher)
            gammas = gate_gradients(run.model, blocks, on_device(batch, device), loss, maps=maps)
            for name, gamma in gammas.items():
                check_finite(name, gamma, f" in calibration batch {index}")
                sums[name] += torch.stack([gamma.sum(0), gamma.abs().sum(0), gamma.square().sum(0)]).cpu()
    add_over_processes(sums.values())
    samples = sum(count_samples(batch) for batch in run.batches)
    statistics = {}
    for block in blocks:
        mean, mean_abs, mean_square = (sums[block.name] / samples).float()
        statistics[block.name] = GateStatistics(block=block, mean=mean, mean_abs=mean_abs, mean_square=mean_square)
    return statistics


@register_scorer("sensitivity", labels="data")
def sensitivity(statistics: GateStatistics) -> Tensor:
    """mean_n |γ[n,u]|, divided by the block's L2 norm so that blocks compare.

    Michel, Levy, Neubig 2019, "Are Sixteen Heads Really Better than One?", for heads; the same for neurons.
    """
    return F.normalize(statistics.mean_abs, dim=0)


@register_scorer("taylor", labels="data")
def taylor(statistics: GateStatistics) -> Tensor:
    """(mean_n γ[n,u])². Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning"."""
    return statistics.mean.square()


@register_scorer("fisher", labels="data")
def fisher(statistics: GateStatistics) -> Tensor:
    """mean_n γ[n,u]²; half its sum over removed units estimates the loss that they cost.

    Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers".
    """
    return statistics.mean_square


@register_scorer("kl_fisher", labels="model")
def kl_fisher(statistics: GateStatistics) -> Tensor:
    """mean_n γ[n,u]² with labels drawn from the model itself: needs no labels.

    Its expectation is the exact Hessian of KL(dense ‖ gated) at the dense point: the natural-gradient Fisher
    (Martens 2020, "New Insights and Perspectives on the Natural Gradient Method").
    """
    return statistics.mean_square


@register_scorer("residual_fisher", reads="residual_gates", labels="data", one_shot="fisher")
def residual_fisher(statistics: GateStatistics) -> Tensor:
    """mean_n ρ[n,u]²: the `fisher` of what is left of a unit's removal after the best repair.

    ρ is γ with the residual r in place of x: what is left of the unit's activations after the best linear prediction
    from all other units of the block, which is what reconstruction can make up for. It joins the Fisher of Kwon et
    al. 2022 with the Optimal Brain Surgeon's view (Hassibi & Stork 1993). Units that can stand in for each other both
    score low, so use it in rounds, with reconstruction after each.
    """
    return statistics.mean_square


@register_scorer("residual_kl_fisher", reads="residual_gates", labels="model", one_shot="kl_fisher")
def residual_kl_fisher(statistics: GateStatistics) -> Tensor:
    """`residual_fisher` with labels drawn from the model itself, as `kl_fisher` does: needs no labels."""
    return statistics.mean_square


@register_scorer("logit_fisher", labels="logits")
def logit_fisher(statistics: GateStatistics) -> Tensor:
    """mean_n γ[n,u]² of the logits in a random direction: needs no labels.

    Its expectation is the exact Hessian of ½‖z(dense) − z(gated)‖² over the logits z: the Gauss-Newton matrix (Martens
    2020), which is the Fisher of `kl_fisher` without the factor that is small wherever the model is sure of itself.
    """
    return statistics.mean_square


@register_scorer("residual_logit_fisher", reads="residual_gates", labels="logits", one_shot="logit_fisher")
def residual_logit_fisher(statistics: GateStatistics) -> Tensor:
    """`residual_fisher` of the logits in a random direction, as `logit_fisher` takes them: needs no labels."""
    return statistics.mean_square
