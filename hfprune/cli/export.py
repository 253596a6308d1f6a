"""The command `hfprune export`: a model as a file of another runtime, proved there."""

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


def export(
    context: typer.Context,
    model: ModelName,
    to: Annotated[str, typer.Option(help="onnx, openvino, executorch, litert, gguf or torch.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write; by default the model's name with the target's behind it.")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            help="onnx: int8 (weights; activations as the model runs). openvino: int8 (weights), int8-calibrated "
            "(weights and activations, with ranges measured on --data). litert: int8 (as onnx). "
            "gguf: f16, bf16, q8_0, q4_0, q4_1."
        ),
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
    threads: Annotated[int | None, typer.Option(help="Of the runtime, while it is compared.")] = None,
    record: Annotated[
        bool, typer.Option("--record", help="List the export in the record and the card of the checkpoint folder.")
    ] = False,
    revision: Revision = None,
    overwrite: Annotated[bool, typer.Option(help="Replace an export that is in the folder.")] = False,
    seed: Seed = 0,
) -> None:
    """Write a model for another runtime, and check there that it computes what the model computes in PyTorch.

    A file that computes something else is not kept.
    """
    with errors_in_one_line():
        from hfprune.cli.exporting import exported
        from hfprune.cli.task_data import task_data

        if data is None and (split or metrics):
            raise ValueError("--split and --metrics go with --data; without it they would be ignored.")
        measured = None
        if data is not None:
            # what is exported is measured by the metrics of classifiers
            measured = task_data(context, model, data, task="text_classification", revision=revision)
        result = exported(
            model,
            to,
            output,
            quantize=quantize,
            data=measured,
            split=split,
            metrics=metrics or [],
            threads=threads,
            record=record,
            revision=revision,
            overwrite=overwrite,
        )
        typer.echo(str(result))
