"""Candidates: each block with its units in order of score, and the numbers of units that it may keep."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from hfprune.measuring.latency_table import LatencyTable
from hfprune.planning.costs import LATENCY, Cost, block_cost
from hfprune.structure.arguments import TEXT, finite
from hfprune.structure.blocks import Block


class Step(NamedTuple):
    """The units between two levels of a block, which are kept or removed together.

    Attributes:
        cost: What they cost.
        value: Their total score.
        level: How many units the block keeps with them.
        units: How many units they are.
    """

    cost: int
    value: float
    level: int
    units: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One block as an allocator sees it.

    A block keeps the units of the highest scores, so an allocator only chooses how many: one of the levels. The units
    between two levels are kept or removed together.

    Attributes:
        block: The block.
        order: Unit indices from the highest score to the lowest; of equal scores the lower index comes first. If units
            stand in groups that must keep equally many, the best unit of every group comes first, then the second best
            of every group, and so on.
        cost: From a number of units to their cost, as the budget counts it.
        is_linear: Whether that is proportional to their number.
        levels: Every number of units that the block may keep, increasing, as their costs are. With a single entry there
            is no choice.
        values: The scores in the order of `order`, `(units,)` float64.
    """

    block: Block
    order: tuple[int, ...]
    cost: Cost
    is_linear: bool = True
    levels: tuple[int, ...]
    values: Tensor

    def keep(self, count: int) -> tuple[int, ...]:
        """The indices of the best `count` units, in increasing order."""
        return tuple(sorted(self.order[:count]))

    @property
    def totals(self) -> Tensor:
        """The total score of the best 0, 1, ... units, `(units + 1,)` float64."""
        return torch.cat([torch.zeros(1, dtype=torch.float64, device="cpu"), self.values.cumsum(0)])

    def steps(self) -> list[Step]:
        """The units between each two neighbouring levels, from the lowest level up."""
        totals = self.totals
        steps = []
        for low, high in pairwise(self.levels):
            cost = self.cost(high) - self.cost(low)
            steps.append(Step(cost=cost, value=float(totals[high] - totals[low]), level=high, units=high - low))
        return steps

    def ranked_steps(self) -> list[Step]:
        """The steps in an order of falling score for their cost, as an allocator that takes the best step next needs.

        Where the cost of a block is proportional to its units, they are the steps between neighbouring levels. Where it
        is not, a step that is worth more for its cost than the one below it is joined with that one: the fixed cost of
        a sublayer is due with its first unit, so that unit alone is a bad bargain, and the sublayer as a whole may be a
        good one. What is left are the corners of the upper convex hull of score over cost.
        """
        steps = self.steps()
        if self.is_linear:
            return steps
        joined: list[Step] = []
        for step in steps:
            joined.append(step)
            while len(joined) > 1 and _is_better_bargain(joined[-1], than=joined[-2]):
                upper = joined.pop()
                lower = joined.pop()
                whole = Step(
                    cost=lower.cost + upper.cost,
                    value=lower.value + upper.value,
                    level=upper.level,
                    units=lower.units + upper.units,
                )
                joined.append(whole)
        return joined

    @property
    def unit_cost(self) -> int:
        """The cost of one unit, where the cost of a block is proportional to its units."""
        if self.is_linear:
            return self.cost(1)
        raise ValueError(
            f"block {self.block.name!r} has no cost of one unit: in a budget of milliseconds a sublayer has a fixed "
            "cost beside that of its units. Ask cost(units)."
        )

    @property
    def cost_divisor(self) -> int:
        """The greatest common divisor of the costs of the block; 0 if it costs nothing."""
        if self.is_linear:
            return self.unit_cost
        return math.gcd(*(self.cost(level) for level in self.levels))

    @property
    def full_cost(self) -> int:
        """The cost of all units of the block."""
        return self.cost(self.block.units)


def _is_better_bargain(step: Step, *, than: Step) -> bool:
    """Whether a step has a higher score for its cost than another one; without division, as costs are whole numbers."""
    return step.value * than.cost > than.value * step.cost


def cost_of(candidates: Sequence[Candidate], counts: Sequence[int]) -> int:
    """The cost of keeping some number of units of each block."""
    return sum(candidate.cost(count) for candidate, count in zip(candidates, counts, strict=True))


def lowest_levels(candidates: Sequence[Candidate]) -> list[int]:
    """The fewest units that each block may keep."""
    return [candidate.levels[0] for candidate in candidates]


def full_cost_of(candidates: Sequence[Candidate]) -> int:
    """The cost of all units of the model."""
    return sum(candidate.full_cost for candidate in candidates)


def candidates_of(
    blocks: Sequence[Block],
    scores: Mapping[str, Tensor],
    *,
    budget: str,
    sequence_length: int,
    min_units: int = 1,
    round_to: int = 1,
    exclude: Sequence[str] = (),
    at_most: Mapping[str, int] | None = None,
    latency_table: LatencyTable | None = None,
) -> list[Candidate]:
    """Order the units of every block by score, and list how many of them the block may keep.

    Args:
        blocks: The blocks. A block without units is left out.
        scores: By block name, `(units,)`. A higher score means that a unit is more worth keeping.
        budget: The name of a registered budget. Units that cost nothing in it all stay, up to `at_most`.
        sequence_length: Tokens in a sequence, for `macs`.
        min_units: The fewest units that a block keeps, if it can run with so few. If units stand in groups, it is
            rounded up to a multiple of the number of groups.
        round_to: Neurons are kept in multiples of this number; heads are not rounded.
        exclude: Shell-style patterns of block names: blocks that keep all their units.
        at_most: By block name, the most units that a block keeps. `min_units` takes precedence.
        latency_table: What the budget `latency` goes by.

    Returns:
        The blocks as allocators see them.

    Raises:
        ValueError: A pattern matches no block, or the scores are not scores of these blocks.
    """
    check_patterns(exclude, [block.name for block in blocks])
    cost_in_budget = block_cost(budget, sequence_length=sequence_length, latency_table=latency_table)
    most_units = at_most or {}
    candidates = []
    for block in blocks:
        scores_of_block = _scores_of(block, scores)
        if not block.units:
            continue
        levels = [block.units]
        if not is_excluded(block.name, exclude):
            most = most_units.get(block.name, block.units)
            levels = _levels(block, min_units=min_units, round_to=round_to, most=most)
        cost = cost_in_budget(block)
        values, order = _ranked(block, scores_of_block)
        candidate = Candidate(
            block=block,
            order=order,
            cost=cost,
            is_linear=budget != LATENCY,
            levels=_worth_having(levels, cost),
            values=values,
        )
        candidates.append(candidate)
    return candidates


