"""Portable plans: the same widths in every layer, so that the stock config can say them."""

from collections.abc import Sequence
from typing import NamedTuple

from hfprune.errors import BudgetError
from hfprune.planning.candidates import Candidate, full_cost_of


class _Width(NamedTuple):
    """A number of units that all blocks of heads keep, or all blocks of neurons.

    Attributes:
        cost: The cost of these blocks together.
        units: The number of units that each block keeps.
        score: The total score of these units.
    """

    cost: int
    units: int
    score: float


def portable(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """One width for all blocks of heads and one for all blocks of neurons, as the stock config can say them.

    Args:
        candidates: The blocks.
        limit: The cost that may stay.

    Returns:
        Counts of the pair of widths with the largest total score.

    Raises:
        BudgetError: No pair of widths that the stock config accepts is within the limit.
    """
    head_blocks: list[Candidate] = []
    neuron_blocks: list[Candidate] = []
    for candidate in candidates:
        if candidate.block.unit == "neuron":
            neuron_blocks.append(candidate)
        else:
            head_blocks.append(candidate)
    head_widths = _widths(head_blocks)
    neuron_widths = _widths(neuron_blocks)
    best = _best_pair(head_widths, neuron_widths, limit)
    if best is None:
        raise _no_width_fits(candidates, head_widths, neuron_widths)
    heads, neurons = best
    counts = []
    for candidate in candidates:
        if candidate.block.unit == "neuron":
            counts.append(neurons.units)
        else:
            counts.append(heads.units)
    return counts


def _best_pair(
    head_widths: Sequence[_Width], neuron_widths: Sequence[_Width], limit: int
) -> tuple[_Width, _Width] | None:
    """The widths of heads and of neurons with the largest total score within the limit; None if no pair fits."""
    # Only pairs of which neither width can grow are compared, also where scores below 0 make a smaller pair look
    # better. Widths come from the narrowest, so the last entry for a width of neurons has the widest heads beside it.
    pairs: dict[_Width, tuple[_Width, _Width]] = {}
    for heads in head_widths:
        fitting = [neurons for neurons in neuron_widths if heads.cost + neurons.cost <= limit]
        if fitting:
            widest_neurons = fitting[-1]
            pairs[widest_neurons] = (heads, widest_neurons)
    if not pairs:
        return None

    def worth(pair: tuple[_Width, _Width]) -> tuple[float, int, int]:
        heads, neurons = pair
        # of equal scores the wider pair counts
        return heads.score + neurons.score, heads.units, neurons.units

    return max(pairs.values(), key=worth)


def _widths(candidates: Sequence[Candidate]) -> list[_Width]:
    """The widths that the stock config can say of these blocks, from the narrowest."""
    # a model without such blocks has one choice for them, which costs nothing
    if not candidates:
        return [_Width(cost=0, units=0, score=0.0)]
    allowed = set(candidates[0].levels)
    # of each block, the total score of its best 1, 2, ... units
    totals = []
    for candidate in candidates:
        allowed &= set(candidate.levels) & set(candidate.block.portable_units)
        totals.append(candidate.values.cumsum(0))
    widths = []
    for units in sorted(allowed):
        score = sum(float(total[units - 1]) for total in totals)
        cost = sum(candidate.cost(units) for candidate in candidates)
        widths.append(_Width(cost=cost, units=units, score=score))
    return widths


def _no_width_fits(
    candidates: Sequence[Candidate], head_widths: Sequence[_Width], neuron_widths: Sequence[_Width]
) -> BudgetError:
    """The error that says how much the smallest widths keep, if there are any."""
    smallest = ". "
    if head_widths and neuron_widths:
        # from the narrowest, and so from the cheapest
        cheapest = head_widths[0].cost + neuron_widths[0].cost
        if cheapest:
            smallest = f": the smallest keeps {cheapest / full_cost_of(candidates):.1%} of the prunable cost. "
    return BudgetError(
        f"no uniform widths that the stock config can say are within the budget{smallest}"
        "Lower the sparsity, or drop portable=True: hfprune checkpoints with a width of its own for every layer "
        "load with plain from_pretrained too."
    )
