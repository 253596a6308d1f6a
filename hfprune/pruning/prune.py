"""prune(): rounds of scoring, planning, surgery, reconstruction and recovery."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from transformers import PreTrainedModel

from hfprune.config import A_CONFIG, CONFIG, PruningConfig
from hfprune.encoders import Texts, opened
from hfprune.errors import BudgetError, CalibrationError
from hfprune.measuring.size import example_batch, size_of
from hfprune.measuring.table_checks import warn_of_other_setting
from hfprune.planning import sparsities
from hfprune.planning.allocation import get_allocator
from hfprune.planning.schedule import ROUND_KEEPS, TRAINED_ROUND_KEEPS
from hfprune.pruning.steps import (
    check_plan,
    check_target,
    cut,
    plan_units,
    refuse_goal_beside_patterns,
    sparsity_of,
    width_multiple,
    zero_scores,
)
from hfprune.pruning.timed import measured_and_predicted
from hfprune.publishing.encoders import with_card
from hfprune.publishing.record import record_of
from hfprune.reconstruction.reconstruct import repair_model
from hfprune.scoring import CalibrationData, Collator, calibration_batches, score, scorers_in
from hfprune.scoring.calibration import describe
from hfprune.showing.progress import tracked
from hfprune.structure.anatomy import Anatomy, ModelOrAnatomy, anatomy_of, model_of
from hfprune.structure.arguments import FUNCTION, checked, optional
from hfprune.structure.batches import Batch
from hfprune.structure.blocks import check_in_one_place
from hfprune.structure.devices import refuse_inference_weights, refuse_quantized
from hfprune.structure.embedder import body_of
from hfprune.structure.examples import check_length
from hfprune.structure.modeling_pruned import PrunedModel
from hfprune.structure.running import frozen, outside_inference_mode, refuse_tuples
from hfprune.structure.sharing import alone_with
from hfprune.structure.wrapping import inner, unwrapped

logger = logging.getLogger(__name__)
#: The sparsity after a round: one number for the whole model, or one by pattern of block names.
Step = float | dict[str, float]
#: Trains a pruned model (the first argument) against the dense one. If it returns a model, pruning goes on with that.
Recover = Callable[[PreTrainedModel, PreTrainedModel], object]
#: A model of transformers, or an encoder of sentence-transformers.
Model = TypeVar("Model")


@checked(config=CONFIG, collator=optional(FUNCTION), recover=optional(FUNCTION))
@outside_inference_mode
def prune(
    model: Model,
    data: "CalibrationData | Texts",
    config: PruningConfig | None = None,
    *,
    collator: Collator | None = None,
    sparsity: Mapping[str, float] | None = None,
    recover: Recover | None = None,
) -> Model:
    """Make a smaller model: in every round of the schedule score the units, plan which stay, and remove the others.

    It is exactly these steps, and a test shows that they give the same plan and the same weights:

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

    With `allocation="layerwise"`, scoring, planning and surgery are done for one block after the other, from the last
    to the first. The structure of every model is read once and handed on (`hfprune.structure.anatomy_of`), which
    changes no result.

    Args:
        model: The dense model, or a model that was pruned before. It stays as it is, for example as the teacher in
            recovery. A `SentenceTransformer` is pruned by the embeddings that it makes, a `CrossEncoder` by its scores.
        data: A tokenized `datasets.Dataset`, whatever else `Trainer` takes as data, a DataLoader, or a list of batches
            (dicts of tensors), see `hfprune.scoring.calibration_batches`. For a `SentenceTransformer` texts, for a
            `CrossEncoder` pairs of texts: a list, or a data set with columns of them.
        config: What to do; `PruningConfig()` removes half of the prunable MACs.
        collator: Makes a batch from rows of a Dataset; `DataCollatorWithPadding(tokenizer)` pads.
        sparsity: In the place of `config.sparsity`: by pattern of block names, the fraction of units to remove, as
            `plan` takes it.
        recover: Trains a little after every round. It is called with the pruned model and the dense model, and changes
            the pruned model in place, or returns the model to go on with. It must not prune (no `GradualPruning`).
            Unless `config.rounds` gives their number, rounds are larger than without it, at most 1.5 × in cost. The
            next round scores the trained model.

    Returns:
        A new model with `.pruning_plan` (units numbered as in the dense model) and `.pruning_record`; of an encoder of
            sentence-transformers another one, with that model in it. Its class is the
        stock class if the stock config can say its widths, and `Pruned<Base>` otherwise. With `budget="latency"` the
        plan says which milliseconds the table predicts, and the record has them beside measured ones.

    Raises:
        BudgetError: The sparsity cannot be reached under the constraints, or the model has it already.
        PlanMismatchError: The model was pruned by another `attention_unit` than the config's.
        CalibrationError: The data cannot be used.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
        StructureError: The model does not look as the table says.
        NonFiniteScoreError: A score is NaN or infinite.
        ValueError: The scorer, allocation or schedule is unknown, or a pattern matches no block.

    Examples:
        >>> import hfprune
        >>> small = hfprune.prune(dense, dataset, config, collator=collator)
        >>> small.pruning_plan.sparsity("macs") >= 0.5
        True
        >>> small.num_parameters() < dense.num_parameters()
        True

        Without half of the neurons and a quarter of the heads of the second layer:

        >>> small = hfprune.prune(dense, batches, config, sparsity={"*.ffn": 0.5, "*.1.attention": 0.25})
        >>> for block, (kept, of) in small.pruning_plan.counts.items():
        ...     print(f"{block}: {kept} of {of}")
        encoder.layer.0.attention: 4 of 4
        encoder.layer.0.ffn: 16 of 32
        encoder.layer.1.attention: 3 of 4
        encoder.layer.1.ffn: 16 of 32
    """
    encoder = opened(model)
    if encoder is not None and encoder.model is not model:
        rows = encoder.rows(data)
        collator = collator or encoder.collator
        small = prune(encoder.model, rows, config, collator=collator, sparsity=sparsity, recover=recover)
        pruned_encoder: Model = with_card(encoder.around(small))
        return pruned_encoder
    # texts are for encoders only, and calibration refuses them by name
    rows = cast("CalibrationData", data)
    pruned = _pruned(unwrapped(model), rows, config, collator=collator, sparsity=sparsity, recover=recover)
    return cast("Model", pruned)


def _pruned(
    model: PreTrainedModel,
    data: CalibrationData,
    config: PruningConfig | None,
    *,
    collator: Collator | None,
    sparsity: Mapping[str, float] | None,
    recover: Recover | None,
) -> PreTrainedModel:
    """The job of `prune`, for a model of transformers."""
    began = time.perf_counter()
    config = config or PruningConfig()
    _check_before_reading(model, config)
    dense = anatomy_of(model, config.attention_unit)
    # the record says what was chosen where nobody asked
    config = replace(config, round_to=width_multiple(dense, config))
    # training makes a round expensive, so there are fewer rounds
    keeps = TRAINED_ROUND_KEEPS if recover else ROUND_KEEPS
    steps = _checked_steps(dense, config, sparsity, keeps=keeps)
    before = size_of(dense, config.sequence_length)
    batches = batches_for(model, data, config, collator=collator)
    small = dense
    rounds = []
    # training in between shows bars of its own
    with tracked(steps, desc="Pruning", unit="round", shown=recover is None) as targets:
        for number, step in enumerate(targets):
            # by stage, for the stages that the round has
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
                    # without a name for the model in between, the larger one is freed as soon as it is not needed
                    small = anatomy_of(cut(small, plan_units(small, scores, config, target)), config.attention_unit)
            check_portable(small.model, config)
            if config.reconstruct:
                with _timed(seconds, "reconstruction"):
                    repair_model(small, dense, batches)
            if recover is not None:
                with _timed(seconds, "recovery"):
                    # the user's function may return another model, or replace modules of the one that it got
                    small = anatomy_of(recovered(small.model, model, recover), config.attention_unit)
            rounds.append(_entry(step, small.model.pruning_plan.digest, scores.samples, seconds))
            logger.info("removed %.1f %% of prunable %s", 100 * sparsity_of(small, config), config.budget)
    asked = config.to_dict()
    if sparsity is not None:
        asked["sparsity"] = dict(sparsity)
    pruned = small.model
    # recover may have left it in training mode; another thread may have the dense model in evaluation mode for a while
    with alone_with(model):
        pruned.train(model.training)
    record = record_of(dense, before, small, asked, rounds, describe(batches))
    if config.table is not None:
        record = record.with_(latencies=measured_and_predicted(model, pruned, config.table))
    pruned.pruning_record = replace(record, seconds=round(time.perf_counter() - began, 3))
    return pruned


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Measure the time inside the `with`, and add it to the seconds of a stage."""
    began = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began


