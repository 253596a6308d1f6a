"""Reconstruction: re-solve the consumers of a pruned model in closed form, so that it follows the dense one again."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import tqdm

from hfprune.distributed import add_over_processes, from_main_process, share_of
from hfprune.errors import NonFiniteScoreError, PlanMismatchError
from hfprune.scoring.calibration import check_batches
from hfprune.structure.blocks import Block, attention_unit_of, check_in_one_place, features_of
from hfprune.structure.gates import Batch, count_samples, frozen, token_mask
from hfprune.structure.reading import find_blocks
from hfprune.structure.streams import LayerStream, SharedStream

logger = logging.getLogger(__name__)

#: Ridges that are tried, as multiples of the mean diagonal of the Gram matrix.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
#: One sample in so many is held out while the ridge is chosen.
HELD_OUT = 4
Pair = tuple[Block, Block]
Stream = LayerStream | SharedStream
#: By name of a mask, the use of every token, `(samples, tokens)` or `(samples, 1)`: 0 for padding, 1 for fitting, 2 for
#: choosing the ridge.
Uses = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What reconstruction did to one consumer.

    Attributes:
        block: The block's name.
        target: What was aimed at: `residual_stream`, or the consumer's own `output`.
        ridge: The ridge that was chosen, as a multiple of the mean diagonal of the Gram matrix.
        error_before: Squared distance to the dense model at the target, mean over calibration tokens.
        error_after: The same with the new weights.
    """

    block: str
    target: str
    ridge: float
    error_before: float
    error_after: float


class _Gram(NamedTuple):
    """Float64 sums over tokens of a consumer's inputs x (with a 1 where it has a bias) and of what is missing, e."""

    xx: Tensor
    ex: Tensor
    ee: Tensor
    tokens: Tensor

    @classmethod
    def zeros(cls, inputs: int, outputs: int, device: torch.device) -> "_Gram":
        place = torch.device("cpu") if device.type == "mps" else device  # which has no float64
        shapes: tuple[tuple[int, ...], ...] = ((inputs, inputs), (outputs, inputs), (), ())
        return cls(*(torch.zeros(shape, dtype=torch.float64, device=place) for shape in shapes))

    def add(self, x: Tensor, e: Tensor) -> None:
        """Add tokens: `(tokens, inputs)` and `(tokens, outputs)` float32."""
        terms = (x.T @ x, e.T @ x, e.square().sum(), torch.tensor(len(x)))
        for total, term in zip(self, terms, strict=True):
            total += term.to(total.device)

    def plus(self, other: "_Gram") -> "_Gram":
        """The sums over both."""
        return _Gram(*(a + b for a, b in zip(self, other, strict=True)))

    def error(self, change: Tensor | None = None) -> float:
        """Mean squared distance of a token, after adding a change `(outputs, inputs)` to the weights."""
        total = self.ee
        if change is not None:
            total = total - 2 * (change * self.ex).sum() + ((change @ self.xx) * change).sum()
        return float(total.clamp(min=0) / self.tokens.clamp(min=1))


def reconstruct(pruned: PreTrainedModel, dense: PreTrainedModel, batches: Sequence[Batch]) -> list[Repair]:
    """Re-solve every consumer of a pruned model, in place, so that it follows the dense model: no gradients, no labels.

    From the first layer to the last, with x what the consumer reads in the model as it is repaired so far, and e what
    the residual stream behind it is short of the dense model's at the same place:

        ΔW = argmin ‖X ΔWᵀ − E‖² + λ‖ΔW‖²  =  EᵀX (XᵀX + λI)⁻¹

    which is ALGORITHMS §6 with the residual-stream target and the ridge towards the present weights. Where a
    consumer's output does not enter the residual stream as it is (a norm in between, a multiplier) e is what the
    output is short of. A bias is solved for where there is one. For every consumer λ is the one of `RIDGES` that is
    best on held-out samples; then all samples are used. Over the batches, every layer runs about three times in the
    pruned model and once in the dense one, whatever the number of blocks; memory is the hidden states of both models,
    what the dense one has at the targets of a layer, and one Gram matrix.

    Where `torch.distributed` is initialised, all processes must call it with the same batches: each takes its share,
    the sums are added up, and all get the main process's weights.

    Args:
        pruned: A pruned model. Only weights and biases of its consumers change; after an error they are as before.
        dense: The model that it was cut from, or that was before the first cut.
        batches: Calibration batches, as for `score`.

    Returns:
        What was done to each consumer, in layer order.

    Raises:
        PlanMismatchError: The one model was not cut from the other.
        CalibrationError: There are no batches.
        StructureError: A model is spread over devices.
        NonFiniteScoreError: Hidden states are NaN or infinite.
    """
    pairs = _matching(pruned, dense)
    uses = _with_held_out(check_batches(batches, pruned, taker="reconstruct"), {block.mask for block, _ in pairs})
    # a process without a share runs the first batch all the same, and counts none of its tokens
    unused = [(0, (batch, {mask: torch.zeros_like(use) for mask, use in found.items()})) for batch, found in uses[:1]]
    share = share_of(uses) or unused
    stacks: dict[str, list[Pair]] = {}
    for pair in pairs:
        stacks.setdefault(pair[0].layer.rpartition(".")[0], []).append(pair)
    with (
        frozen(pruned),
        frozen(dense),
        torch.no_grad(),
        _restored_on_error(pruned, [block for block, _ in pairs]),
        tqdm(total=len(pairs), desc="Reconstructing", unit="block") as progress,
    ):
        repairs = []
        for stack in stacks.values():
            for repair in _repaired_stack(pruned, dense, stack, [element for _, element in share]):
                repairs.append(repair)
                progress.update()
    return repairs


