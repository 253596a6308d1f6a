"""plan(): from scores and a config to the units that stay; apply_plan(): the smaller model."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import overload

from transformers import PreTrainedModel

from hfprune.config import PruningConfig, check_sparsity
from hfprune.errors import BudgetError, PlanMismatchError
from hfprune.planning import PruningPlan, TradeOff, allocate, trade_off_curve
from hfprune.planning.candidates import candidates_of, units_by_pattern
from hfprune.planning.costs import get_budget
from hfprune.planning.plan import check_match
from hfprune.scoring import Scores
from hfprune.structure.anatomy import Anatomy, ModelOrAnatomy, UnitCost, anatomy_of
from hfprune.structure.architectures import base_model_type
from hfprune.structure.blocks import check_attention_unit
from hfprune.structure.surgery import keep_units


@overload
def plan(
    model: ModelOrAnatomy,
    scores: Scores,
    config: PruningConfig | None = None,
    *,
    sparsity: float | Mapping[str, float] | None = None,
) -> PruningPlan: ...


@overload
def plan(
    model: ModelOrAnatomy, scores: Scores, config: PruningConfig | None = None, *, sparsity: Sequence[float]
) -> list[PruningPlan]: ...


def plan(
    model: ModelOrAnatomy,
    scores: Scores,
    config: PruningConfig | None = None,
    *,
    sparsity: float | Mapping[str, float] | Sequence[float] | None = None,
) -> PruningPlan | list[PruningPlan]:
    """Choose the units that stay, by the config's budget, allocation and constraints.

    Args:
        model: The model that was scored, or its anatomy, which spares reading it again.
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
    anatomy = anatomy_of(model, config.attention_unit)
    if isinstance(sparsity, Mapping):
        if config.portable:
            raise ValueError(
                "portable=True wants the same widths in every layer, and a mapping of sparsities says them block by "
                "block. Drop one of the two."
            )
        at_most = units_by_pattern(sparsity, anatomy.dense_units)
        # the patterns alone say what goes, so the budget takes nothing
        return _plan(anatomy, scores, config, 0.0, at_most)
    if isinstance(sparsity, Sequence):
        return _nested_plans(anatomy, scores, config, sparsity)
    return _plan(anatomy, scores, config, config.sparsity if sparsity is None else sparsity)


def _nested_plans(
    anatomy: Anatomy, scores: Scores, config: PruningConfig, sparsity: Sequence[float]
) -> list[PruningPlan]:
    """Plans of which each keeps a part of what the one before keeps."""
    if any(second <= first for first, second in pairwise(sparsity)):
        raise ValueError(f"a list of sparsities must increase, got {list(sparsity)}: each plan keeps less.")
    plans: list[PruningPlan] = []
    at_most: dict[str, int] | None = None
    for value in sparsity:
        made = _plan(anatomy, scores, config, value, at_most)
        plans.append(made)
        at_most = {name: len(block.kept) for name, block in made.blocks.items()}
    return plans


