"""The steps of pruning: plan() chooses the units that stay, apply_plan() makes the smaller model."""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from typing import overload

from transformers import PreTrainedModel

from hfprune.config import A_CONFIG, CONFIG, PruningConfig, check_sparsity
from hfprune.errors import BudgetError, PlanMismatchError, UnsupportedArchitectureError
from hfprune.measuring.table_checks import check_table
from hfprune.planning import PruningPlan, TradeOff, allocate, trade_off_curve
from hfprune.planning.candidates import candidates_of, units_by_pattern
from hfprune.planning.costs import LATENCY, block_cost
from hfprune.planning.kernel_widths import multiple_for
from hfprune.planning.plan import check_match
from hfprune.publishing.record import origin_of
from hfprune.scoring import Scores
from hfprune.structure.anatomy import Anatomy, ModelOrAnatomy, anatomy_of, model_of
from hfprune.structure.architectures import base_model_type
from hfprune.structure.arguments import checked, instance
from hfprune.structure.blocks import check_attention_unit
from hfprune.structure.devices import refuse_quantized
from hfprune.structure.predictions import predicts_next_token
from hfprune.structure.running import outside_inference_mode
from hfprune.structure.sharing import alone_with
from hfprune.structure.stock import stock_config
from hfprune.structure.surgery import keep_units, pruned_class_for
from hfprune.structure.wrapping import unwrapped

#: What arguments must be.
SCORES = instance("the scores that hfprune.score returns", Scores)
PLAN = instance("a PruningPlan", PruningPlan, hint="hfprune.plan makes one, PruningPlan.from_json reads one.")


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


@checked(scores=SCORES, config=CONFIG)
def plan(
    model: ModelOrAnatomy,
    scores: Scores,
    config: PruningConfig | None = None,
    *,
    sparsity: float | Mapping[str, float] | Sequence[float] | None = None,
) -> PruningPlan | list[PruningPlan]:
    """Choose the units that stay, by the config's budget, allocation and constraints.

    Args:
        model: The model that was scored, or its anatomy. An anatomy spares reading the structure again.
        scores: The scores of the model.
        config: Budget, allocation and constraints; `PruningConfig()` if not given.
        sparsity: Overrides `config.sparsity`, and with it a goal in time. It counts from the dense model, also if this
            model is pruned. A mapping from shell-style patterns of block names gives the fraction of units to remove
            block by block, without a common budget: for each block the first pattern that matches it counts, and a
            block that no pattern matches keeps all its units. A list of increasing numbers gives a list of plans, in
            which the units of every plan are among the units of the plan before.

    Returns:
        A plan with the units numbered as in `model`, or a list of such plans.

    Raises:
        BudgetError: The sparsity cannot be reached under the constraints.
        PlanMismatchError: The model was pruned by another `attention_unit` than the config's.
        UnsupportedArchitectureError: Blocks of the model are left out, and the config has `all_blocks`.
        ValueError: A sparsity is not in [0, 1), the allocation is unknown, a pattern matches no block, a list does not
            increase, a mapping is combined with `portable` or with a goal in time, or the scores belong to
            another model or to other units.

    Examples:
        >>> import hfprune
        >>> scores = hfprune.score(dense, batches, scorer="l2")
        >>> plan = hfprune.plan(dense, scores, config)  # half of the multiply-adds, wherever they score least
        >>> plan.sparsity("macs") >= 0.5
        True

        A fraction for each pattern of block names, here three of four heads of the first layer and half of all neurons:

        >>> plan = hfprune.plan(dense, scores, sparsity={"*.0.attention": 0.75, "*.ffn": 0.5})
        >>> for block, (kept, of) in plan.counts.items():
        ...     print(f"{block}: {kept} of {of}")
        encoder.layer.0.attention: 1 of 4
        encoder.layer.0.ffn: 16 of 32
        encoder.layer.1.attention: 4 of 4
        encoder.layer.1.ffn: 16 of 32

        Several sizes from one scoring pass, each a part of the one before:

        >>> plans = hfprune.plan(dense, scores, config, sparsity=[0.25, 0.5, 0.75])
        >>> for size in plans:
        ...     print(f"{size.sparsity('macs'):.2f}", size.counts["encoder.layer.1.ffn"])
        0.28 (32, 32)
        0.50 (23, 32)
        0.75 (8, 32)
    """
    config = config or PruningConfig()
    anatomy = anatomy_of(model, config.attention_unit)
    if isinstance(sparsity, Sequence) and not isinstance(sparsity, str):
        return _nested_plans(anatomy, scores, config, sparsity)
    if isinstance(sparsity, Mapping):
        refuse_goal_beside_patterns(config)
    return plan_units(anatomy, scores, config, config.sparsity if sparsity is None else sparsity)


