"""The `hfprune` command: prune, sweep, evaluate, and commands about checkpoints. Each of them calls the public API."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)
from transformers.utils import cached_file

from hfprune.cli.checkpoints import diff, import_, inspect, push, verify
from hfprune.cli.options import (
    DATA,
    DEFAULT_BUDGET,
    DEFAULT_UNIT,
    DEFAULTS,
    Budget,
    DataName,
    LabelColumn,
    LabelledTexts,
    MaxDrop,
    MaxLength,
    ModelName,
    PairColumn,
    Seed,
    TextColumn,
    UnitChoice,
    errors_in_one_line,
    load_model,
    refuse_filled,
    split_of,
    text_perplexity,
)
from hfprune.cli.sweep import sweep
from hfprune.cli.vocabulary import vocabulary
from hfprune.config import PruningConfig
from hfprune.data.packages import resolve_model
from hfprune.measuring.latency import measure_latency
from hfprune.measuring.metrics import compute_metrics_for, default_metrics
from hfprune.pruning.prune import prune as prune_model
from hfprune.publishing.checkpoint import load, save
from hfprune.publishing.contents import PLAN_FILE
from hfprune.publishing.provenance import public_name
from hfprune.publishing.report import command_line, comparison_table
from hfprune.sweeping import correctness, prune_within

app = typer.Typer(
    help="Structured pruning for Hugging Face transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_SAMPLES_IN_A_BATCH = 64
_WINDOWS_IN_A_BATCH = 4


@app.command()
def prune(
    model: Annotated[str, typer.Argument(help="A fine-tuned text classifier: folder or Hub name.")],
    output: Annotated[Path, typer.Argument(help="Folder to write.")],
    data: DataName,
    sparsity: Annotated[
        float | None,
        typer.Option(help="Fraction of the prunable cost to remove: 0.5 if --max-drop is not given either."),
    ] = None,
    max_drop: MaxDrop = None,
    budget: Budget = DEFAULT_BUDGET,
    scorer: Annotated[str, typer.Option(help="Which units matter.")] = DEFAULTS.scorer,
    attention_unit: Annotated[
        UnitChoice,
        typer.Option(help="Where key/value heads are shared: group, or query (as many query heads of each)."),
    ] = DEFAULT_UNIT,
    allocation: Annotated[
        str, typer.Option(help="Where to remove: global, knapsack, threshold, uniform, layerwise or random.")
    ] = DEFAULTS.allocation,
    schedule: Annotated[str, typer.Option(help="one_shot, geometric, linear or cubic.")] = DEFAULTS.schedule,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of score, plan, surgery and repair; by default each keeps four fifths.")
    ] = None,
    reconstruct: Annotated[bool, typer.Option(help="Repair in closed form after every surgery.")] = True,
    samples: Annotated[int, typer.Option(help="Calibration samples.")] = 512,
    min_units: Annotated[
        int, typer.Option(help="The fewest heads or neurons that a block keeps; 0 lets whole blocks go.")
    ] = 1,
    round_to: Annotated[int, typer.Option(help="Keep neurons in multiples of this.")] = 1,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Pattern of names of blocks to leave whole; several may be given.")
    ] = None,
    portable: Annotated[bool, typer.Option(help="Only widths that the stock config can say.")] = False,
    overwrite: Annotated[bool, typer.Option(help="Replace the output folder if it is there.")] = False,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    label_column: LabelColumn = "label",
    max_length: MaxLength = 128,
    seed: Seed = 0,
) -> None:
    """Prune a text classifier without training, and save it with its plan, record and card."""
    with errors_in_one_line():
        # before the model and the data are loaded, so that mistakes in the options are reported at once
        refuse_filled(output, overwrite=overwrite)
        if sparsity is not None and max_drop is not None:
            raise ValueError("--sparsity says how much to remove, --max-drop has it found: give one of them.")
        config = PruningConfig(
            sparsity=DEFAULTS.sparsity if sparsity is None else sparsity,
            budget=budget.value,
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
            exclude=exclude or [],
            portable=portable,
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
        collator = DataCollatorWithPadding(tokenizer)
        if max_drop is None:
            small = prune_model(load_model(model), splits["train"], config, collator=collator)
        else:
            small, search = prune_within(
                load_model(model),
                splits["train"],
                config,
                max_drop=max_drop,
                evaluate=correctness(splits["validation"], collator=collator),
                collator=collator,
                metric="accuracy",
            )
            typer.echo(search.table())
        small.pruning_record = small.pruning_record.with_(command=command_line("hfprune"), datasets=[public_name(data)])
        folder = save(small, output, tokenizer=tokenizer, overwrite=overwrite)
        typer.echo(str(small.pruning_plan))
        typer.echo(comparison_table(small.pruning_record))
        typer.echo(f"saved in {folder}")


app.command()(sweep)
app.command()(vocabulary)


@app.command()
def evaluate(
    model: ModelName,
    data: Annotated[str | None, DATA] = None,
    text: Annotated[
        str | None,
        typer.Option(help="For causal language models: a txt file, or state_of_the_union (test split)."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, validation or test; by default test, or all of a single file.")
    ] = None,
    metrics: Annotated[list[str] | None, typer.Option("--metric", help="Several may be given.")] = None,
    latency: Annotated[bool, typer.Option(help="Measure the latency too (batch 32).")] = False,
    text_column: TextColumn = "text",
    pair_column: PairColumn = None,
    label_column: LabelColumn = "label",
    max_length: MaxLength = 128,
    batch_size: Annotated[int | None, typer.Option(help="Samples (64) or windows of text (4) in a batch.")] = None,
    window: Annotated[int, typer.Option(help="Tokens that a language model sees at a time.")] = 256,
    stride: Annotated[
        int | None, typer.Option(help="Tokens from one window to the next; by default the window.")
    ] = None,
    seed: Seed = 0,
) -> None:
    """Evaluate a text classifier, or a causal language model on plain text, and print its metrics as JSON."""
    with errors_in_one_line():
        _check_evaluation(data=data, text=text, split=split, latency=latency, batch_size=batch_size)
        if data is None:
            text_result = text_perplexity(
                model, str(text), metrics or [], window, stride, batch_size or _WINDOWS_IN_A_BATCH
            )
            typer.echo(json.dumps(asdict(text_result), indent=1))
            return
        source = resolve_model(model)
        classifier = _classifier(model)
        labelled_texts = LabelledTexts(
            name=data,
            text_column=text_column,
            pair_column=pair_column,
            label_column=label_column,
            max_length=max_length,
            seed=seed,
        )
        # a single file is evaluated whole, unless the user asks for one of the splits that it can be cut into
        splits, tokenizer = labelled_texts.tokenized_for(source, whole=split is None)
        samples = split_of(splits, split or "test")
        results = _metrics_of(
            classifier,
            samples,
            DataCollatorWithPadding(tokenizer),
            metrics=metrics or default_metrics(classifier.config.num_labels),
            batch_size=batch_size or _SAMPLES_IN_A_BATCH,
        )
        results["samples"] = len(samples)
        if latency:
            # Trainer may have moved the model to an accelerator; the command reports the latency of the CPU
            results["latency"] = asdict(measure_latency(classifier.to("cpu"), sequence_length=max_length))
        typer.echo(json.dumps(results, indent=1))


def _classifier(name: str) -> PreTrainedModel:
    """A text classifier; a pruned one is checked as `hfprune.load` checks it, before anything of it is read."""
    source = resolve_model(name)
    plan_file = cached_file(source, PLAN_FILE, _raise_exceptions_for_missing_entries=False)
    if plan_file is None:
        return AutoModelForSequenceClassification.from_pretrained(source, trust_remote_code=False)
    classifier = load(source)
    if "ForSequenceClassification" not in type(classifier).__name__:
        raise ValueError(
            f"{name} is a {type(classifier).__name__}, which has no classifier head; --data needs a text classifier. "
            "For a causal language model give --text."
        )
    return classifier


def _check_evaluation(
    *, data: str | None, text: str | None, split: str | None, latency: bool, batch_size: int | None
) -> None:
    """Refuse options of `evaluate` that do not go together."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {batch_size}.")
    if (data is None) == (text is None):
        raise ValueError("give --data (labelled texts) or --text (plain text for a causal language model).")
    if data is None and (latency or split):
        raise ValueError("--latency and --split go with --data; with --text they would be ignored.")


def _metrics_of(
    classifier: PreTrainedModel,
    samples: Dataset,
    collator: DataCollatorWithPadding,
    *,
    metrics: Sequence[str],
    batch_size: int,
) -> dict[str, Any]:
    """The loss and the metrics of a classifier on a tokenized data set, by name."""
    # Trainer wants a folder for its output, even where it only predicts
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            classifier,
            TrainingArguments(
                output_dir=scratch,
                per_device_eval_batch_size=batch_size,
                report_to="none",
                # pinned memory speeds up copies to a GPU; without one torch warns about it
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            data_collator=collator,
            compute_metrics=compute_metrics_for(metrics, regression=classifier.config.num_labels == 1),
        )
        predicted = trainer.predict(samples, metric_key_prefix="").metrics
    results = {}
    for name, value in predicted.items():
        # samples and steps per second describe the machine, not the model
        if "per_second" in name:
            continue
        # Trainer puts an underscore between its prefix, which is empty here, and the name
        results[name.removeprefix("_")] = value
    return results


app.command()(inspect)
app.command()(verify)
app.command()(diff)
app.command("import")(import_)
app.command()(push)
