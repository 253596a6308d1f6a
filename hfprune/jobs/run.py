"""The story of every script: fine-tune if asked, prune, recover, measure, save, publish."""

import copy
import json
import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from transformers import PreTrainedModel, TrainingArguments, set_seed

from hfprune.data.packages import model_title
from hfprune.distributed import leave_process_group
from hfprune.errors import HfpruneError
from hfprune.jobs.methods import METHODS, Job, Made, check_method, train
from hfprune.jobs.settings import ModelArguments
from hfprune.jobs.tasks import Arguments, Task
from hfprune.measuring.latency import check_timing, measure_latencies
from hfprune.measuring.size import check_length, checkpoint_bytes
from hfprune.pruning.prune import batches_for
from hfprune.publishing.checkpoint import save
from hfprune.publishing.hub import check_login
from hfprune.publishing.push import push_to_hub
from hfprune.publishing.record import public_name
from hfprune.publishing.report import command_line, comparison_table, headline
from hfprune.recovery.arguments import RecoveryArguments, recovery_settings
from hfprune.structure.devices import check_tokens

logger = logging.getLogger(__name__)


class TaskLoader(Protocol):
    """`hfprune.jobs.tasks.text_classification` and the like."""

    def __call__(self, model: ModelArguments, data: Any, *, seed: int) -> Task:
        """The task."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: The checkpoint.
        results: The few numbers of `results.json`, which is beside it.
        table: Dense, pruned and recovered side by side, in plain text.
    """

    folder: Path
    results: dict[str, float]
    table: str

    def __str__(self) -> str:
        where = f"Load it: hfprune.load({str(self.folder)!r}). Results: {self.folder.parent / 'results.json'}"
        return f"{self.table}\n\n{where}"


def run(load_task: TaskLoader, arguments: Arguments, *, script: str) -> Outcome | None:
    """Do the whole job, alone or as one of several processes.

    Args:
        load_task: Reads the data and says what the task is.
        arguments: All arguments of the script.
        script: Its file, for the command in the record.

    Returns:
        What it came to; None in all processes but the main one.

    Raises:
        HfpruneError: An earlier run is in the way, or a teacher, early stopping or the Hub cannot be used.
        ValueError: Model, data, metrics or settings do not fit.
    """
    began = time.perf_counter()
    arguments = copy.deepcopy(arguments)
    args, named, data_args, config, _ = arguments
    push, args.push_to_hub = args.push_to_hub, False  # Trainer would push what is not finished
    args.resume_from_checkpoint = _flag(args.resume_from_checkpoint)
    output, main_process = Path(args.output_dir), args.process_index == 0
    set_seed(args.seed)

    # Whatever can be found wrong is found before anything is trained.
    if push and main_process:
        check_login(args.hub_token)
    task = _load(load_task, arguments)
    dense = task.model(fine_tuned=output / "dense", trust_remote_code=named.trust_remote_code)
    rows = (row for part in task.data.values() for row in part["input_ids"])
    longest, largest = map(max, zip(*((len(row), max(row, default=0)) for row in rows), strict=True))
    check_length(dense, longest, option="max_length")
    check_tokens(dense, largest)
    shape = {"batch_size": data_args.latency_batch_size, "sequence_length": data_args.latency_length}
    check_timing(dense, **shape)
    teacher = task.teacher(named, dense)
    check_method(arguments, dense)
    batches = batches_for(dense, task.data["train"], config, collator=task.calibration_collator)

    dense_trainer = task.trainer(dense, _dense_arguments(args, named))
    if named.dense_epochs > 0 and not (output / "dense").is_dir():
        logger.info("Fine-tuning the dense model")
        train(dense_trainer, named.early_stopping_patience, resume=bool(args.resume_from_checkpoint) or None)
        draft = output / "dense.saving"  # a run that is killed here leaves no half of a model to go on with
        dense_trainer.save_model(str(draft))
        if main_process:
            draft.rename(output / "dense")
    job = Job(
        task=task, arguments=arguments, dense=dense, teacher=teacher, batches=batches, metrics=task.test(dense_trainer)
    )
    made = METHODS[arguments.method.method](job)
    pruned = made.model
    leave_process_group()  # nothing is shared from here on
    if not main_process:
        return None

    for model in (dense, pruned):  # out of the mixed precision of training
        made.trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    slow, fast = measure_latencies([dense.to(pruned.device), pruned], **shape)
    earlier = getattr(dense, "pruning_record", None)  # where it was pruned before, what it was cut from
    pruned.pruning_record = pruned.pruning_record.with_(
        base_model=(earlier and earlier.base_model) or public_name(model_title(named.model_name_or_path)),
        metrics={"dense": job.metrics, **made.metrics},
        latencies={"dense": asdict(slow), "pruned": asdict(fast)},
        datasets=[public_name(data_args.dataset)] if data_args.dataset else [],
        recovery=_recovery(arguments, made),
        command=command_line(f"python scripts/{Path(script).name}"),
        seconds=round(time.perf_counter() - began, 1),
    )
    outcome = _save(pruned, task, output, began)
    if push:
        _push(outcome.folder, args)
    return outcome


