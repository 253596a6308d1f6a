"""Allocators: how many units each block keeps, within a cost limit.

Every allocator is a registered function `(candidates, limit) -> counts`. A block keeps its units of the highest scores,
so the number of units says which.
"""

import bisect
import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from hfprune.errors import BudgetError
from hfprune.measuring.latency_table import LatencyTable
from hfprune.planning.candidates import Candidate, Step, candidates_of, cost_of, full_cost_of, lowest_levels
from hfprune.planning.plan import PruningPlan
from hfprune.planning.stock_widths import portable
from hfprune.scoring.scores import Scores
from hfprune.structure.arguments import FLAG, SEED, TEXT, TEXTS, checked, optional, whole
from hfprune.structure.blocks import Block
from hfprune.structure.registration import check_same

#: From candidates and the cost that may stay to the number of units that each of them keeps.
AllocatorFunction = Callable[[Sequence[Candidate], int], list[int]]


@dataclass(frozen=True, kw_only=True)
class Allocator:
    """A registered allocator.

    Attributes:
        name: The name in `PruningConfig(allocation=...)`.
        function: From candidates and the cost that may stay to the number of units that each of them keeps.
        ignores_scores: Whether it gets seeded uniform random numbers in the place of scores.
        block_by_block: Whether `prune` prunes one block after the other, from the last to the first, and scores the
            model again after each.
    """

    name: str
    function: AllocatorFunction
    ignores_scores: bool = False
    block_by_block: bool = False

    def __call__(self, candidates: Sequence[Candidate], limit: int) -> list[int]:
        """How many units each block keeps, as the function says."""
        return self.function(candidates, limit)


_ALLOCATORS: dict[str, Allocator] = {}


@checked(name=TEXT, ignores_scores=FLAG, block_by_block=FLAG)
def register_allocator(
    name: str, *, ignores_scores: bool = False, block_by_block: bool = False
) -> Callable[[AllocatorFunction], AllocatorFunction]:
    """Add an allocator: decorate a function `(candidates, limit) -> counts`.

    Args:
        name: The name in `PruningConfig(allocation=...)`.
        ignores_scores: As for `Allocator`.
        block_by_block: As for `Allocator`.

    Returns:
        The decorator.

    Raises:
        ValueError: Another function has that name. A function of the same module and name is replaced, so that a
            cell of a notebook can be run again.

    Examples:
        >>> import hfprune
        >>> from hfprune.planning import register_allocator
        >>> @register_allocator("least")
        ... def least(candidates, limit):
        ...     return [candidate.levels[0] for candidate in candidates]
        >>> scores = hfprune.score(dense, batches, scorer="l2")
        >>> plan = hfprune.plan(dense, scores, hfprune.PruningConfig(allocation="least", min_units=2))
        >>> [kept for kept, _ in plan.counts.values()]
        [2, 2, 2, 2]
    """

    def add(function: AllocatorFunction) -> AllocatorFunction:
        if name in _ALLOCATORS:
            check_same("an allocator", name, function, _ALLOCATORS[name].function)
        _ALLOCATORS[name] = Allocator(
            name=name, function=function, ignores_scores=ignores_scores, block_by_block=block_by_block
        )
        return function

    return add


def known_allocators() -> Mapping[str, AllocatorFunction]:
    """The functions of all allocators that are registered now, by name.

    Returns:
        A copy, with the function for each name; changing it registers nothing.

    Examples:
        >>> from hfprune.planning import known_allocators
        >>> list(known_allocators())[:3]
        ['uniform', 'layerwise', 'global']
    """
    return {name: allocator.function for name, allocator in _ALLOCATORS.items()}


def get_allocator(name: str) -> Allocator:
    """Look up an allocator.

    Args:
        name: Its name.

    Returns:
        The allocator.

    Raises:
        ValueError: No allocator has that name; the message lists the known ones.
    """
    if name not in _ALLOCATORS:
        raise ValueError(f"unknown allocation {name!r}. Known: {', '.join(sorted(_ALLOCATORS))}.")
    return _ALLOCATORS[name]


