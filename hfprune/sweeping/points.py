"""One size of a model, measured; and what it lost against another, sample by sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from hfprune.measuring.latency import Latency
from hfprune.measuring.size import Size


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """One size of a model.

    Attributes:
        sparsity: What was asked for, in the config's budget; 0 is the model that the sweep was given.
        mac_sparsity: The fraction of the dense model's prunable multiply-adds that is gone.
        param_sparsity: The fraction of its prunable parameters that is gone.
        metric: What `evaluate` found, or its mean over samples; higher is better.
        per_sample: What `evaluate` found for every sample, in its order; None if it gave one number.
        size: Parameters, multiply-adds and bytes.
        latency: Time of a forward pass; None if it was not measured.
        speedup: The median latency of the model that the sweep was given over this one's; None if not measured.
        seconds: What surgery, repair, recovery and evaluation took; with rounds of pruning also their scoring.
        plan_digest: Of the plan, in the dense model's numbering; empty for a model that nothing was removed from.
    """

    sparsity: float
    mac_sparsity: float
    param_sparsity: float
    metric: float
    per_sample: tuple[float, ...] | None = field(default=None, repr=False)
    size: Size
    latency: Latency | None = None
    speedup: float | None = None
    seconds: float
    plan_digest: str

    @property
    def samples(self) -> int | None:
        """How many samples the metric is the mean of, if `evaluate` said so."""
        return None if self.per_sample is None else len(self.per_sample)

    @property
    def params(self) -> int:
        """All parameters, tied ones once."""
        return self.size.params

    @property
    def latency_ms(self) -> float | None:
        """Median time of a forward pass, if it was measured."""
        return None if self.latency is None else self.latency.median_ms


@dataclass(frozen=True, kw_only=True)
class Drop:
    """How much lower a metric is than the dense model's, on the same samples.

    Attributes:
        mean: The drop that was seen; negative where the metric rose.
        upper: The upper end of its one-sided confidence interval.
        confidence: The level of that interval.
        samples: How many samples there are.
    """

    mean: float
    upper: float
    confidence: float
    samples: int


def paired_drop(dense: Sequence[float], pruned: Sequence[float], *, confidence: float = 0.95) -> Drop:
    """The drop from one model to another, with the upper end of a paired, one-sided interval.

    With the differences d of the samples (dense minus pruned), as in McNemar's test only samples on which the two
    models differ widen the interval:

        upper = mean(d') + z · √(var(d') / n')

    Where all values lie in [0, 1], such as right (1) or wrong (0), or are one of two numbers, d' is d and two made-up
    samples more, plus and minus the largest difference there can be (Bonett & Price 2012, "Adjusted Wald confidence
    interval for a difference of binomial proportions based on paired data"), so that a few samples without a difference
    do not prove that there is none, and z is of the normal distribution. For other values d' is d, with n' − 1 in place
    of n' in the variance, and z is of Student's t with n' − 1 degrees of freedom.

    >>> drop = paired_drop([1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 0, 1])
    >>> round(drop.mean, 4), round(drop.upper, 4)
    (0.1667, 0.579)

    Args:
        dense: Values of the dense model, one a sample.
        pruned: Those of the pruned model, in the same order.
        confidence: In (0, 1).

    Returns:
        The drop.

    Raises:
        ValueError: The two have different numbers of samples, or less than two, or `confidence` is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence:g}: write 0.95 for 95 %.")
    if len(dense) != len(pruned) or len(dense) < 2:
        raise ValueError(
            f"a paired interval needs the same samples for both models, two or more, got {len(dense)} and "
            f"{len(pruned)} values. "
            "`evaluate` must give one value a sample, of the same data in the same order for every model."
        )
    differences = [float(before) - float(after) for before, after in zip(dense, pruned, strict=True)]
    seen = math.fsum(differences) / len(differences)
    values, z = {float(value) for value in (*dense, *pruned)}, float(stats.norm.ppf(confidence))
    fractions = all(0 <= value <= 1 for value in values)
    if fractions or len(values) == 2:
        largest = 1.0 if fractions else max(values) - min(values)
        differences += [largest, -largest]
        degrees = len(differences)
    else:
        degrees = len(differences) - 1
        z = float(stats.t.ppf(confidence, degrees))
    mean = math.fsum(differences) / len(differences)
    variance = math.fsum((d - mean) ** 2 for d in differences) / degrees
    upper = mean + z * math.sqrt(variance / len(differences))
    return Drop(mean=seen, upper=upper, confidence=confidence, samples=len(dense))


def check_max_drop(max_drop: float, least: Drop) -> None:
    """Refuse a limit that nothing can be shown to be below.

    Args:
        max_drop: The limit.
        least: The drop of a model that does as the dense one on all samples.

    Raises:
        ValueError: It is not positive, or there are too few samples.
    """
    if not max_drop > 0:
        raise ValueError(
            f"max_drop must be positive, got {max_drop:g}. It is the drop that you can accept, such as 0.01."
        )
    if least.upper >= max_drop:
        enough = math.floor((least.samples + 2) * least.upper / max_drop) - 1  # the upper end goes as 1 / (n + 2)
        raise ValueError(
            f"{least.samples} samples cannot show a drop below {max_drop:g}: the upper end of the interval is "
            f"{least.upper:.4f} even for a model that does as the dense one on all of them. Evaluate on at least "
            f"{enough}, or accept a larger drop or less confidence."
        )


def outcome_of(value: Any) -> tuple[float, tuple[float, ...] | None]:
    """The metric, and the values of the samples if there are any, of what a user's `evaluate` returned.

    >>> outcome_of([True, False]), outcome_of(0.9)
    ((0.5, (1.0, 0.0)), (0.9, None))

    Args:
        value: A number, or one number or bool a sample: a sequence, an array or a tensor.

    Returns:
        The metric, and one value a sample or None.

    Raises:
        ValueError: It is something else, is empty, or is not finite.
    """
    plain = value.tolist() if hasattr(value, "tolist") else value
    try:
        if isinstance(plain, str | bytes | dict):
            raise TypeError
        samples = None if isinstance(plain, int | float) else tuple(float(one) for one in plain)
    except (TypeError, ValueError):
        raise ValueError(
            f"evaluate must return a number, or one number or bool a sample, got {type(value).__name__}. Of a mapping "
            "such as trainer.evaluate() return one value: trainer.evaluate()['eval_accuracy']."
        ) from None
    if samples is not None and not samples:
        raise ValueError("evaluate returned no samples: there is nothing to take the mean of.")
    metric = float(plain) if samples is None else math.fsum(samples) / len(samples)
    if not math.isfinite(metric):
        raise ValueError(f"evaluate returned {metric}: a metric must be finite. Look at the model's outputs.")
    return metric, samples
