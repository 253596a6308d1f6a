"""Schedules: the sparsity after each round of pruning, or at each moment of pruning while training."""

import math
from collections.abc import Callable, Mapping

from hfprune.structure.arguments import checked, finite, optional, whole

#: From the fraction of the rounds that are done to the fraction of the way to the target sparsity.
_PROGRESS: Mapping[str, Callable[[float], float]] = {
    "one_shot": lambda _: 1.0,
    "linear": lambda done: done,
    "cubic": lambda done: 1 - (1 - done) ** 3,
}
SCHEDULES = (*_PROGRESS, "geometric")
#: The least share of the remaining cost that a geometric round keeps, if the number of rounds is not given.
ROUND_KEEPS = 0.8
#: The least share if every round is followed by training: the cost falls by at most a third.
TRAINED_ROUND_KEEPS = 2 / 3
#: Schedules of pruning while training.
GRADUAL_SCHEDULES = ("cubic", "linear", "geometric", "steps")
#: The share of the cost that a geometric schedule aims at if nothing shall be left: products of shares never reach 0.
_NOTHING_LEFT = 0.01
#: Sparsities are rounded to so many digits, so that 0.1 + 0.2 is written as 0.3.
_DIGITS = 12
#: Rounding errors of this size must not add a round.
_TOLERANCE = 1e-9


@checked(
    start=finite(least=0, below=1),
    target=finite(least=0, most=1),
    rounds=optional(whole(least=1)),
    keeps=finite(above=0, below=1),
)
def sparsities(
    schedule: str, *, start: float, target: float, rounds: int | None = None, keeps: float = ROUND_KEEPS
) -> list[float]:
    """The sparsity after each round, from just above `start` to `target`.

    Args:
        schedule: `one_shot`: everything in one round. `linear`: every round removes the same share of the dense
            model's cost. `cubic`: fast at first, `target + (start − target)(1 − r/n)³` after round r of n (Zhu & Gupta
            2017, "To prune, or not to prune"). `geometric`: every round keeps the same share of the remaining cost.
        start: The sparsity before the first round.
        target: The sparsity after the last round.
        rounds: The number of rounds; `one_shot` always has one. None: as many as a geometric schedule needs if every
            round shall keep at least the share `keeps` of the remaining cost.
        keeps: The least share of the remaining cost that a round keeps, if `rounds` is None.

    Returns:
        One sparsity for each round; the last one is exactly `target`.

    Raises:
        ValueError: No schedule has that name.

    Examples:
        >>> from hfprune.planning import sparsities
        >>> sparsities("linear", start=0.0, target=0.6, rounds=3)
        [0.2, 0.4, 0.6]
        >>> sparsities("cubic", start=0.0, target=0.5, rounds=2)
        [0.4375, 0.5]
        >>> sparsities("geometric", start=0.0, target=0.75, rounds=2)
        [0.5, 0.75]
        >>> sparsities("geometric", start=0.0, target=0.36)  # each round keeps four fifths of the cost
        [0.2, 0.36]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}. Known: {', '.join(SCHEDULES)}.")
    if schedule == "one_shot":
        return [target]
    if rounds is None:
        rounds = _rounds(_share_left(start, target), keeps)
    steps = []
    for number in range(1, rounds):
        step = _on_the_way(schedule, number / rounds, start=start, target=target)
        steps.append(round(step, _DIGITS))
    # not rounded: the target must be met as it was asked for
    steps.append(target)
    return steps


def sparsity_at(schedule: str, progress: float, *, start: float, target: float) -> float:
    """The sparsity at a moment of pruning while training.

    Args:
        schedule: `linear`, `cubic` (Zhu & Gupta 2017: fast at first) and `geometric` rise all the time. `steps` removes
            at most a third of the remaining cost at once, and then trains until the next step; all steps take equally
            long.
        progress: The fraction of the pruning phase that is over, from 0 to 1.
        start: The sparsity before the pruning phase.
        target: The sparsity after it.

    Returns:
        A sparsity from `start` to `target`.

    Raises:
        ValueError: No schedule has that name.

    Examples:
        >>> [sparsity_at("cubic", t, start=0.0, target=0.8) for t in (0.0, 0.5, 1.0)]
        [0.0, 0.7, 0.8]
        >>> [round(sparsity_at("steps", t, start=0.0, target=0.75), 2) for t in (0.0, 0.2, 0.3, 0.6, 1.0)]
        [0.29, 0.29, 0.5, 0.65, 0.75]
    """
    if schedule not in GRADUAL_SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}. While training: {', '.join(GRADUAL_SCHEDULES)}.")
    if progress >= 1:
        return target
    if schedule == "steps":
        # a geometric schedule that is looked at only at the end of each of its rounds
        rounds = _rounds(_share_left(start, target), TRAINED_ROUND_KEEPS)
        rounds_begun = math.floor(progress * rounds + _TOLERANCE) + 1
        progress = rounds_begun / rounds
        schedule = "geometric"
    sparsity = _on_the_way(schedule, progress, start=start, target=target)
    return round(min(sparsity, target), _DIGITS)


def _on_the_way(schedule: str, done: float, *, start: float, target: float) -> float:
    """The sparsity when a fraction of the way is done, by a schedule other than `steps`."""
    if schedule == "geometric":
        share: float = _share_left(start, target) ** done
        return 1 - (1 - start) * share
    return start + (target - start) * _PROGRESS[schedule](done)


def _share_left(start: float, target: float) -> float:
    """The share of the cost at `start` that is left at `target`."""
    return max(1 - target, _NOTHING_LEFT) / (1 - start)


def _rounds(left: float, keeps: float) -> int:
    """The number of rounds until a share `left` remains, if each keeps at least the share `keeps`."""
    rounds = math.log(left) / math.log(keeps)
    return max(1, math.ceil(rounds - _TOLERANCE))
