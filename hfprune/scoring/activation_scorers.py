"""Activation scorers: from what the units put out, without any gradient.

Notation: x[t, c] is column c of the consumer's input at token t, padding excluded; C_u are the columns of unit u; W is
the consumer's weight.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import tqdm

from hfprune.distributed import add_over_processes, failing_together, share_of
from hfprune.scoring.registry import ScoringRun, register_scorer, register_statistic
from hfprune.scoring.scores import check_finite
from hfprune.structure.batches import Batch, count_samples, token_mask
from hfprune.structure.blocks import Block
from hfprune.structure.devices import loaded, running_device
from hfprune.structure.running import frozen, input_hooks, run_without_head

#: An activation smaller than this counts as zero for `apoz`: GELU and SiLU are nearly never exactly 0.
NEARLY_ZERO = 1e-2
#: Ridge of `obs` and the residual scorers, as a multiple of the mean diagonal of XᵀX.
OBS_RIDGE = 1e-2
#: Gram matrices of so many bytes are kept at a time, and the model runs again for the blocks that did not fit.
GRAM_BYTES = 2 * 1024**3


@dataclass(frozen=True, kw_only=True)
class ActivationStatistics:
    """What a scorer that reads `activations` gets of one block; all float32 on the CPU.

    Attributes:
        block: The block.
        mean: Mean of x over tokens, `(columns,)`.
        variance: Variance of x over tokens, `(columns,)`.
        zero_share: Share of tokens where |x| is nearly zero, `(columns,)`.
        norm: Mean over samples of ‖x[:, C_u]‖₂, `(units,)`.
        weight: The consumer's weight, `(outputs, columns)`.
    """

    block: Block
    mean: Tensor
    variance: Tensor
    zero_share: Tensor
    norm: Tensor
    weight: Tensor


@dataclass(frozen=True, kw_only=True)
class GramStatistics:
    """What a scorer that reads `gram` gets of one block.

    Attributes:
        block: The block.
        gram_with_ones: [X 1]ᵀ[X 1] over tokens, `(columns + 1, columns + 1)` float64.
        weight: The consumer's weight, `(outputs, columns)` float64.
    """

    block: Block
    gram_with_ones: Tensor
    weight: Tensor

    @property
    def gram(self) -> Tensor:
        """XᵀX over tokens, `(columns, columns)` float64."""
        return self.gram_with_ones[:-1, :-1]


def regularised_inverse(gram: Tensor) -> Tensor:
    """(G + λI)⁻¹ with λ = `OBS_RIDGE` times the mean of G's diagonal."""
    ridge = OBS_RIDGE * gram.diagonal().mean().clamp(min=1e-12)
    lifted = gram.clone()
    lifted.diagonal().add_(ridge)
    inverse: Tensor = torch.linalg.inv(lifted)
    return inverse


@register_statistic("activations", needs=["activations"])
def read_activations(run: ScoringRun) -> Iterator[tuple[str, ActivationStatistics]]:
    """Moments of what every consumer reads."""
    blocks = run.blocks
    moments = {block.name: torch.zeros(3, block.units * block.width, dtype=torch.float64) for block in blocks}
    norms = {block.name: torch.zeros(block.units, dtype=torch.float64) for block in blocks}

    def add(block: Block, x: Tensor, mask: Tensor) -> None:
        small = (x.abs() < NEARLY_ZERO) & mask
        moments[block.name] += torch.stack([value.sum((0, 1)) for value in (x, x.square(), small)]).cpu()
        norms[block.name] += x.square().reshape(*x.shape[:2], block.units, -1).sum((1, 3)).sqrt().sum(0).cpu()

    tokens, samples = _run(run.model, blocks, run.batches, add)
    add_over_processes([*moments.values(), *norms.values()])
    for block in blocks:
        mean, square, zeros = moments[block.name] / tokens[block.name]
        statistics = ActivationStatistics(
            block=block,
            mean=mean.float(),
            # rounding can leave a little less than 0
            variance=(square - mean.square()).clamp(min=0).float(),
            zero_share=zeros.float(),
            norm=(norms[block.name] / samples).float(),
            weight=_consumer_weight(run.model, block).float(),
        )
        yield block.name, statistics


@register_statistic("gram", needs=["activations"])
def read_gram_of_all(run: ScoringRun) -> Iterator[tuple[str, GramStatistics]]:
    """Gram matrices of what every consumer reads."""
    return read_gram(run.model, run.blocks, run.batches)


def read_gram(
    model: PreTrainedModel, blocks: Sequence[Block], batches: Sequence[Batch]
) -> Iterator[tuple[str, GramStatistics]]:
    """What scorers that read `gram` get, with block names; some blocks at a time, to bound the memory."""
    for group in groups_of(blocks):
        grams = {}
        for block in group:
            size = block.units * block.width + 1
            grams[block.name] = torch.zeros(size, size, device=consumer_device(model, block))

        def add(block: Block, x: Tensor, mask: Tensor, grams: dict[str, Tensor] = grams) -> None:
            flat = torch.cat([x, mask.to(x.dtype)], -1).reshape(-1, x.shape[-1] + 1)
            flat = flat.to(grams[block.name].device)
            grams[block.name].addmm_(flat.T, flat)

        _run(model, group, batches, add)
        add_over_processes(grams.values())
        for block in group:
            gram = grams.pop(block.name).cpu().double()
            weight = _consumer_weight(model, block).double()
            yield block.name, GramStatistics(block=block, gram_with_ones=gram, weight=weight)


