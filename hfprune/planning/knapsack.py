"""The allocator `knapsack`: dynamic programming over a discretised budget, which also gives the trade-off curve."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hfprune.planning.allocation import filled, register_allocator
from hfprune.planning.candidates import Candidate, lowest_levels
from hfprune.structure.arguments import checked, whole

#: The largest number of bins that the budget is divided into.
BINS = 65536


class Table(NamedTuple):
    """The result of dynamic programming: the best levels for every budget.

    Attributes:
        best: For 0, 1, ... bins, the largest total score of levels that cost no more: `(bins + 1,)` float64. −inf where
            no levels are that cheap.
        choices: For every block, the index of its level in that solution, `(bins + 1,)` each.
        bin_cost: The cost of one bin.
    """

    best: Tensor
    choices: list[Tensor]
    bin_cost: int

    def bins_of(self, cost: int) -> int:
        """How many bins a cost takes, rounded up."""
        return -(-cost // self.bin_cost)


def tabulate(candidates: Sequence[Candidate], limit: int) -> Table:
    """Find the best levels for every budget up to a limit.

    The result is exact if the limit is at most `BINS` times the greatest common divisor of the costs. Otherwise
    the cost of every block is rounded up to whole bins, so up to one bin for each block may stay unused.

    Args:
        candidates: The blocks.
        limit: The largest cost that may stay.

    Returns:
        The table.
    """
    # 0 if no unit costs anything
    common_divisor = math.gcd(*(candidate.cost_divisor for candidate in candidates)) or 1
    bin_cost = common_divisor * max(1, math.ceil(limit / common_divisor / BINS))
    bins = limit // bin_cost
    table = Table(best=torch.zeros(bins + 1, dtype=torch.float64, device="cpu"), choices=[], bin_cost=bin_cost)
    for candidate in candidates:
        table = _with_block(table, candidate)
    return table


def _with_block(table: Table, candidate: Candidate) -> Table:
    """A table for one block more: for every budget, the best level of the block beside the best of the others."""
    last_bin = len(table.best) - 1
    totals = candidate.totals
    best = torch.full_like(table.best, -torch.inf)
    choice = torch.zeros(last_bin + 1, dtype=torch.long, device="cpu")
    for index, level in enumerate(candidate.levels):
        bins = table.bins_of(candidate.cost(level))
        # levels increase, and so do their costs
        if bins > last_bin:
            break
        score = table.best[: last_bin + 1 - bins] + totals[level]
        # of equal scores the lowest level counts
        is_better = score > best[bins:]
        best[bins:][is_better] = score[is_better]
        choice[bins:][is_better] = index
    return Table(best=best, choices=[*table.choices, choice], bin_cost=table.bin_cost)


class TradeOff(NamedTuple):
    """One point of a trade-off curve.

    Attributes:
        sparsity: The fraction of the dense model's prunable cost that is removed.
        lost: The smallest total score of units that can be removed for it.
    """

    sparsity: float
    lost: float


@checked(dense_cost=whole(least=1))
def trade_off_curve(candidates: Sequence[Candidate], dense_cost: int) -> list[TradeOff]:
    """The smallest loss of score at every cost, from one run of dynamic programming (`tabulate`).

    Args:
        candidates: The blocks.
        dense_cost: The prunable cost of the dense model, which sparsities count from.

    Returns:
        The points where the best choice changes, from the lowest sparsity to the highest; none if there are no blocks.

    Examples:
        >>> import hfprune
        >>> from hfprune.planning import trade_off_curve
        >>> from hfprune.planning.candidates import candidates_of
        >>> from hfprune.structure import find_blocks
        >>> blocks = find_blocks(dense)
        >>> scores = hfprune.score(dense, batches, scorer="fisher")
        >>> candidates = candidates_of(blocks, scores, budget="params", sequence_length=8)
        >>> curve = trade_off_curve(candidates, dense_cost=sum(block.units * block.unit_params for block in blocks))
        >>> f"from {curve[0].sparsity:.2f} to {curve[-1].sparsity:.2f}"
        'from 0.00 to 0.86'
        >>> all(before.lost <= after.lost for before, after in zip(curve, curve[1:]))
        True
    """
    if not candidates:
        return []
    full_cost = sum(candidate.cost(candidate.levels[-1]) for candidate in candidates)
    full_score = sum(float(candidate.totals[-1]) for candidate in candidates)
    table = tabulate(candidates, full_cost)
    points: list[TradeOff] = []
    best_so_far = -math.inf
    for bins, score in enumerate(table.best.tolist()):
        if score > best_so_far:
            best_so_far = score
            points.append(TradeOff(sparsity=1 - bins * table.bin_cost / dense_cost, lost=full_score - score))
    # costs that are rounded up to bins may leave no room for the whole model
    whole = TradeOff(sparsity=1 - full_cost / dense_cost, lost=0.0)
    if not points or (points[-1].sparsity > whole.sparsity and points[-1].lost > 0):
        points.append(whole)
    return points[::-1]


@register_allocator("knapsack")
def knapsack(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """The levels with the largest total score within the limit, whatever the units cost (see `tabulate`)."""
    table = tabulate(candidates, limit)
    bins_left = limit // table.bin_cost
    # rounded up to bins, even the lowest levels may exceed the limit
    if table.best[bins_left] == -torch.inf:
        return filled(candidates, lowest_levels(candidates), limit)
    counts = []
    # a choice depends on the bins that the blocks before it leave, so the solution is read from the last block
    for candidate, choice in zip(reversed(candidates), reversed(table.choices), strict=True):
        level = candidate.levels[int(choice[bins_left])]
        bins_left -= table.bins_of(candidate.cost(level))
        counts.append(level)
    return filled(candidates, counts[::-1], limit)
