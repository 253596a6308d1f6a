"""The registry of methods, which say when a script prunes: before training, in rounds, or while the model trains."""

import copy
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedModel

from hfprune.config import PruningConfig
from hfprune.errors import HfpruneError
from hfprune.jobs.job import Job, MethodOutcome
from hfprune.jobs.settings import Arguments
from hfprune.jobs.training import Announcement, by_stage, train, will_train
from hfprune.planning.schedule import TRAINED_ROUND_KEEPS
from hfprune.pruning.prune import check, prune
from hfprune.pruning.steps import width_multiple
from hfprune.publishing.checkpoint import load
from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.gradual import GradualPruning
from hfprune.recovery.trainer import RecoveryTrainer
from hfprune.structure.anatomy import anatomy_of
from hfprune.structure.registration import check_same

logger = logging.getLogger(__name__)
#: Settings that gradual pruning ignores, as it scores by fisher in the training steps and has a schedule of its own.
_NOT_GRADUAL = ("scorer", "schedule", "rounds", "reconstruct")

#: Prunes and trains the model of a job.
MethodFunction = Callable[[Job], MethodOutcome]
#: Raises `HfpruneError` or `ValueError` where a method cannot work with the arguments of a script.
ArgumentsCheck = Callable[[Arguments], None]


@dataclass(frozen=True, kw_only=True)
class Method:
    """A registered method.

    Attributes:
        name: What users write.
        function: Prunes and trains the model of a job.
        must_train: Whether the method makes no sense without training steps.
        check: Refuses arguments that the method cannot work with; None: it can work with all.
    """

    name: str
    function: MethodFunction
    must_train: bool = True
    check: ArgumentsCheck | None = None


_METHODS: dict[str, Method] = {}


def register_method(
    name: str, *, must_train: bool = True, check: ArgumentsCheck | None = None
) -> Callable[[MethodFunction], MethodFunction]:
    """Add a method: decorate a function from a job to its outcome.

    Args:
        name: What users write.
        must_train: As for `Method`.
        check: As for `Method`.

    Returns:
        The decorator.

    Raises:
        ValueError: Another function has that name. A function of the same module and name is replaced, so that a
            cell of a notebook can be run again.

    Examples:
        >>> import hfprune
        >>> from hfprune.jobs.job import MethodOutcome
        >>> from hfprune.jobs.methods import known_methods, register_method
        >>> @register_method("without_training", must_train=False)
        ... def without_training(job):
        ...     pruned = hfprune.prune(job.dense, job.batches, job.arguments.pruning)
        ...     trainer = job.trainer(pruned)
        ...     return MethodOutcome(model=pruned, trainer=trainer, metrics={"pruned": job.task.test(trainer)})
        >>> known_methods()["without_training"].must_train
        False
    """

    def add(function: MethodFunction) -> MethodFunction:
        if name in _METHODS:
            check_same("a method", name, function, _METHODS[name].function)
        _METHODS[name] = Method(name=name, function=function, must_train=must_train, check=check)
        return function

    return add


def known_methods() -> Mapping[str, Method]:
    """The methods known now, by name.

    Returns:
        A copy, with a `Method` for each name; changing it registers nothing.

    Examples:
        >>> from hfprune.jobs.methods import known_methods
        >>> list(known_methods())[:3]
        ['before', 'rounds', 'gradual']
    """
    return dict(_METHODS)


def get_method(name: str) -> Method:
    """Look a method up.

    Args:
        name: Its name.

    Returns:
        The method.

    Raises:
        HfpruneError: No method has this name; the message lists the known ones.
    """
    if name not in _METHODS:
        raise HfpruneError(f"unknown method {name!r}. Known: {', '.join(_METHODS)}.")
    return _METHODS[name]


def check_method(arguments: Arguments) -> None:
    """Refuse arguments that the chosen method cannot work with, before anything is trained.

    Args:
        arguments: All arguments of the script.

    Raises:
        HfpruneError: No method has this name, or it trains and there are no epochs, or it cannot be resumed, or it
            cannot be combined with other arguments.
        ValueError: A number of gradual pruning is out of its range.
    """
    method = get_method(arguments.method.method)
    training = arguments.training
    if method.must_train and not will_train(training):
        raise HfpruneError(
            f"method={method.name} trains, but num_train_epochs={training.num_train_epochs:g}. Set it, or max_steps, "
            "above 0."
        )
    if method.check is not None:
        method.check(arguments)


