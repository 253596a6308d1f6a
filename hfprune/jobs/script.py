"""What a script and `hfprune run` do: parse arguments, run the job, print the result, report a mistake in one line."""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from hfprune.errors import MISTAKES, one_line
from hfprune.jobs.run import Outcome, run
from hfprune.jobs.settings import parse, words_of
from hfprune.jobs.tasks import get_task, known_tasks


def main(task_name: str, description: str | None, *, script: str) -> None:
    """Run the job of a script with the arguments of this process.

    With the environment variable HFPRUNE_TRACEBACK set to 1 Python's own report says where a mistake was found.

    Args:
        task_name: The name of its task.
        description: The text at the top of `--help`.
        script: The file of the script.

    Raises:
        SystemExit: The user made a mistake; its message is one line.
    """
    name = Path(script).name
    try:
        named, words = task_in(sys.argv[1:])
        if named not in (None, task_name):
            raise ValueError(f"this script is for the task {task_name}, and {named} was named: hfprune run takes any.")
        outcome = run_task(task_name, words, description, program=f"python scripts/{name}")
    except MISTAKES as error:
        if os.environ.get("HFPRUNE_TRACEBACK") == "1":
            raise
        raise SystemExit(f"{name}: {one_line(error)}") from None
    # of several processes only the main one has an outcome
    sys.stdout.write(f"{outcome or ''}\n")


def run_task(task_name: str, words: Sequence[str], description: str | None, *, program: str) -> Outcome | None:
    """Run the job of a task.

    Args:
        task_name: The name of the task.
        words: The command line: arguments, which the name of a YAML or JSON file may precede.
        description: The text at the top of `--help`.
        program: How it is called, for the command in the record.

    Returns:
        The result; None in all processes but the main one.

    Raises:
        ValueError: The task or an argument is unknown, or a value is wrong.
    """
    task = get_task(task_name)
    arguments = parse(task.arguments, description, words)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return run(task.load, arguments, program=program)


def task_in(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The task that a command line names, with `--task` or in the file that it begins with.

    >>> task_in(["--task", "text_classification", "--sparsity", "0.3"])
    ('text_classification', ['--sparsity', '0.3'])

    Args:
        words: The command line.

    Returns:
        The name of the task, None if there is none; and the words without it, with those of the file.

    Raises:
        ValueError: `--task` has no value, or the file does not hold values by name.
    """
    name = None
    rest: list[str] = []
    given = iter(words_of(words))
    for word in given:
        option, equals, value = word.partition("=")
        if option != "--task":
            rest.append(word)
            continue
        name = value if equals else next(given, None)
        if not name:
            raise ValueError(f"--task needs the name of a task: {', '.join(sorted(known_tasks()))}.")
    return name, rest
