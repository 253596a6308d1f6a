"""Planning: which units stay, from scores and costs alone. Budgets, allocators, plans and schedules."""

from hfprune.planning.allocation import allocate, known_allocators, register_allocator
from hfprune.planning.block_plan import BlockPlan
from hfprune.planning.compare import Comparison
from hfprune.planning.costs import Budget, known_budgets, register_budget
from hfprune.planning.knapsack import TradeOff, trade_off_curve
from hfprune.planning.plan import PruningPlan
from hfprune.planning.schedule import SCHEDULES, sparsities

__all__ = [
    "SCHEDULES",
    "BlockPlan",
    "Budget",
    "Comparison",
    "PruningPlan",
    "TradeOff",
    "allocate",
    "known_allocators",
    "known_budgets",
    "register_allocator",
    "register_budget",
    "sparsities",
    "trade_off_curve",
]
