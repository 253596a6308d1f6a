"""The milliseconds of a pruned model, measured beside what a latency table predicted."""

import logging
from dataclasses import asdict
from typing import Any

from transformers import PreTrainedModel

from hfprune.measuring.latency import measure_latencies
from hfprune.measuring.latency_table import LatencyTable
from hfprune.measuring.table_checks import difference_to_table

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
        its backend; or if they could not be timed.
    """
    difference = difference_to_table(dense, table)
    if difference:
        logger.warning("the latency was not measured: the table is of %s. It was predicted only.", difference)
        return {}
    # a model that was pruned for hours must not be lost because it could not be timed
    try:
        measured = measure_latencies([dense, pruned], **table.timing, runs=min(table.runs, _RUNS) or _RUNS)
    except Exception as error:  # noqa: BLE001 (whatever fails, the pruned model is worth more than its timing)
        logger.warning("the latency could not be measured, and was predicted only: %s: %s", type(error).__name__, error)
        return {}
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
