"""Allocators: from candidates and a cost limit to how many units each block keeps.

Every allocator is a registered function `(candidates, limit) -> counts`. The units that stay in a block are the best
of it, so a count says it all.
"""

import bisect
import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from hfprune.errors import BudgetError
from hfprune.planning.candidates import Candidate, candidates_of
from hfprune.planning.plan import PruningPlan
from hfprune.scoring.scores import Scores
from hfprune.structure.blocks import Block

AllocatorFunction = Callable[[Sequence[Candidate], int], list[int]]


@dataclass(frozen=True, kw_only=True)
class Allocator:
    """A registered allocator.

    Attributes:
        name: What users write.
        function: From candidates and the cost that may stay to how many units each keeps.
        ignores_scores: It gets seeded uniform numbers in the place of scores.
        block_by_block: `prune` cuts one block after the other, from the deepest up, and scores anew after each.
    """

    name: str
    function: AllocatorFunction
    ignores_scores: bool = False
    block_by_block: bool = False


_ALLOCATORS: dict[str, Allocator] = {}


def register_allocator(
    name: str, *, ignores_scores: bool = False, block_by_block: bool = False
) -> Callable[[AllocatorFunction], AllocatorFunction]:
    """Add an allocator: decorate a function `(candidates, limit) -> counts`.

    Args:
        name: What users write.
        ignores_scores: As for `Allocator`.
        block_by_block: As for `Allocator`.

    Returns:
        The decorator.

    Raises:
        ValueError: The name is taken.
    """
    if name in _ALLOCATORS:
        raise ValueError(f"an allocator named {name!r} is registered already.")

    def add(function: AllocatorFunction) -> AllocatorFunction:
        _ALLOCATORS[name] = Allocator(
            name=name, function=function, ignores_scores=ignores_scores, block_by_block=block_by_block
        )
        return function

    return add


def known_allocators() -> Mapping[str, AllocatorFunction]:
    """The functions of the allocators known now, by name."""
    return {name: allocator.function for name, allocator in _ALLOCATORS.items()}


def get_allocator(name: str) -> Allocator:
    """An allocator by name.

    Args:
        name: Its name.

    Returns:
        The allocator.

    Raises:
        ValueError: There is none of that name; the message lists those there are.
    """
    if name not in _ALLOCATORS:
        raise ValueError(f"unknown allocation {name!r}. Known: {', '.join(sorted(_ALLOCATORS))}.")
    return _ALLOCATORS[name]


def cost_of(candidates: Sequence[Candidate], counts: Sequence[int]) -> int:
    """Cost of keeping so many units of each block."""
    return sum(candidate.unit_cost * count for candidate, count in zip(candidates, counts, strict=True))


