"""Weight scorers: formulas over the weights of a unit, or over the gradients of the loss by these weights.

Notation: w are all weights of one unit: its rows of the producers, and its columns of the consumer.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.distributed import add_over_processes, share_of
from hfprune.errors import StructureError
from hfprune.scoring.objectives import summed_loss
from hfprune.scoring.registry import ScoringRun, register_scorer, register_statistic
from hfprune.showing.progress import tracked
from hfprune.structure.batches import Batch, count_samples, on_device
from hfprune.structure.blocks import Block, unit_slices
from hfprune.structure.devices import input_device, loaded, offloaded
from hfprune.structure.running import frozen

#: Learning rate of the fine-tuning that `movement` observes.
MOVEMENT_LEARNING_RATE = 5e-5


@dataclass(frozen=True, kw_only=True)
class WeightStatistics:
    """The statistic `weights` of one block.

    Attributes:
        block: The block.
        weights: `(units, weights of one unit)` float32 on the CPU: the unit's rows of the producers with their biases,
            and its columns of the consumer.
        generator: A seeded generator, for scorers that draw random numbers.
    """

    block: Block
    weights: Tensor
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class WeightGradientStatistics:
    """The statistic `weight_gradients`, or `fine_tuning`, of one block.

    The sums go over all weights w of a unit; L is the mean loss of a batch.

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
    # one generator for all blocks: a scorer that draws from it gives every block other numbers
    generator = torch.Generator().manual_seed(run.seed)
    for block in run.blocks:
        modules = [run.model.base_model.get_submodule(path) for path in block.modules]
        with loaded(modules):
            parts = [part.detach().float().cpu() for part in unit_slices(run.model, block)]
        weights = torch.cat(parts, 1)
        yield block.name, WeightStatistics(block=block, weights=weights, generator=generator)


@register_statistic("weight_gradients", needs=["gradients"])
def read_weight_gradients(run: ScoringRun) -> Iterator[tuple[str, WeightGradientStatistics]]:
    """Gradients of the mean loss of every batch. Several processes share the batches.

    Args:
        run: The model, its blocks, the batches and the scorer.

    Returns:
        The name of every block, with its statistics.

    Raises:
        StructureError: Weights are offloaded, so that their gradients would be lost.
    """
    _refuse_offloaded(run)
    sums = _no_sums(run.blocks)
    with (
        _weight_gradients(run.model, run) as projections,
        tracked(share_of(run.batches), desc="Scoring", unit="batch") as own,
    ):
        for index, batch in own:
            _backward(run.model, run, index, batch)
            _add(sums, run.model, run.blocks)
            _forget_gradients(projections)
    add_over_processes(sums.values())
    return _statistics(run.blocks, sums, len(run.batches))


@register_statistic("fine_tuning", needs=["gradients"])
def read_fine_tuning(run: ScoringRun) -> Iterator[tuple[str, WeightGradientStatistics]]:
    """Gradients while a copy of the model takes one AdamW step on each batch.

    Each step starts from the weights of the step before, so several processes cannot share the batches: each takes all.

    Args:
        run: The model, its blocks, the batches and the scorer.

    Returns:
        The name of every block, with its statistics.

    Raises:
        StructureError: Weights are offloaded, so that their gradients would be lost.
    """
    _refuse_offloaded(run)
    # in half precision steps as small as these would be rounded away
    learner = copy.deepcopy(run.model).float()
    sums = _no_sums(run.blocks)
    with (
        _weight_gradients(learner, run) as projections,
        tracked(run.batches, desc="Scoring", unit="batch") as batches,
    ):
        optimizer = torch.optim.AdamW(projections, lr=MOVEMENT_LEARNING_RATE)
        for index, batch in enumerate(batches):
            _backward(learner, run, index, batch)
            _add(sums, learner, run.blocks)
            optimizer.step()
            _forget_gradients(projections)
    return _statistics(run.blocks, sums, len(run.batches))


def _refuse_offloaded(run: ScoringRun) -> None:
    modules = offloaded(run.model)
    if modules:
        raise StructureError(
            f"the scorer {run.scorer.name!r} reads gradients of weights, and those of {len(modules)} modules, such as "
            f"{modules[0]}, are offloaded, so they keep none. Load the model without offloading, or use a scorer that "
            "reads gates, such as fisher or kl_fisher."
        )


