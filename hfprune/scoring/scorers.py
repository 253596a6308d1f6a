"""The scorers: a registry, and the gradient scorers, all from one pass of per-sample gate gradients.

Notation: γ[n, u] is the derivative of sample n's loss by the gate of unit u (ALGORITHMS §1).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from hfprune.errors import CalibrationError
from hfprune.scoring.calibration import check_batch
from hfprune.scoring.objectives import labelled_loss, sampled_loss
from hfprune.scoring.scores import Scores, check_finite
from hfprune.structure.blocks import Block, check_in_one_place, find_blocks
from hfprune.structure.gates import Batch, count_samples, frozen, gate_gradients

#: Where the labels of the gradient pass come from: the data, the model's own predictions, or no pass is needed.
Labels = Literal["data", "model", "none"]


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What a scorer may read of one block.

    Attributes:
        block: The block.
        mean: Mean over samples of γ, `(units,)` float32.
        mean_abs: Mean over samples of |γ|, `(units,)` float32.
        mean_square: Mean over samples of γ², `(units,)` float32.
        generator: For scorers that draw numbers, seeded.
    """

    block: Block
    mean: Tensor
    mean_abs: Tensor
    mean_square: Tensor
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class Scorer:
    """A registered scorer: what it needs, and the function from statistics to `(units,)` scores."""

    name: str
    labels: Labels
    function: Callable[[Statistics], Tensor]


_SCORERS: dict[str, Scorer] = {}


def register_scorer(
    name: str, *, labels: Labels
) -> Callable[[Callable[[Statistics], Tensor]], Callable[[Statistics], Tensor]]:
    """Add a scorer: decorate a function from `Statistics` of a block to its `(units,)` scores.

    Args:
        name: What users write.
        labels: `data` if its gradients are of the loss against true labels, `model` if against labels drawn from the
            model's predictions, `none` if it needs no gradients at all.

    Returns:
        The decorator.

    Raises:
        ValueError: The name is taken.
    """
    if name in _SCORERS:
        raise ValueError(f"a scorer named {name!r} is registered already.")

    def add(function: Callable[[Statistics], Tensor]) -> Callable[[Statistics], Tensor]:
        _SCORERS[name] = Scorer(name=name, labels=labels, function=function)
        return function

    return add


def known_scorers() -> Mapping[str, Scorer]:
    """The scorers known now, by name."""
    return dict(_SCORERS)


def get_scorer(name: str) -> Scorer:
    """A scorer by name.

    Args:
        name: Its name.

    Returns:
        The scorer.

    Raises:
        ValueError: There is none of that name; the message lists those there are.
    """
    if name not in _SCORERS:
        raise ValueError(f"unknown scorer {name!r}. Known: {', '.join(sorted(_SCORERS))}.")
    return _SCORERS[name]


@register_scorer("sensitivity", labels="data")
def sensitivity(statistics: Statistics) -> Tensor:
    """mean_n |γ[n,u]|, divided by the block's L2 norm so that blocks compare.

    Michel, Levy, Neubig 2019, "Are Sixteen Heads Really Better than One?", for heads; the same for neurons.
    """
    return F.normalize(statistics.mean_abs, dim=0)


@register_scorer("taylor", labels="data")
def taylor(statistics: Statistics) -> Tensor:
    """(mean_n γ[n,u])². Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning"."""
    return statistics.mean.square()


@register_scorer("fisher", labels="data")
def fisher(statistics: Statistics) -> Tensor:
    """mean_n γ[n,u]²; half its sum over removed units estimates the loss that they cost.

    Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers".
    """
    return statistics.mean_square


@register_scorer("kl_fisher", labels="model")
def kl_fisher(statistics: Statistics) -> Tensor:
    """mean_n γ[n,u]² with labels drawn from the model itself: needs no labels.

    Its expectation is the exact Hessian of KL(dense ‖ gated) at the dense point: the natural-gradient Fisher
    (Martens 2020, "New Insights and Perspectives on the Natural Gradient Method").
    """
    return statistics.mean_square


@register_scorer("random", labels="none")
def random(statistics: Statistics) -> Tensor:
    """Seeded uniform numbers: the floor that every scorer must beat."""
    return torch.rand(statistics.block.units, generator=statistics.generator)


def score(
    model: PreTrainedModel,
    batches: Sequence[Batch],
    *,
    scorer: str = "kl_fisher",
    seed: int = 0,
    teacher: PreTrainedModel | None = None,
) -> Scores:
    """Score every unit of a model. The model is exactly as before afterwards, also after an error.

    Args:
        model: The model, dense or pruned.
        batches: Calibration batches, as `hfprune.scoring.calibration_batches` makes them.
        scorer: The name of a registered scorer.
        seed: Of everything that is drawn.
        teacher: Draws the labels for scorers with `labels="model"`; the model itself if not given. In rounds of
            pruning it is the dense model.

    Returns:
        Scores of all blocks, in the model's present numbering.

    Raises:
        ValueError: No scorer has that name.
        CalibrationError: There are no batches, or they lack what the scorer needs.
    """
    entry = get_scorer(scorer)
    if not isinstance(batches, Sequence) or not batches:
        raise CalibrationError(
            "score takes a list of at least one batch; calibration_batches makes one of a data set or DataLoader."
        )
    batches = [check_batch(batch, model) for batch in batches]
    blocks = find_blocks(model)
    check_in_one_place(model)
    samples = sum(count_samples(batch) for batch in batches)
    if entry.labels == "none":
        sums = {block.name: torch.zeros(3, block.units) for block in blocks}
    else:
        sums = _gradient_sums(model, blocks, batches, entry.labels, seed, teacher or model)
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for block in blocks:
        mean, mean_abs, mean_square = sums[block.name] / samples
        statistics = Statistics(block=block, mean=mean, mean_abs=mean_abs, mean_square=mean_square, generator=generator)
        values[block.name] = entry.function(statistics).float()
    return Scores(by_block=values, scorer=scorer, samples=samples)


def _gradient_sums(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    labels: Labels,
    seed: int,
    teacher: PreTrainedModel,
) -> dict[str, Tensor]:
    """Σ_n of γ, |γ| and γ²: `(3, units)` float32 on the CPU, by block name."""
    sums = {block.name: torch.zeros(3, block.units, device=model.device) for block in blocks}
    with frozen(model), frozen(teacher):
        for index, batch in enumerate(tqdm(batches, desc="Scoring", unit="batch")):
            moved = {k: v.to(model.device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            loss = (
                labelled_loss
                if labels == "data"
                # a seed of its own for each batch, so that the draw does not depend on who scores the other batches
                else partial(sampled_loss, teacher=teacher, seed=seed * 1_000_003 + index)
            )
            for name, gamma in gate_gradients(model, blocks, moved, loss).items():
                check_finite(name, gamma, f" in calibration batch {index}")
                sums[name] += torch.stack([gamma.sum(0), gamma.abs().sum(0), gamma.square().sum(0)])
    return {name: total.cpu() for name, total in sums.items()}
