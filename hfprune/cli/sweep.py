"""The command `hfprune sweep`: one model at many sparsities."""

from pathlib import Path
from typing import Annotated

import typer

from hfprune.cli.options import (
    Allocation,
    Budget,
    CalibrationSamples,
    DataName,
    Encoding,
    HeldOut,
    LabelColumn,
    LabelMap,
    LatencyTableFile,
    MaxDrop,
    MaxLength,
    MinUnits,
    PairColumn,
    Reconstruct,
    RoundTo,
    SampleMetric,
    Scorer,
    Seed,
    Separator,
    TaskName,
    TextColumn,
    TunedName,
    budget_of,
    errors_in_one_line,
)

_SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def sweep(
    context: typer.Context,
    model: TunedName,
    data: DataName,
    task: TaskName = None,
    held_out: HeldOut = None,
    sparsities: Annotated[
        list[float] | None, typer.Option("--sparsity", help="Several may be given; by default 0.2, 0.3 ... 0.8.")
    ] = None,
    max_drop: MaxDrop = None,
    sample_metric: SampleMetric = None,
    output: Annotated[Path | None, typer.Option(help="JSON file; a sweep that it holds goes on.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Picture of the metric against MACs kept and latency: .png, .svg or .pdf.")
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="Where the metric is measured: validation, test or train; by default validation, or all rows of a "
            "single file that calibration does not take."
        ),
    ] = None,
    budget: Budget = None,
    latency_table: LatencyTableFile = None,
    within_ms: Annotated[
        float | None, typer.Option(help="Name the best point whose measured latency is at most so many milliseconds.")
    ] = None,
    scorer: Scorer = "logit_fisher",
    allocation: Allocation = "global",
    reconstruct: Reconstruct = True,
    calibration_samples: CalibrationSamples = 512,
    min_units: MinUnits = 1,
    round_to: RoundTo = None,
    latency_batch_size: Annotated[
        int, typer.Option(help="Sequences in a batch, for the latency; with --latency-table as the table was measured.")
    ] = 32,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    label_map: LabelMap = None,
    separator: Separator = None,
    encoding: Encoding = None,
    max_length: MaxLength = None,
    seed: Seed = 0,
) -> None:
    """Measure a model at many sparsities, each pruned in one shot from one scoring pass.

    `hfprune init TASK` lists the options of one task's data, which are taken here too.
    """
    with errors_in_one_line():
        from hfprune.cli.sweeps import SweepRequest, swept
        from hfprune.cli.task_data import task_data
        from hfprune.config import PruningConfig

        if held_out is not None and split is not None:
            raise ValueError("--held-out is measured whole, --split names a part of --data: give one of them.")
        config = PruningConfig(
            budget=budget_of(budget, latency_table),
            latency_table=latency_table,
            scorer=scorer,
            allocation=allocation,
            schedule="one_shot",
            reconstruct=reconstruct,
            calibration_samples=calibration_samples,
            min_units=min_units,
            round_to=round_to,
            seed=seed,
        )
        request = SweepRequest(
            data=task_data(context, model, data),
            held_out=held_out,
            split=split,
            sparsities=tuple(sparsities or _SPARSITIES),
            max_drop=max_drop,
            within_ms=within_ms,
            sample_metric=sample_metric,
            latency_batch_size=latency_batch_size,
            save_to=output,
            plot=plot,
        )
        for line in swept(request, config):
            typer.echo(line)
