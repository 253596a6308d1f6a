"""The work of `hfprune recover`."""

import logging
from collections.abc import Sequence
from pathlib import Path

from hfprune.cli.task_data import find_task
from hfprune.data.files import is_file_name
from hfprune.jobs.recover import recover
from hfprune.jobs.run import Outcome
from hfprune.jobs.settings import parse


def recovered(
    model: str,
    output: Path,
    data: str,
    *,
    teacher: str | None,
    task: str | None,
    revision: str | None,
    settings: Sequence[str],
) -> Outcome | None:
    """Train a pruned checkpoint.

    Args:
        model: Folder or repository.
        output: The folder of the run.
        data: Data set, folder or file.
        teacher: The model to learn from; None: the labels alone.
        task: The name of the task; None: it is found by the model's class.
        revision: Branch, tag or commit of the model's repository.
        settings: Further settings, as words of a command line.

    Returns:
        The result; None in all processes but the main one.

    Raises:
        HfpruneError: The model is not pruned, an earlier run is in the way, or the teacher does not fit.
        ValueError: The task or a setting is unknown, or a value is wrong.
    """
    found = find_task(task, model, revision=revision)
    words = ["--model_name_or_path", model, "--output_dir", str(output)]
    words += ["--train_file" if is_file_name(data) else "--dataset", data]
    if teacher is not None:
        words += ["--teacher_model", teacher]
    if revision is not None:
        words += ["--model_revision", revision]
    arguments = parse(found.arguments, None, [*words, *settings])
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return recover(found.load, arguments, program="hfprune")
