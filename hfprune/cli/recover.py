"""The command `hfprune recover`: train a pruned model, against its dense teacher or on labels alone."""

from pathlib import Path
from typing import Annotated

import typer

from hfprune.cli.options import DataName, Output, Revision, TaskName, errors_in_one_line


def recover(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A pruned checkpoint: folder or Hub name.")],
    output: Output,
    data: DataName,
    teacher: Annotated[
        str | None,
        typer.Option(help="The dense model, or another one with the same labels, to learn from; by default none."),
    ] = None,
    task: TaskName = None,
    revision: Revision = None,
) -> None:
    """Train a pruned model, measure it before and after, and save it in the folder `model` of the output.

    All settings of `hfprune run` are taken here too, such as `--num_train_epochs 3 --learning_rate 5e-5`: `hfprune init
    TASK` lists them.
    """
    with errors_in_one_line():
        from hfprune.cli.recovering import recovered

        outcome = recovered(
            model, Path(output), data, teacher=teacher, task=task, revision=revision, settings=context.args
        )
        # of several processes only the main one has an outcome
        typer.echo(str(outcome or ""))
