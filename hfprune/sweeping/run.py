"""sweep(): from one scoring pass to many models, each pruned, repaired, recovered if you like, and measured."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from transformers import PreTrainedModel

from hfprune.config import CONFIG, PruningConfig, check_sparsity
from hfprune.measuring.backends import get_backend
from hfprune.measuring.latency import Latency, measure_latencies
from hfprune.measuring.size import measure_size
from hfprune.measuring.table_checks import difference_to_table
from hfprune.planning import PruningPlan
from hfprune.planning.allocation import get_allocator
from hfprune.pruning.prune import Recover, batches_for, check, check_portable, recovered
from hfprune.pruning.steps import apply_plan, plan, sparsity_of
from hfprune.publishing.provenance import public_name
from hfprune.reconstruction.reconstruct import reconstruct
from hfprune.scoring import CalibrationData, Collator, Scores, one_shot_form, score
from hfprune.scoring.calibration import digest_of_batches
from hfprune.showing.progress import tracked
from hfprune.structure.anatomy import Anatomy, anatomy_of
from hfprune.structure.arguments import FUNCTION, PATH, TEXT, checked, optional, whole
from hfprune.structure.batches import Batch
from hfprune.structure.running import frozen, outside_inference_mode
from hfprune.structure.store import sha256_of
from hfprune.structure.wrapping import unwrapped
from hfprune.sweeping.curve import Sweep, in_order
from hfprune.sweeping.points import SweepPoint, outcome_of

logger = logging.getLogger(__name__)
#: From a model to a number, or to one number or bool a sample; higher is better.
Evaluate: TypeAlias = Callable[[PreTrainedModel], Any]


@checked(
    config=CONFIG,
    evaluate=FUNCTION,
    recover=optional(FUNCTION),
    collator=optional(FUNCTION),
    latency_batch_size=optional(whole(least=1)),
    latency_runs=whole(least=1),
    metric=TEXT,
    save_to=optional(PATH),
)
@outside_inference_mode
def sweep(
    model: PreTrainedModel,
    data: CalibrationData,
    config: PruningConfig | None = None,
    *,
    sparsities: Iterable[float],
    evaluate: Evaluate,
    recover: Recover | None = None,
    collator: Collator | None = None,
    latency_batch_size: int | None = 32,
    latency_runs: int = 20,
    metric: str = "metric",
    save_to: str | Path | None = None,
) -> Sweep:
    """Measure one model at many sparsities, from one scoring pass.

    Each point is the result of these steps, which are those of `prune` with `schedule="one_shot"`:

        plans = plan(model, score(model, batches, scorer=config.scorer, ...), config, sparsity=[...])  # nested
        for pruning_plan in plans:
            small = apply_plan(model, pruning_plan)
            if config.reconstruct:
                reconstruct(small, model, batches)
            recover(small, model)
            evaluate(small)

    A sweep prunes in one shot. A config of rounds (any `schedule` but `one_shot`) is taken in its one-shot form: a
    scorer that is made for rounds is replaced by the one that it names for one round, `residual_logit_fisher` (the
    default) by `logit_fisher`. To sweep with a residual scorer all the same, set `schedule="one_shot"`. `prune` in
    rounds loses less at the same sparsity, so a sweep without recovery shows the largest drop to expect; `prune_within`
    searches with rounds.

    Args:
        model: The dense model. It stays as it is, and is the first point.
        data: Calibration data, as for `prune`.
        config: What to do; `sparsity` and `rounds` do not count. A goal in time is refused.
        sparsities: Fractions of the prunable cost to remove, in any order.
        evaluate: Measures a model, in evaluation mode: it returns a number, or one number or bool a sample (as
            `correctness` does). The metric is then their mean, and `Sweep.within` has an interval. Higher is better.
        recover: Called with every pruned model and the dense one: trains the first in place, or returns the model to
            go on with. It is also the place to save a model, as the sweep keeps none.
        collator: Makes a batch of rows of a Dataset; `DataCollatorWithPadding(tokenizer)` pads.
        latency_batch_size: Sequences in a batch for the latency, of `config.sequence_length` tokens each. All models
            are timed in turn, so all are in memory together during that time. None measures no latency. With a latency
            table in the config, models are timed as the table was measured, and the points say what it predicts. If
            the model is on another device or of another dtype than the table, a warning says so, and nothing is timed.
        latency_runs: How many forward passes of each model are timed.
        metric: The name of what `evaluate` measures, for the table and the picture.
        save_to: A JSON file, written after every point. If it exists, its points are not measured again, and those of
            other sparsities stay in it and in the result. Only latencies are timed anew if a point is added, as they
            are compared with each other. The file does not know what `evaluate` and `recover` do: name another file
            when they change.

    Returns:
        The measured points as a `Sweep`, with its table, knee and picture.

    Raises:
        BudgetError: A sparsity cannot be reached under the constraints, or the model has it already.
        CalibrationError: The calibration data cannot be used.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
        StructureError: The model does not look as the table says.
        NonFiniteScoreError: A score is NaN or infinite.
        ValueError: No sparsities, or some out of [0, 1); an unknown scorer or allocation, or one that cannot do with
            one pass; `evaluate` returned something else; or `save_to` holds a sweep with other settings.

    Examples:
        >>> import hfprune
        >>> from hfprune.sweeping import correctness
        >>> evaluate = correctness(dataset, collator=collator)
        >>> curve = hfprune.sweep(
        ...     dense,
        ...     dataset,
        ...     config,
        ...     sparsities=[0.25, 0.5],
        ...     evaluate=evaluate,
        ...     collator=collator,
        ...     metric="accuracy",
        ...     latency_batch_size=None,
        ... )
        >>> [point.sparsity for point in curve.points]
        [0.0, 0.25, 0.5]
        >>> curve.settings["scorer"]  # the one-shot form of the config's residual_logit_fisher
        'logit_fisher'
    """
    config = one_shot_of(config or PruningConfig())
    model = unwrapped(model)
    wanted = _in_order_without_zero(sparsities)
    _check_one_pass(config)
    _check_no_goal(config)
    if save_to is not None:
        _check_file(save_to)
    dense = anatomy_of(model, config.attention_unit)
    if latency_batch_size is not None and not _can_be_timed(model, config):
        latency_batch_size = None
    # before any work, so that a sparsity out of reach does not stop the sweep half way
    for sparsity in wanted:
        check(dense, config.with_sparsity(sparsity))
    batches = batches_for(model, data, config, collator=collator)
    settings = settings_of(model, batches, config, metric=metric, recover=recover is not None)
    settings["latency_batch_size"] = latency_batch_size
    settings["latency_runs"] = latency_runs
    earlier = earlier_sweep(save_to, settings)
    known = _by_sparsity(earlier)
    if earlier is not None and known.keys() >= {0.0, *wanted}:
        logger.info("all %d points are in %s already", len(earlier.points), save_to)
        return earlier

    began = time.perf_counter()
    scores = score(
        dense,
        batches,
        scorer=config.scorer,
        seed=config.seed,
        teacher=model,
        attention_unit=config.attention_unit,
        gradient_checkpointing=config.calibration_checkpointing,
    )
    scoring_seconds = time.perf_counter() - began
    plans = _plans(dense, scores, config, {*wanted, *known})
    timings = _latencies(dense, plans, config, batch_size=latency_batch_size, runs=latency_runs)
    points = _with_same_plans(known, model, plans)
    # points of an earlier sweep get new latencies, too: only latencies of one session can be compared
    for sparsity, point in points.items():
        points[sparsity] = replace(point, **timings[sparsity])

    def curve_so_far() -> Sweep:
        return Sweep(points=in_order(points.values()), settings=settings, scoring_seconds=scoring_seconds)

    with tracked(plans.items(), desc="Sweeping", unit="point") as made:
        for sparsity, pruning_plan in made:
            if sparsity in points:
                continue
            began = time.perf_counter()
            small = dense if pruning_plan is None else _pruned(dense, pruning_plan, batches, config, recover)
            composed = _composed(model, pruning_plan)
            point = measured_point(small, composed, config, sparsity=sparsity, evaluate=evaluate, began=began)
            points[sparsity] = replace(point, **timings[sparsity])
            check_samples(points[0.0], point)
            logger.info("sparsity %.2f: %s %.4f, %.1f s", sparsity, metric, point.metric, point.seconds)
            if save_to is not None:
                curve_so_far().save(save_to)
    return curve_so_far()


def one_shot_of(config: PruningConfig) -> PruningConfig:
    """A config of rounds in its one-shot form; a config of one shot as it is.

    A scorer that is made for rounds is replaced by the one that it declares for one round (`Scorer.one_shot`). A hybrid
    stays.

    Args:
        config: A config.

    Returns:
        A config with `schedule="one_shot"`.

    Examples:
        >>> one_shot_of(PruningConfig()).scorer, one_shot_of(PruningConfig(scorer="fisher")).scorer
        ('logit_fisher', 'fisher')
        >>> one_shot_of(PruningConfig(scorer="residual_fisher", schedule="one_shot")).scorer
        'residual_fisher'
    """
    if config.schedule == "one_shot":
        return config
    return replace(config, schedule="one_shot", rounds=None, scorer=one_shot_form(config.scorer))


def measured_point(
    anatomy: Anatomy,
    composed: PruningPlan | None,
    config: PruningConfig,
    *,
    sparsity: float,
    evaluate: Evaluate,
    began: float,
) -> SweepPoint:
    """Evaluate and count a model; its latency is not measured.

    Args:
        anatomy: The model, with its structure.
        composed: Its plan, in the dense model's numbering; None if nothing was removed.
        config: For the length of a sequence.
        sparsity: The sparsity that was asked for.
        evaluate: Measures it.
        began: When the work on it began, by `time.perf_counter`.

    Returns:
        The point.

    Raises:
        ValueError: `evaluate` returned neither a finite number nor numbers.
    """
    with frozen(anatomy.model):
        metric, per_sample = outcome_of(evaluate(anatomy.model))
    return SweepPoint(
        sparsity=sparsity,
        mac_sparsity=sparsity_of(anatomy, config.in_budget("macs")),
        param_sparsity=sparsity_of(anatomy, config.in_budget("params")),
        metric=metric,
        per_sample=per_sample,
        size=measure_size(anatomy, sequence_length=config.sequence_length),
        seconds=time.perf_counter() - began,
        plan_digest=_digest(composed),
        predicted_ms=None if config.table is None else config.table.milliseconds(anatomy.units),
    )


def check_samples(dense: SweepPoint, point: SweepPoint) -> None:
    """Refuse points that were measured on different samples.

    Args:
        dense: The first point.
        point: Another one.

    Raises:
        ValueError: The numbers of samples differ.
    """
    if dense.samples != point.samples:
        raise ValueError(
            f"evaluate gave {dense.samples or 'no'} values of samples for the dense model, but "
            f"{point.samples or 'none'} at sparsity {point.sparsity:g}. It must measure all models on the same "
            "samples, in the same order."
        )


def settings_of(
    model: PreTrainedModel, batches: Sequence[Batch], config: PruningConfig, *, metric: str, recover: bool
) -> dict[str, Any]:
    """Everything that the points of a sweep depend on, except for the user's functions, as plain values.

    Args:
        model: The model.
        batches: The calibration batches.
        config: The config; its sparsity does not count.
        metric: The name of the metric.
        recover: Whether pruned models are recovered.

    Returns:
        The config's fields, and digests of the weights and of the calibration batches.
    """
    fields = config.to_dict()
    # each point has a sparsity of its own
    for name in ("sparsity", "speedup", "milliseconds"):
        fields.pop(name, None)
    return {
        "model": public_name(model.config._name_or_path or ""),
        "weights": sha256_of(model.state_dict()),
        "calibration": digest_of_batches(batches),
        "metric": metric,
        "recover": recover,
        **fields,
    }


def _in_order_without_zero(sparsities: Iterable[float]) -> list[float]:
    """The sparsities in increasing order, each once, without 0, which is the dense model."""
    if isinstance(sparsities, str) or not isinstance(sparsities, Iterable):
        raise ValueError(f"sparsities must be a list of numbers in [0, 1), got {sparsities!r:.100}: write [0.3, 0.5].")
    wanted_once: set[float] = set()
    for sparsity in sparsities:
        check_sparsity(sparsity)
        wanted_once.add(float(sparsity))
    wanted = sorted(wanted_once - {0.0})
    if not wanted:
        raise ValueError("sparsities is empty: give at least one, such as [0.3, 0.5, 0.7]. 0 is measured anyway.")
    return wanted


def _check_file(path: str | Path) -> None:
    """Refuse, before the work, a folder in the place of a file that is written after it."""
    if Path(path).is_dir():
        raise ValueError(f"save_to must be a file, got the folder {str(path)!r}: name a JSON file in it.")


def _check_one_pass(config: PruningConfig) -> None:
    """Refuse an allocation that needs more than one scoring pass."""
    if get_allocator(config.allocation).block_by_block:
        raise ValueError(
            f"allocation={config.allocation!r} scores anew after every block, and a sweep has one scoring pass. "
            "'uniform' gives the same widths."
        )


def _check_no_goal(config: PruningConfig) -> None:
    """Refuse a goal in time: a sweep measures the sparsities that it is given."""
    if config.goal_in_time:
        raise ValueError(
            f"a sweep measures the sparsities that it is given, and {config.goal_in_time} would be ignored. Leave it "
            f"out, and give sparsities=[{config.sparsity:.4f}] to measure that goal; prune_within searches from it on."
        )


def _can_be_timed(model: PreTrainedModel, config: PruningConfig) -> bool:
    """Whether models can be timed as the latency table was, if there is one; a warning says why not."""
    if config.table is None:
        return True
    # raises if there is none of that name
    get_backend(config.table.backend)
    difference = difference_to_table(model, config.table)
    if difference:
        logger.warning("latencies are not measured: the table is of %s. They are predicted only.", difference)
    return not difference


def earlier_sweep(path: str | Path | None, settings: Mapping[str, Any]) -> Sweep | None:
    """The sweep in a file, if there is a file.

    Args:
        path: The file; None for none.
        settings: Those of the present sweep, as `settings_of` gives them.

    Returns:
        The sweep, or None.

    Raises:
        ValueError: The file holds something else, or a sweep with other settings.
    """
    if path is None or not Path(path).is_file():
        return None
    earlier = Sweep.from_json(Path(path).read_text(encoding="utf-8"))
    # the settings in the file went through JSON, which turns tuples into lists, so the present ones do too
    present = json.loads(json.dumps(settings))
    changes = []
    for name in {**earlier.settings, **present}:
        before = earlier.settings.get(name)
        now = present.get(name)
        if before != now:
            changes.append(f"{name} ({before!r}, now {now!r})")
    if changes:
        raise ValueError(
            f"{path} holds a sweep with other settings: {', '.join(changes)}. Its points cannot be compared with new "
            "ones: choose another file, or delete this one."
        )
    return earlier


def _by_sparsity(earlier: Sweep | None) -> dict[float, SweepPoint]:
    if earlier is None:
        return {}
    return {point.sparsity: point for point in earlier.points}


def _with_same_plans(
    known: Mapping[float, SweepPoint], model: PreTrainedModel, plans: Mapping[float, PruningPlan | None]
) -> dict[float, SweepPoint]:
    """The points of an earlier sweep whose plans are still the same."""
    # A new sparsity may change the nested plans above it, and another machine the last digits of the scores. A point
    # whose plan has changed is measured again.
    same = {}
    for sparsity, point in known.items():
        if point.plan_digest == _digest(_composed(model, plans[sparsity])):
            same[sparsity] = point
    return same


def _plans(
    dense: Anatomy, scores: Scores, config: PruningConfig, sparsities: AbstractSet[float]
) -> dict[float, PruningPlan | None]:
    """By sparsity, the plan for the given model; None at 0. Each plan keeps a subset of the units of the one before."""
    above_zero = sorted(sparsities - {0.0})
    nested = plan(dense, scores, config, sparsity=above_zero)
    return {0.0: None, **dict(zip(above_zero, nested, strict=True))}


def _pruned(
    dense: Anatomy, pruning_plan: PruningPlan, batches: Sequence[Batch], config: PruningConfig, recover: Recover | None
) -> Anatomy:
    """Apply a plan to the dense model, then repair and recover the result as the config and the user ask."""
    small = anatomy_of(apply_plan(dense, pruning_plan), config.attention_unit)
    check_portable(small.model, config)
    if config.reconstruct:
        reconstruct(small, dense, batches)
    if recover is None:
        return small
    # the user's function may return another model, or replace modules of the one that it was called with
    return anatomy_of(recovered(small.model, dense.model, recover), config.attention_unit)


def _latencies(
    dense: Anatomy,
    plans: Mapping[float, PruningPlan | None],
    config: PruningConfig,
    *,
    batch_size: int | None,
    runs: int,
) -> dict[float, dict[str, Any]]:
    """By sparsity, the latency and the speed-up of a point. All models are timed in turn, so that they compare."""
    if batch_size is None:
        return {sparsity: {"latency": None, "speedup": None} for sparsity in plans}
    # The latency depends on shapes, not on weights. So the models are timed before repair and recovery, and no repaired
    # model has to be kept for it.
    models = []
    for pruning_plan in plans.values():
        models.append(dense.model if pruning_plan is None else apply_plan(dense, pruning_plan))
    shape: dict[str, Any] = {"batch_size": batch_size, "sequence_length": config.sequence_length}
    if config.table is not None:
        shape = config.table.timing
    latencies: list[Latency] = measure_latencies(models, **shape, runs=runs)
    timings = {}
    for sparsity, latency in zip(plans, latencies, strict=True):
        timings[sparsity] = {"latency": latency, "speedup": latencies[0].median_ms / latency.median_ms}
    return timings


def _composed(model: PreTrainedModel, pruning_plan: PruningPlan | None) -> PruningPlan | None:
    """A plan for this model in the dense model's numbering; None if nothing was removed, before or by this plan."""
    attached: PruningPlan | None = getattr(model, "pruning_plan", None)
    if attached is None:
        return pruning_plan
    if pruning_plan is None:
        return attached
    return attached.then(pruning_plan)


def _digest(composed: PruningPlan | None) -> str:
    return "" if composed is None else composed.digest
