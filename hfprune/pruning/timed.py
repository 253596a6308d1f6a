"""The milliseconds of a pruned model, measured beside what a latency table predicted."""

import logging
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel

from hfprune.measuring.backends import known_backends
from hfprune.measuring.latency import measure_latencies
from hfprune.measuring.latency_table import LatencyTable
from hfprune.structure.wrapping import inner

logger = logging.getLogger(__name__)
#: The most passes of each model. A table may have been measured with more, for the sake of small differences.
_RUNS = 20


def measured_and_predicted(
    dense: PreTrainedModel, pruned: PreTrainedModel, table: LatencyTable
) -> dict[str, dict[str, Any]]:
    """Time the dense and the pruned model as the table was measured, in turn.

    Args:
        dense: The model that was pruned. If it was pruned before, what its plan says counts.
        pruned: The pruned model, with its plan.
        table: The table.

    Returns:
        For a record: under `dense` and `pruned` the fields of a `Latency`, `predicted_ms`, and the `backend` where it
        is not `eager`. Empty if the models are not as the table says: on another device, of another dtype, or without
        its backend.
    """
    difference = _difference(dense, table)
    if difference:
        logger.warning("the latency was not measured: the table is of %s. It was predicted only.", difference)
        return {}
    measured = measure_latencies([dense, pruned], **table.timing, runs=min(table.runs, _RUNS) or _RUNS)
    before = getattr(dense, "pruning_plan", None)
    units = {
        "dense": pruned.pruning_plan.units_before if before is None else before.units_after,
        "pruned": pruned.pruning_plan.units_after,
    }
    found: dict[str, dict[str, Any]] = {}
    for stage, latency in zip(units, measured, strict=True):
        found[stage] = {**asdict(latency), "predicted_ms": table.milliseconds(units[stage])}
        if table.backend != "eager":
            found[stage]["backend"] = table.backend
    return found


def _difference(model: PreTrainedModel, table: LatencyTable) -> str:
    """What the table is of and this model is not, in words; empty if it can be timed as the table was."""
    device = inner(model).device.type
    dtype = str(inner(model).dtype).removeprefix("torch.")
    if table.device != device:
        return f"{table.device}, and the model is on {device}"
    if table.dtype != dtype:
        return f"{table.dtype}, and the model is {dtype}"
    if table.backend not in known_backends():
        return f"the backend {table.backend!r}, which is not registered here"
    return ""
