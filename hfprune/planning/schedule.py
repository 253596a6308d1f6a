"""Sparsity after each round: one-shot, linear, cubic or geometric."""

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
#: What counts as left where nothing shall be: a geometric schedule never gets to 0.
_NOTHING_LEFT = 0.01


def sparsities(schedule: str, *, start: float, target: float, rounds: int | None = None) -> list[float]:
    """Sparsity after each round, from just above `start` to `target`.

    Args:
        schedule: `one_shot` (all in the first round), `linear`, or `cubic`: s = s_f + (s_i − s_f)(1 − r/n)³
            (Zhu & Gupta 2017, "To prune, or not to prune"); `geometric` keeps the same share in every round.
        start: Sparsity before the first round.
        target: Sparsity after the last.
        rounds: How many rounds; `one_shot` has one. None: as many as a geometric schedule needs for every round to
            keep `ROUND_KEEPS` of what it finds.

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
        rounds = max(1, math.ceil(math.log(left) / math.log(ROUND_KEEPS) - 1e-9))
    if schedule == "geometric":
        return [*(round(1 - (1 - start) * left ** (r / rounds), 12) for r in range(1, rounds)), target]
    progress = _PROGRESS[schedule]
    steps = [start + (target - start) * progress(r / rounds) for r in range(1, rounds)]
    return [*(round(s, 12) for s in steps), target]
