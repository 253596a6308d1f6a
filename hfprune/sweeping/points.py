"""The measurements of one pruned model, and the drop of its metric against the dense model, sample by sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from hfprune.measuring.latency import Latency
from hfprune.measuring.size import Size
from hfprune.structure.arguments import checked, finite


@dataclass(frozen=True, kw_only=True)
class SweepPoint:
    """The measurements of one model of a sweep.

    Attributes:
        sparsity: The sparsity that was asked for, in the config's budget; 0 is the model that the sweep was given.
        mac_sparsity: The fraction of the dense model's prunable multiply-adds that this model lacks.
        param_sparsity: The fraction of the dense model's prunable parameters that this model lacks.
        metric: The number that `evaluate` returned, or the mean of its values; higher is better.
        per_sample: The value that `evaluate` returned for every sample, in its order; None if it returned one number.
        size: Parameters, multiply-adds and bytes.
        latency: Time of a forward pass; None if it was not measured.
        speedup: The median latency of the model that the sweep was given over this one's; None if not measured.
        predicted_ms: What a latency table predicts of it; None in a budget without one.
        seconds: Time for surgery, repair, recovery and evaluation; with rounds of pruning also for their scoring.
        plan_digest: Digest of the plan in the dense model's numbering; empty for a model without a plan.
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
    predicted_ms: float | None = None

    @property
    def samples(self) -> int | None:
        """How many samples were evaluated; None if `evaluate` returned one number."""
        if self.per_sample is None:
            return None
        return len(self.per_sample)

    @checked(confidence=finite())
    def interval(self, *, confidence: float = 0.95) -> tuple[float, float] | None:
        """The two-sided confidence interval of the metric, which `interval_of_mean` describes.

        Args:
            confidence: Its level.

        Returns:
            Its ends; None if `evaluate` returned one number, or the value of one sample.

        Examples:
            >>> from hfprune.measuring.size import Size
            >>> from hfprune.sweeping import SweepPoint
            >>> size = Size(
            ...     params=9, prunable_params=4, macs=9, prunable_macs=4, sequence_length=8, weight_bytes=36
            ... )
            >>> point = SweepPoint(
            ...     sparsity=0.0,
            ...     mac_sparsity=0.0,
            ...     param_sparsity=0.0,
            ...     metric=0.9,
            ...     per_sample=(1.0,) * 81 + (0.0,) * 9,
            ...     size=size,
            ...     seconds=1.0,
            ...     plan_digest="",
            ... )
            >>> [round(end, 3) for end in point.interval()]
            [0.821, 0.946]
        """
        if self.per_sample is None or len(self.per_sample) < 2:
            return None
        return interval_of_mean(self.per_sample, confidence=confidence)

    @property
    def params(self) -> int:
        """All parameters, tied ones once."""
        return self.size.params

    @property
    def latency_ms(self) -> float | None:
        """Median time of a forward pass in milliseconds; None if it was not measured."""
        if self.latency is None:
            return None
        return self.latency.median_ms


@dataclass(frozen=True, kw_only=True)
class Drop:
    """How much lower a metric is than the dense model's, on the same samples.

    Attributes:
        mean: The drop on these samples; negative where the metric rose.
        upper: The upper end of its one-sided confidence interval.
        confidence: The level of that interval.
        samples: How many samples were compared.
    """

    mean: float
    upper: float
    confidence: float
    samples: int


def paired_drop(dense: Sequence[float], pruned: Sequence[float], *, confidence: float = 0.95) -> Drop:
    """The drop from one model to another, with the upper end of a paired, one-sided confidence interval.

    The interval is computed from the differences d between the two values of every sample (dense minus pruned). As in
    McNemar's test, only samples on which the two models differ widen it:

        upper = mean(d') + z · √(var(d') / n')

    Two cases are told apart. If all values lie in [0, 1], such as right (1) and wrong (0), or if there are only two
    different values, d' is d with two made-up samples: plus and minus the largest difference that is possible (Bonett &
    Price 2012, "Adjusted Wald confidence interval for a difference of binomial proportions based on paired data").
    Without these, a few samples without any difference would prove that there is none. z is then a quantile of the
    normal distribution, and n' the number of samples with the two. In all other cases d' is d, z is a quantile of
    Student's t distribution with n' − 1 degrees of freedom, and the variance divides by n' − 1 instead of n'.

    >>> drop = paired_drop([1, 1, 1, 0, 1, 1], [1, 0, 1, 1, 0, 1])
    >>> round(drop.mean, 4), round(drop.upper, 4)
    (0.1667, 0.579)

    Args:
        dense: Values of the dense model, one a sample.
        pruned: Values of the pruned model for the same samples, in the same order.
        confidence: The level of the interval, in (0, 1).

    Returns:
        The drop.

    Raises:
        ValueError: The two have different numbers of samples, or less than two, or `confidence` is not in (0, 1).
    """
    _check_paired(dense, pruned, confidence)
    differences = [float(before) - float(after) for before, after in zip(dense, pruned, strict=True)]
    # before the two made-up samples are added, which would pull the mean towards 0
    observed = _mean(differences)
    largest = _largest_difference(dense, pruned)
    if largest is None:
        degrees = len(differences) - 1
        quantile = float(stats.t.ppf(confidence, degrees))
    else:
        differences += [largest, -largest]
        degrees = len(differences)
        quantile = float(stats.norm.ppf(confidence))
    mean = _mean(differences)
    # fsum rounds only once, so the result does not depend on the order of the samples
    variance = math.fsum((difference - mean) ** 2 for difference in differences) / degrees
    upper = mean + quantile * math.sqrt(variance / len(differences))
    return Drop(mean=observed, upper=upper, confidence=confidence, samples=len(dense))


