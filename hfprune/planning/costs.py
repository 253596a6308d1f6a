"""What units cost: the budgets that a sparsity can count, and what each of them counts of a block."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hfprune.structure.blocks import Block

#: From a block and the tokens of a sequence to the cost of one unit.
CostFunction = Callable[[Block, int], int]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """A registered budget.

    Attributes:
        name: What users write.
        function: From a block and the tokens of a sequence to the cost of one unit, a whole number.
        recorded_as: The field of `BlockPlan` that holds this cost, so that a plan alone can say its sparsity; empty
            where it takes the model's blocks.
    """

    name: str
    function: CostFunction
    recorded_as: str = ""

    def unit_cost(self, sequence_length: int) -> Callable[[Block], int]:
        """The cost of one unit, as a function of its block.

        Args:
            sequence_length: Tokens in a sequence.

        Returns:
            The function.
        """
        return lambda block: self.function(block, sequence_length)


_BUDGETS: dict[str, Budget] = {}
#: The names of the budgets known whenever it is looked at: the choices of a command line.
BUDGET_NAMES = _BUDGETS.keys()


def register_budget(name: str, *, recorded_as: str = "") -> Callable[[CostFunction], CostFunction]:
    """Add a budget: decorate a function from a block and the tokens of a sequence to the cost of one unit.

    Args:
        name: What users write.
        recorded_as: As for `Budget`.

    Returns:
        The decorator.

    Raises:
        ValueError: The name is taken.
    """
    if name in _BUDGETS:
        raise ValueError(f"a budget named {name!r} is registered already.")

    def add(function: CostFunction) -> CostFunction:
        _BUDGETS[name] = Budget(name=name, function=function, recorded_as=recorded_as)
        return function

    return add


def known_budgets() -> Mapping[str, Budget]:
    """The budgets known now, by name.

    >>> list(known_budgets())[:3]
    ['macs', 'params', 'kv_cache']
    """
    return dict(_BUDGETS)


def get_budget(name: str) -> Budget:
    """A budget by name.

    Args:
        name: Its name.

    Returns:
        The budget.

    Raises:
        ValueError: There is none of that name; the message lists those there are.
    """
    if name not in _BUDGETS:
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
