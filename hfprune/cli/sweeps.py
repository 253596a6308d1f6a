"""The work of `hfprune sweep`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from hfprune.cli.held_out import calibration_and_rest, log_lines, needs_no_data
from hfprune.cli.models import classifier_config
from hfprune.cli.texts import TextSource, split_of
from hfprune.config import PruningConfig
from hfprune.data.packages import resolve_model
from hfprune.deployment.loading import load_model
from hfprune.measuring.latency_table import LatencyTable
from hfprune.measuring.table_checks import difference_to_table
from hfprune.showing.picture import check_picture_path, require_matplotlib
from hfprune.structure.arguments import finite
from hfprune.structure.predictions import predicts_number
from hfprune.sweeping import Sweep
from hfprune.sweeping import sweep as sweep_model
from hfprune.sweeping.points import check_max_drop, paired_drop
from hfprune.sweeping.samples import check_sample_metric, per_sample, sample_metrics


@dataclass(frozen=True, kw_only=True)
class SweepRequest:
    """What a user asks `hfprune sweep` for, beside the config.

    Attributes:
        model: Folder or repository of the model.
        texts: Texts to calibrate on.
        held_out: The name of texts to measure on; None: a part of `texts`.
        split: Which part, unless `texts` is a file, of which all rows measure that calibration does not take.
        sparsities: The points.
        max_drop: The most of the metric that may be lost; None: nothing is said about it.
        within_ms: The most milliseconds that a pass may take; None: nothing is said about it.
        metric: The metric of single samples; None: the usual one.
        latency_batch_size: Sequences in a batch, for the latency.
        save_to: The file that the sweep writes, and goes on from.
        plot: The picture.
    """

    model: str
    texts: TextSource
    held_out: str | None
    split: str | None
    sparsities: tuple[float, ...]
    max_drop: float | None
    within_ms: float | None
    metric: str | None
    latency_batch_size: int
    save_to: Path | None
    plot: Path | None


def swept(request: SweepRequest, config: PruningConfig) -> Iterator[str]:
    """Measure a text classifier at many sparsities.

    Args:
        request: What to measure, and on which texts.
        config: How to prune.

    Yields:
        What to print.

    Raises:
        CheckpointError: The model is no text classifier, or lacks its head.
        ValueError: Texts, labels, metric or config do not fit.
    """
    # the picture is drawn after the sweep, which takes long: what is wrong with it is reported before it
    if request.plot is not None:
        require_matplotlib()
        check_picture_path(request.plot)
    if request.within_ms is not None:
        finite(above=0).check("--within-ms", request.within_ms)
    # before the texts and the weights are read
    regression = predicts_number(classifier_config(request.model))
    metric = request.metric or sample_metrics(regression=regression)[0]
    check_sample_metric(metric, regression=regression)
    calibration, measured, tokenizer = _rows(request, config)
    if request.max_drop is not None:
        _check_enough_samples(request.max_drop, len(measured))
    collator = DataCollatorWithPadding(tokenizer)
    model = load_model(request.model)
    if request.within_ms is not None and config.table is not None:
        _check_timed(model, config.table)
    with log_lines("hfprune.sweeping.run"):
        curve = sweep_model(
            model,
            calibration,
            config,
            sparsities=request.sparsities,
            evaluate=per_sample(metric, measured, regression=regression, collator=collator),
            collator=collator,
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


def _rows(request: SweepRequest, config: PruningConfig) -> tuple[Dataset, Dataset, PreTrainedTokenizerBase]:
    """The rows to calibrate on, those to measure on, and the tokenizer."""
    source = resolve_model(request.model)
    cuts_file = request.texts.is_file and request.split is None
    splits, tokenizer = request.texts.tokenized_for(source, whole=cuts_file, needs_labels=request.held_out is None)
    if request.held_out is not None:
        held_out, _ = request.texts.called(request.held_out).tokenized_for(source, whole=True)
        return splits["train"], held_out["test"], tokenizer
    if cuts_file:
        calibration, measured = calibration_and_rest(splits["train"], config, shared=needs_no_data(config))
        return calibration, measured, tokenizer
    return splits["train"], split_of(splits, request.split or "validation"), tokenizer


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