def _entry(step: Step, digest: str, samples: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The entry of a record about one round. The time of a stage that the round did not have is None."""
    entry: dict[str, Any] = {"sparsity": step, "samples": samples, "plan_digest": digest}
    for stage in ("scoring", "surgery", "reconstruction", "recovery"):
        entry[f"{stage}_seconds"] = round(seconds[stage], 3) if stage in seconds else None
    return entry


def check_portable(small: PreTrainedModel, config: PruningConfig) -> None:
    """Refuse a model that the stock class cannot load, if the config asks for a portable one.

    Args:
        small: The pruned model.
        config: The config.

    Raises:
        BudgetError: The stock config cannot say its widths.
    """
    if config.portable and isinstance(body_of(small), PrunedModel):
        raise BudgetError(
            "portable=True was asked for, but the stock config cannot say the widths of this model, as it was "
            "pruned unevenly before. Prune the dense model, or drop portable=True."
        )


def _targets(small: Anatomy, config: PruningConfig, sparsity: Step) -> list[Step]:
    """The sparsities that one round plans for: one for the whole model, or one for each block, the last block first."""
    if not get_allocator(config.allocation).block_by_block:
        return [sparsity]
    goal = plan_units(small, zero_scores(small, config), config, sparsity)
    targets: list[Step] = []
    for name, block in reversed(list(goal.blocks.items())):
        if len(block.kept) < block.units:
            targets.append({name: 1 - len(block.kept) / small.dense_units[name]})
    # a round that removes nothing still scores and repairs: with no pattern, the plan keeps all units
    return targets or [{}]


def recovered(small: PreTrainedModel, dense: PreTrainedModel, recover: Recover | None) -> PreTrainedModel:
    """Train a pruned model with a function of the user.

    Args:
        small: The pruned model.
        dense: The dense model.
        recover: The function; None: no training.

    Returns:
        The model that `recover` returned, or `small` if it returned none. Pruning goes on with it.

    Raises:
        ValueError: `recover` returned a model without the plan of `small`.
    """
    if recover is None:
        return small
    returned = inner(recover(small, dense))
    if not isinstance(returned, PreTrainedModel):
        return small
    if getattr(returned, "pruning_plan", None) != small.pruning_plan:
        raise ValueError(
            f"recover returned a {type(returned).__name__} without the pruned model's plan. It must change the weights "
            "of the first model that it is called with, and may return that."
        )
    return returned


@checked(config=A_CONFIG, collator=optional(FUNCTION))
def batches_for(
    model: PreTrainedModel, data: CalibrationData, config: PruningConfig, *, collator: Collator | None = None
) -> list[Batch]:
    """The calibration batches that `prune` uses: `calibration_batches` with the numbers of the config.

    Args:
        model: The model to prune.
        data: As for `prune`.
        config: Its fields `calibration_samples`, `calibration_batch_size`, `calibration_batch_tokens` and `seed` count.
        collator: Makes a batch from rows of a Dataset.

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
        needs_labels=any(scorer.labels == "data" for scorer in scorers_in(config.scorer)[0]),
    )