def refuse_goal_beside_patterns(config: PruningConfig) -> None:
    """Refuse a goal in time beside fractions by pattern, which leave nothing to choose for it.

    Args:
        config: The config.

    Raises:
        ValueError: It has a goal in time.
    """
    if config.goal_in_time:
        raise ValueError(
            f"{config.goal_in_time} says how long the model may take, and a mapping of sparsities says how many units "
            "go from every block: give one of them. The plan says what the latency table predicts of the mapping."
        )


def plan_units(
    anatomy: Anatomy, scores: Scores, config: PruningConfig, sparsity: float | Mapping[str, float]
) -> PruningPlan:
    """The plan for one sparsity: what `plan` does when the structure of the model is known.

    Args:
        anatomy: The anatomy of the model that was scored.
        scores: The scores of the model.
        config: Budget, allocation and constraints.
        sparsity: As for `plan`: one number, or fractions by pattern of block names.

    Returns:
        A plan with the units numbered as in the model.

    Raises:
        BudgetError: As for `plan`.
        PlanMismatchError: As for `plan`.
        UnsupportedArchitectureError: As for `plan`.
        ValueError: As for `plan`.
    """
    if not isinstance(sparsity, Mapping):
        return _plan(anatomy, scores, config, sparsity)
    if config.portable:
        raise ValueError(
            "portable=True wants the same widths in every layer, and a mapping of sparsities says them block by "
            "block. Drop one of the two."
        )
    at_most = units_by_pattern(sparsity, anatomy.dense_units)
    # the patterns limit the units of every block, and no common budget removes more
    return _plan(anatomy, scores, config, None, at_most)


def _nested_plans(
    anatomy: Anatomy, scores: Scores, config: PruningConfig, sparsity: Sequence[float]
) -> list[PruningPlan]:
    """A plan for each sparsity. The units of every plan are among the units of the plan before."""
    for value in sparsity:
        check_sparsity(value)
    if not sparsity:
        raise ValueError("sparsity is an empty list: give at least one, such as [0.3, 0.5, 0.7].")
    if any(second <= first for first, second in pairwise(sparsity)):
        raise ValueError(f"a list of sparsities must increase, got {list(sparsity)}: each plan keeps less.")
    plans: list[PruningPlan] = []
    at_most: dict[str, int] | None = None
    for value in sparsity:
        next_plan = _plan(anatomy, scores, config, value, at_most)
        plans.append(next_plan)
        # a block keeps its best units, so a smaller number of units is a part of them
        at_most = next_plan.units_after
    return plans


def _plan(
    anatomy: Anatomy,
    scores: Scores,
    config: PruningConfig,
    sparsity: float | None,
    at_most: Mapping[str, int] | None = None,
) -> PruningPlan:
    if sparsity is not None:
        check_sparsity(sparsity)
    _check_all_blocks(anatomy, config)
    # a model without any such cost is refused with fractions by pattern, too
    dense_cost = _dense_cost(anatomy, config)
    limit = None if sparsity is None else _limit(dense_cost, sparsity)
    return allocate(
        anatomy.blocks,
        scores,
        limit=limit,
        budget=config.budget,
        sequence_length=config.sequence_length,
        model_type=anatomy.model_type,
        allocation=config.allocation,
        min_units=config.min_units,
        round_to=width_multiple(anatomy, config),
        exclude=config.exclude,
        stock_widths=config.portable,
        at_most=at_most,
        seed=config.seed,
        latency_table=config.table,
    )


