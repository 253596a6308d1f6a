"""Data of the user: rows as batches, and the metrics of a model in PyTorch and of the exported one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import EvalPrediction, PreTrainedModel

from hfprune.deployment.examples import arguments_in, with_positions
from hfprune.deployment.proof import Comparison, Reading, in_pytorch
from hfprune.deployment.targets import Runner
from hfprune.measuring.metrics import check_metrics, compute_metrics_for, default_metrics
from hfprune.structure.predictions import predicts_number
from hfprune.structure.wrapping import argument_names

#: Makes a batch from a list of rows.
Collator = Callable[[list[dict[str, Any]]], Mapping[str, Any]]
_ROWS_IN_A_BATCH = 32
#: Rows whose activations a quantiser sees, and how many at a time.
_CALIBRATION_ROWS = 128
_CALIBRATION_BATCH = 8


def calibration_batches(model: PreTrainedModel, data: Any, collator: Collator) -> list[dict[str, Tensor]]:
    """Batches for a quantiser, of a seeded sample of the rows: their order may be that of their labels.

    Args:
        model: The model.
        data: Rows.
        collator: Makes batches of them.

    Returns:
        The batches, without labels.
    """
    batches = []
    generator = torch.Generator().manual_seed(0)
    rows = torch.randperm(len(data), dtype=torch.long, device="cpu", generator=generator)[:_CALIBRATION_ROWS].tolist()
    for start in range(0, len(rows), _CALIBRATION_BATCH):
        batch = _batch_of(model, data, rows[start : start + _CALIBRATION_BATCH], collator)
        batches.append(arguments_in(model, batch))
    return batches


def check_rows(model: PreTrainedModel, data: Any, metrics: Sequence[str], reading: Reading) -> None:
    """Refuse data and metrics that do not fit, before a model is written.

    Args:
        model: The model.
        data: Rows.
        metrics: Names of metrics.
        reading: What the outputs of the model mean.

    Raises:
        ValueError: There are no rows, a metric is unknown or does not fit the model, or it needs labels that are not
            there.
    """
    if not len(data):
        raise ValueError("the data has no rows to compare the exported model on.")
    if not metrics:
        return
    if not reading.is_of_samples:
        raise ValueError(
            f"the metric {metrics[0]} is for a class or a number of every sample, and {type(model).__name__} predicts "
            "something else. Leave metrics out: the outputs are compared without."
        )
    check_metrics(metrics, regression=predicts_number(model.config))
    if not {"labels", "label", "label_ids"} & set(data[0]):
        raise ValueError(f"the metric {metrics[0]} needs labels of every sample, and the data has none.")


def evaluate(
    model: PreTrainedModel,
    runner: Runner,
    data: Any,
    *,
    comparison: Comparison,
    collator: Collator,
    metrics: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Run a model and the exported one on data.

    Args:
        model: The model, in evaluation mode.
        runner: The exported model.
        data: Rows.
        comparison: Counts the outputs of both.
        collator: Makes batches of them.
        metrics: Names of metrics; by default the usual one of a classifier or a regression.

    Returns:
        By `pytorch` and `exported`, the metrics by name; empty where the data has no labels, or they are no class or
        number a sample.

    Raises:
        ExportError: The outputs have different shapes, or are not finite.
        ValueError: A metric is unknown, or does not fit.
    """
    reference = in_pytorch(model)
    outputs: dict[str, list[Tensor]] = {"pytorch": [], "exported": []}
    labels: list[Tensor] = []
    for start in range(0, len(data), _ROWS_IN_A_BATCH):
        rows = range(start, min(start + _ROWS_IN_A_BATCH, len(data)))
        batch = _batch_of(model, data, rows, collator)
        arguments = with_positions(model, arguments_in(model, batch))
        expected, found = reference(arguments), runner(arguments)
        comparison.add(expected, found, arguments)
        # the logits of tokens would fill the memory, and no metric here reads them
        if expected.ndim == 2 and isinstance(batch.get("labels"), Tensor):
            outputs["pytorch"].append(expected)
            outputs["exported"].append(found)
            labels.append(batch["labels"])
    return _metrics(model, outputs, labels, names=list(metrics))


def _metrics(
    model: PreTrainedModel, outputs: Mapping[str, list[Tensor]], labels: list[Tensor], *, names: list[str]
) -> dict[str, dict[str, float]]:
    """The metrics of both models; none where there are no labels of samples."""
    if not labels:
        return {}
    regression = predicts_number(model.config)
    compute = compute_metrics_for(names or default_metrics(regression=regression), regression=regression)
    references = np.asarray(torch.cat(labels))
    results = {}
    for who, logits in outputs.items():
        predictions = np.asarray(torch.cat(logits))
        results[who] = compute(EvalPrediction(predictions=predictions, label_ids=references))
    return results


def _batch_of(model: PreTrainedModel, data: Any, rows: Iterable[int], collator: Collator) -> Mapping[str, Any]:
    """The rows of some numbers as a batch; columns that the model does not take are left out before collating."""
    taken = argument_names(model) | {"label", "label_ids"}
    chosen = []
    for number in rows:
        row = data[number]
        chosen.append({name: value for name, value in row.items() if name in taken})
    return collator(chosen)
