"""Allocators: from candidates and a cost limit to how many units each block keeps.

Every allocator is a registered function `(candidates, limit) -> counts`. The units that stay in a block are the best
of it, so a count says it all.
"""

import bisect
import heapq
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from hfprune.config import Budget
from hfprune.errors import BudgetError
from hfprune.planning.costs import Candidate, candidates_of
from hfprune.planning.plan import PruningPlan
from hfprune.scoring.scores import Scores
from hfprune.structure.blocks import Block

Allocator = Callable[[Sequence[Candidate], int], list[int]]
_ALLOCATORS: dict[str, Allocator] = {}


def register_allocator(name: str) -> Callable[[Allocator], Allocator]:
    """Add an allocator: decorate a function `(candidates, limit) -> counts`.

    Args:
        name: What users write.

    Returns:
        The decorator.

    Raises:
        ValueError: The name is taken.
    """
    if name in _ALLOCATORS:
        raise ValueError(f"an allocator named {name!r} is registered already.")

    def add(function: Allocator) -> Allocator:
        _ALLOCATORS[name] = function
        return function

    return add


def known_allocators() -> Mapping[str, Allocator]:
    """The allocators known now, by name."""
    return dict(_ALLOCATORS)


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
    return sum(c.unit_cost * count for c, count in zip(candidates, counts, strict=True))


