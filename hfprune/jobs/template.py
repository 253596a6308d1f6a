"""A file of settings to start a job from: `hfprune init TASK` prints it, `hfprune run` takes it."""

from collections.abc import Iterator, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

import yaml

from hfprune.jobs.settings import MethodArguments, ModelArguments, PruningArguments
from hfprune.jobs.tasks import RegisteredTask
from hfprune.recovery.arguments import RecoveryArguments, default_of, own_fields

#: What nearly every job sets, with a value to start from.
_STARTS: dict[str, Any] = {
    "model_name_or_path": "me/finetuned",
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
#: Further arguments of transformers' Trainer that the file names.
_FURTHER_OF_TRAINER = (
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
    groups: dict[str, Sequence[Field[Any]]] = {
        "The model": fields(ModelArguments),
        "The data": fields(task.arguments),
        "What is removed, and how": fields(PruningArguments),
        "When it is removed": fields(MethodArguments),
        "Recovery: training after pruning; num_train_epochs: 0 leaves it out": (*_of_trainer(task), *own_fields()),
    }
    for title, settings in groups.items():
        lines += ["", f"# {title}"]
        for setting in settings:
            # those that no user sets
            if setting.init:
                lines += _lines_of(setting, task)
    return "\n".join(lines) + "\n"


def _of_trainer(task: RegisteredTask) -> list[Field[Any]]:
    """The arguments of Trainer that the file names, those with a value to start from first."""
    by_name = {setting.name: setting for setting in fields(RecoveryArguments)}
    names = (*_STARTS, *_FURTHER_OF_TRAINER, *task.arguments.trainer_settings)
    return [by_name[name] for name in names if name in by_name]


def _lines_of(setting: Field[Any], task: RegisteredTask) -> Iterator[str]:
    """A setting with its help above it; as a comment where it has its default."""
    text = str(setting.metadata.get("help", "")).strip()
    # transformers' own texts have several lines
    text = " ".join(text.split()).partition(". ")[0].rstrip(".")
    yield f"# {text}."
    starts = {**_STARTS, "train_file": task.arguments.example_file}
    if setting.name in starts:
        yield f"{setting.name}: {_as_yaml(starts[setting.name])}"
    else:
        yield f"#{setting.name}: {_as_yaml(default_of(setting))}".rstrip()


def _as_yaml(value: Any) -> str:
    """A value as it stands behind a colon; nothing for None."""
    if value is None or value is MISSING:
        return ""
    plain = getattr(value, "value", value)
    return str(yaml.safe_dump(plain, default_flow_style=True)).removesuffix("...\n").strip()