def check(
    model: ModelOrAnatomy,
    config: PruningConfig,
    sparsity: Mapping[str, float] | None = None,
    *,
    keeps: float = ROUND_KEEPS,
) -> Sequence[Step]:
    """Check the arguments of `prune` before any work is done, as far as that is possible without data.

    Args:
        model: The model to prune, or its anatomy.
        config: The config.
        sparsity: In the place of `config.sparsity`: by pattern of block names, the fraction of units to remove.
        keeps: The least share of the remaining cost that a round keeps, if the config does not give the number of
            rounds.

    Returns:
        The sparsity after each round, one number or one by pattern.

    Raises:
        BudgetError: The sparsity cannot be reached under the constraints, or the model has it already.
        PlanMismatchError: The model was pruned by another `attention_unit` than the config's.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
        StructureError: The model does not look as the table says, or is spread over devices.
        ValueError: A name is unknown, a pattern matches no block, or the sequence is too long for the model.
    """
    _check_before_reading(model_of(model), config)
    return _checked_steps(anatomy_of(model, config.attention_unit), config, sparsity, keeps=keeps)


def _checked_steps(
    anatomy: Anatomy, config: PruningConfig, sparsity: Mapping[str, float] | None, *, keeps: float
) -> Sequence[Step]:
    """The sparsity after each round, or the error of a target that cannot be reached."""
    if sparsity is None:
        start = check_target(anatomy, config)
        return sparsities(config.schedule, start=start, target=config.sparsity, rounds=config.rounds, keeps=keeps)
    if not isinstance(sparsity, Mapping) or not sparsity:
        raise ValueError(
            f"sparsity of prune is a mapping from patterns of block names to fractions, got {sparsity!r}. One "
            "number for the whole model goes into PruningConfig(sparsity=...)."
        )
    refuse_goal_beside_patterns(config)
    check_plan(anatomy, config, sparsity)
    return _steps_by_pattern(config, sparsity, keeps=keeps)


