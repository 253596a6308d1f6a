"""prune_within(): the smallest model whose metric is shown to drop by less than a limit."""

import logging
import time
from dataclasses import replace

from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from hfprune.config import PruningConfig
from hfprune.errors import BudgetError
from hfprune.pruning.prune import Recover, batches_for, check, prune
from hfprune.scoring import CalibrationData, Collator
from hfprune.sweeping.curve import Sweep, in_order
from hfprune.sweeping.run import Evaluate, check_samples, measured, settings_of

logger = logging.getLogger(__name__)


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
) -> tuple[PreTrainedModel, Sweep]:
    """Prune as much as a limit on the drop of a metric allows, by bisection over sparsities.

    Each candidate is a `prune` of its own, in the rounds that the config says, and is accepted if the upper end of the
    paired interval of its drop (`Sweep.drop`) is below the limit. The search takes it that a model of a higher sparsity
    never drops less; about log2(1/step) candidates are pruned. That several are looked at makes the interval of the one
    that is returned a little optimistic: report its metric on other samples than those of `evaluate`.

    Args:
        model: The dense model, or one that was pruned before. It stays as it is.
        data: Calibration data, as for `prune`.
        config: What to do; `sparsity` does not count.
        max_drop: The limit, in the unit of the metric: 0.01 is one point of an accuracy in [0, 1].
        evaluate: Measures a model, in evaluation mode: one number or bool a sample, as `correctness` gives; higher is
            better. Samples that no model was trained or calibrated on.
        confidence: The level of the one-sided interval.
        step: Candidates are its multiples below 1, as far as the constraints allow.
        recover: Trains a little after every round of every candidate, as for `prune`.
        collator: Makes a batch of rows of a Dataset.
        metric: What `evaluate` measures, for the table.

    Returns:
        The pruned model, and a sweep of what was tried, without latencies.

    Raises:
        BudgetError: Even the lowest sparsity drops more, or none can be reached under the constraints.
        CalibrationError: The calibration data cannot be used.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
        StructureError: The model does not look as the table says.
        NonFiniteScoreError: A score is NaN or infinite.
        ValueError: A limit or step that cannot be, an `evaluate` that gives one number a model or too few samples to
            show the limit, or an unknown scorer, allocation or schedule.
    """
    config = config or PruningConfig()
    candidates = _candidates(model, config, step)
    batches = batches_for(model, data, config, collator=collator)
    settings = settings_of(model, batches, config, metric=metric, recover=recover is not None)
    began, attached = time.perf_counter(), getattr(model, "pruning_plan", None)
    dense = measured(model, attached, config, sparsity=0.0, evaluate=evaluate, began=began)
    tried = Sweep(points=(dense,), settings=settings)
    tried.within(max_drop, confidence=confidence)  # raises what makes the search pointless
    best: PreTrainedModel | None = None
    low, high = -1, len(candidates)  # what is known to be within, and beyond
    with tqdm(total=len(candidates).bit_length(), desc="Searching", unit="model") as progress:
        while high - low > 1:
            middle = (low + high) // 2
            began, chosen = time.perf_counter(), replace(config, sparsity=candidates[middle])
            small = prune(model, batches, chosen, recover=recover)
            point = measured(
                small, small.pruning_plan, chosen, sparsity=chosen.sparsity, evaluate=evaluate, began=began
            )
            check_samples(dense, point)
            tried = replace(tried, points=in_order([*tried.points, point]))
            drop = tried.drop(point, confidence=confidence)
            logger.info("sparsity %.2f: %s drops by %.4f, at most %.4f", point.sparsity, metric, drop.mean, drop.upper)
            if drop.upper < max_drop:
                low, best = middle, small
            else:
                high = middle
            progress.update()
    if best is None:
        raise BudgetError(
            f"even sparsity {candidates[0]:g} lets {metric} drop by {drop.mean:.4f}, at most {drop.upper:.4f} with "
            f"{confidence:.0%} confidence ({drop.samples} samples), which is not below max_drop={max_drop:g}. Accept a "
            "larger drop, evaluate on more samples (the interval narrows), or pass recover."
        )
    return best, tried


def _candidates(model: PreTrainedModel, config: PruningConfig, step: float) -> list[float]:
    """Multiples of a step that the constraints allow, and that the model does not have already."""
    if not 0 < step < 1:
        raise ValueError(f"step must be in (0, 1), got {step:g}: 0.05 tries 5 %, 10 % ...")
    possible: list[float] = []
    reason: BudgetError | None = None
    for sparsity in (round(step * i, 10) for i in range(1, int(1 / step) + 2)):
        if sparsity >= 1:
            break
        try:
            check(model, replace(config, sparsity=sparsity))
            possible.append(sparsity)
        except BudgetError as error:
            reason = error
    if not possible:
        raise BudgetError(f"no multiple of step={step:g} can be reached: {reason}") from reason
    return possible
