"""Tasks: for each kind of task its arguments, its data, and what a model and a Trainer need to know of it.

A script looks its task up with `get_task(name)`, parses its arguments with `parse(task.arguments, ...)`, and hands
`task.load` to `hfprune.jobs.run.run`. `registry.py` says how a task is added.
"""

from hfprune.jobs.settings import Arguments, DataArguments, MethodArguments, ModelArguments, SequenceArguments, parse
from hfprune.jobs.tasks.causal_text import CausalTextArguments, causal_language_modelling
from hfprune.jobs.tasks.masked_text import MaskedTextArguments, masked_language_modelling
from hfprune.jobs.tasks.multiple_choice import ChoiceArguments, multiple_choice
from hfprune.jobs.tasks.question_answering import QuestionArguments, question_answering
from hfprune.jobs.tasks.registry import (
    RegisteredTask,
    TaskLoader,
    get_task,
    import_task_files,
    known_tasks,
    register_task,
)
from hfprune.jobs.tasks.task import Task
from hfprune.jobs.tasks.texts import TextArguments, text_classification
from hfprune.jobs.tasks.tokens import TokenArguments, token_classification

__all__ = [
    "Arguments",
    "CausalTextArguments",
    "ChoiceArguments",
    "DataArguments",
    "MaskedTextArguments",
    "MethodArguments",
    "ModelArguments",
    "QuestionArguments",
    "RegisteredTask",
    "SequenceArguments",
    "Task",
    "TaskLoader",
    "TextArguments",
    "TokenArguments",
    "causal_language_modelling",
    "get_task",
    "known_tasks",
    "masked_language_modelling",
    "multiple_choice",
    "parse",
    "question_answering",
    "register_task",
    "text_classification",
    "token_classification",
]

# A task registers itself when its file is imported. Importing whatever files there are spares a list of them here.
import_task_files(__name__, __path__)