@register_method("before", must_train=False)
def before(job: Job) -> MethodOutcome:
    """Prune the dense model, save the pruned one, then train it.

    Args:
        job: The job.

    Returns:
        The model, with metrics before and after training.
    """
    training = job.arguments.training
    pruned = _pruned_model(job)
    logger.info("%s", pruned.pruning_plan)
    trainer = job.trainer(pruned)
    measured = job.task.test(trainer)
    metrics = {"pruned": measured}
    if not will_train(training):
        return MethodOutcome(model=pruned, trainer=trainer, metrics=metrics)
    logger.info("Recovering")
    plan = pruned.pruning_plan
    sparsities = {"mac_sparsity": plan.sparsity("macs"), "param_sparsity": plan.sparsity("params")}
    facts = sparsities | by_stage("dense", job.metrics) | by_stage("pruned", measured)
    trainer.add_callback(Announcement(trainer, facts))
    return _trained_outcome(job, trainer, metrics)


def _pruned_model(job: Job) -> PreTrainedModel:
    """The pruned model: where a run is resumed, the one that it saved, as its checkpoints belong to that one."""
    folder = job.output / "pruned"
    if job.arguments.training.resume_from_checkpoint and folder.is_dir():
        pruned = load(folder)
        _check_same_settings(pruned, job.arguments)
        return pruned
    pruned = prune(job.dense, job.batches, job.arguments.pruning)
    job.save(pruned, "pruned")
    return pruned


def _check_same_settings(pruned: PreTrainedModel, arguments: Arguments) -> None:
    """Refuse to go on with a model that was pruned by other settings."""
    earlier = pruned.pruning_record.config
    config = arguments.pruning
    multiple = width_multiple(anatomy_of(pruned, config.attention_unit), config)
    differences = []
    for name, value in {**config.to_dict(), "round_to": multiple}.items():
        # an older version may not have recorded all settings of today
        if name in earlier and earlier[name] != value:
            differences.append(f"{name}={earlier[name]!r} (now {value!r})")
    if differences:
        raise HfpruneError(
            f"this run goes on with a model that was pruned with {', '.join(differences)}. Resume with the same "
            "settings, or begin anew with --overwrite."
        )


def _check_rounds(arguments: Arguments) -> None:
    """Refuse to resume: a checkpoint of one round does not say what the other rounds did."""
    if arguments.training.resume_from_checkpoint:
        raise HfpruneError(
            "a run in rounds cannot be resumed from a checkpoint of one of them. Its finished rounds are in "
            "output_dir/rounds: go on from the last one with --model_name_or_path and --teacher_model."
        )


@register_method("rounds", check=_check_rounds)
def rounds(job: Job) -> MethodOutcome:
    """Prune, repair and train a little, several times. The model of every round is saved.

    Args:
        job: The job.

    Returns:
        The model of the last round. The seconds include those of pruning.
    """
    config = job.arguments.pruning
    # `prune` makes the same check, so this is the number of its rounds
    steps = check(job.anatomy, config, keeps=TRAINED_ROUND_KEEPS)
    recovery = _RecoveryInRounds(job, rounds=len(steps))
    began = time.perf_counter()
    pruned = prune(job.dense, job.batches, config, recover=recovery)
    logger.info("%s", pruned.pruning_plan)
    trainer = recovery.last_trainer
    seconds = time.perf_counter() - began
    metrics = {"recovered": job.task.test(trainer)}
    return MethodOutcome(model=pruned, trainer=trainer, metrics=metrics, steps=recovery.steps, seconds=seconds)