def _repaired_stack(
    pruned: PreTrainedModel, dense: PreTrainedModel, pairs: Sequence[Pair], share: Sequence[tuple[Batch, Uses]]
) -> Iterator[Repair]:
    """Repair the blocks of one stack of layers, the stacks before it being repaired."""
    layers = list(dict.fromkeys(block.layer for block, _ in pairs))
    batches = [batch for batch, _ in share]
    small, large = (
        SharedStream(model, batches) if pairs[0][0].uses > 1 else LayerStream(model, layers, batches)
        for model in (pruned, dense)
    )
    for layer in layers:
        here = [pair for pair in pairs if pair[0].layer == layer]
        sums = {block.name: _residual_sum(large, original) for block, original in here}
        targets = _targets(large, [original for _, original in here], sums, len(share))
        for block, _ in here:
            uses = [use[block.mask].to(pruned.device) for _, use in share]
            fit, held_out = _accumulate(small, block, sums[block.name], targets[block.name], uses)
            target = "output" if sums[block.name] is None else "residual_stream"
            yield _repair(pruned, block, fit, held_out, target)
        small.advance()
        large.advance()


def _matching(pruned: PreTrainedModel, dense: PreTrainedModel) -> list[Pair]:
    """The blocks of both models, side by side."""
    for model in (pruned, dense):
        check_in_one_place(model)
    small = find_blocks(pruned)
    unit = attention_unit_of(block.name for block in small)
    large = {block.name: block for block in find_blocks(dense, unit)}
    for block in small:
        other = large.get(block.name)
        if other is None or other.units < block.units or other.width != block.width:
            raise PlanMismatchError(
                f"block {block.name!r} has {block.units} units of width {block.width} in the pruned model, and "
                + ("none" if other is None else f"{other.units} of width {other.width}")
                + " in the dense one. Pass the model that the pruned one was cut from."
            )
    return [(block, large[block.name]) for block in small]


def _with_held_out(batches: Sequence[Batch], masks: AbstractSet[str]) -> list[tuple[Batch, Uses]]:
    """Batches, with the use of every token by the name of the mask it is under."""
    seen, found = 0, []
    for batch in batches:
        samples = torch.arange(seen, seen + count_samples(batch))
        use = 1 + (samples % HELD_OUT == HELD_OUT - 1).long()[:, None]
        by_mask = {}
        for name in sorted(masks):
            mask = token_mask(batch, name)
            by_mask[name] = use if mask is None else use * mask.cpu()
        found.append((batch, by_mask))
        seen += len(samples)
    return found


def _residual_sum(dense: Stream, block: Block) -> str | None:
    """`block.residual_sum` if the consumer's output is really added there as it is, else None.

    An entry of the table may be right for some configs only (OPT's place of the norms), so it is tried: twice the
    consumer's output must change the sum by that output.
    """
    if block.residual_sum is None:
        return None
    place = {block.name: block.residual_sum}
    _, before = dense.read(0, [block], place)[block.name]
    outputs: list[Tensor] = []

    def double(_: nn.Module, __: object, output: Tensor) -> Tensor:
        outputs.append(output)
        return 2 * output

    hook = dense.model.base_model.get_submodule(block.consumer).register_forward_hook(double)
    try:
        _, after = dense.read(0, [block], place)[block.name]
    finally:
        hook.remove()
    output = outputs[0]  # of the first use: later ones have changed with it
    changed = (after.float() - before.float()).flatten()[: output.numel()]
    off = (changed.reshape(output.shape) - output.float()).norm()
    return block.residual_sum if off <= 0.1 * output.float().norm() else None


