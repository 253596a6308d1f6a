"""prune_within(): search for the smallest model whose metric is shown to drop by less than a limit."""

import logging
import math
import time
from dataclasses import replace
from pathlib import Path

from transformers import PreTrainedModel

from hfprune.config import CONFIG, PruningConfig
from hfprune.errors import BudgetError
from hfprune.pruning.prune import Recover, batches_for, check, prune
from hfprune.scoring import CalibrationData, Collator
from hfprune.showing.progress import progress
from hfprune.structure.anatomy import Anatomy, anatomy_of
from hfprune.structure.arguments import FUNCTION, TEXT, checked, finite, optional
from hfprune.structure.running import outside_inference_mode
from hfprune.structure.wrapping import unwrapped
from hfprune.sweeping.curve import Sweep, in_order
from hfprune.sweeping.points import SweepPoint, check_level
from hfprune.sweeping.run import Evaluate, check_samples, earlier_sweep, measured_point, settings_of

logger = logging.getLogger(__name__)
#: The smallest step of a search.
_LEAST_STEP = 0.001


@checked(
    config=CONFIG,
    max_drop=finite(),
    evaluate=FUNCTION,
    confidence=finite(),
    step=finite(),
    recover=optional(FUNCTION),
    collator=optional(FUNCTION),
    metric=TEXT,
)
@outside_inference_mode
def prune_within(
    model: PreTrainedModel,
    data: CalibrationData,
    config: PruningConfig | None = None,
    *,
    max_drop: float,
    evaluate: Evaluate,
    confidence: float = 0.95,
    step: float = 0.05,
    recover: Recover | None = None,
    collator: Collator | None = None,
    metric: str = "metric",
    save_to: str | Path | None = None,
) -> tuple[PreTrainedModel, Sweep]:
    """Prune as much as a limit on the drop of a metric allows, by bisection over sparsities.

    Each candidate is the result of one `prune`, in the rounds that the config says. It is accepted if the upper end of
    the paired interval of its drop (`Sweep.drop`) is below the limit. The search assumes that a higher sparsity never
    drops less, and prunes about log2(1/step) candidates. Choosing among several candidates makes the interval of the
    returned model a little optimistic: report its metric on other samples than those of `evaluate`.

    Args:
        model: The dense model, or one that was pruned before. It stays as it is.
        data: Calibration data, as for `prune`.
        config: What to do; `sparsity` does not count. A goal in time (`speedup` or `milliseconds`, in the budget
            `latency`) does: the model shall be as fast at least, by the latency table.
        max_drop: The limit, in the unit of the metric: 0.01 is one point of an accuracy in [0, 1].
        evaluate: Measures a model, in evaluation mode: one number or bool a sample, as `correctness` gives; higher is
            better. Its samples must be ones that no model was trained or calibrated on.
        confidence: The level of the one-sided interval.
        step: Candidates are its multiples below 1, as far as the constraints allow.
        recover: Trains a little after every round of every candidate, as for `prune`.
        collator: Makes a batch of rows of a Dataset.
        metric: The name of what `evaluate` measures, for the table.
        save_to: A JSON file, written after every model. If it exists, its models are not pruned and measured again,
            except for the one that is returned.

    Returns:
        The pruned model, and a sweep of all models that were measured, without latencies.

    Raises:
        BudgetError: Even the lowest sparsity drops more, or none can be reached under the constraints.
        CalibrationError: The calibration data cannot be used.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
        StructureError: The model does not look as the table says.
        NonFiniteScoreError: A score is NaN or infinite.
        ValueError: A limit or step that cannot be, an `evaluate` that gives one number a model or too few samples to
            show the limit, or an unknown scorer, allocation or schedule; or `save_to` holds a search with other
            settings or on other samples.

    Examples:
        >>> import hfprune
        >>> def evaluate(model):  # in the place of real data: right on all samples until too much is removed
        ...     plan = getattr(model, "pruning_plan", None)
        ...     return [plan is None or plan.sparsity("macs") < 0.6] * 500
        >>> small, search = hfprune.prune_within(
        ...     dense, dataset, config, max_drop=0.01, evaluate=evaluate, step=0.25, collator=collator
        ... )
        >>> [(point.sparsity, point.metric) for point in search.points]
        [(0.0, 1.0), (0.5, 1.0), (0.75, 0.0)]
        >>> small.pruning_record.config["sparsity"]
        0.5
    """
    config = config or PruningConfig()
    model = unwrapped(model)
    _check_step(step)
    check_level(confidence)
    anatomy = anatomy_of(model, config.attention_unit)
    candidates = _candidates(anatomy, config, step)
    batches = batches_for(model, data, config, collator=collator)
    settings = settings_of(model, batches, config, metric=metric, recover=recover is not None)
    earlier = earlier_sweep(save_to, settings)
    attached = getattr(model, "pruning_plan", None)
    began = time.perf_counter()
    dense = measured_point(anatomy, attached, config, sparsity=0.0, evaluate=evaluate, began=began)
    logger.info("dense: %s %.4f, %.1f s", metric, dense.metric, dense.seconds)
    search = Sweep(points=(dense,), settings=settings)
    # raises an error, before anything is pruned, if too few samples were evaluated to show any drop below the limit
    search.within(max_drop, confidence=confidence)
    if earlier is not None:
        _check_same_samples(earlier, dense, save_to)
        search = replace(search, points=in_order([dense, *earlier.points[1:]]))
    known = {point.sparsity: point for point in search.points[1:]}

    def pruned_to(sparsity: float) -> PreTrainedModel:
        return prune(model, batches, config.with_sparsity(sparsity), recover=recover)

    best: PreTrainedModel | None = None
    # indices of candidates: all up to `low` are within the limit, all from `high` on are not
    low = -1
    high = len(candidates)
    with progress(len(candidates).bit_length(), desc="Searching", unit="model") as counted:
        while high - low > 1:
            middle = (low + high) // 2
            sparsity = candidates[middle]
            small = None
            if sparsity not in known:
                began = time.perf_counter()
                small = pruned_to(sparsity)
                pruned_anatomy = anatomy_of(small, config.attention_unit)
                known[sparsity] = measured_point(
                    pruned_anatomy, small.pruning_plan, config, sparsity=sparsity, evaluate=evaluate, began=began
                )
                check_samples(dense, known[sparsity])
                search = replace(search, points=in_order([*search.points, known[sparsity]]))
                if save_to is not None:
                    search.save(save_to)
            drop = search.drop(known[sparsity], confidence=confidence)
            is_within = drop.upper < max_drop
            logger.info(
                "sparsity %.2f: %s drops by %.4f, at most %.4f: %s%s",
                sparsity,
                metric,
                drop.mean,
                drop.upper,
                "within the limit" if is_within else "too much",
                f", {known[sparsity].seconds:.1f} s" if small is not None else f" (from {save_to})",
            )
            if is_within:
                low = middle
                best = small
            else:
                high = middle
            counted.update()
    if low < 0:
        # the lowest candidate was tried last, so `drop` is its drop
        raise BudgetError(
            f"even sparsity {candidates[0]:g} lets {metric} drop by {drop.mean:.4f}, at most {drop.upper:.4f} with "
            f"{confidence:.0%} confidence ({drop.samples} samples), which is not below max_drop={max_drop:g}. Accept a "
            "larger drop, evaluate on more samples (the interval narrows), or pass recover."
        )
    # a model that an earlier search measured is made again
    return best if best is not None else pruned_to(candidates[low]), search


