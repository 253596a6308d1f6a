"""The whole job: rounds of score, plan, surgery and reconstruction; and its steps."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from hfprune.config import PruningConfig
from hfprune.errors import BudgetError
from hfprune.measuring.size import check_length, measure_size
from hfprune.planning import sparsities
from hfprune.planning.allocation import get_allocator
from hfprune.planning.schedule import ROUND_KEEPS, TRAINED_ROUND_KEEPS
from hfprune.pruning.steps import apply_plan, check_target, no_scores, plan, sparsity_of
from hfprune.publishing.record import record_of
from hfprune.reconstruction.reconstruct import reconstruct
from hfprune.scoring import CalibrationData, Collator, calibration_batches, score, scorers_in
from hfprune.scoring.calibration import describe
from hfprune.structure.anatomy import Anatomy, ModelOrAnatomy, anatomy_of
from hfprune.structure.batches import Batch
from hfprune.structure.blocks import check_in_one_place
from hfprune.structure.modeling_pruned import PrunedModel

logger = logging.getLogger(__name__)
#: The sparsity after a round: of the whole model, or by pattern of block names.
Step = float | dict[str, float]
#: Trains a pruned model against the dense one, in place; where it returns a model, that one goes on.
Recover = Callable[[PreTrainedModel, PreTrainedModel], object]


def prune(
    model: PreTrainedModel,
    data: CalibrationData,
    config: PruningConfig | None = None,
    *,
    collator: Collator | None = None,
    sparsity: Mapping[str, float] | None = None,
    recover: Recover | None = None,
) -> PreTrainedModel:
    """Make a smaller model: score the units, plan what stays, cut, and again for every round of the schedule.

    It is literally these steps (and a test shows that they give the same plan and the same weights):

        batches = batches_for(model, data, config, collator=collator)
        small = model
        for number, step in enumerate(sparsities(config.schedule, start=..., target=config.sparsity, ...)):
            scores = score(
                small, batches, scorer=config.scorer, seed=config.seed + number, teacher=model,
                attention_unit=config.attention_unit, gradient_checkpointing=config.calibration_checkpointing,
            )
            small = apply_plan(small, plan(small, scores, config, sparsity=step))
            if config.reconstruct:
                reconstruct(small, model, batches)
            if recover:
                recover(small, model)

    With `allocation="layerwise"` score, plan and cut are done for one block after the other, from the deepest up. The
    structure of every model is read once and handed on (`hfprune.structure.anatomy_of`), which changes no result.

    Args:
        model: The dense model, or one that was pruned before. It stays as it is: it is the teacher for recovery.
        data: A tokenized `datasets.Dataset`, a DataLoader, or a list of batches (dicts of tensors).
        config: What to do; `PruningConfig()` removes half of the prunable MACs.
        collator: Makes a batch of rows of a Dataset; `DataCollatorWithPadding(tokenizer)` pads.
        sparsity: Instead of `config.sparsity`: by pattern of block names, the fraction of units to remove, as `plan`
            takes it.
        recover: Trains a little after every round: called with the pruned and the dense model, it changes the first in
            place (where it returns a model, that one goes on); it must not prune (no `GradualPruning`). Rounds are then
            larger, at most 1.5 × in cost, unless `config.rounds` says how many there are; the next one scores what was
            trained.

    Returns:
        A new model, of the stock class where the stock config can say its widths and of `Pruned<Base>` otherwise, with
        `.pruning_plan` (in dense numbering) and `.pruning_record`.

    Raises:
        BudgetError: The sparsity cannot be reached under the constraints, or the model has it already.
        PlanMismatchError: The model was pruned by another `attention_unit` than the config's.
        CalibrationError: The data cannot be used.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
        StructureError: The model does not look as the table says.
        NonFiniteScoreError: A score is NaN or infinite.
        ValueError: A scorer, allocation or schedule of an unknown name, or a pattern that matches no block.
    """
    config = config or PruningConfig()
    dense = anatomy_of(model, config.attention_unit)
    steps = check(dense, config, sparsity, keeps=TRAINED_ROUND_KEEPS if recover else ROUND_KEEPS)
    before = measure_size(dense, sequence_length=config.sequence_length)
    batches = batches_for(model, data, config, collator=collator)
    small = dense
    rounds = []
    for number, step in enumerate(steps):
        # every stage that the round has, by name, with its seconds
        seconds: dict[str, float] = {"scoring": 0.0, "surgery": 0.0}
        for target in _targets(small, config, step):
            with _timed(seconds, "scoring"):
                scores = score(
                    small,
                    batches,
                    scorer=config.scorer,
                    seed=config.seed + number,
                    teacher=model,
                    attention_unit=config.attention_unit,
                    gradient_checkpointing=config.calibration_checkpointing,
                )
            with _timed(seconds, "surgery"):
                cut = apply_plan(small, plan(small, scores, config, sparsity=target))
                small = anatomy_of(cut, config.attention_unit)
        check_portable(small.model, config)
        if config.reconstruct:
            with _timed(seconds, "reconstruction"):
                reconstruct(small, dense, batches)
        if recover is not None:
            with _timed(seconds, "recovery"):
                trained = recovered(small.model, model, recover)
            # the function may have returned another model than the one it was given
            if trained is not small.model:
                small = anatomy_of(trained, config.attention_unit)
        rounds.append(_entry(step, small.model.pruning_plan.digest, scores.samples, seconds))
        logger.info("removed %.1f %% of prunable %s", 100 * sparsity_of(small, config), config.budget)
    asked = config.to_dict()
    if sparsity is not None:
        asked["sparsity"] = dict(sparsity)
    pruned = small.model
    # a trainer leaves it in training mode
    pruned.train(model.training)
    pruned.pruning_record = record_of(dense, before, small, asked, rounds, describe(batches))
    return pruned


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that pass inside the `with` to those of a stage."""
    began = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began


