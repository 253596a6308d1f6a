"""Weight scorers: from a unit's weights (rows of the producers, columns of the consumer) and their gradients.

Notation: w are the weights of one unit, all of them.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from hfprune.distributed import add_over_processes, share_of
from hfprune.errors import StructureError
from hfprune.scoring.objectives import summed_loss
from hfprune.scoring.registry import Scorer, register_scorer
from hfprune.structure.blocks import Block, unit_slices
from hfprune.structure.devices import input_device, loaded, offloaded
from hfprune.structure.gates import Batch, count_samples, frozen, on_device

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


def read_weights(model: PreTrainedModel, blocks: Sequence[Block], seed: int) -> Iterator[tuple[str, WeightStatistics]]:
    """What scorers that read `weights` get, with block names, one block at a time."""
    generator = torch.Generator().manual_seed(seed)
    for block in blocks:
        with loaded(model.base_model.get_submodule(path) for path in (*block.producers, block.consumer)):
            weights = torch.cat([part.detach().float().cpu() for part in unit_slices(model, block)], 1)
        yield block.name, WeightStatistics(block=block, weights=weights, generator=generator)


def read_weight_gradients(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    scorer: Scorer,
    *,
    seed: int,
    teacher: PreTrainedModel,
) -> dict[str, WeightGradientStatistics]:
    """What scorers that read `weight_gradients` or `fine_tuning` get, by block name.

    The loss of a batch is its mean over samples. Several processes each take their share of the batches; but for
    `fine_tuning`, where each step starts from the one before, every process takes all of them.

    Args:
        model: The model; its weights may be on several devices, but not offloaded.
        blocks: Its blocks.
        batches: The batches of all processes.
        scorer: Which scorer will read the statistics.
        seed: Of everything that is drawn.
        teacher: Draws the labels for scorers with `labels="model"`.

    Returns:
        By block name.

    Raises:
        StructureError: Weights are offloaded: their gradients would be lost with them.
    """
    away = offloaded(model)
    if away:
        raise StructureError(
            f"the scorer {scorer.name!r} reads gradients of weights, and those of {len(away)} modules, such as "
            f"{away[0]}, are offloaded, so they keep none. Load the model without offloading, or use a scorer that "
            "reads gates, such as fisher or kl_fisher."
        )
    training = scorer.reads == "fine_tuning"
    if training:
        model = copy.deepcopy(model).float()  # steps this small round away in half precision
    sums = {block.name: torch.zeros(3, block.units) for block in blocks}
    device = input_device(model)
    projections = [
        parameter
        for block in blocks
        for path in (*block.producers, block.consumer)
        for parameter in model.base_model.get_submodule(path).parameters()
    ]
    with frozen(model), frozen(teacher):
        earlier = [parameter.grad for parameter in projections]
        for parameter in projections:
            parameter.requires_grad_(True)
            parameter.grad = None
        optimizer = torch.optim.AdamW(projections, lr=MOVEMENT_LEARNING_RATE) if training else None
        try:
            share = list(enumerate(batches)) if training else share_of(batches)
            for index, batch in tqdm(share, desc="Scoring", unit="batch"):
                loss = summed_loss(scorer.labels, index, seed=seed, teacher=teacher)(model, on_device(batch, device))
                (loss / count_samples(batch)).backward()  # type: ignore[no-untyped-call]
                _add(sums, model, blocks)
                if optimizer is not None:
                    optimizer.step()
                for parameter in projections:
                    parameter.grad = None
        finally:
            for parameter, gradient in zip(projections, earlier, strict=True):
                parameter.requires_grad_(False)  # `frozen` gives back what was trainable
                parameter.grad = gradient
    if not training:
        add_over_processes(sums.values())
    return _statistics(blocks, sums, len(batches))


def _add(sums: Mapping[str, Tensor], model: PreTrainedModel, blocks: Sequence[Block]) -> None:
    for block in blocks:
        weights, gradients = unit_slices(model, block), unit_slices(model, block, gradients=True)
        size = sum(gradient.float().abs().sum(1) for gradient in gradients)
        product = sum((w.float() * g.float()).sum(1) for w, g in zip(weights, gradients, strict=True))
        assert isinstance(size, Tensor)
        assert isinstance(product, Tensor)
        sums[block.name].add_(torch.stack([size, product.abs(), product]).detach().cpu())


def _statistics(
    blocks: Sequence[Block], sums: Mapping[str, Tensor], batches: int
) -> dict[str, WeightGradientStatistics]:
    found = {}
    for block in blocks:
        size, product_abs, product = sums[block.name]
        found[block.name] = WeightGradientStatistics(
            block=block, gradient=size / batches, sensitivity=product_abs / batches, signed=product
        )
    return found
