"""`hfprune sweep`, thin over the API."""

from pathlib import Path
from typing import Annotated

import typer
from transformers import DataCollatorWithPadding

from hfprune.cli.options import (
    Budget,
    DataName,
    LabelColumn,
    MaxDrop,
    MaxLength,
    PairColumn,
    Seed,
    TextColumn,
    errors_in_one_line,
    load_model,
    split_of,
    tokenized,
)
from hfprune.config import PruningConfig
from hfprune.data.packages import resolve_model
from hfprune.sweeping import correctness
from hfprune.sweeping import sweep as sweep_model
from hfprune.sweeping.plot import require_matplotlib
from hfprune.sweeping.points import check_max_drop, paired_drop


def sweep(
    model: Annotated[str, typer.Argument(help="A fine-tuned text classifier: folder or Hub name.")],
    data: DataName,
    sparsities: Annotated[
        list[float] | None, typer.Option("--sparsity", help="Several may be given; by default 0.2, 0.3 ... 0.8.")
    ] = None,
    max_drop: MaxDrop = None,
    output: Annotated[Path | None, typer.Option(help="JSON file; a sweep that it holds goes on.")] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG of accuracy against MACs kept and latency.")] = None,
    split: Annotated[str, typer.Option(help="Where accuracy is measured: validation, test or train.")] = "validation",
    budget: Annotated[Budget, typer.Option(help="What the sparsity counts.")] = Budget.macs,
    scorer: Annotated[str, typer.Option(help="Which units matter.")] = "logit_fisher",
    reconstruct: Annotated[bool, typer.Option(help="Repair in closed form after every surgery.")] = True,
    samples: Annotated[int, typer.Option(help="Calibration samples.")] = 512,
    latency_batch_size: Annotated[int, typer.Option(help="Sequences in a batch, for the latency.")] = 32,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    label_column: LabelColumn = "label",
    max_length: MaxLength = 128,
    seed: Seed = 0,
) -> None:
    """Measure a text classifier at many sparsities, each pruned in one shot from one scoring pass."""
    with errors_in_one_line():
        if plot is not None:
            require_matplotlib()
        config = PruningConfig(
            budget=budget.value,
            sequence_length=max_length,
            scorer=scorer,
            schedule="one_shot",
            reconstruct=reconstruct,
            calibration_samples=samples,
            seed=seed,
        )
        source = resolve_model(model)
        splits, tokenizer = tokenized(data, source, text_column, pair_column, label_column, max_length, seed)
        if max_drop is not None:  # before the work, not after it
            right = [1.0] * len(split_of(splits, split))
            check_max_drop(max_drop, paired_drop(right, right))
        collator = DataCollatorWithPadding(tokenizer)
        found = sweep_model(
            load_model(model),
            splits["train"],
            config,
            sparsities=sparsities or [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
            evaluate=correctness(split_of(splits, split), collator=collator),
            collator=collator,
            latency_batch_size=latency_batch_size,
            metric="accuracy",
            save_to=output,
        )
        typer.echo(found.table())
        if plot is not None:
            typer.echo(f"drawn in {found.plot(plot)}")
        if max_drop is not None:
            best = found.within(max_drop)
            verdict = "no point" if best is None else f"sparsity {best.sparsity:g}"
            typer.echo(f"largest with a drop below {max_drop:g} (95 % confidence): {verdict}")
