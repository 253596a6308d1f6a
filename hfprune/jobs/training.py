"""Training as the scripts do it: with early stopping, from the last whole checkpoint, and with facts in the log."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from hfprune.recovery.arguments import RecoveryArguments
from hfprune.recovery.trainer import RecoveryTrainer

logger = logging.getLogger(__name__)


def will_train(args: RecoveryArguments) -> bool:
    """Whether training arguments ask for any training steps."""
    return bool(args.max_steps > 0 or args.num_train_epochs > 0)


def train(trainer: RecoveryTrainer, patience: int | None, *, resume: str | bool | None = None) -> Any:
    """Train, with early stopping where it is asked for.

    Args:
        trainer: The trainer.
        patience: The evaluations without a better metric after which training stops; None: it does not stop early.
        resume: As for `Trainer.train`; but with True where there is no checkpoint yet, training begins at step 0.

    Returns:
        What `Trainer.train` returns.
    """
    if resume is True:
        folder = Path(trainer.args.output_dir)
        # Trainer itself raises where there is no checkpoint, and takes the last one even if it is not whole
        resume = _last_whole_checkpoint(folder)
        if resume is None:
            logger.info("There is no checkpoint in %s to go on from: training begins", folder)
    if patience is None:
        return trainer.train(resume_from_checkpoint=resume)
    # removed afterwards, as it would count evaluations outside training too
    stopping = EarlyStoppingCallback(patience)
    trainer.add_callback(stopping)
    trained = trainer.train(resume_from_checkpoint=resume)
    trainer.remove_callback(stopping)
    return trained


def _last_whole_checkpoint(folder: Path) -> str | None:
    """The last checkpoint in a folder that was written to its end."""
    checkpoints: list[tuple[int, Path]] = []
    for path in folder.glob("checkpoint-*"):
        match = re.fullmatch(r"checkpoint-(\d+)", path.name)
        # the user may have put copies under other names beside them
        if match:
            checkpoints.append((int(match[1]), path))
    for _, path in sorted(checkpoints, reverse=True):
        # Trainer writes its state after all other files
        if (path / TRAINER_STATE_NAME).is_file():
            return str(path)
        logger.warning("%s was not written to its end: training goes on from an earlier one", path)
    return None


def by_stage(stage: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics with the stage in front of their names, as logs have them.

    >>> by_stage("dense", {"accuracy": 0.9})
    {'dense_accuracy': 0.9}
    """
    return {f"{stage}_{name}": value for name, value in metrics.items()}


class Announcement(TrainerCallback):
    """Logs facts that are known before training, once, to wherever `report_to` says.

    Args:
        trainer: The trainer that has this callback.
        values: The facts, by name.
    """

    def __init__(self, trainer: RecoveryTrainer, values: dict[str, float]) -> None:
        self._trainer = trainer
        self._values = values

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002 (the trainer that logs has its own)
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """Log them. Reporters such as TensorBoard begin at this event too, and come before this callback."""
        self._trainer.log(self._values)
