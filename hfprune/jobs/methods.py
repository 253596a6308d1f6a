"""When a script prunes: before recovery, in rounds with training in between, or while it trains."""

import copy
import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from hfprune.config import PruningConfig
from hfprune.errors import HfpruneError
from hfprune.jobs.tasks import Arguments, Task
from hfprune.planning.schedule import TRAINED_ROUND_KEEPS
from hfprune.pruning.prune import check, prune
from hfprune.publishing.checkpoint import load, save
from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.gradual import GradualPruning
from hfprune.recovery.trainer import RecoveryTrainer
from hfprune.structure.batches import Batch

logger = logging.getLogger(__name__)
#: Settings that gradual pruning does not read.
_NOT_GRADUAL = ("scorer", "schedule", "rounds", "reconstruct")


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a method starts from.

    Attributes:
        task: Data and metrics.
        arguments: All arguments of the script.
        dense: The dense model.
        teacher: What pruned models learn from.
        batches: Calibration batches.
        metrics: Of the dense model.
    """

    task: Task
    arguments: Arguments
    dense: PreTrainedModel
    teacher: PreTrainedModel
    batches: list[Batch]
    metrics: dict[str, float]

    @property
    def output(self) -> Path:
        """The folder of the run."""
        return Path(self.arguments.training.output_dir)

    def save(self, model: PreTrainedModel, name: str) -> None:
        """Keep a model that is not the result yet; the main process does."""
        if self.arguments.training.process_index == 0:
            save(model, self.output / name, tokenizer=self.task.tokenizer, overwrite=True)

    def trainer(self, model: PreTrainedModel, args: RecoveryArguments | None = None) -> RecoveryTrainer:
        """A trainer of a pruned model."""
        return self.task.trainer(model, args or self.arguments.training, teacher=self.teacher)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a method came to.

    Attributes:
        model: The small model.
        trainer: What measures and reports it.
        metrics: Of the model, under `pruned` and `recovered`, as far as there was such a stage.
        steps: Training steps.
        seconds: Of training; None if there was none.
    """

    model: PreTrainedModel
    trainer: RecoveryTrainer
    metrics: dict[str, dict[str, float]]
    steps: int = 0
    seconds: float | None = None


def check_method(arguments: Arguments, dense: PreTrainedModel) -> None:
    """Find every mistake that can be found before anything is trained.

    Args:
        arguments: All arguments of the script.
        dense: The dense model.

    Raises:
        HfpruneError: A method of an unknown name, or one that trains without epochs, or that cannot be resumed.
        BudgetError: The sparsity cannot be reached under the constraints, or the model has it already.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
        StructureError: The model does not look as the table says.
        ValueError: A name or fraction that is not known, or too long a sequence.
    """
    args, method = arguments.training, arguments.method.method
    if method not in METHODS:
        raise HfpruneError(f"unknown method {method!r}. Known: {', '.join(METHODS)}.")
    if method != "before" and not _trains(args):
        raise HfpruneError(
            f"method={method} trains, but num_train_epochs={args.num_train_epochs:g}. Set it, or max_steps, above 0."
        )
    if method == "rounds" and args.resume_from_checkpoint:
        raise HfpruneError(
            "a run in rounds cannot be resumed from a checkpoint of one of them. Its finished rounds are in "
            "output_dir/rounds: go on from the last one with --model_name_or_path and --teacher_model."
        )
    if method == "gradual":
        _gradual(arguments)
        without = [n for n in _NOT_GRADUAL if getattr(arguments.pruning, n) != getattr(PruningConfig, n)]
        if without:
            logger.warning("%s: without effect, as gradual pruning scores by fisher as it trains", ", ".join(without))
        if args.lora_rank > 0 or args.fp16:
            raise HfpruneError("method=gradual needs whole weights and unscaled gradients: drop lora_rank and fp16.")
    check(dense, arguments.pruning)


def _trains(args: RecoveryArguments) -> bool:
    return bool(args.max_steps > 0 or args.num_train_epochs > 0)


def before(job: Job) -> Made:
    """Prune, save, and then train what is left."""
    args = job.arguments.training
    if args.resume_from_checkpoint and (job.output / "pruned").is_dir():
        pruned = load(job.output / "pruned")
        _check_settings(pruned, job.arguments)
    else:
        pruned = prune(job.dense, job.batches, job.arguments.pruning)
        job.save(pruned, "pruned")
    logger.info("%s", pruned.pruning_plan)
    trainer = job.trainer(pruned)
    measured = job.task.test(trainer)
    metrics = {"pruned": measured}
    if not _trains(args):
        return Made(model=pruned, trainer=trainer, metrics=metrics)
    logger.info("Recovering")
    plan = pruned.pruning_plan
    sparsities = {"mac_sparsity": plan.sparsity("macs"), "param_sparsity": plan.sparsity("params")}
    trainer.add_callback(_Announce(trainer, sparsities | _named("dense", job.metrics) | _named("pruned", measured)))
    return _finished(job, trainer, metrics, resume=args.resume_from_checkpoint)


