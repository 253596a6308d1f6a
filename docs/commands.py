"""The reference pages of the command line and of the scripts, from the code that parses their arguments."""

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import Any

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from hfprune.cli.app import app
from hfprune.jobs.settings import DataArguments, MethodArguments, ModelArguments, PruningArguments
from hfprune.jobs.tasks import known_tasks
from hfprune.recovery.arguments import RecoveryArguments

COMMAND_LINE = """# Command line

`hfprune COMMAND --help` prints the same. Every command ends with exit code 0, or with one line that says what was
wrong and another code. With the environment variable `HFPRUNE_TRACEBACK=1` Python's own report says where it was found.
The [how-tos](../how-to/index.md) show the commands at work.

`hfprune --install-completion` teaches your shell (bash, zsh, fish or PowerShell) to complete commands and options with
the tab key; `hfprune --show-completion` prints what it would install. `python -m hfprune` is the same command, for an
environment whose programs are not on the path. Python runs the whole package first there, so that even `--help` takes
some seconds, where `hfprune --help` comes at once.

"""


def command_line() -> str:
    """docs/reference/command-line.md, from the commands."""
    command = get_command(app)
    context = typer.Context(command)
    text = get_docs_for_click(obj=command, ctx=context, name="hfprune", title="Command line")
    body = text.split("**Usage**", 1)[1]
    # a `console` block with a prompt can neither be copied nor be tested
    body = body.replace("```console\n$ ", "```text\n")
    return COMMAND_LINE + "**Usage**" + body.rstrip() + "\n"


SCRIPTS = """# Arguments of the scripts

The scripts in `scripts/` share the arguments of this page. They take them on the command line, or from a YAML or
JSON file, after which the command line can override single values. [Run the whole job from one
file](../how-to/run-the-whole-job.md) shows how.

The scripts also take all [arguments of `Trainer`](https://huggingface.co/docs/transformers/main_classes/trainer), such
as `--learning_rate`, `--output_dir` or `--seed`. `--help` lists everything.

"""
#: The groups of arguments in the order of the page: heading, class, and the class whose arguments are left out where
#: they mean the same.
GROUPS: tuple[tuple[str, type, type | None], ...] = (
    ("Model and teacher", ModelArguments, None),
    ("Data", DataArguments, None),
    *((f"Data of {name.replace('_', ' ')}", task.arguments, DataArguments) for name, task in known_tasks().items()),
    ("Pruning", PruningArguments, None),
    ("When units are removed", MethodArguments, None),
    ("Recovery", RecoveryArguments, RecoveryArguments.__mro__[1]),
)


def scripts() -> str:
    """docs/reference/scripts.md, from the dataclasses of the arguments."""
    parts = [SCRIPTS]
    for heading, arguments, left_out in GROUPS:
        rows = list(_rows(arguments, left_out))
        if rows:
            parts += [f"## {heading}\n\n", "| argument | default | meaning |\n|---|---|---|\n", *rows, "\n"]
    return "".join(parts).rstrip() + "\n"


def _rows(arguments: type, left_out: type | None) -> Iterator[str]:
    known = {argument.name: argument.metadata for argument in fields(left_out)} if left_out else {}
    for argument in fields(arguments):
        if not argument.init or known.get(argument.name) == argument.metadata:
            continue
        meaning = str(argument.metadata.get("help", "")).replace("|", "\\|")
        yield f"| `--{argument.name}` | {_default(argument)} | {meaning} |\n"


def _default(argument: "Field[Any]") -> str:
    if argument.default is None:
        return ""
    if argument.default is not MISSING:
        return f"`{argument.default}`"
    if argument.default_factory is not MISSING:
        made = argument.default_factory()
        return f"`{made}`" if made else ""
    return "required"