def groups_of(blocks: Sequence[Block]) -> list[list[Block]]:
    """Consecutive blocks whose Gram matrices together take no more than `GRAM_BYTES`."""
    groups: list[list[Block]] = [[]]
    size = 0
    for block in blocks:
        own = 4 * (block.units * block.width) ** 2
        if groups[-1] and size + own > GRAM_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(block)
        size += own
    return groups


def consumer_device(model: PreTrainedModel, block: Block) -> torch.device:
    """Where a block's consumer runs, and so where its input is."""
    return running_device(model.base_model.get_submodule(block.consumer))


def _consumer_weight(model: PreTrainedModel, block: Block) -> Tensor:
    """`(outputs, columns)`, on the CPU."""
    consumer = model.base_model.get_submodule(block.consumer)
    with loaded([consumer]):
        weight = consumer.get_parameter("weight").detach().cpu()
    found: Tensor = weight.T if isinstance(consumer, Conv1D) else weight
    return found


def _run(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batches: Sequence[Batch],
    add: Callable[[Block, Tensor, Tensor], None],
) -> tuple[dict[str, float], float]:
    """Run the batches, hand the inputs of every block's consumer to `add`, and count over all processes.

    Args:
        model: The model.
        blocks: Its blocks.
        batches: The batches of all processes.
        add: Gets a block, its inputs `(samples, tokens, columns)` in float32 with zeros for padding, and which tokens
            are no padding, `(samples, tokens, 1)`.

    Returns:
        By block name the number of tokens without padding that its consumer read, and the number of samples.
    """
    tokens, samples_seen = torch.zeros(len(blocks), dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    places = {block.name: place for place, block in enumerate(blocks)}
    with frozen(model), torch.no_grad(), failing_together():
        for index, batch in tqdm(share_of(batches), desc="Scoring", unit="batch"):
            samples = count_samples(batch)
            masks = {block.mask: token_mask(batch, block.mask) for block in blocks}

            def read(
                block: Block,
                values: Tensor,
                index: int = index,
                samples: int = samples,
                masks: dict[str, Tensor | None] = masks,
            ) -> Tensor:
                x = values.reshape(samples, -1, values.shape[-1]).float()
                check_finite(
                    block.name, x.reshape(-1, block.units, block.width).sum(-1), f" in calibration batch {index}"
                )
                mask = masks[block.mask]
                if mask is None or mask.shape != x.shape[:2]:  # that of a waveform is longer than its frames
                    mask = x.new_ones(x.shape[:2], dtype=torch.bool)
                real = mask.to(x.device)
                tokens[places[block.name]] += real.sum().cpu()
                add(block, x * real[..., None], real[..., None])
                return values

            with input_hooks(model, {block: partial(read, block) for block in blocks}):
                run_without_head(model, batch)
            samples_seen += samples
    add_over_processes([tokens, samples_seen])
    return dict(zip(places, tokens.tolist(), strict=True)), samples_seen.item()


@register_scorer("apoz", reads="activations")
def apoz(statistics: ActivationStatistics) -> Tensor:
    """1 − the average share of (nearly) zero activations. Hu et al. 2016, "Network Trimming"."""
    return 1 - statistics.zero_share.reshape(statistics.block.units, -1).mean(1)


@register_scorer("activation_norm", reads="activations")
def activation_norm(statistics: ActivationStatistics) -> Tensor:
    """Mean over samples of ‖x[:, C_u]‖₂. Muralidharan et al. 2024, "Compact Language Models" (Minitron)."""
    return statistics.norm


@register_scorer("fluctuation", reads="activations")
def fluctuation(statistics: ActivationStatistics) -> Tensor:
    """Var_t(x_c) · ‖W[:, c]‖², averaged over a unit's columns and standardised in the block.

    An et al. 2024, "Fluctuation-based Adaptive Structured Pruning" (FLAP): what cannot be made up for by a bias.
    """
    by_column = statistics.variance * statistics.weight.square().sum(0)
    value = by_column.reshape(statistics.block.units, -1).mean(1)
    return (value - value.mean()) / value.std(correction=0).clamp(min=1e-12)


@register_scorer("obs", reads="gram")
def obs(statistics: GramStatistics) -> Tensor:
    """tr(W_M ((H⁻¹)_MM)⁻¹ W_Mᵀ) with H = XᵀX + λI and M = C_u: the squared error after the best repair.

    Hassibi & Stork 1993 ("Optimal Brain Surgeon"), for structures as in Kurtic et al. 2023 (ZipLM).
    """
    width = statistics.block.width
    inverse = regularised_inverse(statistics.gram)
    own = torch.stack([part[:, i * width : (i + 1) * width] for i, part in enumerate(torch.split(inverse, width))])
    columns = statistics.weight.T.reshape(statistics.block.units, width, -1)
    error: Tensor = (torch.linalg.solve(own, columns) * columns).sum((1, 2))
    return error
