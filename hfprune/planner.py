"""plan(): from scores and a config to the units that stay; apply_plan(): the smaller model."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import overload

import torch
from transformers import PreTrainedModel

from hfprune.config import PruningConfig, check_sparsity
from hfprune.errors import BudgetError, PlanMismatchError
from hfprune.measure import dense_units
from hfprune.planning import PruningPlan, TradeOff, allocate, trade_off_curve
from hfprune.planning.costs import candidates_of, unit_cost, units_by_pattern
from hfprune.planning.plan import check_match
from hfprune.scoring import Scores
from hfprune.structure.architectures import base_model_type
from hfprune.structure.blocks import attention_unit_of
from hfprune.structure.reading import find_blocks
from hfprune.structure.surgery import keep_units


@overload
def plan(
    model: PreTrainedModel,
    scores: Scores,
    config: PruningConfig | None = None,
    *,
    sparsity: float | Mapping[str, float] | None = None,
) -> PruningPlan: ...


@overload
def plan(
    model: PreTrainedModel, scores: Scores, config: PruningConfig | None = None, *, sparsity: Sequence[float]
) -> list[PruningPlan]: ...


def plan(
    model: PreTrainedModel,
    scores: Scores,
    config: PruningConfig | None = None,
    *,
    sparsity: float | Mapping[str, float] | Sequence[float] | None = None,
) -> PruningPlan | list[PruningPlan]:
    """Choose the units that stay, by the config's budget, allocation and constraints.

    Args:
        model: The model that was scored.
        scores: Its scores.
        config: The choices.
        sparsity: Overrides `config.sparsity`; it counts from the dense model, also if this one is pruned. A mapping
            from shell-style patterns of block names gives the fraction of units to remove block by block: the first
            pattern that matches counts, blocks that none matches stay whole, and no budget is shared. A list gives
            a list of plans, each of which keeps a part of what the one before keeps.

    Returns:
        A plan in the numbering of `model`, or a list of them.

    Raises:
        BudgetError: The sparsity cannot be reached under the constraints.
        PlanMismatchError: The model was pruned by another `attention_unit` than the config's.
        ValueError: A sparsity out of [0, 1), an unknown allocation, a pattern that matches nothing, a list that does
            not increase, a mapping and `portable`, or scores of another model or of other units.
    """
    config = config or PruningConfig()
    if isinstance(sparsity, Mapping):
        if config.portable:
            raise ValueError(
                "portable=True wants the same widths in every layer, and a mapping of sparsities says them block by "
                "block. Drop one of the two."
            )
        return _plan(model, scores, config, 0.0, units_by_pattern(sparsity, dense_units(model, config.attention_unit)))
    if not isinstance(sparsity, Sequence):
        return _plan(model, scores, config, config.sparsity if sparsity is None else sparsity)
    if any(b <= a for a, b in pairwise(sparsity)):
        raise ValueError(f"a list of sparsities must increase, got {list(sparsity)}: each plan keeps less.")
    plans: list[PruningPlan] = []
    for value in sparsity:
        at_most = {name: len(block.kept) for name, block in plans[-1].blocks.items()} if plans else None
        plans.append(_plan(model, scores, config, value, at_most))
    return plans


def _plan(
    model: PreTrainedModel,
    scores: Scores,
    config: PruningConfig,
    sparsity: float,
    at_most: Mapping[str, int] | None = None,
) -> PruningPlan:
    check_sparsity(sparsity)
    return allocate(
        find_blocks(model, config.attention_unit),
        scores,
        limit=_limit(_dense_cost(model, config), sparsity),
        budget=config.budget,
        sequence_length=config.sequence_length,
        model_type=base_model_type(model.config.model_type),
        allocation=config.allocation,
        min_units=config.min_units,
        round_to=config.round_to,
        exclude=config.exclude,
        stock_widths=config.portable,
        at_most=at_most,
        seed=config.seed,
    )


def _limit(cost: int, sparsity: float) -> int:
    """The most that may stay, of a sparsity as it is written: in binary, 1 − 0.8 is a little less than 0.2."""
    return int((1 - Fraction(repr(float(sparsity)))) * cost + Fraction(1, 1_000_000))


def apply_plan(model: PreTrainedModel, plan: PruningPlan) -> PreTrainedModel:
    """Cut the model to what the plan keeps.

    Args:
        model: The model that the plan was made for; it stays as it is.
        plan: Which units stay, in this model's numbering.

    Returns:
        The smaller model with `.pruning_plan`: the plan, composed with the model's own one into dense numbering.

    Raises:
        PlanMismatchError: The plan was made for another model, for another state of this one, or with another
            `attention_unit` than the one that the model was pruned by.
        ValueError: The plan does not keep as many query heads of every group.
    """
    model_type = base_model_type(model.config.model_type)
    if plan.model_type != model_type:
        raise PlanMismatchError(
            f"the plan is for a {plan.model_type} model, this is a {model_type} model. Score it for a plan of its own."
        )
    unit = attention_unit_of(plan.blocks)
    dense_units(model, unit)  # raises if the model was pruned by the other one
    check_match(plan, {block.name: block.units for block in find_blocks(model, unit)})
    small = keep_units(model, plan.kept)
    before: PruningPlan | None = getattr(model, "pruning_plan", None)
    whole = before is None or all(kept == units for kept, units in before.counts.values())
    small.pruning_plan = plan if before is None or whole else before.then(plan)
    return small


def trade_off(model: PreTrainedModel, scores: Scores, config: PruningConfig | None = None) -> list[TradeOff]:
    """How much score is lost at every sparsity, by the `knapsack` allocator: one scoring pass for a family of sizes.

    `plan(model, scores, config, sparsity=[...])` gives the plans of the sizes that you choose from it. Half of the
    score that is lost estimates the rise of the loss with `fisher`, of the divergence from the dense model with
    `kl_fisher`, of half the squared distance of the logits with `logit_fisher`, and what is left of these after repair
    with the `residual_` scorers.

    Args:
        model: The model that was scored.
        scores: Its scores.
        config: Budget and constraints; `sparsity`, `allocation` and `portable` do not count.

    Returns:
        Points from the lowest sparsity to the highest that the constraints allow.

    Raises:
        PlanMismatchError: The model was pruned by another `attention_unit` than the config's.
        ValueError: A pattern that matches nothing, or scores of another model or of other units.
    """
    config = config or PruningConfig()
    candidates = candidates_of(
        find_blocks(model, config.attention_unit),
        scores,
        budget=config.budget,
        sequence_length=config.sequence_length,
        min_units=config.min_units,
        round_to=config.round_to,
        exclude=config.exclude,
    )
    return trade_off_curve(candidates, _dense_cost(model, config))


def sparsity_of(model: PreTrainedModel, config: PruningConfig) -> float:
    """The fraction of the dense model's prunable cost that is gone from this one, in the config's budget."""
    return 1 - _own_cost(model, config) / _dense_cost(model, config)


def _own_cost(model: PreTrainedModel, config: PruningConfig) -> int:
    length, blocks = config.sequence_length, find_blocks(model, config.attention_unit)
    return sum(block.units * unit_cost(block, config.budget, length) for block in blocks)


def _dense_cost(model: PreTrainedModel, config: PruningConfig) -> int:
    """Prunable cost of the dense model: units of the attached plan, at this model's cost of a unit."""
    length, blocks = config.sequence_length, find_blocks(model, config.attention_unit)
    units = dense_units(model, config.attention_unit)
    cost = sum(units[block.name] * unit_cost(block, config.budget, length) for block in blocks)
    if not cost:
        raise BudgetError(
            f"{type(model).__name__} has no prunable {config.budget}: no unit of it is in a key/value cache. Choose "
            "budget='macs' or 'params'."
        )
    return cost


def check_target(model: PreTrainedModel, config: PruningConfig) -> float:
    """Find out before any work whether a model can be pruned to what is asked.

    Args:
        model: The model.
        config: What is asked for.

    Returns:
        The sparsity that it has already.

    Raises:
        BudgetError: It has that sparsity already, or cannot reach it under the constraints.
        PlanMismatchError: It was pruned by another `attention_unit` than the config's.
        ValueError: An unknown allocation, or a pattern that matches nothing.
    """
    start = sparsity_of(model, config)
    if config.sparsity <= start and config.sparsity > 0:
        raise BudgetError(
            f"the model has {start:.1%} of its dense {config.budget} removed already, and sparsity={config.sparsity:g} "
            "asks for no more than that. Sparsity always counts from the dense model: ask for a higher one."
        )
    plan(model, no_scores(model, config), config)  # raises what planning will raise
    return start


def no_scores(model: PreTrainedModel, config: PruningConfig) -> Scores:
    """Zeros for scores: enough to find how many units may stay."""
    zeros = {block.name: torch.zeros(block.units) for block in find_blocks(model, config.attention_unit)}
    return Scores(by_block=zeros, scorer=config.scorer, samples=0)
