"""Shared by all commands: their options, and the report of a user's mistakes.

Nothing here imports torch or transformers, as `hfprune --help` must not wait for them.
"""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from hfprune.errors import MISTAKES, HfpruneError, one_line


class BudgetChoice(StrEnum):
    """The registered budgets; a test compares them with the registry."""

    macs = "macs"
    params = "params"
    kv_cache = "kv_cache"
    latency = "latency"


class UnitChoice(StrEnum):
    """The units of attention with shared key/value heads: a key/value head with its query heads, or one query head."""

    group = "group"
    query = "query"


ModelName = Annotated[
    str, typer.Argument(help="Folder or Hub name; or minilm-l6, smollm2-135m, which `make setup` installs.")
]
TunedName = Annotated[str, typer.Argument(help="A fine-tuned model of any task: folder or Hub name.")]
TaskName = Annotated[
    str | None,
    typer.Option(
        help="By default the one that the model's class tells; hfprune run lists all, hfprune init its options."
    ),
]
Output = Annotated[Path, typer.Argument(help="Folder to write.")]
DATA = typer.Option(
    "--data",
    help="Hub name, a name that needs no Hub such as trec (reference, Data sets by name), a folder with train, "
    "validation and test files, or one csv, json or parquet file, of which a tenth each is cut off for validation and "
    "test.",
)
DataName = Annotated[str, DATA]
HeldOut = Annotated[
    str | None,
    typer.Option(help="Data with labels to measure on, all of it: a file or name as for --data."),
]
Budget = Annotated[
    BudgetChoice | None,
    typer.Option(help="What the sparsity counts; by default macs, or latency with --latency-table."),
]
LatencyTableFile = Annotated[
    Path | None,
    typer.Option(
        "--latency-table", help="File of `hfprune latency-table`: the sparsity counts milliseconds, as it says them."
    ),
]
TextColumn = Annotated[str | None, typer.Option(help="Column with the text; by default text.")]
PairColumn = Annotated[str | None, typer.Option(help="Column with the second text of a pair.")]
LabelColumn = Annotated[
    str | None,
    typer.Option(help="Column with the labels; by default label, which may be missing if nothing needs it."),
]
LabelMap = Annotated[
    str | None,
    typer.Option(
        help="For every label of the data a number or name of the model, such as good=1,poor=0, where the names do not "
        "tell."
    ),
]
Separator = Annotated[str | None, typer.Option(help="Between the columns of a csv file; by default a comma.")]
Encoding = Annotated[str | None, typer.Option(help="Of the texts in files, such as latin-1; by default UTF-8.")]
MaxLength = Annotated[int | None, typer.Option(help="Longer texts are cut to so many tokens; by default 128.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
MaxDrop = Annotated[
    float | None,
    typer.Option(help="The most of the metric that may be lost: 0.01 is one point of accuracy, at 95 % confidence."),
]
SampleMetric = Annotated[
    str | None,
    typer.Option(
        help="For every sample a number, higher is better. Of a classifier accuracy or log_likelihood, of a regression "
        "negative_squared_error or negative_absolute_error; by default what is usual for the task.",
    ),
]
Scorer = Annotated[str, typer.Option(help="Which units matter.")]
Reconstruct = Annotated[bool, typer.Option(help="Repair in closed form after every surgery.")]
CalibrationSamples = Annotated[int, typer.Option(help="Samples that scoring and repair see.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        help="Several may be given; by default what is usual for the task. Of a text classifier accuracy, f1, "
        "precision, recall (each of these three also with _macro behind it; f1_weighted), roc_auc, "
        "matthews_correlation; of a regression pearson, spearman."
    ),
]
#: Of commands that hand the options on that they do not list: those are the task's.
WITH_OPTIONS_OF_TASKS = {"allow_extra_args": True, "ignore_unknown_options": True}
Allocation = Annotated[
    str, typer.Option(help="Where to remove: global, knapsack, threshold, uniform, layerwise or random.")
]
MinUnits = Annotated[int, typer.Option(help="The fewest heads or neurons that a block keeps; 0 lets whole blocks go.")]
RoundTo = Annotated[
    int | None,
    typer.Option(help="Keep neurons in multiples of this; by default 16, in language models 32, or the target's."),
]
Speedup = Annotated[
    float | None, typer.Option(help="With --latency-table: how many times as fast as the dense model, by the table.")
]
WithinMs = Annotated[
    float | None, typer.Option(help="With --latency-table: the most milliseconds that a pass may take.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository.")]
Overwrite = Annotated[bool, typer.Option(help="Replace the output folder if it is there.")]


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Report a mistake of the user in one line on stderr, and end with exit code 1.

    With the environment variable HFPRUNE_TRACEBACK set to 1 Python's own report says where it was found.
    """
    try:
        _run_facade()
        yield
    except MISTAKES as error:
        # these end a command that has said everything
        if isinstance(error, typer.Exit | typer.Abort) or os.environ.get("HFPRUNE_TRACEBACK") == "1":
            raise
        typer.echo(f"hfprune: {one_line(error)}", err=True)
        raise typer.Exit(1) from None


def _run_facade() -> None:
    """Run the code of the package, which `hfprune_command` leaves until a command begins to work."""
    package = sys.modules["hfprune"]
    if not hasattr(package, "__version__"):
        importlib.reload(package)


def refuse_filled(output: Path, *, overwrite: bool) -> None:
    """Refuse to write into a folder that has files already.

    Args:
        output: The folder to write.
        overwrite: Whether the user allows it.

    Raises:
        HfpruneError: The folder has files, and the user does not allow it.
    """
    if overwrite or not output.is_dir():
        return
    if any(output.iterdir()):
        raise HfpruneError(f"{output} exists and is not empty. Choose another folder, or pass --overwrite.")


def budget_of(budget: BudgetChoice | None, latency_table: Path | None) -> str:
    """The name of the budget: a latency table says that the sparsity counts milliseconds.

    Args:
        budget: What the user chose; None: nothing.
        latency_table: The file of a table, if there is one.

    Returns:
        The name.
    """
    # what was chosen stays, and the config refuses a table in another budget
    if budget is not None:
        return budget.value
    return BudgetChoice.macs.value if latency_table is None else BudgetChoice.latency.value
