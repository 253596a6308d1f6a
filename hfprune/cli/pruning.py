"""The work of `hfprune prune`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel

from hfprune.cli.held_out import calibration_and_rest, log_lines, needs_no_data
from hfprune.cli.measuring import metrics_of
from hfprune.cli.models import classifier_config
from hfprune.cli.texts import TextSource
from hfprune.config import PruningConfig
from hfprune.data.packages import resolve_model
from hfprune.deployment.loading import load_model
from hfprune.measuring.metrics import default_metrics
from hfprune.pruning.prune import prune as prune_model
from hfprune.publishing.checkpoint import save
from hfprune.publishing.provenance import public_name
from hfprune.publishing.report import command_line, comparison_table
from hfprune.scoring import known_scorers
from hfprune.structure.predictions import predicts_number
from hfprune.sweeping import Sweep, prune_within
from hfprune.sweeping.samples import check_sample_metric, per_sample, sample_metrics

#: The most rows on which dense and pruned model are measured. `hfprune evaluate` measures on all.
_MEASURED = 1000


@dataclass(frozen=True, kw_only=True)
class PruneRequest:
    """What a user asks `hfprune prune` for, beside the config.

    Attributes:
        model: Folder or repository of the dense model.
        texts: Texts to calibrate on.
        held_out: The name of texts to measure on; None: a part of `texts`.
        max_drop: The most of the metric that may be lost; None: the config says how much is removed.
        metric: The metric of single samples that `max_drop` limits; None: the usual one.
        search_file: The file that a search writes, and goes on from.
    """

    model: str
    texts: TextSource
    held_out: str | None
    max_drop: float | None
    metric: str | None
    search_file: Path | None

    def needs_labels(self, config: PruningConfig) -> bool:
        """Whether the labels of the texts must be there, and those of the model.

        Args:
            config: The config, whose scorer may read them.

        Returns:
            Whether they must.
        """
        asked_for = self.texts.label_column is not None or self.texts.label_map is not None
        measured = self.max_drop is not None and self.held_out is None
        scorer = known_scorers().get(config.scorer)
        scored = scorer is not None and "labels" in scorer.needs
        return asked_for or measured or scored


def prune_and_save(request: PruneRequest, config: PruningConfig, output: Path, *, overwrite: bool) -> Iterator[str]:
    """Prune a text classifier and save it.

    Args:
        request: What to prune, and on which texts.
        config: How.
        output: The folder to write.
        overwrite: Whether it may be replaced.

    Yields:
        What to print.

    Raises:
        CheckpointError: The model is no text classifier, or lacks its head.
        ValueError: Texts, labels, metric or config do not fit.
    """
    metric = _metric_of(request)
    source = resolve_model(request.model)
    # a search cuts a single file itself
    splits, tokenizer = request.texts.tokenized_for(
        source, whole=request.max_drop is not None, needs_labels=request.needs_labels(config)
    )
    collator = DataCollatorWithPadding(tokenizer)
    calibration, measured = splits["train"], splits["test"]
    if request.held_out is not None:
        held_out, _ = request.texts.called(request.held_out).tokenized_for(source, whole=True)
        measured = held_out["test"]
    elif request.max_drop is not None:
        measured = splits["validation"]
        if request.texts.is_file:
            calibration, measured = calibration_and_rest(calibration, config, shared=needs_no_data(config))
    dense = load_model(request.model)
    note = ""
    searched: dict[str, dict[str, float]] = {}
    if request.max_drop is not None:
        small, search = _searched(request, request.max_drop, metric, dense, calibration, measured, config, collator)
        searched, note = _searched_metrics(small, search)
        yield search.table()
    else:
        small = prune_model(dense, calibration, config, collator=collator)
        if "labels" in measured.column_names:
            note = _add_metrics(dense, small, measured, collator, config)
    small.pruning_record = small.pruning_record.with_(
        command=command_line("hfprune"), datasets=[public_name(request.texts.name)]
    )
    folder = save(small, output, tokenizer=tokenizer, overwrite=overwrite)
    yield str(small.pruning_plan)
    # the record, and with it the card, leaves them out: they favour the model that was chosen by them
    shown = small.pruning_record.with_(metrics=searched) if searched else small.pruning_record
    yield comparison_table(shown) + note
    yield f"saved in {folder}"


def _metric_of(request: PruneRequest) -> str:
    """The metric of a search; a model that is no classifier is refused, and a metric that does not suit it."""
    # by the config, before texts and weights are read
    regression = predicts_number(classifier_config(request.model))
    metric = request.metric or sample_metrics(regression=regression)[0]
    check_sample_metric(metric, regression=regression)
    return metric


def _searched(
    request: PruneRequest,
    max_drop: float,
    metric: str,
    dense: PreTrainedModel,
    calibration: Dataset,
    measured: Dataset,
    config: PruningConfig,
    collator: DataCollatorWithPadding,
) -> tuple[PreTrainedModel, Sweep]:
    """The smallest model within the limit, and what the search measured."""
    evaluate = per_sample(metric, measured, regression=predicts_number(dense.config), collator=collator)
    with log_lines("hfprune.sweeping.search"):
        return prune_within(
            dense,
            calibration,
            config,
            max_drop=max_drop,
            evaluate=evaluate,
            collator=collator,
            metric=metric,
            save_to=request.search_file,
        )


def _searched_metrics(small: PreTrainedModel, search: Sweep) -> tuple[dict[str, dict[str, float]], str]:
    """What the search measured of both models, and a line that says on which rows."""
    sparsity = small.pruning_record.config["sparsity"]
    chosen = next(point for point in search.points if point.sparsity == sparsity)
    metrics = {"dense": {search.metric: search.dense.metric}, "pruned": {search.metric: chosen.metric}}
    note = (
        f"\n{search.metric}: on the {chosen.samples:,} texts by which the search chose; measure on others with "
        "`hfprune evaluate`"
    )
    return metrics, note


def _add_metrics(
    dense: PreTrainedModel,
    small: PreTrainedModel,
    rows: Dataset,
    collator: DataCollatorWithPadding,
    config: PruningConfig,
) -> str:
    """Measure both models, add the metrics to the record, and say on how many rows."""
    names = default_metrics(regression=predicts_number(dense.config))
    some = rows
    if len(rows) > _MEASURED:
        some = rows.shuffle(seed=config.seed).select(range(_MEASURED))
    metrics: dict[str, dict[str, float]] = {}
    for stage, model in (("dense", dense), ("pruned", small)):
        found = metrics_of(model, some, collator)
        metrics[stage] = {name: found[name] for name in names}
        # Trainer may have moved it to an accelerator, and what follows is done as without it
        model.to("cpu")
    small.pruning_record = small.pruning_record.with_(metrics=metrics)
    of_all = f" of {len(rows):,}, drawn at random" if len(some) < len(rows) else ""
    return f"\n{', '.join(names)}: on {len(some):,} texts{of_all}; `hfprune evaluate` measures on all, and more metrics"
