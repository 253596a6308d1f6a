"""Weight scorers: from a unit's weights (rows of the producers, columns of the consumer) and their gradients.

Notation: w are the weights of one unit, all of them.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from hfprune.distributed import add_over_processes, share_of
from hfprune.errors import StructureError
from hfprune.scoring.objectives import summed_loss
from hfprune.scoring.registry import ScoringRun, register_scorer, register_statistic
from hfprune.structure.batches import Batch, count_samples, on_device
from hfprune.structure.blocks import Block, unit_slices
from hfprune.structure.devices import input_device, loaded, offloaded
from hfprune.structure.running import frozen

#: Step size of the fine-tuning that `movement` watches.
MOVEMENT_LEARNING_RATE = 5e-5


@dataclass(frozen=True, kw_only=True)
class WeightStatistics:
    """What a scorer that reads `weights` gets of one block.

    Attributes:
        block: The block.
        weights: All weights of each unit, `(units, weights of one unit)` float32 on the CPU: its rows of the producers
            with their biases, and its columns of the consumer.
        generator: For scorers that draw numbers, seeded.
    """

    block: Block
    weights: Tensor
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class WeightGradientStatistics:
    """What a scorer that reads `weight_gradients` or `fine_tuning` gets of one block; sums are over a unit's weights.

    Attributes:
        block: The block.
        gradient: Σ|∂L/∂w|, averaged over batches, `(units,)` float32.
        sensitivity: |Σ w·∂L/∂w|, averaged over batches, `(units,)` float32.
        signed: Σ w·∂L/∂w, summed over batches, `(units,)` float32.
    """

    block: Block
    gradient: Tensor
    sensitivity: Tensor
    signed: Tensor


@register_statistic("weights")
def read_weights(run: ScoringRun) -> Iterator[tuple[str, WeightStatistics]]:
    """The weights of every unit, one block at a time."""
    generator = torch.Generator().manual_seed(run.seed)
    for block in run.blocks:
        with loaded(run.model.base_model.get_submodule(path) for path in block.modules):
            parts = [part.detach().float().cpu() for part in unit_slices(run.model, block)]
        yield block.name, WeightStatistics(block=block, weights=torch.cat(parts, 1), generator=generator)


@register_statistic("weight_gradients", needs=["gradients"])
def read_weight_gradients(run: ScoringRun) -> Iterator[tuple[str, WeightGradientStatistics]]:
    """Gradients of the loss of every batch, its mean over samples; several processes share the batches.

    Raises:
        StructureError: Weights are offloaded: their gradients would be lost with them.
    """
    _refuse_offloaded(run)
    sums = _no_sums(run.blocks)
    with _weight_gradients(run.model, run) as projections:
        for index, batch in tqdm(share_of(run.batches), desc="Scoring", unit="batch"):
            _backward(run.model, run, index, batch)
            _add(sums, run.model, run.blocks)
            _forget(projections)
    add_over_processes(sums.values())
    return _statistics(run.blocks, sums, len(run.batches))


@register_statistic("fine_tuning", needs=["gradients"])
def read_fine_tuning(run: ScoringRun) -> Iterator[tuple[str, WeightGradientStatistics]]:
    """Gradients while a copy of the model takes one AdamW step on each batch.

    Each step starts from the one before, so every process takes all of the batches.

    Raises:
        StructureError: Weights are offloaded: their gradients would be lost with them.
    """
    _refuse_offloaded(run)
    # steps this small round away in half precision
    learner = copy.deepcopy(run.model).float()
    sums = _no_sums(run.blocks)
    with _weight_gradients(learner, run) as projections:
        optimizer = torch.optim.AdamW(projections, lr=MOVEMENT_LEARNING_RATE)
        for index, batch in enumerate(tqdm(run.batches, desc="Scoring", unit="batch")):
            _backward(learner, run, index, batch)
            _add(sums, learner, run.blocks)
            optimizer.step()
            _forget(projections)
    return _statistics(run.blocks, sums, len(run.batches))


def _refuse_offloaded(run: ScoringRun) -> None:
    away = offloaded(run.model)
    if away:
        raise StructureError(
            f"the scorer {run.scorer.name!r} reads gradients of weights, and those of {len(away)} modules, such as "
            f"{away[0]}, are offloaded, so they keep none. Load the model without offloading, or use a scorer that "
            "reads gates, such as fisher or kl_fisher."
        )


def _no_sums(blocks: Sequence[Block]) -> dict[str, Tensor]:
    return {block.name: torch.zeros(3, block.units) for block in blocks}


@contextmanager
def _weight_gradients(model: PreTrainedModel, run: ScoringRun) -> Iterator[list[nn.Parameter]]:
    """Inside the `with` the projections of the blocks, which it gives, get gradients; all is as before behind it."""
    projections: list[nn.Parameter] = []
    for block in run.blocks:
        for path in block.modules:
            projections += model.base_model.get_submodule(path).parameters()
    with frozen(model), frozen(run.teacher):
        earlier = [parameter.grad for parameter in projections]
        for parameter in projections:
            parameter.requires_grad_(True)
            parameter.grad = None
        try:
            yield projections
        finally:
            for parameter, gradient in zip(projections, earlier, strict=True):
                # `frozen` gives back what was trainable
                parameter.requires_grad_(False)
                parameter.grad = gradient


def _backward(model: PreTrainedModel, run: ScoringRun, index: int, batch: Batch) -> None:
    """The gradients of one batch: of the mean loss of its samples."""
    objective = summed_loss(run.scorer.labels, index, seed=run.seed, teacher=run.teacher)
    loss = objective(model, on_device(batch, input_device(model)))
    (loss / count_samples(batch)).backward()  # type: ignore[no-untyped-call]


def _forget(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _add(sums: Mapping[str, Tensor], model: PreTrainedModel, blocks: Sequence[Block]) -> None:
    """Add what one batch shows: Σ|g|, |Σ w·g| and Σ w·g over the weights of every unit."""
    for block in blocks:
        size = torch.zeros(block.units)
        product = torch.zeros(block.units)
        weights = unit_slices(model, block)
        gradients = unit_slices(model, block, gradients=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            size = size.to(weight.device) + gradient.float().abs().sum(1)
            product = product.to(weight.device) + (weight.float() * gradient.float()).sum(1)
        sums[block.name].add_(torch.stack([size, product.abs(), product]).detach().cpu())


def _statistics(
    blocks: Sequence[Block], sums: Mapping[str, Tensor], batches: int
) -> Iterator[tuple[str, WeightGradientStatistics]]:
    for block in blocks:
        size, product_abs, product = sums[block.name]
        yield (
            block.name,
            WeightGradientStatistics(
                block=block, gradient=size / batches, sensitivity=product_abs / batches, signed=product
            ),
        )


@register_scorer("l1", reads="weights")
def l1(statistics: WeightStatistics) -> Tensor:
    """Σ|w|. Li et al. 2017, "Pruning Filters for Efficient ConvNets"."""
    return statistics.weights.abs().sum(1)


@register_scorer("l2", reads="weights")
def l2(statistics: WeightStatistics) -> Tensor:
    """sqrt(Σw²). Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks"."""
    return statistics.weights.square().sum(1).sqrt()