def _entry(step: Step, digest: str, samples: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """What a record says of a round; stages that it did not have took no seconds at all, not 0."""
    entry: dict[str, Any] = {"sparsity": step, "samples": samples, "plan_digest": digest}
    for stage in ("scoring", "surgery", "reconstruction", "recovery"):
        entry[f"{stage}_seconds"] = round(seconds[stage], 3) if stage in seconds else None
    return entry


def check_portable(small: PreTrainedModel, config: PruningConfig) -> None:
    """Refuse a model that is not portable where that was asked for.

    Args:
        small: The pruned model.
        config: What was asked for.

    Raises:
        BudgetError: The stock config cannot say its widths.
    """
    if config.portable and isinstance(small, PrunedModel):
        raise BudgetError(
            "portable=True was asked for, but the stock config cannot say the widths of this model, as it was "
            "pruned unevenly before. Prune the dense model, or drop portable=True."
        )


def _targets(small: Anatomy, config: PruningConfig, sparsity: Step) -> list[Step]:
    """What one round asks of `plan`: all at once, or one block after the other from the deepest."""
    if not get_allocator(config.allocation).block_by_block:
        return [sparsity]
    goal = plan(small, no_scores(small, config), config, sparsity=sparsity)
    targets: list[Step] = []
    for name, block in reversed(list(goal.blocks.items())):
        if len(block.kept) < block.units:
            targets.append({name: 1 - len(block.kept) / small.dense_units[name]})
    # a round that removes nothing still scores, cuts and repairs
    return targets or [{}]


def recovered(small: PreTrainedModel, dense: PreTrainedModel, recover: Recover | None) -> PreTrainedModel:
    """Train a pruned model with a function of the user's.

    Args:
        small: The pruned model.
        dense: The dense one.
        recover: What trains; None changes nothing.

    Returns:
        The model to go on with: the one that `recover` returned, or else `small`.

    Raises:
        ValueError: `recover` returned a model that is not what the plan says.
    """
    if recover is None:
        return small
    returned = recover(small, dense)
    if not isinstance(returned, PreTrainedModel):
        return small
    if getattr(returned, "pruning_plan", None) != small.pruning_plan:
        raise ValueError(
            f"recover returned a {type(returned).__name__} without the pruned model's plan. It must change the weights "
            "of the first model that it is called with, and may return that."
        )
    return returned


def batches_for(
    model: PreTrainedModel, data: CalibrationData, config: PruningConfig, *, collator: Collator | None = None
) -> list[Batch]:
    """The calibration batches that `prune` draws: `calibration_batches` with the config's numbers.

    Args:
        model: The model to prune.
        data: As for `prune`.
        config: How many samples, in batches of what size, and the seed.
        collator: Makes a batch of rows of a Dataset.

    Returns:
        The batches.

    Raises:
        CalibrationError: The data cannot be used.
    """
    return calibration_batches(
        data,
        model,
        samples=config.calibration_samples,
        batch_size=config.calibration_batch_size,
        batch_tokens=config.calibration_batch_tokens,
        seed=config.seed,
        collator=collator,
    )


def check(
    model: ModelOrAnatomy,
    config: PruningConfig,
    sparsity: Mapping[str, float] | None = None,
    *,
    keeps: float = ROUND_KEEPS,
) -> Sequence[Step]:
    """Find every mistake that can be found without data, before any work is done.

    Args:
        model: The model to prune, or its anatomy.
        config: What is asked for.
        sparsity: Instead of `config.sparsity`: by pattern of block names.
        keeps: The least share of the cost that a round keeps, where the config does not say how many rounds there are.

    Returns:
        The sparsity after each round: a number, or by pattern.

    Raises:
        BudgetError: The sparsity cannot be reached under the constraints, or the model has it already.
        PlanMismatchError: The model was pruned by another `attention_unit` than the config's.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
        StructureError: The model does not look as the table says, or is spread over devices.
        ValueError: A name that is not known, a pattern that matches no block, or too long a sequence.
    """
    anatomy = anatomy_of(model, config.attention_unit)
    check_in_one_place(anatomy.model)
    check_length(anatomy.model, config.sequence_length)
    scorers_in(config.scorer)
    if sparsity is None:
        start = check_target(anatomy, config)
        return sparsities(config.schedule, start=start, target=config.sparsity, rounds=config.rounds, keeps=keeps)
    if not isinstance(sparsity, Mapping) or not sparsity:
        raise ValueError(
            f"sparsity of prune is a mapping from patterns of block names to fractions, got {sparsity!r}. One "
            "number for the whole model goes into PruningConfig(sparsity=...)."
        )
    # raises what planning will raise
    plan(anatomy, no_scores(anatomy, config), config, sparsity=sparsity)
    return _steps_by_pattern(config, sparsity, keeps=keeps)


def _steps_by_pattern(config: PruningConfig, sparsity: Mapping[str, float], *, keeps: float) -> list[Step]:
    """Sparsities by pattern after each round: as many rounds for all as the highest of them needs."""
    deepest = max(sparsity.values())
    rounds = len(sparsities(config.schedule, start=0, target=deepest, rounds=config.rounds, keeps=keeps))
    steps: list[Step] = []
    for number in range(rounds):
        step = {}
        for pattern, target in sparsity.items():
            step[pattern] = sparsities(config.schedule, start=0, target=target, rounds=rounds)[number]
        steps.append(step)
    return steps
