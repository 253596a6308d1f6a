"""Activation scorers: formulas over the activations of the units, without any gradient.

Notation: x[t, c] is column c of the consumer's input at token t, without padding; C_u are the columns of unit u; W is
the weight of the consumer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfprune.distributed import add_over_processes, failing_together, share_of
from hfprune.scoring.registry import ScoringRun, register_scorer, register_statistic
from hfprune.scoring.scores import check_finite
from hfprune.showing.progress import tracked
from hfprune.structure.batches import Batch, count_samples, token_mask
from hfprune.structure.blocks import Block
from hfprune.structure.devices import loaded, running_device
from hfprune.structure.running import frozen, input_hooks, run_without_head

#: A smaller absolute value counts as zero for `apoz`. GELU and SiLU are nearly never exactly 0.
NEARLY_ZERO = 1e-2
#: The ridge λ of `obs` and of the residual scorers, as a multiple of the mean of the diagonal of XᵀX.
OBS_RIDGE = 1e-2
#: The most bytes of Gram matrices in memory at a time. The model runs again for the blocks that do not fit.
GRAM_BYTES = 2 * 1024**3


@dataclass(frozen=True, kw_only=True)
class ActivationStatistics:
    """The statistic `activations` of one block. All tensors are float32 on the CPU.

    x is the input of the block's consumer, a row for each token that is not padding; `C_u` are the columns of unit u.

    Attributes:
        block: The block.
        mean: Mean of x over tokens, `(columns,)`.
        variance: Variance of x over tokens, `(columns,)`.
        zero_share: Share of the tokens where |x| is nearly zero, `(columns,)`.
        norm: Mean over samples of `‖x[:, C_u]‖₂`, `(units,)`.
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
    """The statistic `gram` of one block.

    X is the input of the block's consumer, a row for each token that is not padding.

    Attributes:
        block: The block.
        gram_with_ones: `[X 1]ᵀ[X 1]` over tokens, `(columns + 1, columns + 1)` float64.
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
    """(G + λI)⁻¹ with λ = `OBS_RIDGE` times the mean of G's diagonal.

    >>> regularised_inverse(torch.diag(torch.tensor([4.0, 0.0]))).diagonal()
    tensor([ 0.2488, 50.0000])
    """
    # a block that puts out nothing but zeros has an inverse too
    ridge = OBS_RIDGE * gram.diagonal().mean().clamp(min=1e-12)
    lifted = gram.clone()
    lifted.diagonal().add_(ridge)
    inverse: Tensor = torch.linalg.inv(lifted)
    return inverse


@register_statistic("activations", needs=["activations"])
def read_activations(run: ScoringRun) -> Iterator[tuple[str, ActivationStatistics]]:
    """Moments of the inputs of every consumer."""
    blocks = run.blocks
    moments = {}
    norms = {}
    for block in blocks:
        # the rows are Σx, Σx² and the number of zeros; float64, so that the number of tokens costs no precision
        moments[block.name] = torch.zeros(3, block.units * block.width, dtype=torch.float64, device="cpu")
        norms[block.name] = torch.zeros(block.units, dtype=torch.float64, device="cpu")

    def add(block: Block, x: Tensor, is_real: Tensor) -> None:
        # padding is zero in x, and must not count as a zero activation
        is_zero = (x.abs() < NEARLY_ZERO) & is_real
        square = x.square()
        moments[block.name] += torch.stack([x.sum((0, 1)), square.sum((0, 1)), is_zero.sum((0, 1))]).cpu()
        square_of_unit = square.reshape(*x.shape[:2], block.units, -1).sum((1, 3))
        norms[block.name] += square_of_unit.sqrt().sum(0).cpu()

    tokens, samples = _run(run.model, blocks, run.batches, add)
    add_over_processes([*moments.values(), *norms.values()])
    for block in blocks:
        mean, mean_square, zero_share = moments[block.name] / tokens[block.name]
        statistics = ActivationStatistics(
            block=block,
            mean=mean.float(),
            # rounding can leave a little less than 0
            variance=(mean_square - mean.square()).clamp(min=0).float(),
            zero_share=zero_share.float(),
            norm=(norms[block.name] / samples).float(),
            weight=_consumer_weight(run.model, block).float(),
        )
        yield block.name, statistics


@register_statistic("gram", needs=["activations"])
def read_gram_of_all(run: ScoringRun) -> Iterator[tuple[str, GramStatistics]]:
    """Gram matrices of the inputs of every consumer."""
    return read_gram(run.model, run.blocks, run.batches)


def read_gram(
    model: PreTrainedModel, blocks: Sequence[Block], batches: Sequence[Batch]
) -> Iterator[tuple[str, GramStatistics]]:
    """Gram matrices of the inputs of some consumers, one block after the other.

    Args:
        model: The model.
        blocks: Its blocks.
        batches: The calibration batches of all processes.

    Yields:
        The name of a block, and its statistic `gram`.
    """
    # not all Gram matrices of a large model fit in memory, so the batches run once for every group of blocks
    for group in groups_of(blocks):
        grams = {}
        for block in group:
            size = block.units * block.width + 1
            grams[block.name] = torch.zeros(size, size, dtype=torch.float32, device=consumer_device(model, block))

        _run(model, group, batches, partial(_add_to_gram, grams))
        add_over_processes(grams.values())
        for block in group:
            # out of the dictionary, so that each matrix goes as soon as its scores are known
            gram = grams.pop(block.name).cpu().double()
            weight = _consumer_weight(model, block).double()
            yield block.name, GramStatistics(block=block, gram_with_ones=gram, weight=weight)


def _add_to_gram(grams: Mapping[str, Tensor], block: Block, x: Tensor, is_real: Tensor) -> None:
    """Add [X 1]ᵀ[X 1] of one batch, in place. Padding adds nothing: its column of ones is zero too."""
    with_ones = torch.cat([x, is_real.to(x.dtype)], -1).reshape(-1, x.shape[-1] + 1)
    gram = grams[block.name]
    with_ones = with_ones.to(gram.device)
    gram.addmm_(with_ones.T, with_ones)


def groups_of(blocks: Sequence[Block]) -> list[list[Block]]:
    """Groups of consecutive blocks whose Gram matrices together take no more than `GRAM_BYTES`."""
    groups: list[list[Block]] = [[]]
    bytes_of_group = 0
    for block in blocks:
        bytes_of_block = 4 * (block.units * block.width) ** 2
        # a block that is too large on its own is a group all the same
        if groups[-1] and bytes_of_group + bytes_of_block > GRAM_BYTES:
            groups.append([])
            bytes_of_group = 0
        groups[-1].append(block)
        bytes_of_group += bytes_of_block
    return groups


def consumer_device(model: PreTrainedModel, block: Block) -> torch.device:
    """The device on which a block's consumer runs, and so the device of its inputs."""
    return running_device(model.base_model.get_submodule(block.consumer))


