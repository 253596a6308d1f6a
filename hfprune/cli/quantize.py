"""The command `hfprune quantize`: a checkpoint with smaller weights, compared with the one before."""

from pathlib import Path
from typing import Annotated

import typer

from hfprune.cli.options import (
    DATA,
    Encoding,
    LabelColumn,
    LabelMap,
    MaxLength,
    Metrics,
    ModelName,
    PairColumn,
    Revision,
    Seed,
    Separator,
    TextColumn,
    errors_in_one_line,
)


def quantize(
    context: typer.Context,
    model: ModelName,
    method: Annotated[
        str,
        typer.Option(
            help="int8 (weights; activations as the model runs) or int8-weights, of torchao; bitsandbytes-8bit or "
            "bitsandbytes-4bit."
        ),
    ] = "int8",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write; by default the model's name and the method's."),
    ] = None,
    data: Annotated[str | None, DATA] = None,
    split: Annotated[
        str | None, typer.Option(help="Measured on: train, validation or test; by default test, or all of a file.")
    ] = None,
    metrics: Metrics = None,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    label_map: LabelMap = None,
    separator: Separator = None,
    encoding: Encoding = None,
    max_length: MaxLength = None,
    threads: Annotated[int | None, typer.Option(help="Of the CPU, while both models are compared.")] = None,
    revision: Revision = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a quantised model that is in the folder.")] = False,
    seed: Seed = 0,
) -> None:
    """Quantise the weights of a checkpoint, pruned or dense, into another checkpoint, and compare both.

    One that computes something else is not kept.
    """
    with errors_in_one_line():
        from hfprune.cli.exporting import quantized
        from hfprune.cli.task_data import task_data

        if data is None and (split or metrics):
            raise ValueError("--split and --metrics go with --data; without it they would be ignored.")
        measured = None
        if data is not None:
            # what is exported is measured by the metrics of classifiers
            measured = task_data(context, model, data, task="text_classification", revision=revision)
        result = quantized(
            model,
            method,
            output,
            data=measured,
            split=split,
            metrics=metrics or [],
            threads=threads,
            revision=revision,
            overwrite=overwrite,
        )
        typer.echo(str(result))