def _worth_having(levels: Sequence[int], cost: Cost) -> tuple[int, ...]:
    """The levels without those that save nothing over a higher one: removing such units would lose score for nothing.

    What stays costs more from level to level. Where units cost nothing, only the highest level stays; where kernels
    take multiples of eight in steps, the multiples do.

    >>> _worth_having([0, 1, 2, 3, 4], lambda units: [0, 5, 4, 9, 9][units])
    (0, 2, 4)
    """
    found: list[int] = []
    for level in reversed(levels):
        if not found or cost(level) < cost(found[-1]):
            found.append(level)
    return tuple(reversed(found))


def _scores_of(block: Block, scores: Mapping[str, Tensor]) -> Tensor:
    """The scores of a block; scores of another number of units are refused."""
    values = scores.get(block.name)
    if values is None or values.shape != (block.units,):
        shape = "none" if values is None else tuple(values.shape)
        raise ValueError(
            f"scores of block {block.name!r} should be ({block.units},), found {shape}. Score the model that the plan "
            "is for, with the same attention_unit."
        )
    return values


def _ranked(block: Block, values: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Scores from the highest to the lowest, `(units,)` float64, and the indices of their units: see `Candidate`."""
    by_group = values.double().reshape(block.groups, -1)
    # stable: of equal scores the lower index comes first
    sorted_by_group, places_in_group = torch.sort(by_group, descending=True, stable=True)
    first_of_group = torch.arange(block.groups, dtype=torch.long, device="cpu")[:, None] * by_group.shape[1]
    order = (places_in_group + first_of_group).T.flatten()
    return sorted_by_group.T.flatten(), tuple(order.tolist())


def _levels(block: Block, *, min_units: int, round_to: int, most: int) -> list[int]:
    """Every number of units that a block may keep, increasing."""
    # heads are not rounded, but all groups must keep equally many
    step = round_to if block.unit == "neuron" else block.groups
    lowest = min(max(min_units, block.least), block.units)
    # rounded up to a multiple of the step
    lowest = -(-lowest // step) * step
    levels = [*range(lowest, block.units, step), block.units]
    allowed = [level for level in levels if level <= most]
    return allowed or levels[:1]


def is_excluded(name: str, patterns: Sequence[str]) -> bool:
    """Whether a block name matches one of some shell-style patterns.

    >>> is_excluded("encoder.layer.0.ffn", ["*.attention", "encoder.layer.0.*"])
    True
    """
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(patterns: Iterable[str], names: Sequence[str]) -> None:
    """Refuse patterns that match no block.

    Args:
        patterns: Shell-style patterns of block names.
        names: The names of the blocks.

    Raises:
        ValueError: A pattern matches no block.
    """
    for pattern in patterns:
        if not any(is_excluded(name, [pattern]) for name in names):
            raise ValueError(
                f"pattern {pattern!r} matches no block. Names look like {names[0]!r}; patterns are shell-style, such "
                "as '*.0.attention'."
            )


def units_by_pattern(sparsity: Mapping[str, float], units: Mapping[str, int]) -> dict[str, int]:
    """How many units every block keeps, if sparsity is given by patterns of block names.

    Args:
        sparsity: By shell-style pattern of block names, the fraction of units to remove, in [0, 1]. For each block the
            first pattern that matches it counts; a block that no pattern matches keeps all its units.
        units: By block name, the number of units of the dense model.

    Returns:
        By block name, the most units that the block may keep.

    Raises:
        ValueError: A pattern is no text or matches no block, or a sparsity is no number in [0, 1].

    Examples:
        >>> units_by_pattern({"*.0.*": 0.0, "*.ffn": 0.25}, {"l.0.ffn": 8, "l.1.ffn": 8, "l.1.attention": 4})
        {'l.0.ffn': 8, 'l.1.ffn': 6, 'l.1.attention': 4}
    """
    for pattern, value in sparsity.items():
        TEXT.check("a pattern of block names in sparsity", pattern)
        finite().check(f"sparsity of {pattern!r}", value)
    check_patterns(sparsity, list(units))
    for pattern, value in sparsity.items():
        if not 0 <= value <= 1:
            raise ValueError(f"sparsity of {pattern!r} must be in [0, 1], got {value:g}. It is a fraction.")
    most_units = {}
    for name, units_before in units.items():
        share_removed = _first_match(name, sparsity)
        # in binary 1 − 0.9 is a little less than 0.1, which must not remove a unit more
        most_units[name] = int((1 - share_removed) * units_before + 1e-9)
    return most_units


def _first_match(name: str, sparsity: Mapping[str, float]) -> float:
    """The sparsity of the first pattern that matches a block name; 0 if none does."""
    for pattern, value in sparsity.items():
        if is_excluded(name, [pattern]):
            return value
    return 0.0