def _check_before_reading(model: PreTrainedModel, config: PruningConfig) -> None:
    """Refuse mistakes that show at once: to read a model whose type is not in the table takes seconds."""
    refuse_inference_weights(model)
    refuse_quantized(model)
    check_in_one_place(model)
    check_length(model, config.sequence_length)
    if config.table is not None:
        # the result is timed as the table was measured
        check_length(model, config.table.sequence_length, option="sequence_length of the latency table")
        warn_of_other_setting(model, config.table, config.sequence_length)
    scorers, _ = scorers_in(config.scorer)
    if any(scorer.labels != "none" for scorer in scorers):
        refuse_tuples(model)
        _check_head(model, config.scorer)


def _check_head(model: PreTrainedModel, scorer: str) -> None:
    """Refuse a base model, where the scorer goes by what a head computes."""
    # a model of the user's own may have a head and call itself the base model
    if model.base_model is not model:
        return
    with frozen(model), torch.no_grad():
        output = model(**example_batch(model, 1, 4))
    if not any(getattr(output, name, None) is not None for name in ("logits", "start_logits")):
        raise CalibrationError(
            f"scorer={scorer!r} goes by the model's logits, and {type(model).__name__} has none. Load the model with "
            "a head: AutoModelForMaskedLM, AutoModelForSequenceClassification, AutoModelForCausalLM ...; or use a "
            "scorer of weights or activations, such as l2 or fluctuation. A model of sentence embeddings is pruned by "
            "the embeddings, without labels: hfprune.prune(SentenceTransformer(...), texts)."
        )


def _steps_by_pattern(config: PruningConfig, sparsity: Mapping[str, float], *, keeps: float) -> list[Step]:
    """The sparsities by pattern after each round. The highest sparsity decides how many rounds there are."""
    highest = max(sparsity.values())
    rounds = len(sparsities(config.schedule, start=0, target=highest, rounds=config.rounds, keeps=keeps))
    steps: list[Step] = []
    for number in range(rounds):
        step = {}
        for pattern, target in sparsity.items():
            step[pattern] = sparsities(config.schedule, start=0, target=target, rounds=rounds)[number]
        steps.append(step)
    return steps
