"""The commands `hfprune run`, the whole job from one file, and `hfprune init`, which writes such a file."""

from pathlib import Path
from typing import Annotated

import typer

from hfprune.cli.options import errors_in_one_line

#: `hfprune run` hands its arguments on to the parser of the task, help among them.
AS_THEY_ARE = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def run(context: typer.Context) -> None:
    """Do the whole job of a task: fine-tune if asked, prune, recover, measure, save, publish.

    `hfprune run FILE` takes all settings from a YAML or JSON file, which `hfprune init TASK` writes; single settings
    may follow, such as `--sparsity 0.6`. Without a file, `hfprune run --task TASK` takes all of them as options, and
    `hfprune run --task TASK --help` lists them.
    """
    with errors_in_one_line():
        from hfprune.jobs.script import run_task, task_in
        from hfprune.jobs.tasks import known_tasks

        name, words = task_in(context.args)
        if name is None:
            tasks = ", ".join(sorted(known_tasks()))
            if not context.args or "--help" in context.args:
                typer.echo(f"{run.__doc__}\nTasks: {tasks}")
                return
            raise ValueError(
                f"no task is named: write `task: ...` into the file, or --task. Tasks: {tasks}. "
                "`hfprune init TASK` writes a file to start from."
            )
        outcome = run_task(name, words, run.__doc__, program="hfprune")
        # of several processes only the main one has an outcome
        typer.echo(str(outcome or ""))


def init(
    task: Annotated[str, typer.Argument(help="The name of a task; `hfprune run` lists them.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; by default the text is printed.")
    ] = None,
) -> None:
    """Write a commented YAML file with all settings of a task, for `hfprune run`."""
    with errors_in_one_line():
        from hfprune.jobs.tasks import get_task
        from hfprune.jobs.template import template_of

        text = template_of(get_task(task))
        if output is None:
            typer.echo(text, nl=False)
            return
        if output.exists():
            raise ValueError(f"{output} is there already. Name another file, or remove it.")
        output.write_text(text, encoding="utf-8")
        typer.echo(
            f"written to {output}. Change model_name_or_path, the data and output_dir; then: hfprune run {output}"
        )
