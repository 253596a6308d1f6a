"""A file of settings to start a job from: `hfprune init TASK` prints it, `hfprune run` takes it."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

import yaml

from hfprune.jobs.settings import DataArguments, MethodArguments, ModelArguments, PruningArguments
from hfprune.jobs.tasks import RegisteredTask
from hfprune.recovery.arguments import RecoveryArguments

#: What nearly every job sets, with a value to start from.
_STARTS: dict[str, Any] = {
    "model_name_or_path": "me/finetuned",
    "train_file": "train.csv",
    "output_dir": "runs/mine",
    "sparsity": 0.5,
    "num_train_epochs": 3,
    "learning_rate": 5.0e-5,
    "per_device_train_batch_size": 32,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "seed": 0,
}
#: Files of rows with several columns; the other tasks read plain text.
_PLAIN_TEXT = ("masked_language_modelling", "causal_language_modelling")
#: Of the arguments of transformers' Trainer, those that are named in the file.
_OF_TRAINER = (
    "output_dir",
    "num_train_epochs",
    "learning_rate",
    "per_device_train_batch_size",
    "eval_strategy",
    "save_strategy",
    "load_best_model_at_end",
    "metric_for_best_model",
    "seed",
    "lr_scheduler_type",
    "weight_decay",
    "bf16",
    "gradient_checkpointing",
    "report_to",
    "resume_from_checkpoint",
    "push_to_hub",
    "hub_model_id",
)


def template_of(task: RegisteredTask) -> str:
    """A commented YAML file with all settings of a task: a few with a value to start from, the others as comments.

    Args:
        task: The task.

    Returns:
        The text.

    Examples:
        >>> from hfprune.jobs.tasks import get_task
        >>> from hfprune.jobs.template import template_of
        >>> print(template_of(get_task("text_classification")).splitlines()[0])
        # Settings of a job of hfprune. Run it: hfprune run FILE
    """
    lines = [
        "# Settings of a job of hfprune. Run it: hfprune run FILE",
        "# Lines that begin with # are settings at their defaults: take the # away, and change the value.",
        f"task: {task.name}",
    ]
    own = {setting.name for setting in fields(RecoveryArguments)} - _names_of_trainer()
    groups: dict[str, list[Field[Any]]] = {
        "The model": list(fields(ModelArguments)),
        "The data": _own_first(task.arguments),
        "What is removed, and how": list(fields(PruningArguments)),
        "When it is removed": list(fields(MethodArguments)),
        "Recovery: training after pruning; num_train_epochs: 0 leaves it out": [
            *_of_trainer(),
            *(setting for setting in fields(RecoveryArguments) if setting.name in own),
        ],
    }
    for title, settings in groups.items():
        lines += ["", f"# {title}"]
        for setting in settings:
            lines += _lines_of(setting, task)
    return "\n".join(lines) + "\n"


def _names_of_trainer() -> set[str]:
    """The names of the arguments of transformers' Trainer."""
    trainer = RecoveryArguments.__mro__[1]
    return {setting.name for setting in fields(trainer)}


def _of_trainer() -> list[Field[Any]]:
    """The arguments of Trainer that the file names, in their order there."""
    by_name = {setting.name: setting for setting in fields(RecoveryArguments)}
    return [by_name[name] for name in _OF_TRAINER]


def _own_first(arguments: type[DataArguments]) -> list[Field[Any]]:
    """The arguments of a task's data: those of every task, and then its own."""
    shared = {setting.name for setting in fields(DataArguments)}
    settings = fields(arguments)
    return [
        *(setting for setting in settings if setting.name in shared),
        *(setting for setting in settings if setting.name not in shared),
    ]


def _lines_of(setting: Field[Any], task: RegisteredTask) -> Iterator[str]:
    """A setting with its help above it; as a comment where it has its default."""
    text = str(setting.metadata.get("help", "")).strip()
    # transformers' own texts have several lines
    text = " ".join(text.split()).partition(". ")[0].rstrip(".")
    yield f"# {text}."
    if setting.name in _STARTS:
        value = _STARTS[setting.name]
        if setting.name == "train_file" and task.name in _PLAIN_TEXT:
            value = "train.txt"
        yield f"{setting.name}: {_as_yaml(value)}"
        return
    value = setting.default
    if setting.default_factory is not MISSING:
        value = setting.default_factory()
    yield f"#{setting.name}: {_as_yaml(value)}".rstrip()


def _as_yaml(value: Any) -> str:
    """A value as it stands behind a colon; nothing for None."""
    if value is None or value is MISSING:
        return ""
    plain = getattr(value, "value", value)
    return str(yaml.safe_dump(plain, default_flow_style=True)).removesuffix("...\n").strip()
