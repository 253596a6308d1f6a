"""Budgets: what a sparsity can count, and what a block costs in each of them by how many units it keeps."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hfprune.measuring.latency_table import LatencyTable
from hfprune.structure.arguments import TEXT, checked, choice
from hfprune.structure.blocks import Block
from hfprune.structure.registration import check_same

#: From a block and the tokens of a sequence to the cost of one unit.
CostFunction = Callable[[Block, int], int]
#: From how many units of a block are kept to their cost. It need not be proportional to their number.
Cost = Callable[[int], int]
#: From a block to its costs.
BlockCost = Callable[[Block], Cost]
#: The budget of measured time, whose costs a latency table says.
LATENCY = "latency"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A registered budget.

    Attributes:
        name: The name in `PruningConfig(budget=...)`.
        function: From a block and the tokens of a sequence to the cost of one unit, a whole number.
        recorded_as: The field of `BlockPlan` that holds this cost, so that a plan can tell its sparsity without the
            model. Empty if no field does.
    """

    name: str
    function: CostFunction
    recorded_as: str = ""

    def unit_cost(self, sequence_length: int) -> Callable[[Block], int]:
        """The cost of one unit, as a function of its block alone.

        Args:
            sequence_length: Tokens in a sequence.

        Returns:
            A function from a block to a cost.
        """
        return lambda block: self.function(block, sequence_length)


_BUDGETS: dict[str, Budget] = {}
#: The names of all budgets, a live view: command lines offer those that were registered later, too.
BUDGET_NAMES = _BUDGETS.keys()


@checked(name=TEXT, recorded_as=choice(["", "unit_params", "unit_macs", "unit_cache_bytes"]))
def register_budget(name: str, *, recorded_as: str = "") -> Callable[[CostFunction], CostFunction]:
    """Add a budget: decorate a function from a block and the tokens of a sequence to the cost of one unit.

    Args:
        name: The name in `PruningConfig(budget=...)`.
        recorded_as: The field of `BlockPlan` that holds this cost, if there is one.

    Returns:
        The decorator.

    Raises:
        ValueError: Another function has that name. A function of the same module and name is replaced, so that a
            cell of a notebook can be run again.

    Examples:
        >>> from hfprune.planning import known_budgets, register_budget
        >>> from hfprune.structure import find_blocks
        >>> @register_budget("weight_bytes")
        ... def weight_bytes(block, sequence_length):
        ...     return 2 * block.unit_params
        >>> unit_cost = known_budgets()["weight_bytes"].unit_cost(sequence_length=8)
        >>> for block in find_blocks(dense)[:2]:
        ...     print(block.name, unit_cost(block))
        encoder.layer.0.attention 536
        encoder.layer.0.ffn 66
    """

    def add(function: CostFunction) -> CostFunction:
        if name in _BUDGETS:
            check_same("a budget", name, function, _BUDGETS[name].function)
        _BUDGETS[name] = Budget(name=name, function=function, recorded_as=recorded_as)
        return function

    return add


def known_budgets() -> Mapping[str, Budget]:
    """All budgets that are registered now, by name.

    Returns:
        A copy, with a `Budget` for each name; changing it registers nothing.

    Examples:
        >>> from hfprune.planning import known_budgets
        >>> list(known_budgets())[:3]
        ['macs', 'params', 'kv_cache']
    """
    return dict(_BUDGETS)


def get_budget(name: str) -> Budget:
    """Look up a budget.

    Args:
        name: Its name.

    Returns:
        The budget.

    Raises:
        ValueError: No budget has that name; the message lists the known ones.
    """
    # a list, as what comes from a file need not be hashable
    if name not in list(_BUDGETS):
        raise ValueError(f"budget must be one of {', '.join(_BUDGETS)}, got {name!r}.")
    return _BUDGETS[name]


@register_budget("macs", recorded_as="unit_macs")
def macs(block: Block, sequence_length: int) -> int:
    """Multiply-adds of one unit for one sequence."""
    return block.unit_macs(sequence_length)


@register_budget("params", recorded_as="unit_params")
def params(block: Block, sequence_length: int) -> int:  # noqa: ARG001 (the same for all lengths)
    """Parameters of one unit."""
    return block.unit_params


@register_budget("kv_cache", recorded_as="unit_cache_bytes")
def kv_cache(block: Block, sequence_length: int) -> int:  # noqa: ARG001 (the same for all lengths)
    """Bytes of one unit in the key/value cache, for one token."""
    return block.unit_cache_bytes


@register_budget(LATENCY)
def latency(block: Block, sequence_length: int) -> int:  # noqa: ARG001 (there is no such cost)
    """Nanoseconds by a latency table (see `block_cost`). A sublayer has a fixed cost, so one unit has no cost."""
    raise ValueError(
        "the budget 'latency' has no cost of one unit: what a block takes depends on how many units it keeps. Ask the "
        "table: LatencyTable.milliseconds(plan.units_after)."
    )


def block_cost(budget: str, *, sequence_length: int, latency_table: LatencyTable | None = None) -> BlockCost:
    """What a block costs in a budget, by how many units it keeps.

    Args:
        budget: The name of a registered budget.
        sequence_length: Tokens in a sequence, for `macs`.
        latency_table: What the budget `latency` goes by.

    Returns:
        A function from a block to a function from a number of its units to their cost.

    Raises:
        ValueError: No budget has that name, or it is `latency` and there is no table.
    """
    if budget == LATENCY:
        if latency_table is None:
            raise ValueError(
                "the budget 'latency' needs latency_table: the file that `hfprune latency-table MODEL --output FILE` "
                "writes, or what measure_latency_table returns."
            )
        return latency_table.costs
    unit_cost = get_budget(budget).unit_cost(sequence_length)

    def costs(block: Block) -> Cost:
        of_one = unit_cost(block)
        return lambda units: units * of_one

    return costs
