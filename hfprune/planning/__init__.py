"""Which units stay: costs, allocators, plans and schedules. Reads scores and costs, never a model."""

from hfprune.config import Budget
from hfprune.planning.allocation import allocate, known_allocators, register_allocator
from hfprune.planning.knapsack import TradeOff, trade_off_curve
from hfprune.planning.plan import BlockPlan, PruningPlan
from hfprune.planning.schedule import SCHEDULES, sparsities

__all__ = [
    "SCHEDULES",
    "BlockPlan",
    "Budget",
    "PruningPlan",
    "TradeOff",
    "allocate",
    "known_allocators",
    "register_allocator",
    "sparsities",
    "trade_off_curve",
]
