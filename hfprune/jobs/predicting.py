"""What a model predicts for rows of a task, without training: its metrics, and its metric of every sample."""

import tempfile
from collections.abc import Callable, Sequence

import torch
from datasets import Dataset
from transformers import EvalPrediction, PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.trainer_utils import PredictionOutput

from hfprune.jobs.tasks.task import Task
from hfprune.structure.running import same_generation


def measure(task: Task, model: PreTrainedModel, rows: Dataset, *, batch_size: int | None = None) -> dict[str, float]:
    """The loss and the metrics of a model.

    Args:
        task: The task.
        model: Its model, dense or pruned.
        rows: Rows of the task, with labels.
        batch_size: Samples in a batch; None: as the task says.

    Returns:
        What was measured, by name, and the number of rows under `samples`.
    """
    predicted = _predicted(task, model, rows, batch_size)
    results: dict[str, float] = {}
    loss = (predicted.metrics or {}).get("_loss")
    if loss is not None:
        results["loss"] = loss
    found = task.compute_metrics(_as_metrics_take_it(predicted), rows)
    for name in task.metrics:
        results[name] = found[name]
    return {**results, "samples": len(rows)}


def sample_evaluation(
    task: Task, metric: str, rows: Dataset, *, batch_size: int | None = None
) -> Callable[[PreTrainedModel], Sequence[float]]:
    """An `evaluate` of one number a sample, for `sweep` and `prune_within`.

    Args:
        task: The task.
        metric: One of its `sample_metrics`.
        rows: Rows of the task, with labels.
        batch_size: Samples in a batch; None: as the task says.

    Returns:
        A function from a model to one number a sample, in an order that is the same for every model.

    Raises:
        ValueError: The task has no such metric.
    """
    usual_sample_metric(task, metric)

    def evaluate(model: PreTrainedModel) -> Sequence[float]:
        device = model.device
        predicted = _predicted(task, model, rows, batch_size)
        # Trainer may have moved it to an accelerator, and what follows is done as without it
        model.to(device)
        return task.sample_metrics[metric](_as_metrics_take_it(predicted), rows)

    return evaluate


def usual_sample_metric(task: Task, asked: str | None) -> str:
    """The metric of single samples that the user asked for, or else the usual one of the task.

    Args:
        task: The task.
        asked: The name that the user gave; None for the usual one.

    Returns:
        The name.

    Raises:
        ValueError: The task has no such metric, or none at all.
    """
    metric = next(iter(task.sample_metrics), None) if asked is None else asked
    if metric not in task.sample_metrics:
        known = ", ".join(task.sample_metrics) or "none"
        raise ValueError(
            f"{metric!r} is no metric of single samples of this task; these are: {known}. The drop of a metric of a "
            "whole data set, such as f1, has no paired interval."
        )
    return str(metric)


def _predicted(task: Task, model: PreTrainedModel, rows: Dataset, batch_size: int | None) -> PredictionOutput:
    # Trainer wants a folder for its output, even where it only predicts
    with tempfile.TemporaryDirectory() as scratch:
        arguments = Seq2SeqTrainingArguments(
            output_dir=scratch,
            per_device_eval_batch_size=batch_size or task.batch_size,
            predict_with_generate=task.generated_length is not None,
            generation_max_length=task.generated_length,
            remove_unused_columns=not task.collator_reads_columns,
            report_to="none",
            # pinned memory speeds up copies to a GPU; without one torch warns about it
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Seq2SeqTrainer(
            model,
            arguments,
            data_collator=task.collator,
            processing_class=task.processor,
            preprocess_logits_for_metrics=task.preprocess_logits,
        )
        with same_generation(model):
            return trainer.predict(rows, metric_key_prefix="")


def _as_metrics_take_it(predicted: PredictionOutput) -> EvalPrediction:
    return EvalPrediction(predictions=predicted.predictions, label_ids=predicted.label_ids)
