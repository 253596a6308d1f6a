"""Reconstruction: re-solve the consumers of a pruned model in closed form, so that it follows the dense one again."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.logging import tqdm

from hfprune.distributed import add_over_processes, from_main_process, process_rank, share_of
from hfprune.errors import NonFiniteScoreError, PlanMismatchError
from hfprune.reconstruction.least_squares import Gram, best_ridge, solve
from hfprune.reconstruction.partial import PartialRun, Repair
from hfprune.reconstruction.streams import LayerStream, SharedStream
from hfprune.scoring.calibration import check_batches
from hfprune.structure.anatomy import Anatomy, ModelOrAnatomy, anatomy_of
from hfprune.structure.batches import Batch, count_samples, token_mask
from hfprune.structure.blocks import Block, check_in_one_place, features_of
from hfprune.structure.running import frozen
from hfprune.structure.store import Store

#: Ridges that are tried, as multiples of the mean diagonal of the Gram matrix.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
#: One sample in so many is held out while the ridge is chosen.
HELD_OUT = 4
Pair = tuple[Block, Block]
Stream = LayerStream | SharedStream
#: By name of a mask, the use of every token, `(samples, tokens)` or `(samples, 1)`: 0 for padding, 1 for fitting, 2 for
#: choosing the ridge.
Uses = dict[str, Tensor]
#: Puts new values into parameters of the pruned model, by path from its base model.
Write = Callable[[Mapping[str, Tensor]], None]


def reconstruct(
    pruned: ModelOrAnatomy,
    dense: ModelOrAnatomy,
    batches: Sequence[Batch],
    *,
    folder: str | Path | None = None,
    device: str | torch.device | None = None,
) -> list[Repair]:
    """Re-solve every consumer of a pruned model, in place, so that it follows the dense model: no gradients, no labels.

    From the first layer to the last, with x what the consumer reads in the model as it is repaired so far, and e what
    the residual stream behind it is short of the dense model's at the same place:

        ΔW = argmin ‖X ΔWᵀ − E‖² + λ‖ΔW‖²  =  EᵀX (XᵀX + λI)⁻¹

    with the residual stream as the target and the ridge towards the present weights. Where a
    consumer's output does not enter the residual stream as it is (a norm in between, a multiplier) e is what the
    output is short of. A bias is solved for where there is one. For every consumer λ is the one of `RIDGES` that is
    best on held-out samples; then all samples are used. Products are float32 within a batch, sums over batches and
    solutions float64, whatever the models' dtype.
    Over the batches, every layer runs about three times in the pruned model and once in the dense one, whatever the
    number of blocks; memory is the hidden states of both models, what the dense one has at the targets of a layer, the
    consumers as they were, and the Gram matrices of one consumer. With a folder all but the last is in files there.

    Where `torch.distributed` is initialised, all processes must call it with the same batches: each takes its share,
    the sums are added up, and all get the main process's weights.

    Args:
        pruned: A pruned model, or its anatomy. Only weights and biases of its consumers change; after an error they are
            as before.
        dense: The model that it was cut from, or that was before the first cut; or its anatomy.
        batches: Calibration batches, as for `score`.
        folder: Where hidden states are kept, and the new weights of every layer that is done. If the process ends
            early, the same call goes on from there, to the same weights. When all is done the new weights are left:
            delete the folder when the model is saved. Several processes must see the same folder.
        device: Where layers run, one of each model at a time, while the models stay where they are (on the CPU). If
            not given, or where one layer is all of the layers (ALBERT), they run where they are.

    Returns:
        What was done to each consumer, in layer order.

    Raises:
        PlanMismatchError: The one model was not cut from the other.
        CalibrationError: There are no batches.
        CheckpointError: The folder has the layers of a run with other models, batches or number of processes.
        StructureError: A model is spread over devices.
        NonFiniteScoreError: Hidden states are NaN or infinite.
    """
    small = anatomy_of(pruned)
    large = anatomy_of(dense, small.attention_unit)
    pairs = _matching(small, large)
    batches = check_batches(batches, small.model, taker="reconstruct")
    place = None if folder is None else Path(folder)
    partial = PartialRun(place, small.model, large.model, batches)
    store = Store(None if place is None else place / f"working-{process_rank()}")
    with (
        frozen(small.model),
        frozen(large.model),
        torch.no_grad(),
        _restored_on_error(small.model, store) as write,
        tqdm(total=len(pairs), desc="Reconstructing", unit="block") as progress,
    ):
        repair = _ModelRepair(
            small=small.model,
            large=large.model,
            share=_own_share(batches, {block.mask for block, _ in pairs}),
            store=store,
            device=None if device is None else torch.device(device),
            write=write,
        )
        repairs = repair.run(pairs, partial, progress)
    if store.folder is not None:
        shutil.rmtree(store.folder)
    return repairs


@dataclass(frozen=True, kw_only=True)
class _ModelRepair:
    """The repair of one model, layer by layer.

    Attributes:
        small: The pruned model.
        large: The dense model.
        share: This process's batches, with the use of every token.
        store: Keeps hidden states and targets.
        device: Where layers run; None: where they are.
        write: Puts new values into parameters of the pruned model.
    """

    small: PreTrainedModel
    large: PreTrainedModel
    share: Sequence[tuple[Batch, Uses]]
    store: Store
    device: torch.device | None
    write: Write

    def run(self, pairs: Sequence[Pair], partial: PartialRun, progress: Any) -> list[Repair]:
        """Repair all layers, but those that an earlier run has repaired."""
        repairs: list[Repair] = []
        finished = partial.done()
        for weights, of_layer in finished:
            self.write(weights)
            repairs += of_layer
        progress.update(len(repairs))
        number = 0
        for layers in _by_stack(pairs):
            # how many layers of this stack were repaired before
            start = max(0, len(finished) - number)
            if start < len(layers):
                repairs += self._stack(layers, start, number, partial, progress)
            number += len(layers)
        return repairs

    def _stack(
        self, layers: Mapping[str, Sequence[Pair]], start: int, number: int, partial: PartialRun, progress: Any
    ) -> list[Repair]:
        """Repair one list of layers, from the layer `start` on; `number` counts the layers in front of the list."""
        paths = list(layers)
        repeated = layers[paths[0]][0][0].uses > 1
        small = self._stream(self.small, "pruned", paths, start, repeated=repeated)
        large = self._stream(self.large, "dense", paths, start, repeated=repeated)
        repairs: list[Repair] = []
        for place in range(start, len(paths)):
            of_layer = layers[paths[place]]
            with small.at_work(), large.at_work():
                made = self._layer(small, large, of_layer)
                small.advance()
                large.advance()
            partial.add(number + place, _consumers(self.small, [block for block, _ in of_layer]), made)
            repairs += made
            progress.update(len(made))
        return repairs

    def _stream(self, model: PreTrainedModel, name: str, paths: Sequence[str], start: int, *, repeated: bool) -> Stream:
        batches = [batch for batch, _ in self.share]
        # a layer that runs several times has no single place between the others
        if repeated:
            return SharedStream(model, batches)
        return LayerStream(model, paths, batches, kept=self.store, name=name, start=start, device=self.device)

    def _layer(self, small: Stream, large: Stream, pairs: Sequence[Pair]) -> list[Repair]:
        """Repair the blocks of the next layer, those before it being repaired."""
        sums = {block.name: _residual_sum(large, original) for block, original in pairs}
        originals = [original for _, original in pairs]
        for index in range(len(self.share)):
            values = large.read(index, originals, sums, to_the_end=True)
            for name, (_, value) in values.items():
                self.store[_target(name, index)] = value.to(self.large.device)
        repairs = []
        for block, _ in pairs:
            targets = (self.store[_target(block.name, index)] for index in range(len(self.share)))
            uses = [use[block.mask] for _, use in self.share]
            fit, held_out = _accumulate(small, block, sums[block.name], targets, uses)
            aimed_at = "output" if sums[block.name] is None else "residual_stream"
            repairs.append(_repair(self.small, block, fit, held_out, aimed_at, self.write))
            for index in range(len(self.share)):
                self.store.drop(_target(block.name, index))
        return repairs


def _target(block: str, index: int) -> str:
    return f"target-{block}-{index}"


def _by_stack(pairs: Sequence[Pair]) -> list[dict[str, list[Pair]]]:
    """For every list of layers, the blocks by path of the layer, in order."""
    stacks: dict[str, dict[str, list[Pair]]] = {}
    for block, original in pairs:
        stack = stacks.setdefault(block.layer.rpartition(".")[0], {})
        stack.setdefault(block.layer, []).append((block, original))
    return list(stacks.values())


def _matching(pruned: Anatomy, dense: Anatomy) -> list[Pair]:
    """The blocks of both models, side by side."""
    check_in_one_place(pruned.model)
    check_in_one_place(dense.model)
    originals = {block.name: block for block in dense.blocks}
    pairs = []
    for block in pruned.blocks:
        original = originals.get(block.name)
        if original is None or original.units < block.units or original.width != block.width:
            there = "none" if original is None else f"{original.units} of width {original.width}"
            raise PlanMismatchError(
                f"block {block.name!r} has {block.units} units of width {block.width} in the pruned model, and "
                f"{there} in the dense one. Pass the model that the pruned one was cut from."
            )
        pairs.append((block, original))
    return pairs


def _own_share(batches: Sequence[Batch], masks: AbstractSet[str]) -> list[tuple[Batch, Uses]]:
    """The batches of this process, with the use of every token."""
    every = _with_held_out(batches, masks)
    own = [element for _, element in share_of(every)]
    if own:
        return own
    # a process without a share runs the first batch all the same, and counts none of its tokens
    batch, uses = every[0]
    return [(batch, {mask: torch.zeros_like(use) for mask, use in uses.items()})]


def _with_held_out(batches: Sequence[Batch], masks: AbstractSet[str]) -> list[tuple[Batch, Uses]]:
    """Batches, with the use of every token by the name of the mask it is under."""
    samples_before = 0
    every = []
    for batch in batches:
        samples = torch.arange(samples_before, samples_before + count_samples(batch))
        is_held_out = samples % HELD_OUT == HELD_OUT - 1
        use = 1 + is_held_out.long()[:, None]
        by_mask = {}
        for name in sorted(masks):
            mask = token_mask(batch, name)
            by_mask[name] = use if mask is None else use * mask.cpu()
        every.append((batch, by_mask))
        samples_before += len(samples)
    return every


def _residual_sum(dense: Stream, block: Block) -> str | None:
    """`block.residual_sum` if the consumer's output is really added there as it is, else None.

    An entry of the table may be right for some configs only (OPT's place of the norms), so it is tried: a multiple of
    the consumer's output must change the sum by as much. The multiple makes it as large as the sum, in whose rounding
    a small change would be lost. Of several processes the main one decides.
    """
    if block.residual_sum is None:
        return None
    consumer = dense.model.base_model.get_submodule(block.consumer)
    outputs: list[Tensor] = []
    sums: list[Tensor] = []
    more = 0.0

    def enlarge(_: nn.Module, __: object, output: Tensor) -> Tensor:
        outputs.append(output.float())
        return (1 + more) * output

    hook = consumer.register_forward_hook(enlarge)
    try:
        for _ in range(2):
            _, value = dense.read(0, [block], {block.name: block.residual_sum})[block.name]
            # of the first use: later ones change with it
            sums.append(value.float().flatten()[: outputs[0].numel()])
            more = max(1.0, float(sums[0].norm() / outputs[0].norm().clamp(min=1e-12)))
    finally:
        hook.remove()
    expected = more * outputs[0].flatten()
    is_there = ((sums[1] - sums[0] - expected).norm() <= 0.1 * expected.norm()).float()
    from_main_process([is_there])
    return block.residual_sum if is_there else None


def _accumulate(
    stream: Stream, block: Block, place: str | None, targets: Iterable[Tensor], uses: Sequence[Tensor]
) -> tuple[Gram, Gram]:
    """Sums over the tokens for fitting, and over those that are held out."""
    consumer = stream.model.base_model.get_submodule(block.consumer)
    columns, outputs = features_of(consumer)
    biased = consumer.bias is not None
    grams = [Gram.zeros(columns + biased, outputs, consumer.weight.device) for _ in range(2)]
    for index, (target, use) in enumerate(zip(targets, uses, strict=True)):
        x, value = stream.read(index, [block], {block.name: place})[block.name]
        e = (target.to(value.device).float() - value.float()).reshape(-1, outputs)
        x = nn.functional.pad(x.float().reshape(len(e), columns), (0, int(biased)), value=1.0)
        tokens = len(e) // block.uses
        if use.numel() != tokens:  # no mask, or that of a waveform: all tokens of a sample are used alike
            use = use.amax(1, keepdim=True).expand(-1, tokens // len(use))
        use = use.flatten().repeat(block.uses).to(x.device)
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


def _repair(model: PreTrainedModel, block: Block, fit: Gram, held_out: Gram, target: str, write: Write) -> Repair:
    """Choose the ridge, solve, and write the weights."""
    ridge = best_ridge(fit, held_out, RIDGES, block.name)
    fit.merge(held_out)
    change, ridge = solve(fit, ridge, block.name)
    from_main_process([change])
    parameters = _consumers(model, [block])
    weight, *bias = parameters
    added = change[:, : change.shape[1] - len(bias)]
    if isinstance(model.base_model.get_submodule(block.consumer), Conv1D):
        added = added.T
    changes = {weight: added}
    if bias:
        changes[bias[0]] = change[:, -1]
    # added up before the one rounding, which counts in bfloat16
    write({name: value.to(changes[name]) + changes[name] for name, value in parameters.items()})
    return Repair(block=block.name, target=target, ridge=ridge, error_before=fit.error(), error_after=fit.error(change))


def _consumers(model: PreTrainedModel, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """By path from the base model: the weights of the blocks' consumers, each followed by the bias if there is one."""
    found = {}
    for block in blocks:
        consumer = model.base_model.get_submodule(block.consumer)
        for name in ("weight", "bias"):
            if getattr(consumer, name) is not None:
                found[f"{block.consumer}.{name}"] = consumer.get_parameter(name).detach()
    return found


@contextmanager
def _restored_on_error(model: PreTrainedModel, store: Store) -> Iterator[Write]:
    """A function that puts new values into parameters; they go back if the `with` is left by an error or an interrupt.

    What the parameters were is kept from the moment that they change.
    """
    changed: list[str] = []

    def write(values: Mapping[str, Tensor]) -> None:
        for path, value in values.items():
            parameter = model.base_model.get_parameter(path)
            store[f"before-{path}"] = parameter.detach().to(model.device, copy=True)
            changed.append(path)
            parameter.copy_(value)

    try:
        yield write
    except BaseException:
        for path in changed:
            model.base_model.get_parameter(path).data.copy_(store[f"before-{path}"])
        raise