def _load(load_task: TaskLoader, arguments: Arguments) -> Task:
    """The task, with the output folder free for it; the main process first, whose cache the others read."""
    args, named, data_args, *_ = arguments
    with args.main_process_first(local=False):
        if args.process_index == 0 and not args.resume_from_checkpoint:
            inputs = [named.model_name_or_path, named.teacher_model, *data_args.files.values()]
            clear_earlier_run(Path(args.output_dir), allowed=named.overwrite, inputs=[i for i in inputs if i])
        task = load_task(named, data_args, seed=args.seed)
    check_early_stopping(args, named.early_stopping_patience, task.metrics)
    if (args.metric_for_best_model or "").removeprefix("eval_") == "perplexity":
        args.greater_is_better = False  # transformers knows that of losses only
    return task


def _push(folder: Path, args: RecoveryArguments) -> None:
    commit = push_to_hub(
        folder,
        args.hub_model_id or folder.resolve().parent.name,
        private=args.hub_private_repo,
        token=args.hub_token,
        revision=args.hub_revision,
    )
    logger.info("Pushed to %s", commit.commit_url if commit else "the Hub")


def _flag(checkpoint: str | bool | None) -> str | bool | None:
    """`--resume_from_checkpoint true` means the last checkpoint, as `true` in a file does."""
    words = {"true": True, "false": False}
    return words.get(checkpoint.lower(), checkpoint) if isinstance(checkpoint, str) else checkpoint


def clear_earlier_run(output: Path, *, allowed: bool, inputs: Sequence[str] = ()) -> None:
    """Make way for a new run of a script.

    Args:
        output: Its output folder.
        allowed: Whether what an earlier run left there may go. Nothing else in the folder is touched.
        inputs: Models and files that the new run reads.

    Raises:
        HfpruneError: There is an earlier run, and it may not go, or the new one reads some of it. Nothing is removed.
    """
    names = ("dense", "dense.saving", "dense_training", "pruned", "rounds", "model", "checkpoint-*")
    earlier = [path for name in names for path in sorted(output.glob(name))]
    if earlier and not allowed:
        raise HfpruneError(
            f"{output} holds an earlier run ({', '.join(path.name for path in earlier)}). Choose another output_dir, "
            "go on with --resume_from_checkpoint, or pass --overwrite."
        )
    for used in inputs:
        if any(Path(used).resolve().is_relative_to(path.resolve()) for path in earlier):
            raise HfpruneError(
                f"this run reads {used}, which --overwrite would remove with the earlier run in {output}. Choose "
                "another output_dir."
            )
    for path in earlier:
        shutil.rmtree(path)


def check_early_stopping(args: TrainingArguments, patience: int | None, metrics: Sequence[str]) -> None:
    """Find out before a long run whether it can be stopped early.

    Args:
        args: The training arguments.
        patience: Evaluations without a better metric; None: no early stopping.
        metrics: What is measured, beside the loss.

    Raises:
        HfpruneError: The patience is not positive, or the arguments do not say what is better, or it is not measured.
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


def _dense_arguments(args: RecoveryArguments, named: ModelArguments) -> RecoveryArguments:
    """Arguments of the dense fine-tuning: those of recovery without what is special to it."""
    dense = copy.deepcopy(args)
    plain = {f.name for f in fields(TrainingArguments)}
    for own in fields(RecoveryArguments):
        if own.name not in plain:
            setattr(dense, own.name, own.default if own.default_factory is MISSING else own.default_factory())
    dense.output_dir = str(Path(args.output_dir) / "dense_training")
    dense.max_steps = -1  # of the recovery
    dense.num_train_epochs, dense.learning_rate = named.dense_epochs, named.dense_learning_rate
    return dense


def _recovery(arguments: Arguments, made: Made) -> dict[str, Any]:
    """The settings of the recovery for the record, with the teacher and the patience where they were chosen."""
    if made.seconds is None:
        return {}
    named, method = arguments.model, arguments.method.method
    settings = recovery_settings(arguments.training, steps=made.steps, seconds=made.seconds)
    if method != "before":
        settings["method"] = method
    if named.teacher_model is not None:
        settings["teacher_model"] = public_name(named.teacher_model)
    if named.early_stopping_patience is not None:
        settings["early_stopping_patience"] = named.early_stopping_patience
    return settings


def _save(pruned: PreTrainedModel, task: Task, output: Path, began: float) -> Outcome:
    """The checkpoint with its card, `results.json` beside it, and both as a table."""
    record = pruned.pruning_record
    folder = save(pruned, output / "model", tokenizer=task.tokenizer, overwrite=True)
    results = {**headline(record, pruned.pruning_plan), "seconds": time.perf_counter() - began}
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    dense_folder = output / "dense" if (output / "dense").is_dir() else task.source
    sizes = {"dense": checkpoint_bytes(dense_folder), "pruned": checkpoint_bytes(folder)}
    return Outcome(folder=output / "model", results=results, table=comparison_table(record, sizes))
