"""A job, which a method starts from, and the outcome of a method."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from hfprune.jobs.settings import Arguments
from hfprune.jobs.tasks import Task
from hfprune.publishing.checkpoint import save
from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.trainer import RecoveryTrainer
from hfprune.structure.anatomy import Anatomy
from hfprune.structure.batches import Batch


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a method starts from.

    Attributes:
        task: The data and the metrics.
        arguments: All arguments of the script.
        anatomy: The dense model with its structure.
        teacher: The model that pruned models learn from.
        batches: Calibration batches.
        metrics: The metrics of the dense model.
    """

    task: Task
    arguments: Arguments
    anatomy: Anatomy
    teacher: PreTrainedModel
    batches: list[Batch]
    metrics: dict[str, float]

    @property
    def dense(self) -> PreTrainedModel:
        """The dense model."""
        return self.anatomy.model

    @property
    def output(self) -> Path:
        """The folder of the run."""
        return Path(self.arguments.training.output_dir)

    def save(self, model: PreTrainedModel, name: str) -> None:
        """Save a model of an intermediate stage. Of several processes only the main one writes.

        Args:
            model: The model.
            name: Its folder within the folder of the run.
        """
        if self.arguments.training.process_index == 0:
            save(model, self.output / name, tokenizer=self.task.processor, overwrite=True)

    def trainer(self, model: PreTrainedModel, args: RecoveryArguments | None = None) -> RecoveryTrainer:
        """Make a trainer that trains a pruned model against the teacher.

        Args:
            model: The pruned model.
            args: The training arguments, by default those of the script.

        Returns:
            The trainer.
        """
        return self.task.trainer(model, args or self.arguments.training, teacher=self.teacher)


@dataclass(frozen=True, kw_only=True)
class MethodOutcome:
    """The pruned model that a method made, with its measurements.

    Attributes:
        model: The pruned model.
        trainer: The trainer that measured it.
        metrics: Its metrics, under `pruned` before training and under `recovered` after it, where the method has such a
            stage.
        steps: The number of training steps.
        seconds: The duration of the training, with that of pruning where both alternate; None if there was no training.
    """

    model: PreTrainedModel
    trainer: RecoveryTrainer
    metrics: dict[str, dict[str, float]]
    steps: int = 0
    seconds: float | None = None
