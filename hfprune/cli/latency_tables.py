"""The work of `hfprune latency-table`."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants

from hfprune.deployment.loading import load_model
from hfprune.measuring.backends import get_backend
from hfprune.measuring.block_times import measure_latency_table
from hfprune.measuring.latency_table import LatencyTable
from hfprune.structure.specs import AttentionUnit


@dataclass(frozen=True, kw_only=True)
class TableRequest:
    """What a user asks `hfprune latency-table` for.

    Attributes:
        model: Folder or repository.
        backend: How the model is run.
        batch_size: Sequences in a batch.
        sequence_length: Tokens in a sequence.
        threads: Threads of PyTorch; None: as many as it takes.
        device: Where PyTorch runs the model, `cpu` or `cuda`.
        dtype: The name of the type of the weights; None: the model's own.
        attention_unit: What one unit of attention is.
        runs: Timed passes for every width.
        again: Whether to measure what the cache has.
    """

    model: str
    backend: str
    batch_size: int
    sequence_length: int
    threads: int | None
    device: str
    dtype: str | None
    attention_unit: AttentionUnit
    runs: int
    again: bool


def latency_table_of(request: TableRequest) -> LatencyTable:
    """Measure a table, or take it from the cache.

    Args:
        request: Of which model, and how.

    Returns:
        The table.

    Raises:
        PlanMismatchError: The model was pruned already.
        UnsupportedArchitectureError: The model cannot be pruned.
        ValueError: The backend is unknown, PyTorch sees no GPU here, or the sequence is too long.
    """
    # before the model is loaded
    get_backend(request.backend)
    if request.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: PyTorch sees no GPU here. Leave it out to time the model on the CPU.")
    dtype: torch.dtype | None = None
    if request.dtype is not None:
        dtype = getattr(torch, request.dtype)
    return measure_latency_table(
        load_model(request.model).to(request.device),
        batch_size=request.batch_size,
        sequence_length=request.sequence_length,
        threads=request.threads,
        backend=request.backend,
        dtype=dtype,
        runs=request.runs,
        attention_unit=request.attention_unit,
        cache=Path(constants.HF_HOME) / "hfprune" / "latency_tables",
        again=request.again,
    )
