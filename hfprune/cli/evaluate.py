"""The command `hfprune evaluate`: a model on data of its task, or a causal language model on plain text."""

import json
from dataclasses import asdict
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
    Seed,
    Separator,
    TaskName,
    TextColumn,
    errors_in_one_line,
)

_WINDOWS_IN_A_BATCH = 4


def evaluate(
    context: typer.Context,
    model: ModelName,
    data: Annotated[str | None, DATA] = None,
    task: TaskName = None,
    text: Annotated[
        str | None,
        typer.Option(help="For causal language models: a txt file, or state_of_the_union (test split)."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation or test; by default test, or all of a single file.")
    ] = None,
    metrics: Metrics = None,
    latency: Annotated[bool, typer.Option(help="Measure the latency too (batch 32).")] = False,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    label_map: LabelMap = None,
    separator: Separator = None,
    encoding: Encoding = None,
    max_length: MaxLength = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples in a batch; by default as the task says, or 4 windows of a text.")
    ] = None,
    window: Annotated[int, typer.Option(help="Tokens that a language model sees at a time.")] = 256,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window to the next; by default the window.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Evaluate a model on data of its task, or a causal language model on plain text, and print its metrics as JSON.

    `hfprune init TASK` lists the options of one task's data, which are taken here too.
    """
    with errors_in_one_line():
        from hfprune.cli.measuring import task_metrics, text_perplexity
        from hfprune.cli.task_data import task_data

        _check_evaluation(data=data, text=text, split=split, latency=latency, batch_size=batch_size)
        if data is None:
            text_result = text_perplexity(
                model,
                str(text),
                metrics=metrics or [],
                window=window,
                stride=stride,
                batch_size=batch_size or _WINDOWS_IN_A_BATCH,
                encoding=encoding,
            )
            typer.echo(json.dumps(asdict(text_result), indent=1))
            return
        results = task_metrics(
            task_data(context, model, data),
            split=split,
            metrics=metrics or [],
            batch_size=batch_size,
            latency=latency,
        )
        typer.echo(json.dumps(results, indent=1))


def _check_evaluation(
    *, data: str | None, text: str | None, split: str | None, latency: bool, batch_size: int | None
) -> None:
    """Refuse options of `evaluate` that do not go together."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}.")
    if (data is None) == (text is None):
        raise ValueError("give --data (of a task, with labels) or --text (plain text for a causal language model).")
    if data is None and (latency or split):
        raise ValueError("--latency and --split go with --data; with --text they would be ignored.")
