"""What may stay of each block: its units in order of score, in steps that are kept or removed together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import pairwise

import torch
from torch import Tensor

from hfprune.planning.costs import get_budget
from hfprune.structure.blocks import Block


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One block as an allocator sees it: its units in order of score, in steps that are kept or removed together.

    Attributes:
        block: The block.
        order: Unit indices from the most to the least worth keeping; ties by lower index. Where units stand in groups
            that keep equally many, the best of every group come first, then the second best of every one, and so on.
        unit_cost: Cost of one unit.
        levels: Every number of units that may stay, increasing. One entry: it is fixed.
        values: `(units,)` float64 scores in that order.
    """

    block: Block
    order: tuple[int, ...]
    unit_cost: int
    levels: tuple[int, ...]
    values: Tensor

    def keep(self, count: int) -> tuple[int, ...]:
        """The best `count` units, in increasing order."""
        return tuple(sorted(self.order[:count]))

    @property
    def totals(self) -> Tensor:
        """Score of the best 0, 1, ... units together, `(units + 1,)` float64."""
        return torch.cat([torch.zeros(1, dtype=torch.float64), self.values.cumsum(0)])

    def steps(self) -> list[tuple[int, float]]:
        """`(cost, score)` of going up each level, from the lowest."""
        totals = self.totals
        steps = []
        for low, high in pairwise(self.levels):
            cost = (high - low) * self.unit_cost
            steps.append((cost, float(totals[high] - totals[low])))
        return steps

    @property
    def full_cost(self) -> int:
        """Cost of all units of the block."""
        return self.block.units * self.unit_cost


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
) -> list[Candidate]:
    """Order the units of every block and list how many may stay.

    Args:
        blocks: The blocks; those that have no units left are passed over.
        scores: By block name, `(units,)`: higher is more worth keeping.
        budget: Name of a registered budget: what is counted. Units that cost nothing of it all stay (or `at_most`).
        sequence_length: Tokens in a sequence, for `macs`.
        min_units: The fewest units that may stay, if the block can run with so few; where units stand in groups, the
            next multiple of their number.
        round_to: Neurons are kept in multiples of this; heads are not rounded.
        exclude: Shell-style patterns of names of blocks that keep all their units.
        at_most: By block name, the most units that may stay, if not all; `min_units` comes first.

    Returns:
        The blocks as allocators see them.

    Raises:
        ValueError: A pattern that matches no block, or scores that are not of these blocks.
    """
    check_patterns(exclude, [block.name for block in blocks])
    unit_cost = get_budget(budget).unit_cost(sequence_length)
    candidates = []
    for block in blocks:
        values = _scores_of(block, scores)
        if not block.units:
            continue
        most = (at_most or {}).get(block.name, block.units)
        levels = [block.units]
        if not is_excluded(block.name, exclude):
            levels = _levels(block, min_units=min_units, round_to=round_to, most=most)
        cost = unit_cost(block)
        # to remove what costs nothing would gain nothing
        if not cost:
            levels = levels[-1:]
        ordered, order = _ranked(block, values)
        candidates.append(Candidate(block=block, order=order, unit_cost=cost, levels=tuple(levels), values=ordered))
    return candidates


def _scores_of(block: Block, scores: Mapping[str, Tensor]) -> Tensor:
    """The scores of a block, refused if they are of other units."""
    values = scores.get(block.name)
    if values is None or values.shape != (block.units,):
        raise ValueError(
            f"scores of block {block.name!r} should be ({block.units},), found "
            f"{'none' if values is None else tuple(values.shape)}. Score the model that the plan is for, with "
            "the same attention_unit."
        )
    return values


def _ranked(block: Block, values: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """Scores from the best to the worst, `(units,)` float64, and the units that they are of.

    Where units stand in groups, the first of every group come before the second of every group, and so on.
    """
    by_group = values.double().reshape(block.groups, -1)
    ordered, places = torch.sort(by_group, descending=True, stable=True)
    first_of_group = torch.arange(block.groups)[:, None] * by_group.shape[1]
    order = (places + first_of_group).T.flatten()
    return ordered.T.flatten(), tuple(order.tolist())


def _levels(block: Block, *, min_units: int, round_to: int, most: int) -> list[int]:
    """Every number of units that may stay in a block, increasing."""
    # heads are not rounded, but of several groups equally many stay
    step = round_to if block.unit == "neuron" else block.groups
    lowest = min(max(min_units, block.least), block.units)
    lowest = -(-lowest // step) * step
    levels = [*range(lowest, block.units, step), block.units]
    return [level for level in levels if level <= most] or levels[:1]


def is_excluded(name: str, patterns: Sequence[str]) -> bool:
    """Whether a block name matches one of the shell-style patterns, such as `encoder.layer.0.*` or `*.attention`."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(patterns: Iterable[str], names: Sequence[str]) -> None:
    """Refuse patterns that match no block.

    Args:
        patterns: Shell-style patterns of block names.
        names: The blocks' names.

    Raises:
        ValueError: One matches none.
    """
    for pattern in patterns:
        if not any(is_excluded(name, [pattern]) for name in names):
            raise ValueError(
                f"pattern {pattern!r} matches no block. Names look like {names[0]!r}; patterns are shell-style, such "
                "as '*.0.attention'."
            )


def units_by_pattern(sparsity: Mapping[str, float], units: Mapping[str, int]) -> dict[str, int]:
    """How many units stay where sparsity is given block by block.

    Args:
        sparsity: By shell-style pattern of block names, the fraction of units to remove, in [0, 1]. The first pattern
            that matches a block counts; blocks that none matches stay whole.
        units: By block name, how many units the dense model has.

    Returns:
        By block name, the most units that may stay.

    Raises:
        ValueError: A pattern matches no block, or a sparsity is not in [0, 1].

    >>> units_by_pattern({"*.0.*": 0.0, "*.ffn": 0.25}, {"l.0.ffn": 8, "l.1.ffn": 8, "l.1.attention": 4})
    {'l.0.ffn': 8, 'l.1.ffn': 6, 'l.1.attention': 4}
    """
    check_patterns(sparsity, list(units))
    for pattern, value in sparsity.items():
        if not 0 <= value <= 1:
            raise ValueError(f"sparsity of {pattern!r} must be in [0, 1], got {value:g}. It is a fraction.")
    stay = {}
    for name, count in units.items():
        matching = [value for pattern, value in sparsity.items() if is_excluded(name, [pattern])]
        removed = matching[0] if matching else 0.0
        # a little more, as 1 − 0.9 is a little less than 0.1 in binary
        stay[name] = int((1 - removed) * count + 1e-9)
    return stay
