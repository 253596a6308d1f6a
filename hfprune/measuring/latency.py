"""Latency: the time of a forward pass, and how it was measured."""

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hfprune.measuring.size import check_length
from hfprune.structure.batches import Batch
from hfprune.structure.examples import example_inputs
from hfprune.structure.running import frozen


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
                elapsed = _time_once(model, example_inputs(model, torch.full((batch_size, sequence_length), 5)))
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


def _time_once(model: PreTrainedModel, inputs: Batch) -> float:
    _synchronize(model.device)
    start = time.perf_counter()
    model(**inputs)
    _synchronize(model.device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
