"""The command `hfprune prune`: a text classifier without training, to a sparsity or to the most that it can spare."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hfprune.cli.options import (
    Allocation,
    Budget,
    ClassifierName,
    DataName,
    Encoding,
    HeldOut,
    LabelMap,
    LatencyTableFile,
    MaxDrop,
    MaxLength,
    MinUnits,
    Output,
    Overwrite,
    PairColumn,
    Reconstruct,
    RoundTo,
    SampleMetric,
    Samples,
    Scorer,
    Seed,
    Separator,
    Speedup,
    TextColumn,
    UnitChoice,
    WithinMs,
    budget_of,
    errors_in_one_line,
    refuse_filled,
)


def prune(
    model: ClassifierName,
    output: Output,
    data: DataName,
    held_out: HeldOut = None,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Fraction of the prunable cost to remove: 0.5 if --max-drop is not given either."),
    ] = None,
    max_drop: MaxDrop = None,
    metric: SampleMetric = None,
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
    samples: Samples = 512,
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
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    label_column: Annotated[
        str | None,
        typer.Option(help="Column with the labels; by default label, which may be missing if nothing needs it."),
    ] = None,
    label_map: LabelMap = None,
    separator: Separator = None,
    encoding: Encoding = None,
    max_length: MaxLength = 128,
    seed: Seed = 0,
) -> None:
    """Prune a text classifier without training, and save it with its plan, record and card.

    Where the data has labels, dense and pruned model are measured on its test split, or on --held-out.
    """
    with errors_in_one_line():
        from hfprune.cli.pruning import PruneRequest, prune_and_save
        from hfprune.cli.texts import TextSource
        from hfprune.config import PruningConfig

        # before the model and the data are loaded, so that mistakes in the options are reported at once
        refuse_filled(output, overwrite=overwrite)
        if sparsity is not None and max_drop is not None:
            raise ValueError("--sparsity says how much to remove, --max-drop has it found: give one of them.")
        if max_drop is None and (metric or search_file):
            raise ValueError("--metric and --search-file go with --max-drop; without it they would be ignored.")
        goal: dict[str, Any] = {"sparsity": sparsity, "speedup": speedup, "milliseconds": within_ms}
        config = PruningConfig(
            **{name: value for name, value in goal.items() if value is not None},
            budget=budget_of(budget, latency_table),
            latency_table=latency_table,
            sequence_length=max_length,
            scorer=scorer,
            attention_unit=attention_unit.value,
            allocation=allocation,
            schedule=schedule,
            rounds=rounds,
            reconstruct=reconstruct,
            calibration_samples=samples,
            min_units=min_units,
            round_to=round_to,
            target=target,
            exclude=exclude or [],
            portable=portable,
            seed=seed,
        )
        texts = TextSource(
            name=data,
            text_column=text_column,
            pair_column=pair_column,
            label_column=label_column,
            label_map=label_map,
            separator=separator,
            encoding=encoding,
            max_length=max_length,
            seed=seed,
        )
        request = PruneRequest(
            model=model, texts=texts, held_out=held_out, max_drop=max_drop, metric=metric, search_file=search_file
        )
        for line in prune_and_save(request, config, output, overwrite=overwrite):
            typer.echo(line)