def _consumer_weight(model: PreTrainedModel, block: Block) -> Tensor:
    """The weight of a block's consumer, `(outputs, columns)`, on the CPU."""
    consumer = model.base_model.get_submodule(block.consumer)
    with loaded([consumer]):
        weight: Tensor = consumer.get_parameter("weight").detach().cpu()
    # Conv1D of GPT-2 is a Linear whose weight is transposed
    return weight.T if isinstance(consumer, Conv1D) else weight


#: Gets a block, the inputs of its consumer, `(samples, tokens, columns)` float32 with zeros for padding, and a bool for
#: every token, `(samples, tokens, 1)`, which is False for padding.
AddInputs = Callable[[Block, Tensor, Tensor], None]


def _run(
    model: PreTrainedModel, blocks: Sequence[Block], batches: Sequence[Batch], add: AddInputs
) -> tuple[dict[str, float], float]:
    """Run the model over the batches and hand the inputs of every block's consumer to a function.

    Args:
        model: The model.
        blocks: Its blocks.
        batches: The batches of all processes.
        add: The function, called once for every block and batch (more often for a layer that runs several times).

    Returns:
        The number of tokens that each block's consumer read, by block name, and the number of samples. Padding does not
        count; the tokens and samples of all processes do.
    """
    # tensors, so that they can be added up over processes
    tokens = torch.zeros(len(blocks), dtype=torch.float64, device="cpu")
    samples = torch.zeros(1, dtype=torch.float64, device="cpu")
    with (
        frozen(model),
        torch.no_grad(),
        failing_together(),
        tracked(share_of(batches), desc="Reading activations", unit="batch") as own,
    ):
        for index, batch in own:
            reader = _BatchReader(batch, index, blocks, add)
            hooks = {block: partial(reader.read, place, block) for place, block in enumerate(blocks)}
            with input_hooks(model, hooks):
                run_without_head(model, batch)
            tokens += reader.tokens
            samples += reader.samples
    add_over_processes([tokens, samples])
    tokens_of_block = {}
    for block, count in zip(blocks, tokens.tolist(), strict=True):
        tokens_of_block[block.name] = count
    return tokens_of_block, samples.item()


