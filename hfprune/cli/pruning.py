"""The work of `hfprune prune`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel

from hfprune.cli.held_out import calibration_and_rest, log_lines, needs_no_data
from hfprune.cli.task_data import TaskData
from hfprune.config import PruningConfig
from hfprune.jobs.loading import model_as_it_is
from hfprune.jobs.predicting import measure, sample_evaluation, usual_sample_metric
from hfprune.jobs.tasks import Task
from hfprune.pruning.prune import prune as prune_model
from hfprune.publishing.checkpoint import save
from hfprune.publishing.provenance import public_name
from hfprune.publishing.report import command_line, comparison_table
from hfprune.scoring import known_scorers
from hfprune.sweeping import Sweep, prune_within

#: The most rows on which dense and pruned model are measured. `hfprune evaluate` measures on all.
_MEASURED = 1000


@dataclass(frozen=True, kw_only=True)
class PruneRequest:
    """What a user asks `hfprune prune` for, beside the config.

    Attributes:
        data: The data to calibrate on, and the dense model.
        held_out: The name of data to measure on; None: a part of `data`.
        metrics: What is measured of both models; empty: what is usual.
        max_drop: The most of the metric that may be lost; None: the config says how much is removed.
        sample_metric: The metric of single samples that `max_drop` limits; None: the usual one.
        search_file: The file that a search writes, and goes on from.
    """

    data: TaskData
    held_out: str | None
    metrics: tuple[str, ...]
    max_drop: float | None
    sample_metric: str | None
    search_file: Path | None

    def needs_labels(self, config: PruningConfig) -> bool:
        """Whether the labels of the data must be there, and those of the model.

        Args:
            config: The config, whose scorer may read them.

        Returns:
            Whether they must.
        """
        measured = bool(self.metrics) or self.max_drop is not None
        scorer = known_scorers().get(config.scorer)
        scored = scorer is not None and "labels" in scorer.needs
        return self.data.asks_for_labels or (measured and self.held_out is None) or scored


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """The rows of a command.

    Attributes:
        task: The task of the rows to calibrate on.
        calibration: These rows.
        measuring: The task of the rows to measure on, whose data may be another.
        measured: These rows.
    """

    task: Task
    calibration: Dataset
    measuring: Task
    measured: Dataset


def prune_and_save(request: PruneRequest, config: PruningConfig, output: Path, *, overwrite: bool) -> Iterator[str]:
    """Prune a model and save it.

    Args:
        request: What to prune, and on which data.
        config: How.
        output: The folder to write.
        overwrite: Whether it may be replaced.

    Yields:
        What to print.

    Raises:
        CheckpointError: The model lacks its head.
        ValueError: Data, labels, metric or config do not fit.
    """
    config = replace(config, sequence_length=request.data.sequence_length)
    rows = _rows(request, config)
    dense = model_as_it_is(rows.task, revision=request.data.revision)
    rows.task.check(dense)
    note = ""
    searched: dict[str, dict[str, float]] = {}
    if request.max_drop is not None:
        small, search = _searched(request, request.max_drop, dense, rows, config)
        searched, note = _searched_metrics(small, search)
        yield search.table()
    else:
        small = prune_model(dense, rows.calibration, config, collator=rows.task.calibration_collator)
        if rows.measuring.is_labelled:
            note = _add_metrics(dense, small, rows.measuring, rows.measured, config)
    small.pruning_record = small.pruning_record.with_(
        command=command_line("hfprune"), datasets=[public_name(request.data.name)]
    )
    folder = save(small, output, tokenizer=rows.task.processor, overwrite=overwrite)
    yield str(small.pruning_plan)
    # the record, and with it the card, leaves them out: they favour the model that was chosen by them
    shown = small.pruning_record.with_(metrics=searched) if searched else small.pruning_record
    yield comparison_table(shown) + note
    yield f"saved in {folder}"


def _rows(request: PruneRequest, config: PruningConfig) -> _Rows:
    """Read the data: what calibrates, and what measures."""
    data = request.data
    is_search = request.max_drop is not None
    wanted: dict[str, Any] = {"metrics": request.metrics, "sample_metric": request.sample_metric}
    # a search cuts a single file itself
    task = data.load(whole=is_search, needs_labels=request.needs_labels(config), **wanted)
    calibration, measured = task.data["train"], task.data["test"]
    if request.held_out is not None:
        held_out = data.called(request.held_out).load(whole=True, **wanted)
        return _Rows(task=task, calibration=calibration, measuring=held_out, measured=held_out.data["test"])
    if is_search:
        measured = task.data["validation"]
        if data.is_file:
            calibration, measured = calibration_and_rest(calibration, config, shared=needs_no_data(config))
    return _Rows(task=task, calibration=calibration, measuring=task, measured=measured)


def _searched(
    request: PruneRequest, max_drop: float, dense: PreTrainedModel, rows: _Rows, config: PruningConfig
) -> tuple[PreTrainedModel, Sweep]:
    """The smallest model within the limit, and what the search measured."""
    metric = usual_sample_metric(rows.measuring, request.sample_metric)
    with log_lines("hfprune.sweeping.search"):
        return prune_within(
            dense,
            rows.calibration,
            config,
            max_drop=max_drop,
            evaluate=sample_evaluation(rows.measuring, metric, rows.measured),
            collator=rows.task.calibration_collator,
            metric=metric,
            save_to=request.search_file,
        )


def _searched_metrics(small: PreTrainedModel, search: Sweep) -> tuple[dict[str, dict[str, float]], str]:
    """What the search measured of both models, and a line that says on which rows."""
    sparsity = small.pruning_record.config["sparsity"]
    chosen = next(point for point in search.points if point.sparsity == sparsity)
    metrics = {"dense": {search.metric: search.dense.metric}, "pruned": {search.metric: chosen.metric}}
    note = (
        f"\n{search.metric}: on the {chosen.samples:,} samples by which the search chose; measure on others with "
        "`hfprune evaluate`"
    )
    return metrics, note


def _add_metrics(
    dense: PreTrainedModel, small: PreTrainedModel, task: Task, rows: Dataset, config: PruningConfig
) -> str:
    """Measure both models, add the metrics to the record, and say on how many rows."""
    some = rows
    if len(rows) > _MEASURED:
        some = rows.shuffle(seed=config.seed).select(range(_MEASURED))
    metrics: dict[str, dict[str, float]] = {}
    for stage, model in (("dense", dense), ("pruned", small)):
        found = measure(task, model, some)
        metrics[stage] = {name: found[name] for name in task.metrics}
        # Trainer may have moved it to an accelerator, and what follows is done as without it
        model.to("cpu")
    small.pruning_record = small.pruning_record.with_(metrics=metrics)
    of_all = f" of {len(rows):,}, drawn at random" if len(some) < len(rows) else ""
    names = ", ".join(task.metrics)
    return f"\n{names}: on {len(some):,} samples{of_all}; `hfprune evaluate` measures on all, and more metrics"
