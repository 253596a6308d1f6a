"""The plan of one block: which of its units stay, and what a unit costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hfprune.planning.costs import get_budget
from hfprune.structure.blocks import QUERIES
from hfprune.structure.specs import KIND_OF_NEURONS, Kind, Unit

#: The fields of a block in JSON, in this order. Earlier versions of hfprune refuse any other.
_IN_JSON = ("kind", "units", "kept", "unit_params", "unit_macs", "unit_cache_bytes")


@dataclass(frozen=True, kw_only=True)
class BlockPlan:
    """Which units of one block stay, and what a unit costs.

    Attributes:
        kind: `attention` or `ffn`.
        units: The number of units before pruning.
        kept: The indices of the units that stay, increasing.
        unit_params: Parameters of one unit.
        unit_macs: Multiply-adds of one unit for one sequence of the plan's `sequence_length`.
        unit_cache_bytes: Bytes of one unit in the key/value cache, for one token; 0 without a cache.
        unit: What one unit is: `group`, `query` or `neuron`. If it is not given, a `PruningPlan` tells it by the
            block's kind and name, as in JSON, which has no field for it.
        heads: Query heads in one unit. None for neurons, for attention without a cache in which every head is a unit,
            and in plans of earlier versions of hfprune, which do not say it.
    """

    kind: Kind
    units: int
    kept: tuple[int, ...]
    unit_params: int
    unit_macs: int
    unit_cache_bytes: int = 0
    unit: Unit | None = None
    heads: int | None = None

    @property
    def unit_name(self) -> str:
        """What one unit is, in words.

        Examples:
            >>> from hfprune.planning import BlockPlan
            >>> sizes = {"units": 3, "kept": (0,), "unit_params": 9, "unit_macs": 64}
            >>> BlockPlan(kind="attention", unit="group", heads=3, **sizes).unit_name
            'key/value group'
            >>> BlockPlan(kind="attention", unit="group", heads=1, **sizes).unit_name
            'head'
        """
        if self.kind == KIND_OF_NEURONS:
            return "neuron"
        if self.unit == "query":
            return "query head"
        # a plan that does not say how many heads share a key: only models with a cache let them share
        shares_keys = bool(self.unit_cache_bytes) if self.heads is None else self.heads > 1
        return "key/value group" if shares_keys else "head"

    def unit_cost(self, budget: str) -> int:
        """The cost of one unit in a budget.

        Args:
            budget: The name of a registered budget.

        Returns:
            The cost, such as a number of parameters, of multiply-adds for a sequence, or of cache bytes for a token.

        Raises:
            ValueError: No budget has that name, or a plan has no field for the cost.
        """
        field = get_budget(budget).recorded_as
        if not field:
            raise ValueError(
                f"a plan does not record what a unit costs in the budget {budget!r}: register the budget with "
                "recorded_as=..., or take Anatomy.cost, which asks the model's blocks."
            )
        cost: int = getattr(self, field)
        return cost

    @classmethod
    def from_fields(cls, name: str, fields: Mapping[str, Any], *, heads: int | None = None) -> "BlockPlan":
        """Make the plan of a block from its fields in JSON.

        Args:
            name: The block's name.
            fields: The fields.
            heads: Query heads in one unit, if the file says it.

        Returns:
            The plan of the block.

        Raises:
            TypeError: A field is missing or unknown.
        """
        kept = tuple(fields["kept"])
        unit = unit_in_json(name, fields["kind"])
        return cls(**{"heads": heads, **fields, "kept": kept}, unit=unit)

    def to_fields(self) -> dict[str, Any]:
        """The fields of a block in JSON."""
        return {name: getattr(self, name) for name in _IN_JSON}


def unit_in_json(name: str, kind: Kind) -> Unit:
    """What one unit is, from the fields of the file format: the block's name tells query heads from groups."""
    if kind == KIND_OF_NEURONS:
        return "neuron"
    return "query" if name.endswith(f".{QUERIES}") else "group"
