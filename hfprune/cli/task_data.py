"""The data of a command, and the task that it is for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import typer
from datasets import Dataset, DatasetDict
from transformers import AutoConfig

from hfprune.cli.held_out import log_lines
from hfprune.data.files import is_file_name
from hfprune.data.packages import resolve_model
from hfprune.errors import CheckpointError
from hfprune.jobs.settings import DataArguments, ModelArguments, parse_data
from hfprune.jobs.tasks import RegisteredTask, Task, get_task, known_tasks
from hfprune.jobs.tasks.registry import is_of_task, task_of_model
from hfprune.publishing.sources import check_source, is_of_sentence_transformers
from hfprune.publishing.verification import class_of

#: Options that commands list in their help, and hand on to the task.
_LISTED = ("text_column", "pair_column", "label_column", "label_map", "separator", "encoding", "max_length")
#: Settings of the data that commands set, and what users write instead.
_SET_BY_COMMANDS = {
    "dataset": "--data names the data",
    "train_file": "--data names the data",
    "validation_file": "--data names the data, --held-out what is measured",
    "test_file": "--data names the data, --held-out what is measured",
    "metrics": "this command goes by one metric of every sample, --sample-metric",
}


@dataclass(frozen=True, kw_only=True)
class TaskData:
    """Data by its name, and the task that reads it.

    Attributes:
        model: The model, as the user names it: its labels and its tokenizer are those of the data.
        task: The task.
        name: Data set, folder or file.
        options: Options of the task, as words of a command line.
        others: Options of the command itself, for the message about one that is misspelt.
        seed: Of the splits that are drawn.
        revision: Branch, tag or commit of the model's repository.
    """

    model: str
    task: RegisteredTask
    name: str
    options: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    seed: int = 0
    revision: str | None = None

    @property
    def is_file(self) -> bool:
        """Whether all data is in one file."""
        return is_file_name(self.name)

    @property
    def asks_for_labels(self) -> bool:
        """Whether the user said something about labels, so that they must be there."""
        return any(option.startswith("--label") for option in self.options)

    @property
    def sequence_length(self) -> int:
        """For how many tokens multiply-adds are counted."""
        return self._arguments.sequence_length

    def called(self, name: str) -> "TaskData":
        """The same description of other data.

        Args:
            name: Its name.

        Returns:
            The description.
        """
        return replace(self, name=name)

    def check(self) -> None:
        """Refuse options that the task does not have, and those that the command itself sets.

        Raises:
            ValueError: There is such an option.
        """
        for name, instead in _SET_BY_COMMANDS.items():
            if getattr(self._arguments, name):
                raise ValueError(f"--{name} cannot be set here: {instead}.")

    def load(
        self,
        *,
        whole: bool = False,
        needs_labels: bool = True,
        metrics: Sequence[str] = (),
        sample_metric: str | None = None,
    ) -> Task:
        """Read the data for the model.

        Where there is no test split with labels, the validation split serves as both. A validation split that is cut
        from the train split would hold samples that the model was probably trained on, and a sparsity must not be
        chosen by those.

        Args:
            whole: Give all rows of a single file in each of its splits, instead of cutting it into splits.
            needs_labels: Whether labels that are missing, or that are not the model's, are an error. Otherwise a line
                on stderr says what is wrong with them, and the task has no labels.
            metrics: Names of metrics; by default the usual ones of the task.
            sample_metric: The metric of single samples that is wanted of the task.

        Returns:
            The task.

        Raises:
            ValueError: The data cannot be read, has no such columns, or its labels are not those of the model.
        """
        arguments = replace(self._arguments, metrics=list(metrics) or self._arguments.metrics)
        if not self.is_file:
            arguments.dataset = self.name
        elif whole:
            # given for train alone it is cut into three, given for each split it stays whole
            arguments.train_file = arguments.validation_file = arguments.test_file = self.name
        else:
            arguments.train_file = self.name
        arguments.reuse_validation = True
        arguments.needs_labels = needs_labels
        arguments.sample_metric = sample_metric
        named = ModelArguments(self.model, model_revision=self.revision)
        with log_lines("hfprune.jobs.tasks"):
            return self.task.load(named, arguments, seed=self.seed)

    @cached_property
    def _arguments(self) -> DataArguments:
        return parse_data(self.task.arguments, self.options, others=self.others)


def task_data(
    context: typer.Context, model: str, name: str, *, task: str | None = None, revision: str | None = None
) -> TaskData:
    """The data that the options of a command describe.

    Args:
        context: The command with its options. Those that it does not list are options of the task.
        model: The model, as the user names it.
        name: Data set, folder or file.
        task: The only task that the command knows; None: the one that the user names, or that is the model's.
        revision: Branch, tag or commit of the model's repository.

    Returns:
        The description of the data; nothing of it is read yet.

    Raises:
        CheckpointError: The model is of no task, or of another one than the user names.
        ValueError: The task or one of its options is unknown.
    """
    if model.startswith("-"):
        raise ValueError(
            f"{model!r} stands where the name of a model is expected: options of a task's data stand behind the model "
            "and the folder."
        )
    options: list[str] = []
    for option in _LISTED:
        value = context.params.get(option)
        if value is not None:
            options += [f"--{option}", str(value)]
    options += context.args
    others: list[str] = []
    for parameter in context.command.params:
        others += parameter.opts
    described = TaskData(
        model=model,
        task=find_task(task or context.params.get("task"), model, revision=revision),
        name=name,
        options=tuple(options),
        others=tuple(others),
        seed=context.params["seed"],
        revision=revision,
    )
    # raises an error for an option that the task does not have
    described.check()
    return described


def find_task(name: str | None, model: str, *, revision: str | None = None) -> RegisteredTask:
    """The task of a model.

    Args:
        name: The name of the task; None: it is found by the model's class.
        model: The model, as the user names it.
        revision: Branch, tag or commit of its repository.

    Returns:
        The task.

    Raises:
        CheckpointError: The model is of no task, or of another one.
        ValueError: There is no task of that name.
    """
    source = resolve_model(model)
    check_source(source, revision=revision)
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    model_class = class_of(config.architectures or [], model)
    tasks = ", ".join(sorted(known_tasks()))
    if name is None:
        found = task_of_model(model_class)
        if found is None and is_of_sentence_transformers(source, revision=revision):
            found = get_task("sentence_embeddings")
        if found is None:
            raise CheckpointError(
                f"{model} is a {model_class.__name__}, which tells of no task. Take a checkpoint with the head of a "
                f"task, or name one with --task: {tasks}."
            )
        return found
    task = get_task(name)
    if not is_of_task(model_class, task):
        raise CheckpointError(
            f"{model} is a {model_class.__name__}, which is no model of the task {name}. Take a fine-tuned one, or "
            f"fine-tune this one first (hfprune run, dense_epochs). Tasks: {tasks}."
        )
    return task


def split_of(splits: DatasetDict, name: str) -> Dataset:
    """A split by name.

    Args:
        splits: The splits of a data set.
        name: The name of one.

    Returns:
        The split.

    Raises:
        ValueError: There is none of that name; the message lists the names of all splits.
    """
    if name not in splits:
        raise ValueError(f"there is no split {name!r}, only {', '.join(splits)}.")
    return splits[name]
