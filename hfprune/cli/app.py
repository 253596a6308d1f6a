"""The `hfprune` command: prune, sweep, measure, and commands about checkpoints. Each of them calls the public API.

The files of commands (this one, and those that it imports) say what a command takes. They import what a command runs
when it runs, so that help and completion come at once.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from hfprune.cli.checkpoints import diff, import_, inspect, push, report, verify
from hfprune.cli.evaluate import evaluate
from hfprune.cli.export import export
from hfprune.cli.latency_table import latency_table
from hfprune.cli.options import WITH_OPTIONS_OF_TASKS
from hfprune.cli.prune import prune
from hfprune.cli.quantize import quantize
from hfprune.cli.recover import recover
from hfprune.cli.run import AS_THEY_ARE, init, run
from hfprune.cli.sweep import sweep
from hfprune.cli.vocabulary import vocabulary

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(version("hfprune"))
        raise typer.Exit


@app.callback()
def hfprune(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Structured pruning for Hugging Face transformers."""


app.command()(init)
app.command(context_settings=AS_THEY_ARE)(run)
app.command(context_settings=WITH_OPTIONS_OF_TASKS)(prune)
app.command(context_settings=WITH_OPTIONS_OF_TASKS)(recover)
app.command(context_settings=WITH_OPTIONS_OF_TASKS)(sweep)
app.command("latency-table")(latency_table)
app.command()(vocabulary)
app.command(context_settings=WITH_OPTIONS_OF_TASKS)(evaluate)
app.command()(export)
app.command()(quantize)
app.command()(inspect)
app.command()(verify)
app.command()(report)
app.command()(diff)
app.command("import")(import_)
app.command()(push)