def _plan(
    anatomy: Anatomy,
    scores: Scores,
    config: PruningConfig,
    sparsity: float,
    at_most: Mapping[str, int] | None = None,
) -> PruningPlan:
    check_sparsity(sparsity)
    return allocate(
        anatomy.blocks,
        scores,
        limit=_limit(_dense_cost(anatomy, config), sparsity),
        budget=config.budget,
        sequence_length=config.sequence_length,
        model_type=anatomy.model_type,
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


def apply_plan(model: ModelOrAnatomy, plan: PruningPlan) -> PreTrainedModel:
    """Cut the model to what the plan keeps.

    Args:
        model: The model that the plan was made for, or its anatomy; it stays as it is.
        plan: Which units stay, in this model's numbering.

    Returns:
        The smaller model with `.pruning_plan`: the plan, composed with the model's own one into dense numbering.

    Raises:
        PlanMismatchError: The plan was made for another model, for another state of this one, or with another
            `attention_unit` than the one that the model was pruned by.
        ValueError: The plan does not keep as many query heads of every group.
    """
    dense = model.model if isinstance(model, Anatomy) else model
    model_type = base_model_type(dense.config.model_type)
    if plan.model_type != model_type:
        raise PlanMismatchError(
            f"the plan is for a {plan.model_type} model, this is a {model_type} model. Score it for a plan of its own."
        )
    anatomy = anatomy_of(model, plan.attention_unit)
    before: PruningPlan | None = getattr(dense, "pruning_plan", None)
    if before is not None:
        check_attention_unit(before.attention_unit, anatomy.attention_unit)
    check_match(plan, anatomy.units, attention_unit=anatomy.attention_unit)
    small = keep_units(dense, plan.kept, blocks=anatomy.blocks)
    nothing_gone = before is None or all(kept == units for kept, units in before.counts.values())
    small.pruning_plan = plan if before is None or nothing_gone else before.then(plan)
    return small


def trade_off(model: ModelOrAnatomy, scores: Scores, config: PruningConfig | None = None) -> list[TradeOff]:
    """How much score is lost at every sparsity, by the `knapsack` allocator: one scoring pass for a family of sizes.

    `plan(model, scores, config, sparsity=[...])` gives the plans of the sizes that you choose from it. Half of the
    score that is lost estimates the rise of the loss with `fisher`, of the divergence from the dense model with
    `kl_fisher`, of half the squared distance of the logits with `logit_fisher`, and what is left of these after repair
    with the `residual_` scorers.

    Args:
        model: The model that was scored, or its anatomy.
        scores: Its scores.
        config: Budget and constraints; `sparsity`, `allocation` and `portable` do not count.

    Returns:
        Points from the lowest sparsity to the highest that the constraints allow.

    Raises:
        PlanMismatchError: The model was pruned by another `attention_unit` than the config's.
        ValueError: A pattern that matches nothing, or scores of another model or of other units.
    """
    config = config or PruningConfig()
    anatomy = anatomy_of(model, config.attention_unit)
    candidates = candidates_of(
        anatomy.blocks,
        scores,
        budget=config.budget,
        sequence_length=config.sequence_length,
        min_units=config.min_units,
        round_to=config.round_to,
        exclude=config.exclude,
    )
    return trade_off_curve(candidates, _dense_cost(anatomy, config))


def sparsity_of(model: ModelOrAnatomy, config: PruningConfig) -> float:
    """The fraction of the dense model's prunable cost that is gone from this one, in the config's budget."""
    anatomy = anatomy_of(model, config.attention_unit)
    return 1 - anatomy.cost(_unit_cost(config)) / _dense_cost(anatomy, config)


def _unit_cost(config: PruningConfig) -> UnitCost:
    return get_budget(config.budget).unit_cost(config.sequence_length)


def _dense_cost(anatomy: Anatomy, config: PruningConfig) -> int:
    """Prunable cost of the dense model."""
    cost = anatomy.dense_cost(_unit_cost(config))
    if not cost:
        raise BudgetError(
            f"{type(anatomy.model).__name__} has no prunable {config.budget}: no unit of it is in a key/value cache. "
            "Choose budget='macs' or 'params'."
        )
    return cost


def check_target(model: ModelOrAnatomy, config: PruningConfig) -> float:
    """Find out before any work whether a model can be pruned to what is asked.

    Args:
        model: The model, or its anatomy.
        config: What is asked for.

    Returns:
        The sparsity that it has already.

    Raises:
        BudgetError: It has that sparsity already, or cannot reach it under the constraints.
        PlanMismatchError: It was pruned by another `attention_unit` than the config's.
        ValueError: An unknown allocation, or a pattern that matches nothing.
    """
    anatomy = anatomy_of(model, config.attention_unit)
    start = sparsity_of(anatomy, config)
    if config.sparsity <= start and config.sparsity > 0:
        raise BudgetError(
            f"the model has {start:.1%} of its dense {config.budget} removed already, and sparsity={config.sparsity:g} "
            "asks for no more than that. Sparsity always counts from the dense model: ask for a higher one."
        )
    # raises what planning will raise
    plan(anatomy, no_scores(anatomy, config), config)
    return start


def no_scores(model: ModelOrAnatomy, config: PruningConfig) -> Scores:
    """Zeros for scores: enough to find how many units may stay."""
    anatomy = anatomy_of(model, config.attention_unit)
    return Scores(by_block=anatomy.zeros(), scorer=config.scorer, samples=0)