def _check_same_samples(earlier: Sweep, dense: SweepPoint, path: str | Path | None) -> None:
    """Refuse a search on other samples, as far as the dense model shows it."""
    before = earlier.dense
    if before.samples != dense.samples or not math.isclose(before.metric, dense.metric, rel_tol=1e-3, abs_tol=1e-6):
        raise ValueError(
            f"{path} holds a search on other samples: its dense model has {before.metric:.4f} on {before.samples}, now "
            f"{dense.metric:.4f} on {dense.samples}. Choose another file, or delete this one."
        )


def _check_step(step: float) -> None:
    if not 0 < step < 1:
        raise ValueError(f"step must be in (0, 1), got {step:g}: 0.05 tries 5 %, 10 % ...")
    # every multiple is planned for before the search, and no metric tells steps as small as these apart
    if step < _LEAST_STEP:
        raise ValueError(f"step must be at least {_LEAST_STEP:g}, got {step:g}: 0.05 tries 5 %, 10 % ...")


def _candidates(anatomy: Anatomy, config: PruningConfig, step: float) -> list[float]:
    """Multiples of a step that the constraints and the goal allow, and that are above the model's present sparsity."""
    candidates: list[float] = []
    reason: BudgetError | None = None
    wanted = _multiples(step)
    if config.speedup is not None or config.milliseconds is not None:
        # a goal in time is the least that shall go
        wanted = [config.sparsity, *(sparsity for sparsity in wanted if sparsity > config.sparsity)]
    for sparsity in wanted:
        try:
            check(anatomy, config.with_sparsity(sparsity))
        # the model may have more removed already than a low candidate asks for, so the loop goes on
        except BudgetError as error:
            reason = error
        else:
            candidates.append(sparsity)
    if not candidates:
        raise BudgetError(f"no multiple of step={step:g} can be reached: {reason}") from reason
    return candidates


def _multiples(step: float) -> list[float]:
    """The multiples of a step that lie between 0 and 1."""
    multiples = []
    # 1 / step may be rounded down, so one more multiple is tried
    for number in range(1, int(1 / step) + 2):
        # without rounding, 3 · 0.1 would be 0.30000000000000004 in tables and files
        sparsity = round(step * number, 10)
        if sparsity < 1:
            multiples.append(sparsity)
    return multiples