def rounds(job: Job) -> Made:
    """Prune, repair and train a little, again and again; each round is saved."""
    args = job.arguments.training
    count = len(check(job.dense, job.arguments.pruning, keeps=TRAINED_ROUND_KEEPS))
    trainers: list[RecoveryTrainer] = []
    began, steps, number = time.perf_counter(), 0, 0

    def recover(small: PreTrainedModel, _: PreTrainedModel) -> PreTrainedModel:
        nonlocal steps, number
        number += 1
        logger.info("Round %d of %d: %.1f %% of MACs gone", number, count, 100 * small.pruning_plan.sparsity("macs"))
        own = copy.deepcopy(args)
        own.output_dir = str(job.output / "rounds" / f"{number}_training")
        own.num_train_epochs = args.num_train_epochs / count
        own.seed = args.seed + number - 1  # or every round would see the same first part of the data
        own.data_seed = None if args.data_seed is None else args.data_seed + number - 1
        own.max_steps = max(1, args.max_steps // count) if args.max_steps > 0 else args.max_steps
        trainers[:] = [job.trainer(small, own)]  # the last one measures the result
        trainers[-1].add_callback(_Announce(trainers[-1], _named("dense", job.metrics)))
        steps += train(trainers[-1], job.arguments.model.early_stopping_patience).global_step
        job.save(trainers[-1].model, f"rounds/{number}")
        return trainers[-1].accelerator.unwrap_model(trainers[-1].model, keep_fp32_wrapper=False)

    pruned = prune(job.dense, job.batches, job.arguments.pruning, recover=recover)
    logger.info("%s", pruned.pruning_plan)
    trainer = trainers[-1]
    seconds = time.perf_counter() - began
    return Made(
        model=pruned, trainer=trainer, metrics={"recovered": job.task.test(trainer)}, steps=steps, seconds=seconds
    )


def gradual(job: Job) -> Made:
    """Prune a copy of the dense model while it trains."""
    args = job.arguments.training
    trainer = job.trainer(copy.deepcopy(job.dense))
    trainer.add_callback(_gradual(job.arguments))
    trainer.add_callback(_Announce(trainer, _named("dense", job.metrics)))
    logger.info("Pruning while training")
    made = _finished(job, trainer, {}, resume=args.resume_from_checkpoint)
    if getattr(made.model, "pruning_plan", None) is None:
        raise HfpruneError(
            f"training ended at step {trainer.state.global_step}, before the target sparsity was reached. Go on with "
            "--resume_from_checkpoint, or train longer."
        )
    logger.info("%s", made.model.pruning_plan)
    return made


#: By name: before training, in rounds, while training.
METHODS: Mapping[str, Callable[[Job], Made]] = {"before": before, "rounds": rounds, "gradual": gradual}


def _gradual(arguments: Arguments) -> GradualPruning:
    named = arguments.method
    return GradualPruning(
        arguments.pruning,
        schedule=named.gradual_schedule,
        start=named.gradual_start,
        end=named.gradual_end,
        every=named.gradual_every,
    )


def _finished(
    job: Job, trainer: RecoveryTrainer, metrics: dict[str, dict[str, float]], *, resume: str | bool | None
) -> Made:
    """Train, measure, report."""
    trained = train(trainer, job.arguments.model.early_stopping_patience, resume=resume)
    recovered = job.task.test(trainer)
    trainer.log(_named("recovered", recovered))
    return Made(
        model=trainer.model,
        trainer=trainer,
        metrics=metrics | {"recovered": recovered},
        steps=trained.global_step,
        seconds=trained.metrics["train_runtime"],
    )


def _check_settings(pruned: PreTrainedModel, arguments: Arguments) -> None:
    """Refuse to go on with a model that was pruned by other settings."""
    was, now = pruned.pruning_record.config, arguments.pruning.to_dict()
    other = [name for name in now if name in was and was[name] != now[name]]
    if other:
        raise HfpruneError(
            "this run goes on with a model that was pruned with "
            + ", ".join(f"{name}={was[name]!r} (now {now[name]!r})" for name in other)
            + ". Resume with the same settings, or begin anew with --overwrite."
        )


def _named(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{stage}_{name}": value for name, value in metrics.items()}


def train(trainer: RecoveryTrainer, patience: int | None, *, resume: str | bool | None = None) -> Any:
    """Train; the patience counts only evaluations while training.

    Args:
        trainer: The trainer.
        patience: Evaluations without a better metric before it stops; None: it does not.
        resume: As for `Trainer.train`; with True where there is no checkpoint yet, it begins.

    Returns:
        What `Trainer.train` returns.
    """
    if resume is True:
        folder = Path(trainer.args.output_dir)
        resume = _last_checkpoint(folder)
        if resume is None:
            logger.info("There is no checkpoint in %s to go on from: training begins", folder)
    stopping = [EarlyStoppingCallback(patience)] if patience is not None else []
    for callback in stopping:
        trainer.add_callback(callback)
    trained = trainer.train(resume_from_checkpoint=resume)
    for callback in stopping:
        trainer.remove_callback(callback)
    return trained


def _last_checkpoint(folder: Path) -> str | None:
    """The last checkpoint that is whole: the state of the Trainer is the last of its files."""
    named = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    for _, path in sorted(((int(match[1]), path) for match, path in named if match), reverse=True):
        if (path / TRAINER_STATE_NAME).is_file():
            return str(path)
        logger.warning("%s was not written to its end: training goes on from an earlier one", path)
    return None


class _Announce(TrainerCallback):
    """Logs once, where `report_to` says, what is known before training."""

    def __init__(self, trainer: RecoveryTrainer, values: dict[str, float]) -> None:
        self._trainer, self._values = trainer, values

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 (the Trainer's own is the one that logs)
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Log them, after the reporters have begun."""
        self._trainer.log(self._values)
