"""Gate scorers: all from one pass of per-sample gate gradients.

Notation: γ[n, u] is the derivative of sample n's loss by the gate of unit u.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
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
from hfprune.scoring.registry import Scorer, register_scorer
from hfprune.scoring.scores import check_finite
from hfprune.structure.blocks import Block
from hfprune.structure.devices import input_device
from hfprune.structure.gates import Batch, count_samples, frozen, gate_gradients, on_device


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


@register_scorer("residual_fisher", reads="residual_gates", labels="data")
def residual_fisher(statistics: GateStatistics) -> Tensor:
    """mean_n ρ[n,u]²: the `fisher` of what is left of a unit's removal after the best repair.

    ρ is γ with the residual r in place of x: what is left of the unit's activations after the best linear prediction
    from all other units of the block, which is what reconstruction can make up for. It joins the Fisher of Kwon et
    al. 2022 with the Optimal Brain Surgeon's view (Hassibi & Stork 1993). Units that can stand in for each other both
    score low, so use it in rounds, with reconstruction after each.
    """
    return statistics.mean_square


@register_scorer("residual_kl_fisher", reads="residual_gates", labels="model")
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


@register_scorer("residual_logit_fisher", reads="residual_gates", labels="logits")
def residual_logit_fisher(statistics: GateStatistics) -> Tensor:
    """`residual_fisher` of the logits in a random direction, as `logit_fisher` takes them: needs no labels."""
    return statistics.mean_square


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
        width, inverse = statistics.block.width, regularised_inverse(statistics.gram_with_ones)
        parts = torch.split(inverse[:, :-1], width, dim=1)
        own = [part[i * width : (i + 1) * width] for i, part in enumerate(parts)]
        maps[name] = torch.cat([part @ torch.linalg.inv(o) for part, o in zip(parts, own, strict=True)], 1).float()
    return maps


def read_gates(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    scorer: Scorer,
    *,
    seed: int,
    teacher: PreTrainedModel,
) -> dict[str, GateStatistics]:
    """What scorers that read `gates` or `residual_gates` get, by block name.

    One backward pass over the batches; for `residual_gates` one for every group of blocks whose maps fit in memory.
    """
    losses = [summed_loss(scorer.labels, index, seed=seed, teacher=teacher) for index in range(len(batches))]
    if scorer.reads == "gates":
        return _read_group(model, blocks, batches, losses, teacher, maps=None)
    found: dict[str, GateStatistics] = {}
    for group in groups_of(blocks):
        maps = residual_maps(read_gram(model, group, batches))
        maps = {block.name: maps[block.name].to(consumer_device(model, block)) for block in group}
        found |= _read_group(model, group, batches, losses, teacher, maps=maps)
    return found


def _read_group(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    losses: Sequence[Callable[[PreTrainedModel, Batch], Tensor]],
    teacher: PreTrainedModel,
    *,
    maps: Mapping[str, Tensor] | None,
) -> dict[str, GateStatistics]:
    sums = {block.name: torch.zeros(3, block.units, dtype=torch.float64) for block in blocks}
    device = input_device(model)
    with frozen(model), frozen(teacher), failing_together():
        for index, batch in tqdm(share_of(batches), desc="Scoring", unit="batch"):
            gammas = gate_gradients(model, blocks, on_device(batch, device), losses[index], maps=maps)
            for name, gamma in gammas.items():
                check_finite(name, gamma, f" in calibration batch {index}")
                sums[name] += torch.stack([gamma.sum(0), gamma.abs().sum(0), gamma.square().sum(0)]).cpu()
    add_over_processes(sums.values())
    samples = sum(count_samples(batch) for batch in batches)
    found = {}
    for block in blocks:
        mean, mean_abs, mean_square = (sums[block.name] / samples).float()
        found[block.name] = GateStatistics(block=block, mean=mean, mean_abs=mean_abs, mean_square=mean_square)
    return found