@register_scorer("sparsity_measure", reads="weights")
def sparsity_measure(statistics: WeightStatistics) -> Tensor:
    """Σw² / Σ|w|: high where a few weights carry a unit; 0 for a unit of zeros."""
    return statistics.weights.square().sum(1) / statistics.weights.abs().sum(1).clamp(min=1e-12)


@register_scorer("random", reads="weights")
def random(statistics: WeightStatistics) -> Tensor:
    """Seeded uniform numbers: the floor that every scorer must beat."""
    return torch.rand(statistics.block.units, generator=statistics.generator)


@register_scorer("gradient", reads="weight_gradients", labels="data")
def gradient(statistics: WeightGradientStatistics) -> Tensor:
    """Σ|∂L/∂w|, averaged over batches."""
    return statistics.gradient


@register_scorer("weight_sensitivity", reads="weight_gradients", labels="data")
def weight_sensitivity(statistics: WeightGradientStatistics) -> Tensor:
    """|Σ w·∂L/∂w|, averaged over batches: what the loss changes to first order if w goes.

    LeCun et al. 1989 ("Optimal Brain Damage") to first order, as in LLM-Pruner (Ma et al. 2023), "vector-wise".
    """
    return statistics.sensitivity


@register_scorer("movement", reads="fine_tuning", labels="data")
def movement(statistics: WeightGradientStatistics) -> Tensor:
    """−Σ w·∂L/∂w, accumulated over steps of fine-tuning: high where training moves weights away from zero.

    Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning". Here a copy of the model takes one AdamW
    step on each calibration batch.
    """
    return -statistics.signed