def _check_all_blocks(anatomy: Anatomy, config: PruningConfig) -> None:
    """Refuse a model with blocks that are left out, if the config asks for all."""
    if config.all_blocks and anatomy.left_out:
        raise UnsupportedArchitectureError(
            f"all_blocks=True was asked for, and blocks of {type(anatomy.model).__name__} are left out:\n"
            f"{anatomy.left_out}\nPrune the other blocks (all_blocks=False), or write an entry that handles all "
            '(CONTRIBUTING.md, "Add an architecture").'
        )


def _limit(cost: int, sparsity: float) -> int:
    """The largest cost that may stay at a sparsity.

    >>> _limit(10, 0.8), int((1 - 0.8) * 10)
    (2, 1)
    """
    # as the sparsity is written in decimals: in binary, 1 − 0.8 is a little less than 0.2
    share_kept = 1 - Fraction(repr(float(sparsity)))
    # a sparsity that was computed, such as 1 − 1/3, may be a little too high in its last decimal
    return int(share_kept * cost + Fraction(1, 1_000_000))


@checked(plan=PLAN)
@outside_inference_mode
def apply_plan(model: ModelOrAnatomy, plan: PruningPlan) -> PreTrainedModel:
    """Make a smaller model, with only the units that the plan keeps.

    Args:
        model: The model that the plan was made for, or its anatomy. It stays as it is.
        plan: Which units stay, numbered as in this model.

    Returns:
        The smaller model. Its `.pruning_plan` has the units numbered as in the dense model. It is the plan, composed
        with the model's own plan if the model was pruned before. Its `.pruning_record` says what was removed from
        which model. It does not say how the plan was made, and has no sizes.

    Raises:
        PlanMismatchError: The plan was made for another model, for another state of this model, or with another
            `attention_unit` than the model was pruned by.
        ValueError: The plan does not keep equally many query heads of every group.

    Examples:
        >>> import hfprune
        >>> scores = hfprune.score(dense, batches, scorer="l2")
        >>> plan = hfprune.plan(dense, scores, sparsity={"*.0.ffn": 0.75})
        >>> small = hfprune.apply_plan(dense, plan)
        >>> small.bert.encoder.layer[0].intermediate.dense
        Linear(in_features=16, out_features=8, bias=True)
        >>> small.bert.encoder.layer[1].intermediate.dense
        Linear(in_features=16, out_features=32, bias=True)
    """
    model_type = base_model_type(model_of(model).config.model_type)
    if plan.model_type != model_type:
        raise PlanMismatchError(
            f"the plan is for a {plan.model_type} model, this is a {model_type} model. Score it for a plan of its own."
        )
    refuse_quantized(unwrapped(model_of(model)))
    anatomy = anatomy_of(model, plan.attention_unit)
    small = cut(anatomy, plan)
    # how the plan was made is not known here, and measuring sizes would run the model
    small.pruning_record = origin_of(anatomy.model, small.pruning_plan)
    return small


