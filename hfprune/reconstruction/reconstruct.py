"""reconstruct(): new weights in closed form for the consumers of a pruned model, so that it follows the dense one."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hfprune.distributed import add_over_processes, from_main_process, process_rank, share_of
from hfprune.errors import NonFiniteScoreError
from hfprune.reconstruction.least_squares import Gram, best_ridge, solve
from hfprune.reconstruction.pairs import Pair, by_stack, matching
from hfprune.reconstruction.partial import PartialRun, Repair
from hfprune.reconstruction.streams import LayerStream, SharedStream
from hfprune.scoring.checks import check_batches
from hfprune.showing.progress import Progress, progress
from hfprune.structure.anatomy import Anatomy, ModelOrAnatomy, anatomy_of
from hfprune.structure.arguments import DEVICE, PATH, checked, optional
from hfprune.structure.batches import Batch, count_samples, token_mask
from hfprune.structure.blocks import Block, features_of
from hfprune.structure.running import frozen, outside_inference_mode
from hfprune.structure.sharing import alone_with
from hfprune.structure.store import Store

#: The ridges to try, as multiples of the mean of the Gram matrix's diagonal.
RIDGES = (1e-3, 1e-2, 1e-1, 1.0)
#: One sample in so many is held out while the ridge is chosen.
HELD_OUT = 4
Stream = LayerStream | SharedStream
#: By the name of a mask, the use of every token under it, `(samples, tokens)` or `(samples, 1)`: 0 for padding, 1 for
#: fitting, 2 for choosing the ridge.
Uses = dict[str, Tensor]
#: Puts new values into parameters of the pruned model, by path from its base model.
Write = Callable[[Mapping[str, Tensor]], None]


@checked(folder=optional(PATH), device=optional(DEVICE))
@outside_inference_mode
def reconstruct(
    pruned: ModelOrAnatomy,
    dense: ModelOrAnatomy,
    batches: Sequence[Batch],
    *,
    folder: str | Path | None = None,
    device: str | torch.device | None = None,
) -> list[Repair]:
    """Re-solve every consumer of a pruned model in place, so that the model follows the dense one: without labels.

    A consumer is the projection that reads the units of a block: the output projection of attention, or the second
    projection of a feed-forward network. Reconstruction goes from the first layer to the last. For every consumer, let
    x be its input in the pruned model, in which all earlier consumers are re-solved. Let e be the residual stream
    behind the consumer in the dense model, minus the same in the pruned model. The change of the weights solves a ridge
    regression:

        ΔW = argmin ‖X ΔWᵀ − E‖² + λ‖ΔW‖²  =  EᵀX (XᵀX + λI)⁻¹

    Where a consumer's output does not enter the residual stream as it is (a norm in between, a multiplier), e is the
    difference between the consumer's outputs. A bias is solved for where there is one. λ is the one of `RIDGES` with
    the smallest error on held-out samples; the final solution is computed on all samples. Products are float32 within a
    batch; sums over batches and solutions are float64, whatever the models' dtype.

    Over the batches, every layer runs about three times in the pruned model and once in the dense model, however many
    blocks there are. In memory are the hidden states of both models, the targets of one layer in the dense model, the
    consumers as they were, and the Gram matrices of one consumer. With a folder, all but the Gram matrices are in its
    files.

    Where `torch.distributed` is initialised, all processes must call it with the same batches. Each process then works
    on a share of them, the sums are added up, and all get the weights of the main process.

    Args:
        pruned: A pruned model, or its anatomy. Only weights and biases of its consumers change. After an error they are
            as before.
        dense: The model that it was pruned from, or the dense model before an earlier pruning; or its anatomy.
        batches: Calibration batches, as for `score`.
        folder: Keeps hidden states, and the new weights of every layer that is done. If the process is interrupted, the
            same call goes on from there and gives the same weights. In the end only the new weights are left: delete
            the folder once the model is saved. Several processes must see the same folder.
        device: The device on which layers run, one layer of each model at a time, while the models stay on the CPU.
            None, or a model with one layer that runs several times (ALBERT): layers run where they are.

    Returns:
        What was done to each consumer, in layer order.

    Raises:
        PlanMismatchError: The pruned model was not pruned from the dense one.
        CalibrationError: There are no batches.
        CheckpointError: The folder has the layers of a run with other models, batches or number of processes.
        StructureError: A model is spread over devices.
        NonFiniteScoreError: Hidden states are NaN or infinite.

    Examples:
        >>> import hfprune
        >>> scores = hfprune.score(dense, batches, scorer="l2")
        >>> small = hfprune.apply_plan(dense, hfprune.plan(dense, scores, config))
        >>> for repair in hfprune.reconstruct(small, dense, batches):
        ...     print(repair.block, repair.target, repair.error_after < repair.error_before)
        encoder.layer.0.attention residual_stream True
        encoder.layer.0.ffn residual_stream True
        encoder.layer.1.attention residual_stream True
        encoder.layer.1.ffn residual_stream True
    """
    small = anatomy_of(pruned)
    large = anatomy_of(dense, small.attention_unit)
    path = None if folder is None else Path(folder)
    return repair_model(small, large, batches, folder=path, device=device)


def repair_model(
    small: Anatomy,
    large: Anatomy,
    batches: Sequence[Batch],
    *,
    folder: Path | None = None,
    device: str | torch.device | None = None,
) -> list[Repair]:
    """Re-solve every consumer of a pruned model: what `reconstruct` does when both structures are known.

    Args:
        small: The anatomy of the pruned model.
        large: The anatomy of the dense model, with the same units of attention.
        batches: As for `reconstruct`.
        folder: As for `reconstruct`.
        device: As for `reconstruct`.

    Returns:
        What was done to each consumer, in layer order.

    Raises:
        PlanMismatchError: As for `reconstruct`.
        CalibrationError: As for `reconstruct`.
        CheckpointError: As for `reconstruct`.
        StructureError: As for `reconstruct`.
        NonFiniteScoreError: As for `reconstruct`.
    """
    pairs = matching(small, large)
    batches = check_batches(batches, small.model, taker="reconstruct")
    running_device = None if device is None else torch.device(device)
    working_folder: Path | None = None
    if folder is not None:
        # every process has the hidden states of its own share
        working_folder = folder / f"working-{process_rank()}"
    partial = PartialRun(folder, small.model, large.model, batches)
    store = Store(working_folder)
    with (
        alone_with(small.model, large.model),
        frozen(small.model),
        frozen(large.model),
        torch.no_grad(),
        _restored_on_error(small.model, store) as write,
        progress(len(pairs), desc="Reconstructing", unit="block") as counted,
    ):
        repair = _ModelRepair(
            small=small.model,
            large=large.model,
            share=_own_share(batches, {block.mask for block, _ in pairs}),
            store=store,
            device=running_device,
            write=write,
        )
        repairs = repair.run(pairs, partial, counted)
    if working_folder is not None:
        shutil.rmtree(working_folder)
    return repairs


@dataclass(frozen=True, kw_only=True)
class _ModelRepair:
    """The repair of one model, layer by layer.

    Attributes:
        small: The pruned model.
        large: The dense model.
        share: The batches of this process, with the use of every token.
        store: Keeps hidden states and targets.
        device: The device on which layers run. None: they run where they are.
        write: Puts new values into parameters of the pruned model.
    """

    small: PreTrainedModel
    large: PreTrainedModel
    share: Sequence[tuple[Batch, Uses]]
    store: Store
    device: torch.device | None
    write: Write

    def run(self, pairs: Sequence[Pair], partial: PartialRun, counted: Progress) -> list[Repair]:
        """Repair all layers, except those that an earlier run has repaired."""
        repairs: list[Repair] = []
        repaired_layers = partial.done()
        for weights, repairs_of_layer in repaired_layers:
            self.write(weights)
            repairs += repairs_of_layer
        counted.update(len(repairs))
        layers_before = 0
        for layers in by_stack(pairs):
            # how many layers of this stack were repaired by the earlier run
            start = max(0, len(repaired_layers) - layers_before)
            if start < len(layers):
                repairs += self._repair_stack(layers, start, layers_before, partial, counted)
            layers_before += len(layers)
        return repairs

    def _repair_stack(
        self,
        layers: Mapping[str, Sequence[Pair]],
        start: int,
        layers_before: int,
        partial: PartialRun,
        counted: Progress,
    ) -> list[Repair]:
        """Repair the layers of one stack.

        Args:
            layers: The blocks of each layer, by path of the layer.
            start: The first layer to repair.
            layers_before: How many layers the stacks before this one have together.
            partial: Keeps the layers that are done.
            counted: A progress bar over blocks.

        Returns:
            What was done to each consumer, in order.
        """
        paths = list(layers)
        first_block, _ = layers[paths[0]][0]
        is_repeated = first_block.uses > 1
        small = self._stream(self.small, "pruned", paths, start, is_repeated=is_repeated)
        large = self._stream(self.large, "dense", paths, start, is_repeated=is_repeated)
        repairs: list[Repair] = []
        for place in range(start, len(paths)):
            pairs = layers[paths[place]]
            with small.at_work(), large.at_work():
                repairs_of_layer = self._repair_layer(small, large, pairs)
                small.advance()
                large.advance()
            weights = _consumer_parameters(self.small, [block for block, _ in pairs])
            # only now: the hidden states behind the layer are in the store, so a later run can go on from them
            partial.add(layers_before + place, weights, repairs_of_layer)
            repairs += repairs_of_layer
            counted.update(len(repairs_of_layer))
        return repairs

    def _stream(
        self, model: PreTrainedModel, name: str, paths: Sequence[str], start: int, *, is_repeated: bool
    ) -> Stream:
        """The hidden states of one model before the layer `start`."""
        batches = [batch for batch, _ in self.share]
        # a layer that runs several times has no single place between the other layers
        if is_repeated:
            return SharedStream(model, batches)
        return LayerStream(model, paths, batches, store=self.store, name=name, start=start, device=self.device)

    def _repair_layer(self, small: Stream, large: Stream, pairs: Sequence[Pair]) -> list[Repair]:
        """Repair the blocks of the next layer. All blocks before it are repaired already."""
        sums = {}
        originals = []
        for block, original in pairs:
            sums[block.name] = _residual_sum(large, original)
            originals.append(original)
        self._keep_targets(large, originals, sums)
        batches = range(len(self.share))
        repairs = []
        for block, _ in pairs:
            # from the store one at a time, as they may be in files
            targets = (self.store[_target_key(block.name, index)] for index in batches)
            uses = [use_by_mask[block.mask] for _, use_by_mask in self.share]
            fit, held_out = _accumulate(small, block, sums[block.name], targets, uses)
            target = "output" if sums[block.name] is None else "residual_stream"
            repairs.append(_repair(self.small, block, fit, held_out, target, self.write))
            for index in batches:
                self.store.drop(_target_key(block.name, index))
        return repairs

    def _keep_targets(self, large: Stream, blocks: Sequence[Block], sums: Mapping[str, str | None]) -> None:
        """Run a layer of the dense model once, and keep the targets of all its blocks for all batches."""
        for index in range(len(self.share)):
            readings = large.read(index, blocks, sums, to_the_end=True)
            for name, reading in readings.items():
                self.store[_target_key(name, index)] = reading.target.to(self.large.device)


def _target_key(block: str, index: int) -> str:
    """The name in the store of the target of a block for one batch."""
    return f"target-{block}-{index}"


def _own_share(batches: Sequence[Batch], masks: AbstractSet[str]) -> list[tuple[Batch, Uses]]:
    """The batches of this process, with the use of every token."""
    all_batches = _with_held_out(batches, masks)
    share = [element for _, element in share_of(all_batches)]
    if share:
        return share
    # All processes must run the same steps, as they wait for each other when sums are added up. So a process without a
    # share runs the first batch, and counts none of its tokens.
    batch, uses = all_batches[0]
    no_uses = {mask: torch.zeros_like(use) for mask, use in uses.items()}
    return [(batch, no_uses)]


def _with_held_out(batches: Sequence[Batch], masks: AbstractSet[str]) -> list[tuple[Batch, Uses]]:
    """All batches, with the use of every token under each mask."""
    samples_before = 0
    with_uses = []
    for batch in batches:
        # by the number of the sample among all, so that the choice does not depend on how samples are batched
        samples = torch.arange(samples_before, samples_before + count_samples(batch), dtype=torch.long, device="cpu")
        is_held_out = samples % HELD_OUT == HELD_OUT - 1
        use_of_sample = 1 + is_held_out.long()[:, None]
        uses = {}
        for name in sorted(masks):
            mask = token_mask(batch, name)
            uses[name] = use_of_sample if mask is None else use_of_sample * mask.cpu()
        with_uses.append((batch, uses))
        samples_before += len(samples)
    return with_uses


def _residual_sum(dense: Stream, block: Block) -> str | None:
    """`block.residual_sum` if the consumer's output is really added there as it is, else None.

    An entry of the table may be right for some configs only (OPT has its norms in two places), so it is tried: if the
    consumer's output grows by some multiple of itself, the sum must change by that multiple. The multiple makes the
    change as large as the sum, so that rounding of the sum does not hide it. Of several processes the main one decides.
    """
    if block.residual_sum is None:
        return None
    consumer = dense.model.base_model.get_submodule(block.consumer)
    outputs: list[Tensor] = []
    sums: list[Tensor] = []
    multiple = 0.0

    def add_multiple(_: nn.Module, __: object, output: Tensor) -> Tensor:
        outputs.append(output.float())
        return (1 + multiple) * output

    hook = consumer.register_forward_hook(add_multiple)
    try:
        for _ in range(2):
            reading = dense.read(0, [block], {block.name: block.residual_sum})[block.name]
            # of a layer that runs several times only the first use: the inputs of later ones change with it
            sums.append(reading.target.float().flatten()[: outputs[0].numel()])
            multiple = max(1.0, float(sums[0].norm() / outputs[0].norm().clamp(min=1e-12)))
    finally:
        hook.remove()
    expected = multiple * outputs[0].flatten()
    is_added = ((sums[1] - sums[0] - expected).norm() <= 0.1 * expected.norm()).float()
    from_main_process([is_added])
    return block.residual_sum if is_added else None


def _accumulate(
    stream: Stream, block: Block, residual_sum: str | None, targets: Iterable[Tensor], uses: Sequence[Tensor]
) -> tuple[Gram, Gram]:
    """The sums for the ridge regression of one consumer.

    Args:
        stream: The pruned model.
        block: Its block.
        residual_sum: Where to read the residual sum, or None to read the consumer's output.
        targets: For each batch, the same residual sum or output in the dense model.
        uses: For each batch, the use of every token.

    Returns:
        The sums over the tokens for fitting, and over the held-out tokens.

    Raises:
        NonFiniteScoreError: Hidden states are NaN or infinite.
    """
    consumer = stream.model.base_model.get_submodule(block.consumer)
    columns, outputs = features_of(consumer)
    has_bias = consumer.bias is not None
    # of the layer, as an emptied consumer may have no parameter
    device = next(stream.model.base_model.get_submodule(block.layer).parameters()).device
    fit = Gram.zeros(columns + has_bias, outputs, device)
    held_out = Gram.zeros(columns + has_bias, outputs, device)
    for index, (target, use) in enumerate(zip(targets, uses, strict=True)):
        x, value = stream.read(index, [block], {block.name: residual_sum})[block.name]
        missing = (target.to(value.device).float() - value.float()).reshape(-1, outputs)
        # the same name, so that what was read is freed
        x = x.float().reshape(len(missing), columns)
        # a bias is the weight of a column of ones
        x = nn.functional.pad(x, (0, int(has_bias)), value=1.0)
        use = _use_of_rows(use, len(missing), block.uses).to(x.device)
        fit.add(x[use == 1], missing[use == 1])
        held_out.add(x[use == 2], missing[use == 2])
    for gram in (fit, held_out):
        add_over_processes(gram)
        if not all(torch.isfinite(total).all() for total in gram):
            raise NonFiniteScoreError(
                f"hidden states at block {block.name!r} are NaN or infinite in the dense or the pruned model. No "
                "weight was changed. Look for NaN weights or inputs, or for an overflow in float16: use bfloat16 or "
                "float32."
            )
    return fit, held_out


def _use_of_rows(use: Tensor, rows: int, uses_of_layer: int) -> Tensor:
    """The use of every row of a consumer's input, `(rows,)`.

    Args:
        use: The use of every token, `(samples, tokens)` or `(samples, 1)`.
        rows: The rows of the input: tokens times the runs of the layer.
        uses_of_layer: How often the layer runs in one pass.

    Returns:
        One number for each row.
    """
    tokens = rows // uses_of_layer
    # Without a mask, or with the mask of a waveform, there are no uses of tokens: a sample is used as a whole.
    if use.numel() != tokens:
        use = use.amax(1, keepdim=True).expand(-1, tokens // len(use))
    return use.flatten().repeat(uses_of_layer)


def _repair(model: PreTrainedModel, block: Block, fit: Gram, held_out: Gram, target: str, write: Write) -> Repair:
    """Choose the ridge, solve for the change of one consumer, and write its new parameters."""
    ridge = best_ridge(fit, held_out, RIDGES, block.name)
    # the ridge is chosen, so the held-out samples can be fitted too
    fit.merge(held_out)
    change, ridge = solve(fit, ridge, block.name)
    from_main_process([change])
    parameters = _consumer_parameters(model, [block])
    consumer = model.base_model.get_submodule(block.consumer)
    changes = {f"{block.consumer}.weight": change}
    if consumer.bias is not None:
        changes[f"{block.consumer}.weight"] = change[:, :-1]
        changes[f"{block.consumer}.bias"] = change[:, -1]
    # Conv1D of GPT-2 is a Linear whose weight is transposed
    if isinstance(consumer, Conv1D):
        changes[f"{block.consumer}.weight"] = changes[f"{block.consumer}.weight"].T
    new_values = {}
    for path, value in parameters.items():
        # summed in float64 and rounded once, which matters in bfloat16
        new_values[path] = value.to(changes[path]) + changes[path]
    write(new_values)
    return Repair(block=block.name, target=target, ridge=ridge, error_before=fit.error(), error_after=fit.error(change))


def _consumer_parameters(model: PreTrainedModel, blocks: Sequence[Block]) -> dict[str, Tensor]:
    """Weight and bias (if there is one) of the consumers of blocks, by path from the base model."""
    parameters = {}
    for block in blocks:
        consumer = model.base_model.get_submodule(block.consumer)
        for name in ("weight", "bias"):
            if getattr(consumer, name) is not None:
                parameters[f"{block.consumer}.{name}"] = consumer.get_parameter(name).detach()
    return parameters


@contextmanager
def _restored_on_error(model: PreTrainedModel, store: Store) -> Iterator[Write]:
    """Give a function that puts new values into parameters, and undo its changes if the `with` ends in an error.

    An interrupt counts as an error. Old values are kept only of parameters that change.
    """
    changed: list[str] = []

    def write(values: Mapping[str, Tensor]) -> None:
        for path, value in values.items():
            parameter = model.base_model.get_parameter(path)
            # a copy on the model's own device, as a layer may be at work on another one now
            store[f"before-{path}"] = parameter.detach().to(model.device, copy=True)
            changed.append(path)
            parameter.copy_(value)

    try:
        yield write
    except BaseException:
        for path in changed:
            model.base_model.get_parameter(path).data.copy_(store[f"before-{path}"])
        raise
