"""The command `hfprune prune`: a model without training, to a sparsity or to the most that it can spare."""

from pathlib import Path
from typing import Annotated, Any

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
    Metrics,
    MinUnits,
    Output,
    Overwrite,
    PairColumn,
    Reconstruct,
    RoundTo,
    SampleMetric,
    Scorer,
    Seed,
    Separator,
    Speedup,
    TaskName,
    TextColumn,
    TunedName,
    UnitChoice,
    WithinMs,
    budget_of,
    errors_in_one_line,
    refuse_filled,
)


def prune(
    context: typer.Context,
    model: TunedName,
    output: Output,
    data: DataName,
    task: TaskName = None,
    held_out: HeldOut = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Fraction of the prunable cost to remove: 0.5 if --max-drop is not given either."),
    ] = None,
    max_drop: MaxDrop = None,
    sample_metric: SampleMetric = None,
    metrics: Metrics = None,
    search_file: Annotated[
        Path | None, typer.Option(help="JSON file of --max-drop: what it measured; a search that it holds goes on.")
    ] = None,
    budget: Budget = None,
    latency_table: LatencyTableFile = None,
    speedup: Speedup = None,
    within_ms: WithinMs = None,
    scorer: Scorer = "residual_logit_fisher",
    attention_unit: Annotated[
        UnitChoice,
        typer.Option(help="Where key/value heads are shared: group, or query (as many query heads of each)."),
    ] = UnitChoice.group,
    allocation: Allocation = "global",
    schedule: Annotated[str, typer.Option(help="one_shot, geometric, linear or cubic.")] = "geometric",
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of score, plan, surgery and repair; by default each keeps four fifths.")
    ] = None,
    reconstruct: Reconstruct = True,
    calibration_samples: CalibrationSamples = 512,
    min_units: MinUnits = 1,
    round_to: RoundTo = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="What the result becomes, gguf-q8_0, gguf-q4_0, gguf-q4_1 or bitsandbytes-4bit: sets --round-to to "
            "what it needs."
        ),
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Pattern of names of blocks to leave whole; several may be given.")
    ] = None,
    portable: Annotated[bool, typer.Option(help="Only widths that the stock config can say.")] = False,
    overwrite: Overwrite = False,
    text_column: TextColumn = None,
    pair_column: PairColumn = None,
    label_column: LabelColumn = None,
    label_map: LabelMap = None,
    separator: Separator = None,
    encoding: Encoding = None,
    max_length: MaxLength = None,
    seed: Seed = 0,
) -> None:
    """Prune a model without training, and save it with its plan, record and card.

    Where the data has labels, dense and pruned model are measured on its test split, or on --held-out. What stands
    below is for every task; `hfprune init TASK` lists the options of one task's data, which are taken here too.
    """
    with errors_in_one_line():
        from hfprune.cli.pruning import PruneRequest, prune_and_save
        from hfprune.cli.task_data import task_data
        from hfprune.config import PruningConfig

        # before the model and the data are loaded, so that mistakes in the options are reported at once
        refuse_filled(output, overwrite=overwrite)
        if sparsity is not None and max_drop is not None:
            raise ValueError("--sparsity says how much to remove, --max-drop has it found: give one of them.")
        if max_drop is None and (sample_metric or search_file):
            raise ValueError("--sample-metric and --search-file go with --max-drop; without it they would be ignored.")
        goal: dict[str, Any] = {"sparsity": sparsity, "speedup": speedup, "milliseconds": within_ms}
        config = PruningConfig(
            **{name: value for name, value in goal.items() if value is not None},
            budget=budget_of(budget, latency_table),
            latency_table=latency_table,
            scorer=scorer,
            attention_unit=attention_unit.value,
            allocation=allocation,
            schedule=schedule,
            rounds=rounds,
            reconstruct=reconstruct,
            calibration_samples=calibration_samples,
            min_units=min_units,
            round_to=round_to,
            target=target,
            exclude=exclude or [],
            portable=portable,
            seed=seed,
        )
        request = PruneRequest(
            data=task_data(context, model, data),
            held_out=held_out,
            metrics=tuple(metrics or ()),
            max_drop=max_drop,
            sample_metric=sample_metric,
            search_file=search_file,
        )
        for line in prune_and_save(request, config, output, overwrite=overwrite):
            typer.echo(line)