def cut(anatomy: Anatomy, plan: PruningPlan) -> PreTrainedModel:
    """Make a smaller model: what `apply_plan` does when the structure of the model is known.

    Args:
        anatomy: The anatomy of the model that the plan was made for.
        plan: Which units stay, numbered as in this model.

    Returns:
        The smaller model with its plan.

    Raises:
        PlanMismatchError: As for `apply_plan`.
        ValueError: As for `apply_plan`.
    """
    dense = anatomy.model
    before: PruningPlan | None = getattr(dense, "pruning_plan", None)
    if before is not None:
        check_attention_unit(before.attention_unit, anatomy.attention_unit)
    check_match(plan, anatomy.units, attention_unit=anatomy.attention_unit)
    # scoring in another thread freezes weights and switches modes, which would be copied
    with alone_with(dense):
        small = keep_units(dense, plan.kept, blocks=anatomy.blocks)
    if before is None or all(kept == units for kept, units in before.counts.values()):
        small.pruning_plan = plan
    else:
        small.pruning_plan = before.then(plan)
    return small


@checked(scores=SCORES, config=CONFIG)
def trade_off(model: ModelOrAnatomy, scores: Scores, config: PruningConfig | None = None) -> list[TradeOff]:
    """The smallest loss of score at every sparsity, by the `knapsack` allocator: many sizes from one scoring pass.

    `plan(model, scores, config, sparsity=[...])` then gives the plans for the sizes that you choose. Half of the lost
    score is an estimate: with `fisher` of how much the loss rises, with `kl_fisher` of the divergence from the dense
    model, and with `logit_fisher` of half the squared distance between the logits. With the `residual_` scorers it is
    an estimate of the same quantities after reconstruction.

    Args:
        model: The model that was scored, or its anatomy.
        scores: The scores of the model.
        config: Budget and constraints; `sparsity`, `allocation` and `portable` are not used.

    Returns:
        Points from the lowest sparsity to the highest that the constraints allow.

    Raises:
        PlanMismatchError: The model was pruned by another `attention_unit` than the config's.
        ValueError: A pattern matches no block, or the scores belong to another model or to other units.

    Examples:
        >>> import hfprune
        >>> scores = hfprune.score(dense, batches, scorer="fisher")
        >>> curve = hfprune.trade_off(dense, scores, config)
        >>> everything = curve[-1].lost
        >>> for sparsity in (0.25, 0.5, 0.75):
        ...     point = next(point for point in curve if point.sparsity >= sparsity)
        ...     print(f"{point.sparsity:.2f} of the cost for {point.lost / everything:.2f} of the score")
        0.25 of the cost for 0.03 of the score
        0.50 of the cost for 0.12 of the score
        0.75 of the cost for 0.42 of the score
    """
    config = config or PruningConfig()
    anatomy = anatomy_of(model, config.attention_unit)
    candidates = candidates_of(
        anatomy.blocks,
        scores,
        budget=config.budget,
        sequence_length=config.sequence_length,
        min_units=config.min_units,
        round_to=width_multiple(anatomy, config),
        exclude=config.exclude,
        latency_table=config.table,
    )
    return trade_off_curve(candidates, _dense_cost(anatomy, config))


@checked(config=A_CONFIG)
def sparsity_of(model: ModelOrAnatomy, config: PruningConfig) -> float:
    """The fraction of the dense model's prunable cost that was removed from this model, in the config's budget."""
    anatomy = anatomy_of(model, config.attention_unit)
    dense = _dense_cost(anatomy, config)
    return 1 - cost_of_units(anatomy, config, anatomy.units) / dense


def width_multiple(anatomy: Anatomy, config: PruningConfig) -> int:
    """In multiples of how many neurons blocks of a model are kept.

    Args:
        anatomy: The anatomy of the model.
        config: For `round_to`, which counts if it is given, and `target`.

    Returns:
        The number. It is the same before and after a pruning, as it follows from the widths of the dense model.
    """
    if config.round_to is not None:
        return config.round_to
    dense_units = anatomy.dense_units
    widths = [dense_units[block.name] for block in anatomy.blocks if block.unit == "neuron"]
    return multiple_for(config.target, widths, is_language_model=predicts_next_token(anatomy.model))