def _targets(
    dense: Stream, blocks: Sequence[Block], sums: Mapping[str, str | None], batches: int
) -> dict[str, list[Tensor]]:
    """What the dense model has at the targets of a layer's blocks: by block name, one tensor a batch."""
    targets: dict[str, list[Tensor]] = {block.name: [] for block in blocks}
    for index in range(batches):
        for name, (_, value) in dense.read(index, blocks, sums, to_the_end=True).items():
            targets[name].append(value)
    return targets


def _accumulate(
    stream: Stream, block: Block, place: str | None, targets: Sequence[Tensor], uses: Sequence[Tensor]
) -> tuple[_Gram, _Gram]:
    """Sums over the tokens for fitting, and over those that are held out."""
    consumer = stream.model.base_model.get_submodule(block.consumer)
    columns, outputs = features_of(consumer)
    biased = consumer.bias is not None
    grams = [_Gram.zeros(columns + biased, outputs, stream.model.device) for _ in range(2)]
    for index, (target, use) in enumerate(zip(targets, uses, strict=True)):
        x, value = stream.read(index, [block], {block.name: place})[block.name]
        e = (target.to(value.device).float() - value.float()).reshape(-1, outputs)
        x = nn.functional.pad(x.float().reshape(len(e), columns), (0, int(biased)), value=1.0)
        tokens = len(e) // block.uses
        if use.numel() != tokens:  # no mask, or that of a waveform: all tokens of a sample are used alike
            use = use.amax(1, keepdim=True).expand(-1, tokens // len(use))
        use = use.flatten().repeat(block.uses)
        for number, gram in enumerate(grams, start=1):
            gram.add(x[use == number], e[use == number])
    for gram in grams:
        add_over_processes(gram)
    if not all(torch.isfinite(total).all() for gram in grams for total in gram):
        raise NonFiniteScoreError(
            f"hidden states at block {block.name!r} are NaN or infinite in the dense or the pruned model. No weight "
            "was changed. Look for NaN weights or inputs, or for an overflow in float16: use bfloat16 or float32."
        )
    return grams[0], grams[1]


def _repair(model: PreTrainedModel, block: Block, fit: _Gram, held_out: _Gram, target: str) -> Repair:
    """Choose the ridge, solve, and write the weights."""
    ridge = RIDGES[-1]
    if held_out.tokens > 0:
        ridge = min(RIDGES, key=lambda ridge: held_out.error(_solve(fit, ridge, block.name)[0]))
    everything = fit.plus(held_out)
    change, ridge = _solve(everything, ridge, block.name)
    from_main_process([change])
    consumer = model.base_model.get_submodule(block.consumer)
    weight = change if consumer.bias is None else change[:, :-1]
    consumer.weight.add_((weight.T if isinstance(consumer, Conv1D) else weight).to(consumer.weight))
    if consumer.bias is not None:
        consumer.bias.add_(change[:, -1].to(consumer.bias))
    return Repair(
        block=block.name,
        target=target,
        ridge=ridge,
        error_before=everything.error(),
        error_after=everything.error(change),
    )


def _solve(gram: _Gram, ridge: float, block: str) -> tuple[Tensor, float]:
    """EᵀX (XᵀX + λI)⁻¹, and the ridge that was used: ten times what was asked for, as often as it must be."""
    scale = gram.xx.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny)
    for _ in range(12):
        lifted = gram.xx + ridge * scale * torch.eye(len(gram.xx), dtype=gram.xx.dtype, device=gram.xx.device)
        factor, failed = torch.linalg.cholesky_ex(lifted)
        if not failed:
            return torch.cholesky_solve(gram.ex.T, factor).T, ridge
        logger.warning("the ridge %g is too small to solve block %r; trying %g.", ridge, block, 10 * ridge)
        ridge *= 10
    raise ArithmeticError(f"the Gram matrix of block {block!r} cannot be factored; please report this model and data.")


@contextmanager
def _restored_on_error(model: PreTrainedModel, blocks: Sequence[Block]) -> Iterator[None]:
    """Put the consumers' weights back if the `with` is left by an error or an interrupt."""
    consumers = [model.base_model.get_submodule(block.consumer) for block in blocks]
    before = [{name: value.detach().clone() for name, value in module.named_parameters()} for module in consumers]
    try:
        yield
    except BaseException:
        for module, values in zip(consumers, before, strict=True):
            for name, value in values.items():
                module.get_parameter(name).data.copy_(value)
        raise
