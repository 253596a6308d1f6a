"""The work of `hfprune sweep`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel

from hfprune.cli.held_out import calibration_and_rest, log_lines, needs_no_data
from hfprune.cli.task_data import TaskData, split_of
from hfprune.config import PruningConfig
from hfprune.jobs.loading import model_as_it_is
from hfprune.jobs.predicting import sample_evaluation, usual_sample_metric
from hfprune.jobs.tasks import Task
from hfprune.measuring.latency_table import LatencyTable
from hfprune.measuring.table_checks import difference_to_table
from hfprune.showing.picture import check_picture_path, require_matplotlib
from hfprune.structure.arguments import finite
from hfprune.sweeping import Sweep
from hfprune.sweeping import sweep as sweep_model
from hfprune.sweeping.points import check_max_drop, paired_drop


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What a user asks `hfprune sweep` for, beside the config.

    Attributes:
        data: The data to calibrate on, and the model.
        held_out: The name of data to measure on; None: a part of `data`.
        split: Which part, unless `data` is a file, of which all rows measure that calibration does not take.
        sparsities: The points.
        max_drop: The most of the metric that may be lost; None: nothing is said about it.
        within_ms: The most milliseconds that a pass may take; None: nothing is said about it.
        sample_metric: The metric of single samples; None: the usual one.
        latency_batch_size: Sequences in a batch, for the latency.
        save_to: The file that the sweep writes, and goes on from.
        plot: The picture.
    """

    data: TaskData
    held_out: str | None
    split: str | None
    sparsities: tuple[float, ...]
    max_drop: float | None
    within_ms: float | None
    sample_metric: str | None
    latency_batch_size: int
    save_to: Path | None
    plot: Path | None


def swept(request: SweepRequest, config: PruningConfig) -> Iterator[str]:
    """Measure a model at many sparsities.

    Args:
        request: What to measure, and on which data.
        config: How to prune.

    Yields:
        What to print.

    Raises:
        CheckpointError: The model lacks its head.
        ValueError: Data, labels, metric or config do not fit.
    """
    # the picture is drawn after the sweep, which takes long: what is wrong with it is reported before it
    if request.plot is not None:
        require_matplotlib()
        check_picture_path(request.plot)
    if request.within_ms is not None:
        finite(above=0).check("--within-ms", request.within_ms)
    config = replace(config, sequence_length=request.data.sequence_length)
    task, calibration, measuring, measured = _rows(request, config)
    metric = usual_sample_metric(measuring, request.sample_metric)
    if request.max_drop is not None:
        _check_enough_samples(request.max_drop, len(measured))
    model = model_as_it_is(task, revision=request.data.revision)
    task.check(model)
    if request.within_ms is not None and config.table is not None:
        _check_timed(model, config.table)
    with log_lines("hfprune.sweeping.run"):
        curve = sweep_model(
            model,
            calibration,
            config,
            sparsities=request.sparsities,
            evaluate=sample_evaluation(measuring, metric, measured),
            collator=task.calibration_collator,
            latency_batch_size=request.latency_batch_size,
            metric=metric,
            save_to=request.save_to,
        )
    yield curve.table()
    if request.plot is not None:
        curve.plot(request.plot)
        yield f"drawn in {request.plot}"
    if request.max_drop is not None:
        yield _verdict(curve, request.max_drop)
    if request.within_ms is not None:
        yield _verdict_in_time(curve, request.within_ms)


def _rows(request: SweepRequest, config: PruningConfig) -> tuple[Task, Dataset, Task, Dataset]:
    """The rows to calibrate on and those to measure on, each behind its task."""
    data = request.data
    cuts_file = data.is_file and request.split is None
    needs_labels = request.held_out is None or data.asks_for_labels
    task = data.load(whole=cuts_file, needs_labels=needs_labels, sample_metric=request.sample_metric)
    train = task.data["train"]
    if request.held_out is not None:
        held_out = data.called(request.held_out).load(whole=True, sample_metric=request.sample_metric)
        return task, train, held_out, held_out.data["test"]
    if cuts_file:
        calibration, measured = calibration_and_rest(train, config, shared=needs_no_data(config))
        return task, calibration, task, measured
    return task, train, task, split_of(task.data, request.split or "validation")


def _check_enough_samples(max_drop: float, samples: int) -> None:
    """Refuse, before the work, a limit that not even a model without any drop could be shown to keep."""
    all_right = [1.0] * samples
    check_max_drop(max_drop, paired_drop(all_right, all_right))


def _check_timed(model: PreTrainedModel, table: LatencyTable) -> None:
    """Refuse, before the work, a limit in time where no latency can be measured."""
    difference = difference_to_table(model, table)
    if difference:
        raise ValueError(
            f"--within-ms goes by measured latencies, and models cannot be timed as the latency table was: it is of "
            f"{difference}. Measure a table here, or leave out --within-ms."
        )


def _verdict(curve: Sweep, max_drop: float) -> str:
    """Which sparsity keeps to the limit, as a line of text."""
    largest = curve.within(max_drop)
    verdict = "no point" if largest is None else f"sparsity {largest.sparsity:g}"
    return f"largest with a drop below {max_drop:g} (95 % confidence): {verdict}"


def _verdict_in_time(curve: Sweep, milliseconds: float) -> str:
    """Which point is best among those that are fast enough, as a line of text."""
    best = curve.within_ms(milliseconds)
    if best is None:
        return f"best within {milliseconds:g} ms: no point is as fast"
    found = f"sparsity {best.sparsity:g}, {curve.metric} {best.metric:.4f}, {best.latency_ms:.1f} ms measured"
    return f"best within {milliseconds:g} ms: {found}"