@register_allocator("uniform")
def uniform(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """The same fraction of every block stays: the largest fraction within the limit."""

    def counts(fraction: float) -> list[int]:
        # the highest level that does not exceed the fraction, or the lowest level there is
        return [
            c.levels[max(bisect.bisect_right(c.levels, fraction * c.block.units + 1e-9) - 1, 0)] for c in candidates
        ]

    fractions = sorted({level / c.block.units for c in candidates for level in c.levels})
    # counts and so the cost only grow with the fraction, so the first that is too dear can be found by bisection
    first_over = bisect.bisect_right(fractions, limit, key=lambda f: cost_of(candidates, counts(f)))
    return counts(fractions[max(first_over - 1, 0)])


@register_allocator("layerwise")
def layerwise(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """As `uniform`; `prune` then cuts one block after the other, from the deepest up, and scores anew after each."""
    return uniform(candidates, limit)


@register_allocator("global")
def global_(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """The set of units with the largest total score within the limit, heads and neurons chosen together.

    For every number h of head steps kept, best first over all blocks, the neurons take what is left of the limit; the
    h with the largest total score wins (Kwon et al. 2022, Algorithm 1). Exact where each of the two kinds has one cost.
    """
    heads, neurons = _Ranked(candidates, "attention"), _Ranked(candidates, "ffn")
    base = [c.levels[0] for c in candidates]
    room = limit - cost_of(candidates, base)
    best: tuple[float, int, int] | None = None
    for h in range(len(heads.costs)):
        left = room - heads.costs[h]
        if left < 0:
            break
        n = bisect.bisect_right(neurons.costs, left) - 1
        total = heads.values[h] + neurons.values[n]
        if best is None or total > best[0]:
            best = (total, h, n)
    if best is None:
        return base
    ups = Counter(heads.owners[: best[1]] + neurons.owners[: best[2]])
    return filled(candidates, [c.levels[ups[i]] for i, c in enumerate(candidates)], limit)


@register_allocator("random")
def random(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """Units of both kinds in random order, as long as they fit; `allocate` has put seeded numbers for the scores."""
    base = [c.levels[0] for c in candidates]
    room = limit - cost_of(candidates, base)
    steps = [
        (-value * c.unit_cost / cost, owner, index, cost)
        for owner, c in enumerate(candidates)
        for index, (cost, value) in enumerate(c.steps())
    ]
    ups: Counter[int] = Counter()
    for _, owner, index, cost in sorted(steps):
        if cost <= room and ups[owner] == index:  # a step needs those below it
            ups[owner] += 1
            room -= cost
    return [c.levels[ups[i]] for i, c in enumerate(candidates)]


@register_allocator("threshold")
def threshold(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """All units that score at least one threshold over all blocks, whatever they cost: the lowest within the limit."""
    counts = [c.levels[0] for c in candidates]
    room = limit - cost_of(candidates, counts)
    steps = []
    for owner, c in enumerate(candidates):
        lowest = float("inf")
        for index, (cost, value) in enumerate(c.steps()):
            lowest = min(
                lowest, value * c.unit_cost / cost
            )  # a unit's score, a step's mean; never rising but by rounding
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
    heap: list[tuple[float, int, int]] = []
    at = [bisect.bisect_left(c.levels, count) for c, count in zip(candidates, counts, strict=True)]

    def offer(i: int) -> None:
        """Put the next step of a block on the heap."""
        if at[i] + 1 < len(candidates[i].levels):
            low, high = candidates[i].levels[at[i] : at[i] + 2]
            cost = (high - low) * candidates[i].unit_cost
            heapq.heappush(heap, (-float(candidates[i].values[low:high].sum()) / cost, i, cost))

    for i in range(len(candidates)):
        offer(i)
    while heap:
        _, i, cost = heapq.heappop(heap)
        if cost <= room:  # else this block is done: a step needs those below it
            room, at[i] = room - cost, at[i] + 1
            offer(i)
    return [c.levels[index] for c, index in zip(candidates, at, strict=True)]


class _Ranked:
    """Steps of all blocks of one kind, the most valuable for its cost first."""

    def __init__(self, candidates: Sequence[Candidate], kind: str) -> None:
        steps = []
        for owner, c in enumerate(candidates):
            density = float("inf")
            for index, (cost, value) in enumerate(c.steps() if c.block.kind == kind else []):
                density = min(density, value / cost)  # non-increasing but for rounding errors: a step needs those below
                steps.append((-density, owner, index, cost, value))
        steps.sort()
        self.costs = [0, *accumulate(step[3] for step in steps)]
        self.values = [0.0, *accumulate(step[4] for step in steps)]
        self.owners = [step[1] for step in steps]


def portable(candidates: Sequence[Candidate], limit: int) -> list[int]:
    """The same width in all blocks of a kind, as the stock config can say it; the pair of widths with the best score.

    Args:
        candidates: The blocks.
        limit: The cost that may stay.

    Returns:
        Counts: equal within each kind.

    Raises:
        BudgetError: No pair of widths that the stock config accepts is within the limit.
    """
    options: list[list[tuple[int, int, float]]] = []  # for each kind: (cost, count, score), all blocks of it together
    for kind in ("attention", "ffn"):
        members = [c for c in candidates if c.block.kind == kind]
        if not members:
            options.append([(0, 0, 0.0)])
            continue
        allowed = set.intersection(*(set(c.levels) & set(c.block.portable_units) for c in members))
        totals = [c.values.cumsum(0) for c in members]
        options.append(
            [(sum(c.unit_cost for c in members) * n, n, sum(float(t[n - 1]) for t in totals)) for n in sorted(allowed)]
        )
    fitting = [(a, [f for f in options[1] if a[0] + f[0] <= limit]) for a in options[0]]
    # of two kinds the widest that fit: only these pairs cannot grow, whatever the signs of scores
    pairs = [(a, f) for f, a in {widths[-1]: a for a, widths in fitting if widths}.items()]
    if not pairs:
        cheapest = min(a[0] + f[0] for a in options[0] for f in options[1]) if all(options) else None
        raise BudgetError(
            "no uniform widths that the stock config can say are within the budget"
            + (
                f": the smallest keeps {cheapest / _full_cost(candidates):.1%} of the prunable cost. "
                if cheapest
                else ". "
            )
            + "Lower the sparsity, or drop portable=True: hfprune checkpoints with a width of its own for every layer "
            "load with plain from_pretrained too."
        )
    attention, ffn = max(pairs, key=lambda pair: (pair[0][2] + pair[1][2], pair[0][1], pair[1][1]))
    return [attention[1] if c.block.kind == "attention" else ffn[1] for c in candidates]


def _full_cost(candidates: Sequence[Candidate]) -> int:
    return cost_of(candidates, [c.block.units for c in candidates])


def allocate(
    blocks: Sequence[Block],
    scores: Scores,
    *,
    limit: int,
    budget: Budget,
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
        budget: What is counted: `params`, `macs` or `kv_cache`.
        sequence_length: Tokens in a sequence, for `macs`.
        model_type: The dense model's type, for the plan.
        allocation: Name of a registered allocator, or `random`, which ignores the scores.
        min_units: The fewest units that a block keeps.
        round_to: Neurons are kept in multiples of this.
        exclude: Shell-style patterns of names of blocks that keep all their units.
        stock_widths: Keep to the same widths in every layer, as the stock config can say them.
        at_most: By block name, the most units that may stay.
        seed: For `random`.

    Returns:
        The plan, in the model's present numbering.

    Raises:
        BudgetError: The limit cannot be met under these constraints.
        ValueError: Unknown allocation, a pattern that matches no block, or scores that are not of these blocks.
    """
    choose = get_allocator(allocation)
    values: Mapping[str, Tensor] = scores
    if allocation == "random":
        generator = torch.Generator().manual_seed(seed)
        values = {block.name: torch.rand(block.units, generator=generator) for block in blocks}
    candidates = candidates_of(
        blocks,
        values,
        budget=budget,
        sequence_length=sequence_length,
        min_units=min_units,
        round_to=round_to,
        exclude=exclude,
        at_most=at_most,
    )
    floor, full = cost_of(candidates, [c.levels[0] for c in candidates]), _full_cost(candidates)
    if floor > limit:
        raise BudgetError(
            f"the budget leaves {limit / full:.1%} of this model's prunable {budget}, but min_units={min_units}, "
            f"round_to={round_to} and {len(exclude)} exclude pattern(s) keep at least {floor / full:.1%}. "
            "Lower the sparsity or relax these."
        )
    if stock_widths:
        choose = portable
    counts = choose(candidates, limit) if candidates else []
    kept = {c.block.name: c.keep(count) for c, count in zip(candidates, counts, strict=True)}
    return PruningPlan.keep(blocks, kept, model_type=model_type, sequence_length=sequence_length)
