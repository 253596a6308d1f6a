"""Parameters, MACs, bytes and latency of a whole model: the one definition of each."""

import inspect
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hfprune.structure.blocks import check_attention_unit
from hfprune.structure.examples import example_inputs
from hfprune.structure.gates import Batch, frozen
from hfprune.structure.reading import find_blocks
from hfprune.structure.specs import AttentionUnit


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one forward pass, and how it was measured.

    Attributes:
        median_ms: Median over the runs.
        low_ms: 10th percentile.
        high_ms: 90th percentile.
        runs: How many runs were timed, after warm-up.
        batch_size: Sequences in a batch.
        sequence_length: Tokens in a sequence.
        device: Such as `cpu`.
        dtype: Such as `float32`.
        threads: Threads that PyTorch used.
    """

    median_ms: float
    low_ms: float
    high_ms: float
    runs: int
    batch_size: int
    sequence_length: int
    device: str
    dtype: str
    threads: int


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model is and costs.

    Attributes:
        params: All parameters, tied ones once.
        prunable_params: Parameters of all units: what a budget of `params` counts.
        macs: Multiply-adds of one forward pass over one sequence, everything included.
        prunable_macs: Multiply-adds of all units for one sequence: what a budget of `macs` counts.
        sequence_length: Tokens in that sequence.
        weight_bytes: Bytes of all parameters and buffers in the present dtype.
    """

    params: int
    prunable_params: int
    macs: int
    prunable_macs: int
    sequence_length: int
    weight_bytes: int


def measure_size(model: PreTrainedModel, *, sequence_length: int, attention_unit: AttentionUnit | None = None) -> Size:
    """Count parameters, multiply-adds and bytes.

    Args:
        model: The model, dense or pruned.
        sequence_length: Tokens in a sequence, for the multiply-adds.
        attention_unit: What units are, as for `find_blocks`: it says what is prunable.

    Returns:
        The counts.
    """
    blocks = find_blocks(model, attention_unit)
    parameters = list(model.parameters())
    return Size(
        params=sum(p.numel() for p in parameters),
        prunable_params=sum(block.units * block.unit_params for block in blocks),
        macs=count_macs(model, sequence_length=sequence_length),
        prunable_macs=sum(block.units * block.unit_macs(sequence_length) for block in blocks),
        sequence_length=sequence_length,
        weight_bytes=sum(t.numel() * t.element_size() for t in [*parameters, *model.buffers()]),
    )


def longest_sequence(model: PreTrainedModel) -> int | None:
    """How many tokens the model has positions for; None if its config does not say."""
    longest: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            longest = module.num_embeddings - module.padding_idx - 1  # RoBERTa's positions start behind the padding
    return longest


def check_length(model: PreTrainedModel, sequence_length: int, *, option: str = "sequence_length") -> None:
    """Refuse sequences that the model has no positions for.

    Args:
        model: The model.
        sequence_length: Tokens in a sequence.
        option: What the user set it by.

    Raises:
        ValueError: They are more than the model has positions for.
    """
    longest = longest_sequence(model)
    if longest is not None and sequence_length > longest:
        raise ValueError(
            f"{option}={sequence_length} is more than the model's {longest} positions. Set the length that it "
            "will be used with; windows and texts must not be longer either (window, max_length)."
        )