class _BatchReader:
    """Hands the inputs of consumers to a function while one batch runs, and counts their tokens.

    Attributes:
        samples: The number of samples of the batch.
        tokens: For every block, how many tokens its consumer read, padding excluded: `(blocks,)` float64.

    Args:
        batch: The batch.
        index: Its place among all batches, for messages.
        blocks: The blocks.
        add: The function.
    """

    def __init__(self, batch: Batch, index: int, blocks: Sequence[Block], add: AddInputs) -> None:
        self.samples = count_samples(batch)
        self.tokens = torch.zeros(len(blocks), dtype=torch.float64, device="cpu")
        self._index = index
        self._add = add
        # blocks of one stack share a mask
        self._masks = {block.mask: token_mask(batch, block.mask) for block in blocks}

    def read(self, place: int, block: Block, inputs: Tensor) -> Tensor:
        """Read the inputs of one block's consumer, and return them as they are, as a hook on inputs must.

        Args:
            place: The block's place among all.
            block: The block.
            inputs: `(samples, tokens, columns)`, or with samples and tokens flattened, as some models do.

        Returns:
            The inputs.
        """
        x = inputs.reshape(self.samples, -1, inputs.shape[-1]).float()
        by_unit = x.reshape(-1, block.units, block.width).sum(-1)
        check_finite(block.name, by_unit, f" in calibration batch {self._index}")
        is_real = self._real_tokens(block, x)
        self.tokens[place] += is_real.sum().cpu()
        is_real = is_real[..., None]
        self._add(block, x * is_real, is_real)
        return inputs

    def _real_tokens(self, block: Block, x: Tensor) -> Tensor:
        """Which tokens are no padding, `(samples, tokens)` bool."""
        mask = self._masks[block.mask]
        # a speech model makes fewer frames than the waveform has entries, so its mask fits no frames
        if mask is None or mask.shape != x.shape[:2]:
            return x.new_ones(x.shape[:2], dtype=torch.bool)
        return mask.to(x.device)


@register_scorer("apoz", reads="activations")
def apoz(statistics: ActivationStatistics) -> Tensor:
    """The share of activations that are not (nearly) zero, averaged over a unit's columns.

    Hu et al. 2016, "Network Trimming".
    """
    zero_share_of_unit = statistics.zero_share.reshape(statistics.block.units, -1).mean(1)
    return 1 - zero_share_of_unit


@register_scorer("activation_norm", reads="activations")
def activation_norm(statistics: ActivationStatistics) -> Tensor:
    """The L2 norm of a unit's activations, `‖x[:, C_u]‖₂`, averaged over samples.

    Muralidharan et al. 2024, "Compact Language Models via Pruning and Knowledge Distillation" (Minitron).
    """
    return statistics.norm


@register_scorer("fluctuation", reads="activations")
def fluctuation(statistics: ActivationStatistics) -> Tensor:
    """How much a unit's activations vary over tokens, weighed by the consumer's weights.

    `Var_t(x_c) · ‖W[:, c]‖²` is averaged over the unit's columns, then standardised over the units of the block.
    An et al. 2024, "Fluctuation-based Adaptive Structured Pruning" (FLAP). It is the error that remains when a bias
    makes up for the mean of a removed column.
    """
    by_column = statistics.variance * statistics.weight.square().sum(0)
    by_unit = by_column.reshape(statistics.block.units, -1).mean(1)
    # with one unit, or equal ones, the deviation is 0
    deviation = by_unit.std(correction=0).clamp(min=1e-12)
    return (by_unit - by_unit.mean()) / deviation


@register_scorer("obs", reads="gram")
def obs(statistics: GramStatistics) -> Tensor:
    """The squared error of the consumer's output after the best repair of the other columns.

    It is `tr(W_M ((H⁻¹)_MM)⁻¹ W_Mᵀ)` with `H = XᵀX + λI` and `M = C_u`.

    Hassibi & Stork 1993 ("Optimal Brain Surgeon"), for structures as in Kurtic et al. 2023 (ZipLM).
    """
    width = statistics.block.width
    inverse = regularised_inverse(statistics.gram)
    diagonal_blocks = []
    for unit, rows in enumerate(torch.split(inverse, width)):
        diagonal_blocks.append(rows[:, unit * width : (unit + 1) * width])
    columns = statistics.weight.T.reshape(statistics.block.units, width, -1)
    # the trace of a product AB is the sum over the entries of A and Bᵀ, multiplied one by one
    error: Tensor = (torch.linalg.solve(torch.stack(diagonal_blocks), columns) * columns).sum((1, 2))
    return error