def interval_of_mean(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """The two-sided confidence interval of a mean over samples.

    Of right (1) and wrong (0) it is the score interval (Wilson 1927, "Probable inference, the law of succession, and
    statistical inference"), which stays within [0, 1]. Of other values it is mean ± t · s / √n.

    >>> [round(end, 4) for end in interval_of_mean([1.0] * 81 + [0.0] * 9)]
    [0.8208, 0.9465]

    Args:
        values: One value a sample, two or more.
        confidence: The level of the interval, in (0, 1).

    Returns:
        Its lower and its upper end.
    """
    count = len(values)
    mean = _mean(values)
    tail = (1 + confidence) / 2
    if set(values) <= {0.0, 1.0}:
        quantile = float(stats.norm.ppf(tail))
        weight = quantile**2 / count
        middle = (mean + weight / 2) / (1 + weight)
        half = quantile * math.sqrt(mean * (1 - mean) / count + weight / (4 * count)) / (1 + weight)
    else:
        quantile = float(stats.t.ppf(tail, count - 1))
        variance = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
        middle = mean
        half = quantile * math.sqrt(variance / count)
    # rounding must not leave the mean outside: the score interval of a mean of 1 ends at 1
    return min(middle - half, mean), max(middle + half, mean)


def shown_above(values: Sequence[float], others: Sequence[float], *, confidence: float = 0.95) -> bool:
    """Whether samples show that the mean of some values is above that of others: their paired interval is above 0.

    >>> shown_above([1.0] * 90, [1.0] * 88 + [0.0] * 2), shown_above([1.0] * 90, [1.0] * 60 + [0.0] * 30)
    (False, True)

    Args:
        values: One value a sample.
        others: The values to compare with, of the same samples in the same order.
        confidence: The level of the one-sided interval that `paired_drop` describes.

    Returns:
        Whether it does.
    """
    return paired_drop(others, values, confidence=confidence).upper < 0


def check_level(confidence: float) -> None:
    """Refuse what is no level of a confidence interval.

    Args:
        confidence: The level.

    Raises:
        ValueError: It is not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence:g}: write 0.95 for 95 %.")


def _check_paired(dense: Sequence[float], pruned: Sequence[float], confidence: float) -> None:
    """Refuse values that cannot be compared in pairs, and a level that is none."""
    check_level(confidence)
    if len(dense) != len(pruned) or len(dense) < 2:
        raise ValueError(
            f"a paired interval needs the same samples for both models, two or more, got {len(dense)} and "
            f"{len(pruned)} values. "
            "`evaluate` must give one value a sample, of the same data in the same order for every model."
        )


def _largest_difference(dense: Sequence[float], pruned: Sequence[float]) -> float | None:
    """The largest difference that two values can have; None if their range is not known."""
    values = {float(value) for value in (*dense, *pruned)}
    # right and wrong, and fractions such as an F1 of every sample
    if all(0 <= value <= 1 for value in values):
        return 1.0
    # right and wrong on another scale, such as 0 and 100
    if len(values) == 2:
        return max(values) - min(values)
    return None


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def check_max_drop(max_drop: float, smallest: Drop) -> None:
    """Refuse a limit that no model can be shown to keep.

    Args:
        max_drop: The limit.
        smallest: The drop of a model that has the dense model's value on every sample: no interval ends lower.

    Raises:
        ValueError: It is not positive, or there are too few samples.
    """
    if not max_drop > 0:
        raise ValueError(
            f"max_drop must be positive, got {max_drop:g}. It is the drop that you can accept, such as 0.01."
        )
    if smallest.upper >= max_drop:
        # the upper end is proportional to 1 / (n + 2) for n samples and the two made-up ones
        enough = math.floor((smallest.samples + 2) * smallest.upper / max_drop) - 1
        raise ValueError(
            f"{smallest.samples} samples cannot show a drop below {max_drop:g}: the upper end of the interval is "
            f"{smallest.upper:.4f} even for a model that does as the dense one on all of them. Evaluate on at least "
            f"{enough}, or accept a larger drop or less confidence."
        )


def outcome_of(value: Any) -> tuple[float, tuple[float, ...] | None]:
    """The metric and, if there are any, the values of the samples in the return value of a user's `evaluate`.

    >>> outcome_of([True, False]), outcome_of(0.9)
    ((0.5, (1.0, 0.0)), (0.9, None))

    Args:
        value: A number, or one number or bool a sample: a sequence, an array or a tensor.

    Returns:
        The metric, and one value a sample or None.

    Raises:
        ValueError: It is something else, is empty, or is not finite.
    """
    # a tensor or an array, of many numbers or of one
    plain = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(plain, int | float):
        return _finite(float(plain)), None
    samples = _samples_of(plain, type(value).__name__)
    if not samples:
        raise ValueError("evaluate returned no samples: there is nothing to take the mean of.")
    return _finite(_mean(samples)), samples


def _samples_of(values: Any, given: str) -> tuple[float, ...]:
    """One number for every sample. `given` names the type that the user returned, for the error message."""
    try:
        # iterating over these would not give samples, but letters or the names of metrics
        if isinstance(values, str | bytes | dict):
            raise TypeError
        return tuple(float(sample) for sample in values)
    except (TypeError, ValueError):
        raise ValueError(
            f"evaluate must return a number, or one number or bool a sample, got {given}. Of a mapping "
            "such as trainer.evaluate() return one value: trainer.evaluate()['eval_accuracy']."
        ) from None


def _finite(metric: float) -> float:
    if not math.isfinite(metric):
        raise ValueError(f"evaluate returned {metric}: a metric must be finite. Look at the model's outputs.")
    return metric
