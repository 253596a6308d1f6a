"""Recovery of a model that is pruned already: train it, measure it before and after, save it."""

import logging
import time
from pathlib import Path

from transformers import PreTrainedModel

from hfprune.distributed import leave_process_group
from hfprune.errors import HfpruneError
from hfprune.jobs.loading import model_as_it_is
from hfprune.jobs.run import Outcome, loaded_task, push_finished, ready_to_begin, saved, settings_of_recovery
from hfprune.jobs.settings import Arguments
from hfprune.jobs.tasks import Task, TaskLoader
from hfprune.jobs.training import train, will_train
from hfprune.publishing.provenance import public_name
from hfprune.publishing.report import command_line
from hfprune.publishing.sources import is_pruned

logger = logging.getLogger(__name__)


def recover(load_task: TaskLoader, arguments: Arguments, *, program: str) -> Outcome | None:
    """Train a pruned model, alone or as one of several processes, and write it as `hfprune.jobs.run.run` does.

    Args:
        load_task: Loads the task: `get_task(name).load`.
        arguments: All arguments, as for a run. The model is a pruned checkpoint; settings of the pruning are not used.
            With `teacher_model` it learns from that model, without one from the labels alone.
        program: What stands before the arguments of this process in the command that the record gives.

    Returns:
        The result; None in all processes but the main one.

    Raises:
        HfpruneError: The model is not pruned, there is nothing to train, an earlier run is in the way, or teacher,
            early stopping or the Hub cannot be used.
        ValueError: Model, data, metrics or settings do not fit.
    """
    began = time.perf_counter()
    arguments, push = ready_to_begin(arguments)
    training = arguments.training
    if not will_train(training):
        raise HfpruneError(
            f"num_train_epochs={training.num_train_epochs:g} trains nothing: set it, or max_steps, above 0."
        )
    task = loaded_task(load_task, arguments)
    pruned = _pruned(task, arguments)
    teacher = None
    if arguments.model.teacher_model is not None:
        teacher = task.teacher(arguments.model, pruned)
    record = pruned.pruning_record
    metrics = dict(record.metrics)
    if teacher is not None and "dense" not in metrics:
        metrics["dense"] = task.test(task.trainer(teacher, training))
    trainer = task.trainer(pruned, training, teacher=teacher)
    metrics["pruned"] = task.test(trainer)
    logger.info("Recovering")
    trained = train(trainer, arguments.model.early_stopping_patience, resume=training.resume_from_checkpoint)
    metrics["recovered"] = task.test(trainer)
    # the other processes end here, and nothing below waits for them
    leave_process_group()
    if training.process_index != 0:
        return None
    # adapters replace the trainer's model
    recovered = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    seconds = trained.metrics["train_runtime"]
    datasets = list(record.datasets)
    if arguments.data.dataset:
        datasets.append(public_name(arguments.data.dataset))
    recovered.pruning_record = record.with_(
        metrics=metrics,
        datasets=list(dict.fromkeys(datasets)),
        recovery=settings_of_recovery(arguments, steps=trained.global_step, seconds=seconds),
        command=command_line(program),
        seconds=round(time.perf_counter() - began, 1),
    )
    result = saved(
        recovered,
        Path(training.output_dir),
        task,
        dense=arguments.model.teacher_model,
        seconds=time.perf_counter() - began,
    )
    if push:
        push_finished(result.folder, training)
    return result


def _pruned(task: Task, arguments: Arguments) -> PreTrainedModel:
    """The model, with the plan and the record that it was saved with."""
    name = arguments.model.model_name_or_path
    revision = arguments.model.model_revision
    if not is_pruned(task.source, revision=revision):
        raise HfpruneError(f"{name} is no pruned checkpoint. `hfprune run` prunes a model and recovers it.")
    pruned = model_as_it_is(task, revision=revision)
    task.check(pruned)
    return pruned