@register_allocator("uniform")
def uniform(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """The same fraction of every block stays: the largest fraction within the limit."""

    def counts_at(fraction: float) -> list[int]:
        """For every block the highest level that does not exceed the fraction, or the lowest that there is."""
        counts = []
        for candidate in candidates:
            units = fraction * candidate.block.units + 1e-9
            place = bisect.bisect_right(candidate.levels, units) - 1
            counts.append(candidate.levels[max(place, 0)])
        return counts

    fractions: set[float] = set()
    for candidate in candidates:
        fractions.update(level / candidate.block.units for level in candidate.levels)
    ordered = sorted(fractions)
    # counts and so the cost only grow with the fraction, so the first that is too dear can be found by bisection
    first_over = bisect.bisect_right(ordered, limit, key=lambda fraction: cost_of(candidates, counts_at(fraction)))
    return counts_at(ordered[max(first_over - 1, 0)])


@register_allocator("layerwise", block_by_block=True)
def layerwise(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """As `uniform`; `prune` then cuts one block after the other, from the deepest up, and scores anew after each."""
    return uniform(candidates, limit)


@register_allocator("global")
def global_(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """The set of units with the largest total score within the limit, heads and neurons chosen together.

    For every number h of head steps kept, best first over all blocks, the neurons take what is left of the limit; the
    h with the largest total score wins (Kwon et al. 2022, Algorithm 1). Exact where each of the two kinds has one cost.
    """
    heads = _ranked(candidates, neurons=False)
    neurons = _ranked(candidates, neurons=True)
    lowest = [candidate.levels[0] for candidate in candidates]
    room = limit - cost_of(candidates, lowest)
    best_total: float | None = None
    best_heads = 0
    best_neurons = 0
    for head_steps, head_cost in enumerate(heads.costs):
        left = room - head_cost
        if left < 0:
            break
        neuron_steps = bisect.bisect_right(neurons.costs, left) - 1
        total = heads.values[head_steps] + neurons.values[neuron_steps]
        if best_total is None or total > best_total:
            best_total = total
            best_heads = head_steps
            best_neurons = neuron_steps
    if best_total is None:
        return lowest
    ups = Counter(heads.owners[:best_heads] + neurons.owners[:best_neurons])
    counts = [candidate.levels[ups[place]] for place, candidate in enumerate(candidates)]
    return filled(candidates, counts, limit)


class _Ranked(NamedTuple):
    """Steps of several blocks, the most valuable for its cost first.

    Attributes:
        costs: Cost of the first 0, 1, ... steps together.
        values: Score of the first 0, 1, ... steps together.
        owners: The place of each step's block among the candidates.
    """

    costs: list[int]
    values: list[float]
    owners: list[int]


def _ranked(candidates: Sequence[Candidate], *, neurons: bool) -> _Ranked:
    """The steps of all blocks whose units are neurons, or of all others."""
    steps = []
    for owner, candidate in enumerate(candidates):
        if (candidate.block.unit == "neuron") is not neurons:
            continue
        density = float("inf")
        for index, (cost, value) in enumerate(candidate.steps()):
            # it never rises but for rounding errors, and a step needs those below it
            density = min(density, value / cost)
            steps.append((-density, owner, index, cost, value))
    steps.sort()
    return _Ranked(
        costs=list(accumulate((step[3] for step in steps), initial=0)),
        values=list(accumulate((step[4] for step in steps), initial=0.0)),
        owners=[step[1] for step in steps],
    )


@register_allocator("random", ignores_scores=True)
def random(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """Units of both kinds in random order, as long as they fit."""
    lowest = [candidate.levels[0] for candidate in candidates]
    room = limit - cost_of(candidates, lowest)
    steps = []
    for owner, candidate in enumerate(candidates):
        for index, (cost, value) in enumerate(candidate.steps()):
            # the mean random number of the units in a step
            steps.append((-value * candidate.unit_cost / cost, owner, index, cost))
    ups: Counter[int] = Counter()
    for _, owner, index, cost in sorted(steps):
        # a step needs those below it
        if cost <= room and ups[owner] == index:
            ups[owner] += 1
            room -= cost
    return [candidate.levels[ups[place]] for place, candidate in enumerate(candidates)]


@register_allocator("threshold")
def threshold(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """All units that score at least one threshold over all blocks, whatever they cost: the lowest within the limit."""
    counts = [candidate.levels[0] for candidate in candidates]
    room = limit - cost_of(candidates, counts)
    steps = []
    for owner, candidate in enumerate(candidates):
        lowest = float("inf")
        for index, (cost, value) in enumerate(candidate.steps()):
            # a unit's score, or the mean of a step's units; it never rises but for rounding errors
            lowest = min(lowest, value * candidate.unit_cost / cost)
            steps.append((-lowest, owner, index, cost))
    for _, owner, index, cost in sorted(steps):
        if cost > room:
            break
        counts[owner] = candidates[owner].levels[index + 1]
        room -= cost
    return counts


def filled(candidates: Sequence[Candidate], counts: Sequence[int], limit: int) -> list[int]:
    """Counts raised by the best steps for their cost that still fit, so that no unit goes for a score of 0 or below.

    Args:
        candidates: The blocks.
        counts: Levels of theirs.
        limit: The cost that may stay.

    Returns:
        Counts within the limit, none of which can be raised.
    """
    room = limit - cost_of(candidates, counts)
    places = []
    for candidate, count in zip(candidates, counts, strict=True):
        places.append(bisect.bisect_left(candidate.levels, count))
    heap: list[tuple[float, int, int]] = []

    def offer(owner: int) -> None:
        """Put the next step of a block on the heap."""
        candidate = candidates[owner]
        place = places[owner]
        if place + 1 == len(candidate.levels):
            return
        low = candidate.levels[place]
        high = candidate.levels[place + 1]
        cost = (high - low) * candidate.unit_cost
        density = float(candidate.values[low:high].sum()) / cost
        heapq.heappush(heap, (-density, owner, cost))

    for owner in range(len(candidates)):
        offer(owner)
    while heap:
        _, owner, cost = heapq.heappop(heap)
        # what does not fit ends its block: a step needs those below it
        if cost <= room:
            room -= cost
            places[owner] += 1
            offer(owner)
    return [candidate.levels[place] for candidate, place in zip(candidates, places, strict=True)]


class _Width(NamedTuple):
    """A number of units that all blocks of one sort keep alike.

    Attributes:
        cost: What all of these blocks cost with it.
        count: Units of each block.
        score: Total score of what stays.
    """

    cost: int
    count: int
    score: float


def portable(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """The same width in all blocks of a kind, as the stock config can say it; the pair of widths with the best score.

    Args:
        candidates: The blocks.
        limit: The cost that may stay.

    Returns:
        Counts: equal in all blocks of neurons, and in all others.

    Raises:
        BudgetError: No pair of widths that the stock config accepts is within the limit.
    """
    is_neurons = [candidate.block.unit == "neuron" for candidate in candidates]
    head_widths = _widths([c for c, neurons in zip(candidates, is_neurons, strict=True) if not neurons])
    neuron_widths = _widths([c for c, neurons in zip(candidates, is_neurons, strict=True) if neurons])
    # Of every width of the one only the widest of the other that fits beside it counts, and the other way round: only
    # these pairs cannot grow, whatever the signs of scores.
    widest: dict[_Width, _Width] = {}
    for heads in head_widths:
        fitting = [neurons for neurons in neuron_widths if heads.cost + neurons.cost <= limit]
        if fitting:
            widest[fitting[-1]] = heads
    if not widest:
        raise _no_width_fits(candidates, head_widths, neuron_widths)
    pairs = [(heads, neurons) for neurons, heads in widest.items()]

    def worth(pair: tuple[_Width, _Width]) -> tuple[float, int, int]:
        heads, neurons = pair
        return heads.score + neurons.score, heads.count, neurons.count

    best_heads, best_neurons = max(pairs, key=worth)
    return [best_neurons.count if neurons else best_heads.count for neurons in is_neurons]


def _widths(candidates: Sequence[Candidate]) -> list[_Width]:
    """The widths that the stock config can say of these blocks, from the narrowest; one that is nothing for none."""
    if not candidates:
        return [_Width(cost=0, count=0, score=0.0)]
    allowed = set(candidates[0].levels)
    for candidate in candidates:
        allowed &= set(candidate.levels) & set(candidate.block.portable_units)
    unit_cost = sum(candidate.unit_cost for candidate in candidates)
    scores = [candidate.values.cumsum(0) for candidate in candidates]
    widths = []
    for count in sorted(allowed):
        score = sum(float(best[count - 1]) for best in scores)
        widths.append(_Width(cost=unit_cost * count, count=count, score=score))
    return widths


def _no_width_fits(
    candidates: Sequence[Candidate], head_widths: Sequence[_Width], neuron_widths: Sequence[_Width]
) -> BudgetError:
    smallest = ". "
    if head_widths and neuron_widths:
        cheapest = min(heads.cost for heads in head_widths) + min(neurons.cost for neurons in neuron_widths)
        if cheapest:
            smallest = f": the smallest keeps {cheapest / _full_cost(candidates):.1%} of the prunable cost. "
    return BudgetError(
        f"no uniform widths that the stock config can say are within the budget{smallest}"
        "Lower the sparsity, or drop portable=True: hfprune checkpoints with a width of its own for every layer "
        "load with plain from_pretrained too."
    )


def _full_cost(candidates: Sequence[Candidate]) -> int:
    return cost_of(candidates, [candidate.block.units for candidate in candidates])


def allocate(
    blocks: Sequence[Block],
    scores: Scores,
    *,
    limit: int,
    budget: str,
    sequence_length: int,
    model_type: str,
    allocation: str = "global",
    min_units: int = 1,
    round_to: int = 1,
    exclude: Sequence[str] = (),
    stock_widths: bool = False,
    at_most: Mapping[str, int] | None = None,
    seed: int = 0,
) -> PruningPlan:
    """Choose the units that stay.

    Args:
        blocks: The model's blocks.
        scores: Their scores.
        limit: The prunable cost that may stay, in the budget's unit.
        budget: Name of a registered budget: what is counted.
        sequence_length: Tokens in a sequence, for `macs`.
        model_type: The dense model's type, for the plan.
        allocation: Name of a registered allocator, or `random`, which ignores the scores.
        min_units: The fewest units that a block keeps.
        round_to: Neurons are kept in multiples of this.
        exclude: Shell-style patterns of names of blocks that keep all their units.
        stock_widths: Keep to the same widths in every layer, as the stock config can say them.
        at_most: By block name, the most units that may stay.
        seed: For allocators that ignore the scores.

    Returns:
        The plan, in the model's present numbering.

    Raises:
        BudgetError: The limit cannot be met under these constraints.
        ValueError: Unknown allocation, a pattern that matches no block, or scores that are not of these blocks.
    """
    allocator = get_allocator(allocation)
    candidates = candidates_of(
        blocks,
        _random_scores(blocks, seed) if allocator.ignores_scores else scores,
        budget=budget,
        sequence_length=sequence_length,
        min_units=min_units,
        round_to=round_to,
        exclude=exclude,
        at_most=at_most,
    )
    floor = cost_of(candidates, [candidate.levels[0] for candidate in candidates])
    if floor > limit:
        full = _full_cost(candidates)
        raise BudgetError(
            f"the budget leaves {limit / full:.1%} of this model's prunable {budget}, but min_units={min_units}, "
            f"round_to={round_to} and {len(exclude)} exclude pattern(s) keep at least {floor / full:.1%}. "
            "Lower the sparsity or relax these."
        )
    choose = portable if stock_widths else allocator.function
    counts = choose(candidates, limit) if candidates else []
    kept = {candidate.block.name: candidate.keep(count) for candidate, count in zip(candidates, counts, strict=True)}
    return PruningPlan.keep(blocks, kept, model_type=model_type, sequence_length=sequence_length)


def _random_scores(blocks: Sequence[Block], seed: int) -> dict[str, Tensor]:
    """Seeded uniform numbers, `(units,)` by block name."""
    generator = torch.Generator().manual_seed(seed)
    return {block.name: torch.rand(block.units, generator=generator) for block in blocks}
