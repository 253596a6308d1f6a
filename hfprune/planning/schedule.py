"""Sparsity after each round of pruning, and at each moment of pruning while training."""

import math
from collections.abc import Callable, Mapping

#: How far along the way to the target a schedule is when a fraction of its rounds is done.
_PROGRESS: Mapping[str, Callable[[float], float]] = {
    "one_shot": lambda _: 1.0,
    "linear": lambda t: t,
    "cubic": lambda t: 1 - (1 - t) ** 3,
}
SCHEDULES = (*_PROGRESS, "geometric")
#: What a geometric round keeps at least of the cost that it finds, where the number of rounds is not given.
ROUND_KEEPS = 0.8
#: The same where every round trains: steps of at most 1.5 × in cost.
TRAINED_ROUND_KEEPS = 2 / 3
#: Schedules of pruning while training.
GRADUAL_SCHEDULES = ("cubic", "linear", "geometric", "steps")
#: What counts as left where nothing shall be: a geometric schedule never gets to 0.
_NOTHING_LEFT = 0.01


def sparsities(
    schedule: str, *, start: float, target: float, rounds: int | None = None, keeps: float = ROUND_KEEPS
) -> list[float]:
    """Sparsity after each round, from just above `start` to `target`.

    Args:
        schedule: `one_shot` (all in the first round), `linear`, or `cubic`: s = s_f + (s_i − s_f)(1 − r/n)³
            (Zhu & Gupta 2017, "To prune, or not to prune"); `geometric` keeps the same share in every round.
        start: Sparsity before the first round.
        target: Sparsity after the last.
        rounds: How many rounds; `one_shot` has one. None: as many as a geometric schedule needs for every round to
            keep `keeps` of what it finds.
        keeps: The least share of the cost that a round keeps, where `rounds` is None.

    Returns:
        One sparsity a round; the last is `target` exactly.

    Raises:
        ValueError: No schedule has that name.

    >>> sparsities("linear", start=0.0, target=0.6, rounds=3)
    [0.2, 0.4, 0.6]
    >>> sparsities("cubic", start=0.0, target=0.5, rounds=2)
    [0.4375, 0.5]
    >>> sparsities("geometric", start=0.0, target=0.75, rounds=2)
    [0.5, 0.75]
    >>> sparsities("geometric", start=0.0, target=0.36)
    [0.2, 0.36]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}. Known: {', '.join(SCHEDULES)}.")
    if schedule == "one_shot":
        return [target]
    left = max(1 - target, _NOTHING_LEFT) / (1 - start)
    if rounds is None:
        rounds = _rounds(left, keeps)
    if schedule == "geometric":
        return [*(round(1 - (1 - start) * left ** (r / rounds), 12) for r in range(1, rounds)), target]
    progress = _PROGRESS[schedule]
    steps = [start + (target - start) * progress(r / rounds) for r in range(1, rounds)]
    return [*(round(s, 12) for s in steps), target]


def sparsity_at(schedule: str, progress: float, *, start: float, target: float) -> float:
    """Sparsity at a moment of pruning while training.

    Args:
        schedule: `linear`, `cubic` (Zhu & Gupta 2017: fast at first) or `geometric` go on all the time; `steps` cuts
            at most a third of the cost at once and then trains for as long as before the next cut.
        progress: How far along the pruning phase training is, from 0 to 1.
        start: Sparsity before it.
        target: Sparsity after it.

    Returns:
        A sparsity from `start` to `target`.

    Raises:
        ValueError: No schedule has that name.

    >>> [sparsity_at("cubic", t, start=0.0, target=0.8) for t in (0.0, 0.5, 1.0)]
    [0.0, 0.7, 0.8]
    >>> [round(sparsity_at("steps", t, start=0.0, target=0.75), 2) for t in (0.0, 0.2, 0.3, 0.6, 1.0)]
    [0.29, 0.29, 0.5, 0.65, 0.75]
    """
    if schedule not in GRADUAL_SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}. While training: {', '.join(GRADUAL_SCHEDULES)}.")
    if progress >= 1:
        return target
    left = max(1 - target, _NOTHING_LEFT) / (1 - start)
    if schedule == "steps":
        rounds = _rounds(left, TRAINED_ROUND_KEEPS)
        progress, schedule = (math.floor(progress * rounds + 1e-9) + 1) / rounds, "geometric"
    done = 1 - (1 - start) * left**progress if schedule == "geometric" else None
    sparsity = start + (target - start) * _PROGRESS[schedule](progress) if done is None else done
    return round(min(sparsity, target), 12)


def _rounds(left: float, keeps: float) -> int:
    return max(1, math.ceil(math.log(left) / math.log(keeps) - 1e-9))
