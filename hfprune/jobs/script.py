"""What a script does: parse its arguments, run the job, print the result, and report a mistake in one line."""

import logging
import os
import sys
from pathlib import Path

from hfprune.errors import MISTAKES, one_line
from hfprune.jobs.run import run
from hfprune.jobs.tasks import get_task, parse


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
    task = get_task(task_name)
    try:
        arguments = parse(task.arguments, description)
        logging.basicConfig(level=logging.INFO, format="%(message)s")
        outcome = run(task.load, arguments, script=script)
    except MISTAKES as error:
        if os.environ.get("HFPRUNE_TRACEBACK") == "1":
            raise
        raise SystemExit(f"{Path(script).name}: {one_line(error)}") from None
    # of several processes only the main one has an outcome
    sys.stdout.write(f"{outcome or ''}\n")