def cost_of_units(anatomy: Anatomy, config: PruningConfig, units: Mapping[str, int]) -> int:
    """What the blocks of a model cost with so many units, in the config's budget.

    Args:
        anatomy: The anatomy of the model.
        config: For its budget.
        units: By block name, how many units there are.

    Returns:
        Their cost, as the budget counts it.

    Raises:
        PlanMismatchError: The latency table of the config is of another model.
    """
    if config.table is not None:
        check_table(config.table, anatomy)
    costs = block_cost(config.budget, sequence_length=config.sequence_length, latency_table=config.table)
    return sum(costs(block)(units[block.name]) for block in anatomy.blocks)


def _dense_cost(anatomy: Anatomy, config: PruningConfig) -> int:
    """The prunable cost of the dense model; a cost of 0 is refused, as no fraction of it can be removed."""
    cost = cost_of_units(anatomy, config, anatomy.dense_units)
    if cost:
        return cost
    if config.budget == LATENCY:
        raise BudgetError(
            f"by the latency table ({config.table.setting if config.table else ''}) no unit of "
            f"{type(anatomy.model).__name__} takes any time. Measure it with more runs, or on a quieter machine."
        )
    raise BudgetError(
        f"{type(anatomy.model).__name__} has no prunable {config.budget}: no unit of it is in a key/value cache. "
        "Choose budget='macs' or 'params'."
    )


def check_target(anatomy: Anatomy, config: PruningConfig) -> float:
    """Check before any work is done that a model can be pruned to the sparsity of a config.

    Args:
        anatomy: The anatomy of the model.
        config: The config.

    Returns:
        The sparsity that the model has already.

    Raises:
        BudgetError: The model has that sparsity already, or cannot reach it under the constraints.
        PlanMismatchError: The model was pruned by another `attention_unit` than the config's.
        ValueError: The allocation is unknown, or a pattern matches no block.
    """
    start = 0.0
    dense = cost_of_units(anatomy, config, anatomy.dense_units)
    # a model without any such cost is refused below, where a plan is tried
    if dense:
        start = 1 - cost_of_units(anatomy, config, anatomy.units) / dense
    if config.sparsity <= start and config.sparsity > 0:
        raise BudgetError(
            f"the model has {start:.1%} of its dense {config.budget} removed already, and sparsity={config.sparsity:g} "
            "asks for no more than that. Sparsity always counts from the dense model: ask for a higher one."
        )
    check_plan(anatomy, config, config.sparsity)
    return start


def check_plan(anatomy: Anatomy, config: PruningConfig, sparsity: float | Mapping[str, float]) -> None:
    """Raise what a plan and its surgery would raise, as far as that does not depend on scores.

    Args:
        anatomy: The anatomy of the model.
        config: The config.
        sparsity: As for `plan_units`.

    Raises:
        BudgetError: As for `plan`.
        PlanMismatchError: As for `plan`.
        UnsupportedArchitectureError: The smaller model could not be built, nor loaded again: its class is neither one
            of transformers' nor registered, and the stock config cannot say the widths.
        ValueError: As for `plan`.
    """
    # a plan from scores of zero raises the errors that the later plan would raise
    plan = plan_units(anatomy, zero_scores(anatomy, config), config, sparsity)
    counts = [len(plan.kept[block.name]) for block in anatomy.blocks]
    is_sayable = stock_config(anatomy.model.config, anatomy.blocks, counts) is not None
    for block, count in zip(anatomy.blocks, counts, strict=True):
        if count not in (block.units, *block.portable_units):
            is_sayable = False
    if not is_sayable:
        pruned_class_for(anatomy.model)


def no_scores(model: ModelOrAnatomy, config: PruningConfig) -> Scores:
    """Scores of zero: enough to find out how many units each block may keep."""
    return zero_scores(anatomy_of(model, config.attention_unit), config)


def zero_scores(anatomy: Anatomy, config: PruningConfig) -> Scores:
    """Scores of zero, when the structure is known."""
    return Scores(by_block=anatomy.zeros(), scorer=config.scorer, samples=0)