def _levels_after(candidates: Sequence[Candidate], steps_up: Mapping[int, int]) -> list[int]:
    """The level of each block, a number of steps above its lowest.

    Args:
        candidates: The blocks.
        steps_up: By the place of a block among the candidates, the number of steps; 0 for places that are missing.

    Returns:
        For each block, how many units it keeps.
    """
    counts = []
    for place, candidate in enumerate(candidates):
        counts.append(candidate.levels[steps_up.get(place, 0)])
    return counts


@register_allocator("uniform")
def uniform(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """Every block keeps the same fraction of its units: the largest fraction within the limit."""

    def counts_at(fraction: float) -> list[int]:
        """For every block the highest level that does not exceed the fraction, or else its lowest level."""
        counts = []
        for candidate in candidates:
            # a fraction times its denominator may be a little less than a whole number
            units = fraction * candidate.block.units + 1e-9
            place = bisect.bisect_right(candidate.levels, units) - 1
            counts.append(candidate.levels[max(place, 0)])
        return counts

    fractions: set[float] = set()
    for candidate in candidates:
        fractions.update(level / candidate.block.units for level in candidate.levels)
    ordered = sorted(fractions)
    # the cost never falls as the fraction grows, so the first fraction beyond the limit can be found by bisection
    first_over = bisect.bisect_right(ordered, limit, key=lambda fraction: cost_of(candidates, counts_at(fraction)))
    return counts_at(ordered[max(first_over - 1, 0)])


@register_allocator("layerwise", block_by_block=True)
def layerwise(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """The same counts as `uniform`, but `prune` prunes one block after the other and scores anew after each."""
    return uniform(candidates, limit)


@register_allocator("global")
def global_(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """The set of units with the largest total score within the limit, heads and neurons chosen together.

    Steps of heads and steps of neurons are each sorted by score for their cost, over all blocks. For every number h of
    the best head steps, the neurons get the cost that the limit still allows; the h with the largest total score wins
    (Kwon et al. 2022, Algorithm 1). The result is exact if all heads have one cost and all neurons have one cost.

    In a budget of milliseconds, where a sublayer has a fixed cost, units of one block that are worth more together than
    the first of them alone are one step (`Candidate.ranked_steps`): so a whole block goes at once where that loses less
    score for the time that it saves than single units elsewhere.
    """
    heads = _ranked(candidates, neurons=False)
    neurons = _ranked(candidates, neurons=True)
    lowest = lowest_levels(candidates)
    room = limit - cost_of(candidates, lowest)
    best_total: float | None = None
    best_heads = 0
    best_neurons = 0
    for head_steps, head_cost in enumerate(heads.costs):
        room_for_neurons = room - head_cost
        if room_for_neurons < 0:
            break
        neuron_steps = bisect.bisect_right(neurons.costs, room_for_neurons) - 1
        total = heads.values[head_steps] + neurons.values[neuron_steps]
        if best_total is None or total > best_total:
            best_total = total
            best_heads = head_steps
            best_neurons = neuron_steps
    # not even the lowest levels fit
    if best_total is None:
        return lowest
    counts = lowest
    for ranked, steps in ((heads, best_heads), (neurons, best_neurons)):
        # of the steps of one block the highest comes last
        for owner, level in zip(ranked.owners[:steps], ranked.levels[:steps], strict=True):
            counts[owner] = level
    # rounding of levels may leave room that no pair of numbers uses
    return filled(candidates, counts, limit)


class _Ranked(NamedTuple):
    """The steps of several blocks, from the highest score for its cost to the lowest.

    Attributes:
        costs: The cost of the first 0, 1, ... steps together.
        values: The score of the first 0, 1, ... steps together.
        owners: For each step, the place of its block among the candidates.
        levels: For each step, how many units the block keeps with it.
    """

    costs: list[int]
    values: list[float]
    owners: list[int]
    levels: list[int]


class _Ordered(NamedTuple):
    """A step of a block in a common order: by rank, and then in the order of the model.

    Attributes:
        rank: What the steps are sorted by; the lowest comes first.
        owner: The place of the block among the candidates.
        number: How many steps of the block are below this one.
        step: The step.
    """

    rank: float
    owner: int
    number: int
    step: Step


def _ranked(candidates: Sequence[Candidate], *, neurons: bool) -> _Ranked:
    """The steps of all blocks whose units are neurons, or of all other blocks."""
    steps = []
    for owner, candidate in enumerate(candidates):
        if (candidate.block.unit == "neuron") is not neurons:
            continue
        density = float("inf")
        for number, step in enumerate(candidate.ranked_steps()):
            # rounding errors may make a step denser than the one below it, which must come first
            density = min(density, step.value / step.cost)
            steps.append(_Ordered(rank=-density, owner=owner, number=number, step=step))
    steps.sort()
    ranked = _Ranked(costs=[0], values=[0.0], owners=[], levels=[])
    for _, owner, _, step in steps:
        ranked.costs.append(ranked.costs[-1] + step.cost)
        ranked.values.append(ranked.values[-1] + step.value)
        ranked.owners.append(owner)
        ranked.levels.append(step.level)
    return ranked


@register_allocator("random", ignores_scores=True)
def random(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """Heads and neurons in random order, as long as they fit."""
    room = limit - cost_of(candidates, lowest_levels(candidates))
    steps = []
    for owner, candidate in enumerate(candidates):
        for number, step in enumerate(candidate.steps()):
            mean_of_units = step.value / step.units
            steps.append(_Ordered(rank=-mean_of_units, owner=owner, number=number, step=step))
    steps_up: Counter[int] = Counter()
    for _, owner, number, step in sorted(steps):
        # a step is possible only after all steps below it
        if step.cost <= room and steps_up[owner] == number:
            steps_up[owner] += 1
            room -= step.cost
    return _levels_after(candidates, steps_up)


@register_allocator("threshold")
def threshold(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """All units whose score is above one threshold for all blocks, whatever they cost: the lowest within the limit."""
    room = limit - cost_of(candidates, lowest_levels(candidates))
    steps = []
    for owner, candidate in enumerate(candidates):
        lowest_mean = float("inf")
        for number, step in enumerate(candidate.steps()):
            # rounding errors may raise a step above the one below it, which must come first
            lowest_mean = min(lowest_mean, step.value / step.units)
            steps.append(_Ordered(rank=-lowest_mean, owner=owner, number=number, step=step))
    steps_up: Counter[int] = Counter()
    for _, owner, _, step in sorted(steps):
        # a threshold admits no cheaper unit of a lower score
        if step.cost > room:
            break
        steps_up[owner] += 1
        room -= step.cost
    return _levels_after(candidates, steps_up)


def filled(candidates: Sequence[Candidate], counts: Sequence[int], limit: int) -> list[int]:
    """Use the cost that the limit still allows: raise counts by the steps with the highest score for their cost.

    Without it, units with a score of 0 or below would be removed although there is room for them.

    Args:
        candidates: The blocks.
        counts: For each block, one of its levels.
        limit: The cost that may stay.

    Returns:
        Counts within the limit, none of which can be raised.
    """
    room = limit - cost_of(candidates, counts)
    steps_up = {}
    for owner, (candidate, count) in enumerate(zip(candidates, counts, strict=True)):
        steps_up[owner] = bisect.bisect_left(candidate.levels, count)
    # the next step of every block, from the highest score for its cost: (−density, owner, cost)
    heap: list[tuple[float, int, int]] = []

    def offer_next(owner: int) -> None:
        """Put the next step of a block on the heap, if it has one."""
        candidate = candidates[owner]
        number = steps_up[owner]
        if number + 1 == len(candidate.levels):
            return
        low = candidate.levels[number]
        high = candidate.levels[number + 1]
        cost = candidate.cost(high) - candidate.cost(low)
        density = float(candidate.values[low:high].sum()) / cost
        heapq.heappush(heap, (-density, owner, cost))

    for owner in range(len(candidates)):
        offer_next(owner)
    while heap:
        _, owner, cost = heapq.heappop(heap)
        # a step that does not fit is the last one of its block, as the steps above it are possible only after it
        if cost <= room:
            room -= cost
            steps_up[owner] += 1
            offer_next(owner)
    return _levels_after(candidates, steps_up)


@checked(
    limit=optional(whole(least=0)),
    sequence_length=whole(least=1),
    model_type=TEXT,
    allocation=TEXT,
    min_units=whole(least=0),
    round_to=whole(least=1),
    exclude=TEXTS,
    stock_widths=FLAG,
    seed=SEED,
)
def allocate(
    blocks: Sequence[Block],
    scores: Scores,
    *,
    limit: int | None,
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
    latency_table: LatencyTable | None = None,
) -> PruningPlan:
    """Choose the units that stay.

    Args:
        blocks: The model's blocks.
        scores: Their scores.
        limit: The prunable cost that may stay, as the budget counts it. None: what the units that `at_most` lets stay
            cost, so that no others are removed.
        budget: The name of a registered budget.
        sequence_length: Tokens in a sequence, for `macs`.
        model_type: The dense model's type, for the plan.
        allocation: The name of a registered allocator.
        min_units: The fewest units that a block keeps.
        round_to: Neurons are kept in multiples of this number.
        exclude: Shell-style patterns of block names: blocks that keep all their units.
        stock_widths: Keep the same widths in every layer, as the stock config can say them, by `portable` instead of
            the allocator.
        at_most: By block name, the most units that a block keeps.
        seed: The seed of the random numbers of allocators that ignore scores.
        latency_table: What the budget `latency` goes by; costs are nanoseconds then. The plan says what the table
            predicts of it.

    Returns:
        The plan. Units are numbered as in this model.

    Raises:
        BudgetError: The limit cannot be met under these constraints.
        ValueError: The allocation is unknown, a pattern matches no block, or the scores are not scores of these blocks.

    Examples:
        >>> import hfprune
        >>> from hfprune.planning import allocate
        >>> from hfprune.structure import find_blocks
        >>> blocks = find_blocks(dense)
        >>> scores = hfprune.score(dense, batches, scorer="l2")
        >>> cost = sum(block.units * block.unit_params for block in blocks)
        >>> plan = allocate(
        ...     blocks,
        ...     scores,
        ...     limit=cost // 2,
        ...     budget="params",
        ...     sequence_length=8,
        ...     model_type="bert",
        ...     allocation="uniform",
        ... )
        >>> [kept for kept, _ in plan.counts.values()]
        [2, 16, 2, 16]
    """
    allocator = get_allocator(allocation)
    ranking = _random_scores(blocks, seed) if allocator.ignores_scores else scores
    candidates = candidates_of(
        blocks,
        ranking,
        budget=budget,
        sequence_length=sequence_length,
        min_units=min_units,
        round_to=round_to,
        exclude=exclude,
        at_most=at_most,
        latency_table=latency_table,
    )
    if limit is None:
        # a width off the step may take longer than the dense one, so the dense cost would not do
        limit = cost_of(candidates, [candidate.levels[-1] for candidate in candidates])
    least_cost = cost_of(candidates, lowest_levels(candidates))
    if least_cost > limit:
        full = full_cost_of(candidates)
        hint = ""
        if latency_table is not None and min_units:
            hint = " A sublayer with one unit keeps its fixed cost: min_units=0 lets whole sublayers go."
        raise BudgetError(
            f"the budget leaves {limit / full:.1%} of this model's prunable {budget}, but min_units={min_units}, "
            f"round_to={round_to} and {len(exclude)} exclude pattern(s) keep at least {least_cost / full:.1%}. "
            f"Lower the sparsity or relax these.{hint}"
        )
    choose = portable if stock_widths else allocator.function
    # allocators need not care for a model without units
    counts = choose(candidates, limit) if candidates else []
    kept = {}
    for candidate, count in zip(candidates, counts, strict=True):
        kept[candidate.block.name] = candidate.keep(count)
    plan = PruningPlan.keep(blocks, kept, model_type=model_type, sequence_length=sequence_length)
    if latency_table is None:
        return plan
    return replace(plan, predicted=latency_table.predict(plan.units_after))


def _random_scores(blocks: Sequence[Block], seed: int) -> Mapping[str, Tensor]:
    """Seeded uniform random numbers, `(units,)` by block name."""
    generator = torch.Generator().manual_seed(seed)
    return {
        block.name: torch.rand(block.units, dtype=torch.float32, device="cpu", generator=generator) for block in blocks
    }
