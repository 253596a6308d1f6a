"""Sparsity after each round: one-shot, linear, cubic or geometric."""

from collections.abc import Callable, Mapping

#: How far along the way to the target a schedule is when a fraction of its rounds is done.
_PROGRESS: Mapping[str, Callable[[float], float]] = {
    "one_shot": lambda _: 1.0,
    "linear": lambda t: t,
    "cubic": lambda t: 1 - (1 - t) ** 3,
}
SCHEDULES = (*_PROGRESS, "geometric")


def sparsities(schedule: str, *, start: float, target: float, rounds: int) -> list[float]:
    """Sparsity after each round, from just above `start` to `target`.

    Args:
        schedule: `one_shot` (all in the first round), `linear`, or `cubic`: s = s_f + (s_i − s_f)(1 − r/n)³
            (Zhu & Gupta 2017, "To prune, or not to prune"); `geometric` keeps the same share in every round.
        start: Sparsity before the first round.
        target: Sparsity after the last.
        rounds: How many rounds; `one_shot` has one.

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
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}. Known: {', '.join(SCHEDULES)}.")
    if schedule == "one_shot":
        return [target]
    if schedule == "geometric":
        ratio = (1 - target) / (1 - start)
        return [*(round(1 - (1 - start) * ratio ** (r / rounds), 12) for r in range(1, rounds)), target]
    progress = _PROGRESS[schedule]
    steps = [start + (target - start) * progress(r / rounds) for r in range(1, rounds)]
    return [*(round(s, 12) for s in steps), target]
