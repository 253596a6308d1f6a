"""The course of every script: fine-tune if asked, prune, recover, measure, save, publish."""

import copy
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, Seq2SeqTrainingArguments, TrainingArguments, set_seed

from hfprune.data.packages import model_title
from hfprune.distributed import leave_process_group
from hfprune.errors import HfpruneError
from hfprune.jobs.job import Job, MethodOutcome
from hfprune.jobs.methods import check_method, get_method
from hfprune.jobs.settings import Arguments, DataArguments, MethodArguments, ModelArguments
from hfprune.jobs.tasks import Task, TaskLoader
from hfprune.jobs.training import train
from hfprune.measuring.latency import check_timing, measure_latencies
from hfprune.measuring.size import checkpoint_bytes
from hfprune.pruning.prune import batches_for, check
from hfprune.pruning.timed import measured_and_predicted
from hfprune.publishing.checkpoint import save
from hfprune.publishing.hub import check_login
from hfprune.publishing.provenance import public_name
from hfprune.publishing.push import push_to_hub
from hfprune.publishing.report import command_line, comparison_table, headline
from hfprune.recovery.arguments import RecoveryArguments, recovery_settings
from hfprune.structure.anatomy import anatomy_of

logger = logging.getLogger(__name__)
#: What a run writes into its output folder, and a new run with `--overwrite` removes.
_OUTPUTS = ("dense", "dense.saving", "dense_training", "pruned", "rounds", "model", "checkpoint-*")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of a run.

    Attributes:
        folder: The folder of the checkpoint.
        results: The few numbers of `results.json`, a file beside that folder.
        table: Dense, pruned and recovered side by side, in plain text.
    """

    folder: Path
    results: dict[str, float]
    table: str

    def __str__(self) -> str:
        where = f"Load it: hfprune.load({str(self.folder)!r}). Results: {self.folder.parent / 'results.json'}"
        return f"{self.table}\n\n{where}"


def run(load_task: TaskLoader, arguments: Arguments, *, program: str) -> Outcome | None:
    """Do the whole job, alone or as one of several processes.

    Args:
        load_task: Loads the task: `get_task(name).load`.
        arguments: All arguments of the script.
        program: What stands before the arguments of this process in the command that the record gives, such as
            `python scripts/run_mlm.py`.

    Returns:
        The result; None in all processes but the main one.

    Raises:
        HfpruneError: An earlier run is in the way, or a teacher, early stopping or the Hub cannot be used.
        ValueError: Model, data, metrics or settings do not fit.
    """
    began = time.perf_counter()
    arguments, push = ready_to_begin(arguments)
    job = _prepare(load_task, arguments)
    outcome = get_method(arguments.method.method).function(job)
    # the other processes end here, and nothing below waits for them
    leave_process_group()
    if arguments.training.process_index != 0:
        return None
    _complete_record(job, outcome, program=program, began=began)
    result = _save(job, outcome.model, began)
    if push:
        push_finished(result.folder, arguments.training)
    return result


def ready_to_begin(arguments: Arguments) -> tuple[Arguments, bool]:
    """Arguments as a run uses them. The random state is that of the seed afterwards.

    Args:
        arguments: All arguments of the script, which stay as they are.

    Returns:
        A copy, and whether the finished model shall be pushed.

    Raises:
        HfpruneError: It shall, and nobody is logged in.
    """
    arguments = copy.deepcopy(arguments)
    training = arguments.training
    push = training.push_to_hub
    # Trainer would push every checkpoint; the finished model alone is pushed, at the end
    training.push_to_hub = False
    training.resume_from_checkpoint = _resume_choice(training.resume_from_checkpoint)
    set_seed(training.seed)
    if push and training.process_index == 0:
        check_login(training.hub_token)
    return arguments, push


def _prepare(load_task: TaskLoader, arguments: Arguments) -> Job:
    """Everything before pruning. Whatever can be found wrong is found before anything is trained."""
    training = arguments.training
    config = arguments.pruning
    task = loaded_task(load_task, arguments)
    dense = task.model(
        fine_tuned=Path(training.output_dir) / "dense",
        loading=arguments.model.loading,
        will_be_fine_tuned=arguments.model.dense_epochs > 0,
    )
    task.check(dense)
    check_timing(dense, **_latency_shape(arguments.data))
    teacher = task.teacher(arguments.model, dense)
    check_method(arguments)
    # fine-tuning changes weights only, so the structure holds until the model is pruned
    anatomy = anatomy_of(dense, config.attention_unit)
    check(anatomy, config)
    batches = batches_for(dense, task.data["train"], config, collator=task.calibration_collator)
    metrics = _fine_tuned_metrics(task, dense, arguments)
    return Job(task=task, arguments=arguments, anatomy=anatomy, teacher=teacher, batches=batches, metrics=metrics)


def loaded_task(load_task: TaskLoader, arguments: Arguments) -> Task:
    """Load the task, with the output folder free for the run.

    Args:
        load_task: Loads it.
        arguments: All arguments of the script.

    Returns:
        The task.

    Raises:
        HfpruneError: An earlier run is in the way, or early stopping does not know what to go by.
        ValueError: Model, data or metrics do not fit.
    """
    training = arguments.training
    named = arguments.model
    # the other processes then read the data that the main process has put into the cache
    with training.main_process_first(local=False):
        if training.process_index == 0 and not training.resume_from_checkpoint:
            inputs = [named.model_name_or_path]
            if named.teacher_model:
                inputs.append(named.teacher_model)
            inputs += arguments.data.files.values()
            clear_earlier_run(Path(training.output_dir), allowed=named.overwrite, inputs=inputs)
        task = load_task(named, arguments.data, seed=training.seed)
    check_early_stopping(training, named.early_stopping_patience, task.metrics)
    best = training.metric_for_best_model or ""
    if best.removeprefix("eval_") == "perplexity":
        # transformers assumes that lower is better only for metrics whose names end in "loss"
        training.greater_is_better = False
    return task


def _latency_shape(data: DataArguments) -> dict[str, int]:
    length = data.sequence_length if data.latency_length is None else data.latency_length
    return {"batch_size": data.latency_batch_size, "sequence_length": length}


def _fine_tuned_metrics(task: Task, dense: PreTrainedModel, arguments: Arguments) -> dict[str, float]:
    """Fine-tune the dense model, if asked and not done by an earlier run, and measure it."""
    training = arguments.training
    named = arguments.model
    folder = Path(training.output_dir) / "dense"
    trainer = task.trainer(dense, _dense_arguments(training, named))
    if named.dense_epochs > 0 and not folder.is_dir():
        logger.info("Fine-tuning the dense model")
        # a checkpoint that the user named is one of the recovery; this training goes on from the last of its own
        resume = True if training.resume_from_checkpoint else None
        train(trainer, named.early_stopping_patience, resume=resume)
        # under another name at first, so that a run that is killed here leaves no half of a model to go on with
        draft = folder.with_name("dense.saving")
        trainer.save_model(str(draft))
        if training.process_index == 0:
            draft.rename(folder)
    return task.test(trainer)


def _dense_arguments(args: RecoveryArguments, named: ModelArguments) -> RecoveryArguments:
    """The arguments of the dense fine-tuning: those of the script, but for all that only a recovery needs."""
    dense = copy.deepcopy(args)
    of_any_trainer = {setting.name for setting in fields(Seq2SeqTrainingArguments)}
    for setting in fields(RecoveryArguments):
        if setting.name in of_any_trainer:
            continue
        default = setting.default if setting.default_factory is MISSING else setting.default_factory()
        setattr(dense, setting.name, default)
    dense.output_dir = str(Path(args.output_dir) / "dense_training")
    # `max_steps` is meant for the recovery, and would override the number of epochs
    dense.max_steps = -1
    dense.num_train_epochs = named.dense_epochs
    dense.learning_rate = named.dense_learning_rate
    return dense


def _resume_choice(checkpoint: str | bool | None) -> str | bool | None:
    """The value of `--resume_from_checkpoint`, in which a command line can write `true` only as a word.

    >>> _resume_choice("True"), _resume_choice("runs/mine/checkpoint-8")
    (True, 'runs/mine/checkpoint-8')
    """
    if not isinstance(checkpoint, str):
        return checkpoint
    words = {"true": True, "false": False}
    return words.get(checkpoint.lower(), checkpoint)


def clear_earlier_run(output: Path, *, allowed: bool, inputs: Sequence[str] = ()) -> None:
    """Remove the files of an earlier run from the output folder of a new one, and nothing else.

    Args:
        output: The output folder.
        allowed: Whether these files may be removed.
        inputs: Models and files that the new run reads.

    Raises:
        HfpruneError: There is an earlier run, and it may not be removed, or the new run reads one of its files. Nothing
            is removed then.
    """
    earlier: list[Path] = []
    for pattern in _OUTPUTS:
        earlier += sorted(output.glob(pattern))
    if earlier and not allowed:
        raise HfpruneError(
            f"{output} holds an earlier run ({', '.join(path.name for path in earlier)}). Choose another output_dir, "
            "go on with --resume_from_checkpoint, or pass --overwrite."
        )
    # all inputs are looked at before the first folder goes
    for used in inputs:
        source = Path(used).resolve()
        if any(source.is_relative_to(path.resolve()) for path in earlier):
            raise HfpruneError(
                f"this run reads {used}, which --overwrite would remove with the earlier run in {output}. Choose "
                "another output_dir."
            )
    for path in earlier:
        shutil.rmtree(path)


def check_early_stopping(args: TrainingArguments, patience: int | None, metrics: Sequence[str]) -> None:
    """Find out before a long run whether it can be stopped early, and whether its best checkpoint can be told.

    Args:
        args: The training arguments.
        patience: The evaluations without a better metric after which training stops; None: no early stopping.
        metrics: The metrics of the task, beside the loss.

    Raises:
        HfpruneError: The patience is not positive, or the arguments do not say which metric decides, or that metric is
            not measured.
    """
    best = args.metric_for_best_model
    if patience is not None and patience < 1:
        raise HfpruneError(f"early_stopping_patience must be at least 1 evaluation, got {patience}.")
    if patience is not None and not (args.load_best_model_at_end and best):
        raise HfpruneError(
            f"early_stopping_patience={patience} needs to know what is better and to keep it: set "
            "load_best_model_at_end, metric_for_best_model (such as loss or "
            f"{metrics[0]}), and eval_strategy and save_strategy alike."
        )
    if args.load_best_model_at_end and best.removeprefix("eval_") not in ("loss", *metrics):
        raise HfpruneError(f"metric_for_best_model={best!r} is not measured; these are: loss, {', '.join(metrics)}.")


def _complete_record(job: Job, outcome: MethodOutcome, *, program: str, began: float) -> None:
    """Time both models, and add metrics, latencies, data, recovery and command to the record of the pruned one."""
    arguments = job.arguments
    dense = job.dense
    pruned = outcome.model
    # called for its effect: it takes the mixed precision of training off `forward`, which would be timed with it
    for model in (dense, pruned):
        outcome.trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    latencies = _latencies(dense.to(pruned.device), pruned, arguments)
    datasets = []
    if arguments.data.dataset:
        datasets.append(public_name(arguments.data.dataset))
    pruned.pruning_record = pruned.pruning_record.with_(
        base_model=_base_model(dense, arguments.model.model_name_or_path),
        metrics={"dense": job.metrics, **outcome.metrics},
        latencies=latencies,
        datasets=datasets,
        recovery=settings_of_recovery(arguments, steps=outcome.steps, seconds=outcome.seconds),
        command=command_line(program),
        seconds=round(time.perf_counter() - began, 1),
    )


def _latencies(dense: PreTrainedModel, pruned: PreTrainedModel, arguments: Arguments) -> dict[str, dict[str, Any]]:
    """The latencies of both models for the record: measured as the latency table was, if there is one."""
    table = arguments.pruning.table
    if table is not None:
        latencies = measured_and_predicted(dense, pruned, table)
        if latencies:
            return latencies
    shape = _latency_shape(arguments.data)
    dense_latency, pruned_latency = measure_latencies(
        [dense, pruned], batch_size=shape["batch_size"], sequence_length=shape["sequence_length"]
    )
    return {"dense": asdict(dense_latency), "pruned": asdict(pruned_latency)}


def _base_model(dense: PreTrainedModel, name_or_path: str) -> str:
    """The public name of the model that everything was cut from."""
    # where the "dense" model was pruned before, its record knows what it was cut from
    earlier = getattr(dense, "pruning_record", None)
    if earlier is not None and earlier.base_model:
        return str(earlier.base_model)
    return public_name(model_title(name_or_path))


def settings_of_recovery(arguments: Arguments, *, steps: int, seconds: float | None) -> dict[str, Any]:
    """The settings of the recovery for the record; method, teacher and patience only where the user chose them.

    Args:
        arguments: All arguments of the script.
        steps: The number of training steps.
        seconds: The duration; None if there was no training.

    Returns:
        Plain values by name.
    """
    if seconds is None:
        return {}
    named = arguments.model
    method = arguments.method.method
    settings = recovery_settings(arguments.training, steps=steps, seconds=seconds)
    if method != MethodArguments.method:
        settings["method"] = method
    if named.teacher_model is not None:
        settings["teacher_model"] = public_name(named.teacher_model)
    if named.early_stopping_patience is not None:
        settings["early_stopping_patience"] = named.early_stopping_patience
    return settings


def _save(job: Job, pruned: PreTrainedModel, began: float) -> Outcome:
    """Write the checkpoint with its card, and `results.json` beside it."""
    fine_tuned = job.output / "dense"
    dense_folder = fine_tuned if fine_tuned.is_dir() else job.task.source
    return saved(pruned, job.output, job.task, dense=str(dense_folder), seconds=time.perf_counter() - began)


def saved(pruned: PreTrainedModel, output: Path, task: Task, *, dense: str | None, seconds: float) -> Outcome:
    """Write a checkpoint with its card, and `results.json` beside it.

    Args:
        pruned: The model, whose record is complete.
        output: The folder of the run.
        task: The task, whose tokenizer or other processor is saved too.
        dense: The folder or repository of the dense model, whose bytes the table shows; None: it shows none.
        seconds: How long the run took.

    Returns:
        The result.
    """
    record = pruned.pruning_record
    folder = save(pruned, output / "model", tokenizer=task.processor, overwrite=True)
    results = {**headline(record, pruned.pruning_plan), "seconds": seconds}
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    sizes = {"pruned": checkpoint_bytes(folder)}
    if dense is not None:
        sizes = {"dense": checkpoint_bytes(dense), **sizes}
    return Outcome(folder=output / "model", results=results, table=comparison_table(record, sizes))


def push_finished(folder: Path, args: RecoveryArguments) -> None:
    """Push the finished checkpoint to the Hub, by default under the name of the output folder.

    Args:
        folder: The folder of the checkpoint.
        args: The training arguments, which name the repository.
    """
    commit = push_to_hub(
        folder,
        args.hub_model_id or folder.resolve().parent.name,
        private=args.hub_private_repo,
        token=args.hub_token,
        revision=args.hub_revision,
    )
    logger.info("Pushed to %s", commit.commit_url if commit else "the Hub")
