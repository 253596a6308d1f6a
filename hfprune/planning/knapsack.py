"""The allocator `knapsack`: dynamic programming over a discretised budget, which gives the whole trade-off curve."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hfprune.planning.allocation import filled, register_allocator
from hfprune.planning.candidates import Candidate

#: The finest division of the budget.
BINS = 65536


class Table(NamedTuple):
    """What dynamic programming finds.

    Attributes:
        best: The largest score that any levels within so many bins have, `(bins + 1,)` float64; -inf where none are.
        choices: For every block, the index of its level there, `(bins + 1,)` each.
        size: Cost of a bin.
    """

    best: Tensor
    choices: list[Tensor]
    size: int


def tabulate(candidates: Sequence[Candidate], limit: int) -> Table:
    """The best levels for every budget up to a limit.

    Exact where the limit is at most `BINS` times the greatest common divisor of the costs of units; beyond that every
    block's cost is rounded up to a bin, which may leave one bin a block unused.

    Args:
        candidates: The blocks.
        limit: The largest cost that may stay.

    Returns:
        The table.
    """
    size = math.gcd(*(c.unit_cost for c in candidates)) or 1  # 0: nothing costs anything
    size *= max(1, math.ceil(limit / size / BINS))
    bins = limit // size
    best = torch.zeros(bins + 1, dtype=torch.float64)
    choices = []
    for c in candidates:
        totals = c.totals
        found = torch.full_like(best, -torch.inf)
        choice = torch.zeros(bins + 1, dtype=torch.long)
        for index, level in enumerate(c.levels):
            cost = -(-level * c.unit_cost // size)
            if cost > bins:
                break
            value = best[: bins + 1 - cost] + totals[level]
            better = value > found[cost:]
            found[cost:][better] = value[better]
            choice[cost:][better] = index
        best = found
        choices.append(choice)
    return Table(best, choices, size)


class TradeOff(NamedTuple):
    """One point of a trade-off curve.

    Attributes:
        sparsity: The fraction of the dense model's prunable cost that is removed.
        lost: The least total score that must go for it.
    """

    sparsity: float
    lost: float


def trade_off_curve(candidates: Sequence[Candidate], dense_cost: int) -> list[TradeOff]:
    """What the best choice of levels loses at every cost, from one table.

    Args:
        candidates: The blocks.
        dense_cost: What sparsity counts from.

    Returns:
        The points where the best choice changes, from the lowest sparsity to the highest; none if there are no blocks.
    """
    if not candidates:
        return []
    full = sum(c.unit_cost * c.levels[-1] for c in candidates)
    total = sum(float(c.totals[-1]) for c in candidates)
    best, _, size = tabulate(candidates, full)
    points: list[TradeOff] = []
    top = -math.inf
    for used, value in enumerate(best.tolist()):
        if value > top:
            top = value
            points.append(TradeOff(sparsity=1 - used * size / dense_cost, lost=total - value))
    whole = TradeOff(sparsity=1 - full / dense_cost, lost=0.0)
    if not points or (points[-1].sparsity > whole.sparsity and points[-1].lost > 0):
        points.append(whole)  # which rounding up to bins left out
    return points[::-1]


@register_allocator("knapsack")
def knapsack(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """The levels with the largest total score within the limit; for units of any costs (see `tabulate`)."""
    best, choices, size = tabulate(candidates, limit)
    left = limit // size
    if best[left] == -torch.inf:  # rounding up leaves no room for more than the lowest levels
        return filled(candidates, [c.levels[0] for c in candidates], limit)
    counts = []
    for c, choice in zip(reversed(candidates), reversed(choices), strict=True):
        level = c.levels[int(choice[left])]
        left -= -(-level * c.unit_cost // size)
        counts.append(level)
    return filled(candidates, counts[::-1], limit)