class _RecoveryInRounds:
    """Trains the pruned model of every round. `prune` calls it as its `recover`.

    Attributes:
        steps: The training steps of all rounds so far.
        last_trainer: The trainer of the last round, which measures the result.

    Args:
        job: The job.
        rounds: The number of rounds.
    """

    last_trainer: RecoveryTrainer

    def __init__(self, job: Job, *, rounds: int) -> None:
        self._job = job
        self._rounds = rounds
        self._round = 0
        self.steps = 0

    def __call__(self, pruned: PreTrainedModel, _: PreTrainedModel) -> PreTrainedModel:
        job = self._job
        self._round += 1
        gone = 100 * pruned.pruning_plan.sparsity("macs")
        logger.info("Round %d of %d: %.1f %% of MACs gone", self._round, self._rounds, gone)
        trainer = job.trainer(pruned, self._arguments())
        self.last_trainer = trainer
        trainer.add_callback(Announcement(trainer, by_stage("dense", job.metrics)))
        self.steps += train(trainer, job.arguments.model.early_stopping_patience).global_step
        job.save(trainer.model, f"rounds/{self._round}")
        # the next round scores and cuts the model itself, without the mixed precision of training
        return trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)

    def _arguments(self) -> RecoveryArguments:
        """The training arguments of this round: its share of the training, and seeds of its own."""
        script = self._job.arguments.training
        args = copy.deepcopy(script)
        args.output_dir = str(self._job.output / "rounds" / f"{self._round}_training")
        args.num_train_epochs = script.num_train_epochs / self._rounds
        if script.max_steps > 0:
            args.max_steps = max(1, script.max_steps // self._rounds)
        # with one seed for all, every round would see the same first part of the data
        args.seed = script.seed + self._round - 1
        if script.data_seed is not None:
            args.data_seed = script.data_seed + self._round - 1
        return args


def _check_gradual(arguments: Arguments) -> None:
    """Refuse what gradual pruning cannot do, and warn of settings that it ignores."""
    # raises where a number of the schedule is out of its range
    _gradual_pruning(arguments)
    ignored = []
    for name in _NOT_GRADUAL:
        if getattr(arguments.pruning, name) != getattr(PruningConfig, name):
            ignored.append(name)
    if ignored:
        logger.warning("%s: without effect, as gradual pruning scores by fisher as it trains", ", ".join(ignored))
    training = arguments.training
    if training.lora_rank > 0 or training.fp16:
        raise HfpruneError("method=gradual needs whole weights and unscaled gradients: drop lora_rank and fp16.")


@register_method("gradual", check=_check_gradual)
def gradual(job: Job) -> MethodOutcome:
    """Prune a copy of the dense model while it trains.

    Args:
        job: The job.

    Returns:
        The model, with metrics after training.

    Raises:
        HfpruneError: Training ended before the target sparsity was reached.
    """
    # the dense model itself may be the teacher, and is measured at the end
    trainer = job.trainer(copy.deepcopy(job.dense))
    trainer.add_callback(_gradual_pruning(job.arguments))
    trainer.add_callback(Announcement(trainer, by_stage("dense", job.metrics)))
    logger.info("Pruning while training")
    outcome = _trained_outcome(job, trainer, {})
    plan = getattr(outcome.model, "pruning_plan", None)
    if plan is None:
        raise HfpruneError(
            f"training ended at step {trainer.state.global_step}, before the target sparsity was reached. Go on with "
            "--resume_from_checkpoint, or train longer."
        )
    logger.info("%s", plan)
    return outcome


def _gradual_pruning(arguments: Arguments) -> GradualPruning:
    method = arguments.method
    return GradualPruning(
        arguments.pruning,
        schedule=method.gradual_schedule,
        start=method.gradual_start,
        end=method.gradual_end,
        every=method.gradual_every,
    )


def _trained_outcome(job: Job, trainer: RecoveryTrainer, metrics: dict[str, dict[str, float]]) -> MethodOutcome:
    """Train, measure and log, and add the metrics to those of earlier stages."""
    arguments = job.arguments
    trained = train(trainer, arguments.model.early_stopping_patience, resume=arguments.training.resume_from_checkpoint)
    recovered = job.task.test(trainer)
    trainer.log(by_stage("recovered", recovered))
    return MethodOutcome(
        # gradual pruning and adapters replace the trainer's model
        model=trainer.model,
        trainer=trainer,
        metrics=metrics | {"recovered": recovered},
        steps=trained.global_step,
        seconds=trained.metrics["train_runtime"],
    )