def _no_sums(blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Zeros for the three sums of `_add`, `(3, units)` by block name."""
    return {block.name: torch.zeros(3, block.units, dtype=torch.float32, device="cpu") for block in blocks}


@contextmanager
def _weight_gradients(model: PreTrainedModel, run: ScoringRun) -> Iterator[list[nn.Parameter]]:
    """Let the projections of the blocks, and nothing else, get gradients inside the `with`.

    Gives the parameters of the projections. Afterwards the model is as before, gradients included.
    """
    projections: list[nn.Parameter] = []
    for block in run.blocks:
        for path in block.modules:
            # of a module around projections, its own parameters only
            projections += model.base_model.get_submodule(path).parameters(recurse=False)
    with frozen(model), frozen(run.teacher):
        # the caller may be in the middle of training, with gradients that it still needs
        earlier_gradients = [parameter.grad for parameter in projections]
        for parameter in projections:
            parameter.requires_grad_(True)
            parameter.grad = None
        try:
            yield projections
        finally:
            for parameter, gradient in zip(projections, earlier_gradients, strict=True):
                # when `frozen` ends, it makes trainable again what was trainable before
                parameter.requires_grad_(False)
                parameter.grad = gradient


def _backward(model: PreTrainedModel, run: ScoringRun, index: int, batch: Batch) -> None:
    """Compute the gradients of the mean loss over the samples of one batch."""
    objective = summed_loss(run.scorer.labels, index, seed=run.seed, teacher=run.teacher)
    loss = objective(model, on_device(batch, input_device(model)))
    mean_loss = loss / count_samples(batch)
    mean_loss.backward()  # type: ignore[no-untyped-call]


def _forget_gradients(parameters: Sequence[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _add(sums: Mapping[str, Tensor], model: PreTrainedModel, blocks: Sequence[Block]) -> None:
    """Add the sums of one batch: Σ|g|, |Σ w·g| and Σ w·g over the weights w of every unit and their gradients g."""
    for block in blocks:
        size = torch.zeros(block.units, dtype=torch.float32, device="cpu")
        product = torch.zeros(block.units, dtype=torch.float32, device="cpu")
        weights = unit_slices(model, block)
        gradients = unit_slices(model, block, gradients=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            # the projections of one block may be on different devices
            size = size.to(weight.device) + gradient.float().abs().sum(1)
            product = product.to(weight.device) + (weight.float() * gradient.float()).sum(1)
        sums[block.name].add_(torch.stack([size, product.abs(), product]).detach().cpu())


def _statistics(
    blocks: Sequence[Block], sums: Mapping[str, Tensor], batches: int
) -> Iterator[tuple[str, WeightGradientStatistics]]:
    """The statistic of each block, from the sums that `_add` made over some number of batches."""
    for block in blocks:
        size, absolute_product, product = sums[block.name]
        statistics = WeightGradientStatistics(
            block=block,
            gradient=size / batches,
            sensitivity=absolute_product / batches,
            # summed and not averaged: `movement` is a sum over the steps of training
            signed=product,
        )
        yield block.name, statistics


@register_scorer("l1", reads="weights")
def l1(statistics: WeightStatistics) -> Tensor:
    """The L1 norm of a unit's weights, Σ|w|.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets".
    """
    return statistics.weights.abs().sum(1)


@register_scorer("l2", reads="weights")
def l2(statistics: WeightStatistics) -> Tensor:
    """The L2 norm of a unit's weights, sqrt(Σw²).

    Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks".
    """
    return statistics.weights.square().sum(1).sqrt()


@register_scorer("sparsity_measure", reads="weights")
def sparsity_measure(statistics: WeightStatistics) -> Tensor:
    """Σw² / Σ|w|: high for a unit with a few large weights, 0 for a unit of zeros."""
    # a unit of zeros would divide by zero
    return statistics.weights.square().sum(1) / statistics.weights.abs().sum(1).clamp(min=1e-12)


@register_scorer("random", reads="weights")
def random(statistics: WeightStatistics) -> Tensor:
    """Seeded uniform random numbers: a baseline that every scorer must beat."""
    return torch.rand(statistics.block.units, dtype=torch.float32, device="cpu", generator=statistics.generator)


@register_scorer("gradient", reads="weight_gradients", labels="data")
def gradient(statistics: WeightGradientStatistics) -> Tensor:
    """The absolute gradients of a unit's weights, Σ|∂L/∂w|, averaged over batches."""
    return statistics.gradient


@register_scorer("weight_sensitivity", reads="weight_gradients", labels="data")
def weight_sensitivity(statistics: WeightGradientStatistics) -> Tensor:
    """The change of the loss to first order when w is set to zero: |Σ w·∂L/∂w|, averaged over batches.

    LeCun et al. 1989 ("Optimal Brain Damage") to first order, as in LLM-Pruner (Ma et al. 2023), "vector-wise".
    """
    return statistics.sensitivity


@register_scorer("movement", reads="fine_tuning", labels="data")
def movement(statistics: WeightGradientStatistics) -> Tensor:
    """How far fine-tuning moves weights away from zero: −Σ w·∂L/∂w, summed over its steps.

    Sanh et al. 2020, "Movement Pruning: Adaptive Sparsity by Fine-Tuning". Here a copy of the model takes one AdamW
    step on each calibration batch.
    """
    return -statistics.signed
