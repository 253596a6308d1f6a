"""The command `hfprune sweep`: one classifier at many sparsities."""

from pathlib import Path
from typing import Annotated

import typer
from transformers import DataCollatorWithPadding

from hfprune.cli.options import (
    DEFAULT_BUDGET,
    Budget,
    DataName,
    LabelColumn,
    LabelledTexts,
    MaxDrop,
    MaxLength,
    PairColumn,
    Seed,
    TextColumn,
    errors_in_one_line,
    load_model,
    split_of,
)
from hfprune.config import PruningConfig
from hfprune.data.packages import resolve_model
from hfprune.showing.picture import check_picture_path, require_matplotlib
from hfprune.sweeping import Sweep, correctness
from hfprune.sweeping import sweep as sweep_model
from hfprune.sweeping.points import check_max_drop, paired_drop

_SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


def sweep(
    model: Annotated[str, typer.Argument(help="A fine-tuned text classifier: folder or Hub name.")],
    data: DataName,
    sparsities: Annotated[
        list[float] | None, typer.Option("--sparsity", help="Several may be given; by default 0.2, 0.3 ... 0.8.")
    ] = None,
    max_drop: MaxDrop = None,
    output: Annotated[Path | None, typer.Option(help="JSON file; a sweep that it holds goes on.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Picture of accuracy against MACs kept and latency: .png, .svg or .pdf.")
    ] = None,
    split: Annotated[str, typer.Option(help="Where accuracy is measured: validation, test or train.")] = "validation",
    budget: Budget = DEFAULT_BUDGET,
    scorer: Annotated[str, typer.Option(help="Which units matter.")] = "logit_fisher",
    reconstruct: Annotated[bool, typer.Option(help="Repair in closed form after every surgery.")] = True,
    samples: Annotated[int, typer.Option(help="Calibration samples.")] = 512,
    round_to: Annotated[int, typer.Option(help="Keep neurons in multiples of this.")] = 1,
    latency_batch_size: Annotated[int, typer.Option(help="Sequences in a batch, for the latency.")] = 32,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    label_column: LabelColumn = "label",
    max_length: MaxLength = 128,
    seed: Seed = 0,
) -> None:
    """Measure a text classifier at many sparsities, each pruned in one shot from one scoring pass."""
    with errors_in_one_line():
        # the picture is drawn after the sweep, which takes long: what is wrong with it is reported before it
        if plot is not None:
            require_matplotlib()
            check_picture_path(plot)
        config = PruningConfig(
            budget=budget.value,
            sequence_length=max_length,
            scorer=scorer,
            schedule="one_shot",
            reconstruct=reconstruct,
            calibration_samples=samples,
            round_to=round_to,
            seed=seed,
        )
        labelled_texts = LabelledTexts(
            name=data,
            text_column=text_column,
            pair_column=pair_column,
            label_column=label_column,
            max_length=max_length,
            seed=seed,
        )
        splits, tokenizer = labelled_texts.tokenized_for(resolve_model(model))
        samples_to_evaluate = split_of(splits, split)
        if max_drop is not None:
            _check_enough_samples(max_drop, len(samples_to_evaluate))
        collator = DataCollatorWithPadding(tokenizer)
        curve = sweep_model(
            load_model(model),
            splits["train"],
            config,
            sparsities=sparsities or _SPARSITIES,
            evaluate=correctness(samples_to_evaluate, collator=collator),
            collator=collator,
            latency_batch_size=latency_batch_size,
            metric="accuracy",
            save_to=output,
        )
        typer.echo(curve.table())
        if plot is not None:
            curve.plot(plot)
            typer.echo(f"drawn in {plot}")
        if max_drop is not None:
            typer.echo(_verdict(curve, max_drop))


def _check_enough_samples(max_drop: float, samples: int) -> None:
    """Refuse, before the work, a limit that not even a model without any drop could be shown to keep."""
    all_right = [1.0] * samples
    check_max_drop(max_drop, paired_drop(all_right, all_right))


def _verdict(curve: Sweep, max_drop: float) -> str:
    """Which sparsity keeps to the limit, as a line of text."""
    largest = curve.within(max_drop)
    verdict = "no point" if largest is None else f"sparsity {largest.sparsity:g}"
    return f"largest with a drop below {max_drop:g} (95 % confidence): {verdict}"
