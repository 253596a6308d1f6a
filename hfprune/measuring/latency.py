"""Latency: the time of a forward pass, and how it was measured."""

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hfprune.errors import StructureError, UnsupportedArchitectureError
from hfprune.measuring.backends import Run, get_backend
from hfprune.measuring.size import example_batch
from hfprune.structure.anatomy import anatomy_of
from hfprune.structure.arguments import TEXT, checked, optional, whole
from hfprune.structure.batches import Batch
from hfprune.structure.examples import check_length
from hfprune.structure.running import frozen
from hfprune.structure.wrapping import inner


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one forward pass, and how it was measured.

    Attributes:
        median_ms: Median over the runs.
        low_ms: 10th percentile.
        high_ms: 90th percentile.
        runs: Number of timed passes, after the warm-up.
        batch_size: Sequences in a batch.
        sequence_length: Tokens in a sequence.
        device: Such as `cpu`.
        dtype: Such as `float32`.
        threads: Threads that PyTorch used on the CPU.
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


@checked(batch_size=whole(), sequence_length=whole(least=1), runs=whole(), warmup=whole(least=0))
def measure_latency(
    model: PreTrainedModel, *, batch_size: int = 32, sequence_length: int = 128, runs: int = 20, warmup: int = 3
) -> Latency:
    """Time forward passes without padding, on the model's device and dtype. The model is left as it was.

    Args:
        model: The model.
        batch_size: Sequences in a batch.
        sequence_length: Tokens in a sequence.
        runs: Number of timed passes.
        warmup: Number of untimed passes before them.

    Returns:
        Median and spread.

    Raises:
        ValueError: The model cannot take so long a sequence, or a number is not positive.

    Examples:
        >>> from hfprune.measuring.latency import measure_latency
        >>> latency = measure_latency(dense, batch_size=2, sequence_length=8, runs=5)
        >>> latency.low_ms <= latency.median_ms <= latency.high_ms
        True
        >>> latency.device, latency.dtype
        ('cpu', 'float32')
    """
    latencies = measure_latencies(
        [model], batch_size=batch_size, sequence_length=sequence_length, runs=runs, warmup=warmup
    )
    return latencies[0]


def check_timing(model: PreTrainedModel, *, batch_size: int, sequence_length: int, runs: int = 20) -> None:
    """Refuse a model or numbers that cannot be timed; callers do so before long work.

    Args:
        model: The model.
        batch_size: Sequences in a batch.
        sequence_length: Tokens in a sequence.
        runs: Number of timed passes.

    Raises:
        ValueError: The model cannot take so long a sequence, or a number is not positive.
    """
    check_length(model, sequence_length)
    for name, value in {"batch_size": batch_size, "runs": runs}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


@checked(
    batch_size=whole(),
    sequence_length=whole(least=1),
    runs=whole(),
    warmup=whole(least=0),
    backend=TEXT,
    threads=optional(whole(least=1)),
)
def measure_latencies(
    models: list[PreTrainedModel],
    *,
    batch_size: int,
    sequence_length: int,
    runs: int = 20,
    warmup: int = 3,
    backend: str = "eager",
    threads: int | None = None,
) -> list[Latency]:
    """Time several models in turn, one pass of each after the other.

    Other work on the machine then slows all models alike, instead of only the one that runs at that moment.

    Args:
        models: The models.
        batch_size: Sequences in a batch.
        sequence_length: Tokens in a sequence.
        runs: Number of timed passes of each model.
        warmup: Number of untimed passes before them.
        backend: How the models are run: the name of a registered backend.
        threads: Threads of PyTorch on the CPU during that time; None: as many as it has now.

    Returns:
        Median and spread of each model.

    Raises:
        ValueError: A model cannot take so long a sequence, a number is not positive, or the backend is unknown.

    Examples:
        >>> import hfprune
        >>> from hfprune.measuring.latency import measure_latencies
        >>> small = hfprune.prune(dense, dataset, config, collator=collator)
        >>> before, after = measure_latencies([dense, small], batch_size=1, sequence_length=8, runs=5)
        >>> speed_up = before.median_ms / after.median_ms
        >>> before.runs, after.runs, before.threads == after.threads
        (5, 5, True)
    """
    for model in models:
        check_timing(model, batch_size=batch_size, sequence_length=sequence_length, runs=runs)
    with threads_of_torch(threads):
        milliseconds = times_in_turn(
            models,
            batch_size=batch_size,
            sequence_length=sequence_length,
            runs=runs,
            warmup=warmup,
            backend=backend,
        )
        used_threads = torch.get_num_threads()
    latencies: list[Latency] = []
    for model, measured in zip(models, milliseconds, strict=True):
        measured.sort()
        tenth = len(measured) // 10
        latency = Latency(
            median_ms=statistics.median(measured),
            low_ms=measured[tenth],
            high_ms=measured[-1 - tenth],
            runs=runs,
            batch_size=batch_size,
            sequence_length=_tokens_of(inner(model), sequence_length),
            device=str(inner(model).device),
            dtype=str(inner(model).dtype).removeprefix("torch."),
            threads=used_threads,
        )
        latencies.append(latency)
    return latencies


def times_in_turn(
    models: Sequence[PreTrainedModel],
    *,
    batch_size: int,
    sequence_length: int,
    runs: int,
    warmup: int,
    backend: str = "eager",
) -> list[list[float]]:
    """The time of every pass of several models that take turns, in milliseconds.

    Args:
        models: The models.
        batch_size: Sequences in a batch.
        sequence_length: Tokens in a sequence.
        runs: Number of timed passes of each model.
        warmup: Number of untimed passes before them.
        backend: How the models are run.

    Returns:
        For each model the times in the order in which they were taken. Passes of the same number follow each other.
    """
    chosen = get_backend(backend)
    milliseconds: list[list[float]] = [[] for _ in models]
    with ExitStack() as stack, torch.inference_mode():
        runners: list[Run] = []
        for model in models:
            stack.enter_context(frozen(model))
            runners.append(chosen.prepare(model, example_batch(model, batch_size, sequence_length)))
        # Passes with a negative number are the warm-up.
        for number in range(-warmup, runs):
            for model, run, measured in zip(models, runners, milliseconds, strict=True):
                # Made before the clock starts: the copy to the device is no part of the pass.
                inputs = example_batch(model, batch_size, sequence_length)
                elapsed = _seconds_of_one_pass(run, inputs, inner(model).device)
                if number >= 0:
                    measured.append(elapsed * 1000)
    return milliseconds


@contextmanager
def threads_of_torch(threads: int | None) -> Iterator[None]:
    """Another number of threads for PyTorch on the CPU, inside the `with`.

    Args:
        threads: The number; None leaves it as it is.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def _tokens_of(model: PreTrainedModel, asked: int) -> int:
    """How many tokens the sequences had that were timed: as many as asked for, or as the input of the model fixes."""
    if model.main_input_name == "input_ids":
        return asked
    try:
        return anatomy_of(model).sequence_length(asked)
    except (StructureError, UnsupportedArchitectureError):
        # a model that hfprune cannot prune can be timed all the same
        return asked


def _seconds_of_one_pass(run: Run, inputs: Batch, device: torch.device) -> float:
    # Kernels of a GPU run after the call that starts them has returned, so the clock waits for them at both ends.
    _synchronize(device)
    start = time.perf_counter()
    run(inputs)
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
