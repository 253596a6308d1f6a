"""Gate scorers: formulas over the gradients of every sample's loss by the gates of the units.

Notation: γ[n, u] is the derivative of sample n's loss by the gate of unit u.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hfprune.distributed import add_over_processes, failing_together, share_of
from hfprune.scoring.activation_scorers import (
    GramStatistics,
    consumer_device,
    groups_of,
    read_gram,
    regularised_inverse,
)
from hfprune.scoring.calibration import total_samples
from hfprune.scoring.objectives import summed_loss
from hfprune.scoring.registry import ScoringRun, register_scorer, register_statistic
from hfprune.scoring.scores import check_finite
from hfprune.showing.progress import tracked
from hfprune.structure.batches import on_device
from hfprune.structure.blocks import Block
from hfprune.structure.devices import input_device
from hfprune.structure.gates import gate_gradients
from hfprune.structure.running import frozen


@dataclass(frozen=True, kw_only=True)
class GateStatistics:
    """The statistic `gates`, or `residual_gates`, of one block.

    γ[n, u] is the derivative of sample n's loss by the gate of unit u, see `hfprune.structure.gate_gradients`.

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
    """Linear maps from the inputs of a consumer to the residual of every unit.

    The residual of a unit is the difference between its activations and their best linear prediction from the
    activations of all other units of the block. With `H = [X 1]ᵀ[X 1] + λI` the residual of the columns M of a unit is
    `[X 1] (H⁻¹)_{:,M} ((H⁻¹)_{MM})⁻¹`.

    Args:
        grams: Gram matrices of the blocks' inputs, with block names.

    Returns:
        Maps by block name, `(columns + 1, columns)` float32 each, for `gate_gradients`.
    """
    maps = {}
    for name, statistics in grams:
        width = statistics.block.width
        inverse = regularised_inverse(statistics.gram_with_ones)
        residuals = []
        # the last column belongs to the ones, and to no unit
        for unit, columns in enumerate(torch.split(inverse[:, :-1], width, dim=1)):
            diagonal_block = columns[unit * width : (unit + 1) * width]
            residuals.append(columns @ torch.linalg.inv(diagonal_block))
        maps[name] = torch.cat(residuals, 1).float()
    return maps


@register_statistic("gates", needs=["gradients"])
def read_gates(run: ScoringRun) -> Iterable[tuple[str, GateStatistics]]:
    """The moments of γ of every block, from one backward pass over the batches."""
    return _read_group(run, run.blocks, maps=None).items()


@register_statistic("residual_gates", needs=["gradients", "activations"])
def read_residual_gates(run: ScoringRun) -> Iterable[tuple[str, GateStatistics]]:
    """The moments of γ with residuals in the place of activations.

    Maps to residuals are as large as Gram matrices, so blocks go in groups whose maps fit in memory together, with one
    backward pass over the batches for each group.
    """
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
    """The moments of γ of some blocks, by block name, from one backward pass over the batches."""
    # the rows are Σγ, Σ|γ| and Σγ²; float64, so that the number of samples costs no precision
    sums = {block.name: torch.zeros(3, block.units, dtype=torch.float64, device="cpu") for block in blocks}
    device = input_device(run.model)
    with (
        frozen(run.model),
        frozen(run.teacher),
        failing_together(),
        tracked(share_of(run.batches), desc="Scoring", unit="batch") as own,
    ):
        for index, batch in own:
            loss = summed_loss(run.scorer.labels, index, seed=run.seed, teacher=run.teacher)
            gammas = gate_gradients(run.model, blocks, on_device(batch, device), loss, maps=maps)
            for name, gamma in gammas.items():
                check_finite(name, gamma, f" in calibration batch {index}")
                sums[name] += torch.stack([gamma.sum(0), gamma.abs().sum(0), gamma.square().sum(0)]).cpu()
    add_over_processes(sums.values())
    # all processes hold the batches of all, so these are the samples of all
    samples = total_samples(run.batches)
    statistics = {}
    for block in blocks:
        mean, mean_abs, mean_square = (sums[block.name] / samples).float()
        statistics[block.name] = GateStatistics(block=block, mean=mean, mean_abs=mean_abs, mean_square=mean_square)
    return statistics


@register_scorer("sensitivity", labels="data")
def sensitivity(statistics: GateStatistics) -> Tensor:
    """The mean over samples of |γ[n,u]|, divided by its L2 norm over the units of the block, so that blocks compare.

    Michel, Levy, Neubig 2019, "Are Sixteen Heads Really Better than One?", for heads. Neurons are scored alike.
    """
    return F.normalize(statistics.mean_abs, dim=0)


@register_scorer("taylor", labels="data")
def taylor(statistics: GateStatistics) -> Tensor:
    """The square of the mean over samples of γ[n,u].

    Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning".
    """
    return statistics.mean.square()


@register_scorer("fisher", labels="data")
def fisher(statistics: GateStatistics) -> Tensor:
    """The mean over samples of γ[n,u]².

    Half of its sum over the removed units estimates by how much the loss rises.
    Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers".
    """
    return statistics.mean_square


@register_scorer("kl_fisher", labels="model")
def kl_fisher(statistics: GateStatistics) -> Tensor:
    """The mean over samples of γ[n,u]², with labels drawn from the model's own predictions: needs no labels.

    Its expectation is the diagonal of the Hessian of KL(dense ‖ gated) by the gates, where all gates are 1: the Fisher
    information of the natural gradient (Martens 2020, "New Insights and Perspectives on the Natural Gradient Method").
    """
    return statistics.mean_square


@register_scorer("residual_fisher", reads="residual_gates", labels="data", one_shot="fisher")
def residual_fisher(statistics: GateStatistics) -> Tensor:
    """The mean over samples of ρ[n,u]²: `fisher`, counting only the damage that reconstruction cannot repair.

    ρ is γ with the residual r in the place of the activations x. The residual is the difference between the unit's
    activations and their best linear prediction from all other units of the block; reconstruction makes up for the
    prediction. This joins the Fisher of Kwon et al. 2022 with the Optimal Brain Surgeon (Hassibi & Stork 1993). Two
    units that can replace each other both score low, so prune in rounds, with reconstruction after each.
    """
    return statistics.mean_square


@register_scorer("residual_kl_fisher", reads="residual_gates", labels="model", one_shot="kl_fisher")
def residual_kl_fisher(statistics: GateStatistics) -> Tensor:
    """`residual_fisher` with labels that are drawn from the model's own predictions, as for `kl_fisher`."""
    return statistics.mean_square


@register_scorer("logit_fisher", labels="logits")
def logit_fisher(statistics: GateStatistics) -> Tensor:
    """The mean over samples of γ[n,u]², for the logits in a random direction in the place of a loss: needs no labels.

    Its expectation is the diagonal of the Hessian of ½‖z(dense) − z(gated)‖² by the gates, with the logits z: the
    Gauss-Newton matrix (Martens 2020). It is the Fisher of `kl_fisher` without the curvature of the softmax, a factor
    that is small wherever the model is sure of its prediction.
    """
    return statistics.mean_square


@register_scorer("residual_logit_fisher", reads="residual_gates", labels="logits", one_shot="logit_fisher")
def residual_logit_fisher(statistics: GateStatistics) -> Tensor:
    """`residual_fisher` of the logits in a random direction, as for `logit_fisher`: needs no labels."""
    return statistics.mean_square