def count_macs(model: PreTrainedModel, *, sequence_length: int) -> int:
    """Multiply-adds of one forward pass over one sequence: half of what PyTorch's FlopCounterMode counts.

    Attention counts all pairs of tokens, causal or not.

    Args:
        model: The model.
        sequence_length: Tokens in the sequence.

    Returns:
        Multiply-adds.

    Raises:
        ValueError: The model has no positions for so long a sequence.
    """
    check_length(model, sequence_length)
    inputs = _example(model, 1, sequence_length)
    counter = FlopCounterMode(display=False)
    # PyTorch's own attention kernels are not all known to the counter; its plain matrix products are.
    with frozen(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(**inputs)
    return counter.get_total_flops() // 2


def kv_cache_bytes(model: PreTrainedModel) -> int:
    """Bytes of the key/value cache for every token, in the model's dtype; 0 for a model without one.

    It is measured on a short text. In an encoder-decoder cross-attention counts too, for every token of the source.

    Args:
        model: The model, dense or pruned.

    Returns:
        Bytes a token, in all layers together.
    """
    if "use_cache" not in inspect.signature(model.forward).parameters:
        return 0
    with frozen(model), torch.no_grad():
        cache = getattr(model(**_example(model, 1, 4), use_cache=True), "past_key_values", None)
    parts = (getattr(cache, "self_attention_cache", cache), getattr(cache, "cross_attention_cache", None))
    layers = [layer for part in parts if part is not None for layer in part.layers]
    tensors = [t for layer in layers for t in (layer.keys, layer.values) if t is not None and t.numel()]
    return sum(t.numel() * t.element_size() // t.shape[-2] for t in tensors)


def checkpoint_bytes(folder: str | Path) -> int:
    """Bytes on disk of the weight files (safetensors) in a checkpoint folder."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def measure_latency(
    model: PreTrainedModel, *, batch_size: int = 32, sequence_length: int = 128, runs: int = 20, warmup: int = 3
) -> Latency:
    """Time forward passes without padding, on the model's device and dtype. The model is left as it was.

    Args:
        model: The model.
        batch_size: Sequences in a batch.
        sequence_length: Tokens in a sequence.
        runs: How many passes are timed.
        warmup: How many passes come before, untimed.

    Returns:
        Median and spread.

    Raises:
        ValueError: The model cannot take so long a sequence, or a number is not positive.
    """
    shape = {"batch_size": batch_size, "sequence_length": sequence_length}
    return measure_latencies([model], **shape, runs=runs, warmup=warmup)[0]


def check_timing(model: PreTrainedModel, *, batch_size: int, sequence_length: int, runs: int = 20) -> None:
    """Find out before any work whether a model can be timed.

    Args:
        model: The model.
        batch_size: Sequences in a batch.
        sequence_length: Tokens in a sequence.
        runs: How many passes are timed.

    Raises:
        ValueError: The model cannot take so long a sequence, or a number is not positive.
    """
    check_length(model, sequence_length)
    for name, value in {"batch_size": batch_size, "runs": runs}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def measure_latencies(
    models: list[PreTrainedModel], *, batch_size: int, sequence_length: int, runs: int = 20, warmup: int = 3
) -> list[Latency]:
    """Time several models in turn, run by run, so that whatever else the machine does meets them alike.

    Args:
        models: The models.
        batch_size: Sequences in a batch.
        sequence_length: Tokens in a sequence.
        runs: How many passes of each are timed.
        warmup: How many passes come before, untimed.

    Returns:
        Median and spread of each.

    Raises:
        ValueError: A model cannot take so long a sequence, or a number is not positive.
    """
    for model in models:
        check_timing(model, batch_size=batch_size, sequence_length=sequence_length, runs=runs)
    times: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack, torch.inference_mode():
        for model in models:
            stack.enter_context(frozen(model))
        for run in range(-warmup, runs):
            for model, measured in zip(models, times, strict=True):
                elapsed = _time_once(model, _example(model, batch_size, sequence_length))
                if run >= 0:
                    measured.append(elapsed * 1000)
    return [
        Latency(
            median_ms=statistics.median(measured),
            low_ms=sorted(measured)[len(measured) // 10],
            high_ms=sorted(measured)[-1 - len(measured) // 10],
            runs=runs,
            batch_size=batch_size,
            sequence_length=sequence_length,
            device=str(model.device),
            dtype=str(model.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )
        for model, measured in zip(models, times, strict=True)
    ]


def _example(model: PreTrainedModel, batch_size: int, sequence_length: int) -> Batch:
    return example_inputs(model, torch.full((batch_size, sequence_length), 5))


def _time_once(model: PreTrainedModel, inputs: Batch) -> float:
    _synchronize(model.device)
    start = time.perf_counter()
    model(**inputs)
    _synchronize(model.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def dense_units(model: PreTrainedModel, attention_unit: AttentionUnit | None = None) -> dict[str, int]:
    """How many units the dense model has, by block name: by the plan that a pruned model carries.

    Args:
        model: A model, pruned or not.
        attention_unit: What units are, as for `find_blocks`.

    Returns:
        By block name, the number of units.

    Raises:
        PlanMismatchError: The model was pruned by other units.
    """
    found = {block.name: block.units for block in find_blocks(model, attention_unit)}
    attached = getattr(model, "pruning_plan", None)
    if attached is None:
        return found
    check_attention_unit(attached.blocks, found)
    return {name: block.units for name, block in attached.blocks.items()}


def dense_size(model: PreTrainedModel, size: Size) -> Size:
    """What the dense model measures: this one, and the units that its plan removed.

    Args:
        model: A model, pruned or not.
        size: What it measures.

    Returns:
        The size of the dense model, for the same sequence length.
    """
    units = dense_units(model)
    gone = [(block, units[block.name] - block.units) for block in find_blocks(model)]
    params = sum(count * block.unit_params for block, count in gone)
    macs = sum(count * block.unit_macs(size.sequence_length) for block, count in gone)
    return Size(
        params=size.params + params,
        prunable_params=size.prunable_params + params,
        macs=size.macs + macs,
        prunable_macs=size.prunable_macs + macs,
        sequence_length=size.sequence_length,
        weight_bytes=size.weight_bytes + params * model.dtype.itemsize,
    )
