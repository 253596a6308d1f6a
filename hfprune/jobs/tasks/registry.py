"""The registry of tasks: from the name of a task to the function that loads it and the arguments of its data.

A new task needs one file in this folder. The file holds a function that returns a `Task`, decorated with
`register_task`, and, where the task has options of its own, a dataclass with them, derived from `DataArguments`:

    @dataclass
    class ChoiceArguments(DataArguments):
        choices_column: str = field(default="choices", metadata={"help": "Column with the answers to choose from."})


    @register_task("multiple_choice", arguments=ChoiceArguments)
    def multiple_choice(model: ModelArguments, data: ChoiceArguments, *, seed: int) -> Task:
        ...

Nothing else lists the tasks. A script outside the package can register one in the same way.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from hfprune.jobs.settings import DataArguments, ModelArguments
from hfprune.jobs.tasks.task import Task
from hfprune.structure.registration import check_same


class TaskLoader(Protocol):
    """A function that loads a task, such as `hfprune.jobs.tasks.text_classification`."""

    def __call__(self, model: ModelArguments, data: Any, *, seed: int) -> Task:
        """Load the data and the tokenizer, and say how a model of the task is made and measured."""


Loader = TypeVar("Loader", bound=TaskLoader)


@dataclass(frozen=True, kw_only=True)
class RegisteredTask:
    """A registered task.

    Attributes:
        name: The name to look it up by.
        load: The function that loads it.
        arguments: The class of its data arguments, for `parse`.
        architectures: A regular expression for the names of model classes that are of this task where the user names
            none; of several tasks the one whose expression matches the longest part counts. None: the task must be
            named.
    """

    name: str
    load: TaskLoader
    arguments: type[DataArguments]
    architectures: str | None = None


_TASKS: dict[str, RegisteredTask] = {}


def register_task(
    name: str, *, arguments: type[DataArguments] = DataArguments, architectures: str | None = None
) -> Callable[[Loader], Loader]:
    """Add a task: decorate the function that loads it.

    Args:
        name: The name to look it up by.
        arguments: The class of its data arguments.
        architectures: As for `RegisteredTask`.

    Returns:
        The decorator.

    Raises:
        ValueError: Another function has that name. A function of the same module and name is replaced, so that a
            cell of a notebook can be run again.

    Examples:
        >>> from dataclasses import dataclass, field
        >>> from hfprune.jobs.tasks import TextArguments, known_tasks, register_task, text_classification
        >>> @dataclass
        ... class ShoutedArguments(TextArguments):
        ...     exclamation_marks: int = field(default=1, metadata={"help": "How many stand behind every text."})
        >>> @register_task("shouted_classification", arguments=ShoutedArguments)
        ... def shouted_classification(model, data, *, seed):
        ...     return text_classification(model, data, seed=seed)
        >>> known_tasks()["shouted_classification"].arguments.__name__
        'ShoutedArguments'
    """

    def add(load: Loader) -> Loader:
        if name in _TASKS:
            check_same("a task", name, load, _TASKS[name].load)
        _TASKS[name] = RegisteredTask(name=name, load=load, arguments=arguments, architectures=architectures)
        return load

    return add


def known_tasks() -> Mapping[str, RegisteredTask]:
    """The tasks known now, by name.

    Returns:
        A copy, with a `RegisteredTask` for each name; changing it registers nothing.

    Examples:
        >>> from hfprune.jobs.tasks import known_tasks
        >>> "text_classification" in known_tasks()
        True
    """
    return dict(_TASKS)


def get_task(name: str) -> RegisteredTask:
    """Look a task up.

    Args:
        name: Its name.

    Returns:
        The task, with its loader and the class of its arguments.

    Raises:
        ValueError: No task has this name; the message lists the known ones.

    Examples:
        >>> from hfprune.jobs.tasks import get_task
        >>> get_task("text_classification").arguments.__name__
        'TextArguments'
    """
    if name not in _TASKS:
        raise ValueError(f"unknown task {name!r}. Known: {', '.join(sorted(_TASKS))}.")
    return _TASKS[name]


def task_of_model(model_class: type) -> RegisteredTask | None:
    """The task that a model is of, by its class.

    Args:
        model_class: The class of the model.

    Returns:
        The task; None if no task is known for such models.

    Examples:
        >>> from transformers import BertForTokenClassification, BertModel
        >>> from hfprune.jobs.tasks.registry import task_of_model
        >>> task_of_model(BertForTokenClassification).name, task_of_model(BertModel)
        ('token_classification', None)
    """
    longest = ""
    found = None
    for task in _TASKS.values():
        matched = _matched(model_class, task)
        # the pattern that says most about the class counts
        if len(matched) > len(longest):
            longest, found = matched, task
    return found


def is_of_task(model_class: type, task: RegisteredTask) -> bool:
    """Whether models of a class can be of a task, as far as the name of the class tells.

    Args:
        model_class: The class.
        task: The task.

    Returns:
        Whether they can; True for a task that says nothing about classes.
    """
    return task.architectures is None or bool(_matched(model_class, task))


def _matched(model_class: type, task: RegisteredTask) -> str:
    """The part of the name of a class, or of one that it is made from, that tells of a task; empty if none does."""
    if task.architectures is None:
        return ""
    for parent in model_class.__mro__:
        match = re.search(task.architectures, parent.__name__)
        if match:
            return match[0]
    return ""


def import_task_files(package: str, folders: Iterable[str]) -> None:
    """Import every module of a package, so that the tasks in them are registered.

    Args:
        package: The name of the package.
        folders: Its folders, as its `__path__` lists them.
    """
    for module in pkgutil.iter_modules(folders):
        importlib.import_module(f"{package}.{module.name}")
