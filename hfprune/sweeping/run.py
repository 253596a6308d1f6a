"""sweep(): one scoring pass, many sizes, each cut, repaired, recovered if you like, and measured."""

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from transformers import PreTrainedModel
from transformers.utils.logging import tqdm

from hfprune.config import PruningConfig
from hfprune.measuring.latency import Latency, measure_latencies
from hfprune.measuring.size import measure_size
from hfprune.planning import PruningPlan
from hfprune.pruning.prune import Recover, batches_for, check, check_portable, recovered
from hfprune.pruning.steps import apply_plan, plan, sparsity_of
from hfprune.publishing.record import public_name
from hfprune.reconstruction.reconstruct import reconstruct
from hfprune.scoring import CalibrationData, Collator, known_scorers, score
from hfprune.structure.batches import Batch
from hfprune.structure.running import frozen
from hfprune.structure.store import sha256_of
from hfprune.sweeping.curve import Sweep, in_order
from hfprune.sweeping.points import SweepPoint, outcome_of

logger = logging.getLogger(__name__)
#: From a model to a number, or to one number or bool a sample; higher is better.
Evaluate: TypeAlias = Callable[[PreTrainedModel], Any]


def sweep(
    model: PreTrainedModel,
    data: CalibrationData,
    config: PruningConfig | None = None,
    *,
    sparsities: Iterable[float],
    evaluate: Evaluate,
    recover: Recover | None = None,
    collator: Collator | None = None,
    latency_batch_size: int | None = 32,
    latency_runs: int = 20,
    metric: str = "metric",
    save_to: str | Path | None = None,
) -> Sweep:
    """Measure one model at many sparsities, from one scoring pass.

    Each point is what these steps give, which for `schedule="one_shot"` are those of `prune`:

        plans = plan(model, score(model, batches, scorer=config.scorer, ...), config, sparsity=[...])  # nested
        for made in plans:
            small = apply_plan(model, made)
            if config.reconstruct:
                reconstruct(small, model, batches)
            recover(small, model)
            evaluate(small)

    A sweep is one shot, and a config of rounds (all but `schedule="one_shot"`) is taken in its one-shot form: the
    `residual_` scorers, which are made for rounds, are replaced by those that they are named after, so the default is
    `logit_fisher`. To have a residual scorer all the same, say `schedule="one_shot"`. `prune` in rounds loses less at
    the same sparsity, so a sweep without recovery shows the least that you can expect; `prune_within` searches with it.

    Args:
        model: The dense model. It stays as it is, and is the first point.
        data: Calibration data, as for `prune`.
        config: What to do; `sparsity` and `rounds` do not count.
        sparsities: Fractions of the prunable cost to remove, in any order.
        evaluate: Measures a model, in evaluation mode: a number, or one number or bool a sample (as `correctness`
            gives), of which the mean is taken and which allows `Sweep.within`. Higher is better.
        recover: Called with every pruned model and the dense one: trains the first in place, or returns the model to
            go on with. It is the place to save a model, too, as the sweep keeps none.
        collator: Makes a batch of rows of a Dataset; `DataCollatorWithPadding(tokenizer)` pads.
        latency_batch_size: Sequences in a batch, `config.sequence_length` tokens each. All models are timed in turn, so
            all are in memory at once while that lasts; None leaves it out.
        latency_runs: How many forward passes of each model are timed.
        metric: What `evaluate` measures, for the table and the picture.
        save_to: A JSON file, written after every point. If it is there, its points are not measured again, and those
            of other sparsities stay in it and in the result; only the latencies, which are compared with each other,
            are timed anew if a point is added. What `evaluate` and `recover` do is not known to the file: take another
            one when they change.

    Returns:
        The points, and what can be read from them.

    Raises:
        BudgetError: A sparsity cannot be reached under the constraints, or the model has it already.
        CalibrationError: The calibration data cannot be used.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
        StructureError: The model does not look as the table says.
        NonFiniteScoreError: A score is NaN or infinite.
        ValueError: No sparsities, or some out of [0, 1); an unknown scorer or allocation, or one that cannot do with
            one pass; `evaluate` returned something else; or `save_to` holds a sweep with other settings.
    """
    config = one_shot_of(config or PruningConfig())
    wanted = _checked(model, config, sparsities)
    batches = batches_for(model, data, config, collator=collator)
    settings = settings_of(model, batches, config, metric=metric, recover=recover is not None)
    settings |= {"latency_batch_size": latency_batch_size, "latency_runs": latency_runs}
    earlier = _earlier(save_to, settings)
    if earlier is not None and {0.0, *wanted} <= {point.sparsity for point in earlier.points}:
        logger.info("all %d points are in %s already", len(earlier.points), save_to)
        return earlier
    known = {} if earlier is None else {point.sparsity: point for point in earlier.points}
    began = time.perf_counter()
    scores = score(
        model,
        batches,
        scorer=config.scorer,
        seed=config.seed,
        teacher=model,
        attention_unit=config.attention_unit,
        gradient_checkpointing=config.calibration_checkpointing,
    )
    scoring_seconds = time.perf_counter() - began
    wanted = sorted({*wanted, *known} - {0.0})
    plans: dict[float, PruningPlan | None] = {0.0: None}
    plans |= dict(zip(wanted, plan(model, scores, config, sparsity=wanted), strict=True))
    timed = _latencies(model, plans, config, batch_size=latency_batch_size, runs=latency_runs)
    points = {
        s: replace(p, **timed[s]) for s, p in known.items() if p.plan_digest == _digest(_composed(model, plans[s]))
    }

    def gathered() -> Sweep:
        return Sweep(points=in_order(points.values()), settings=settings, scoring_seconds=scoring_seconds)

    for sparsity, made in tqdm(plans.items(), desc="Sweeping", unit="point"):
        if sparsity in points:
            continue
        began = time.perf_counter()
        small = model if made is None else _pruned(model, made, batches, config, recover)
        point = measured(small, _composed(model, made), config, sparsity=sparsity, evaluate=evaluate, began=began)
        points[sparsity] = replace(point, **timed[sparsity])
        check_samples(points[0.0], point)
        logger.info("sparsity %.2f: %s %.4f, %.1f s", sparsity, metric, point.metric, point.seconds)
        if save_to is not None:
            gathered().save(save_to)
    return gathered()


def one_shot_of(config: PruningConfig) -> PruningConfig:
    """A config of rounds in one shot: the scorer without `residual_`; a config of one shot as it is.

    >>> one_shot_of(PruningConfig()).scorer, one_shot_of(PruningConfig(scorer="fisher")).scorer
    ('logit_fisher', 'fisher')
    >>> one_shot_of(PruningConfig(scorer="residual_fisher", schedule="one_shot")).scorer
    'residual_fisher'

    Args:
        config: A config.

    Returns:
        One with `schedule="one_shot"`.
    """
    if config.schedule == "one_shot":
        return config
    plain = config.scorer.removeprefix("residual_")
    scorer = plain if plain in known_scorers() else config.scorer
    return replace(config, schedule="one_shot", rounds=None, scorer=scorer)


def measured(
    model: PreTrainedModel,
    made: PruningPlan | None,
    config: PruningConfig,
    *,
    sparsity: float,
    evaluate: Evaluate,
    began: float,
) -> SweepPoint:
    """Evaluate and count a model; its latency is not measured.

    Args:
        model: The model.
        made: Its plan, in the dense model's numbering; None if nothing was removed.
        config: For the length of a sequence, and the unit of attention.
        sparsity: What was asked for.
        evaluate: Measures it.
        began: When the work on it began, by `time.perf_counter`.

    Returns:
        The point.

    Raises:
        ValueError: `evaluate` returned neither a finite number nor numbers.
    """
    with frozen(model):
        value, per_sample = outcome_of(evaluate(model))
    return SweepPoint(
        sparsity=sparsity,
        mac_sparsity=sparsity_of(model, replace(config, budget="macs")),
        param_sparsity=sparsity_of(model, replace(config, budget="params")),
        metric=value,
        per_sample=per_sample,
        size=measure_size(model, sequence_length=config.sequence_length, attention_unit=config.attention_unit),
        seconds=time.perf_counter() - began,
        plan_digest=_digest(made),
    )


def check_samples(dense: SweepPoint, point: SweepPoint) -> None:
    """Refuse points that were measured on different samples.

    Args:
        dense: The first point.
        point: Another one.

    Raises:
        ValueError: The numbers of samples differ.
    """
    if dense.samples != point.samples:
        raise ValueError(
            f"evaluate gave {dense.samples or 'no'} values of samples for the dense model, but "
            f"{point.samples or 'none'} at sparsity {point.sparsity:g}. It must measure all models on the same "
            "samples, in the same order."
        )


def settings_of(
    model: PreTrainedModel, batches: Sequence[Batch], config: PruningConfig, *, metric: str, recover: bool
) -> dict[str, Any]:
    """What the points of a sweep depend on, as plain values; `evaluate` and what `recover` does are not known.

    Args:
        model: The model.
        batches: The calibration batches.
        config: The config; its sparsity does not count.
        metric: What the metric is called.
        recover: Whether pruned models are recovered.

    Returns:
        The config's fields, and digests of the weights and of the calibration batches.
    """
    fields = {name: value for name, value in config.to_dict().items() if name != "sparsity"}
    return {
        "model": public_name(model.config._name_or_path or ""),
        "weights": sha256_of(model.state_dict()),
        "calibration": sha256_of({f"{i}.{name}": value for i, b in enumerate(batches) for name, value in b.items()}),
        "metric": metric,
        "recover": recover,
        **fields,
    }


def _checked(model: PreTrainedModel, config: PruningConfig, sparsities: Iterable[float]) -> list[float]:
    """The sparsities in order, each once, without 0; every mistake that can be found without data is raised."""
    wanted = sorted({float(sparsity) for sparsity in sparsities} - {0.0})
    if not wanted:
        raise ValueError("sparsities is empty: give at least one, such as [0.3, 0.5, 0.7]. 0 is measured anyway.")
    if config.allocation == "layerwise":
        raise ValueError(
            "allocation='layerwise' scores anew after every block, and a sweep has one scoring pass. 'uniform' gives "
            "the same widths."
        )
    for sparsity in wanted:
        check(model, replace(config, sparsity=sparsity))
    return wanted


def _earlier(path: str | Path | None, settings: Mapping[str, Any]) -> Sweep | None:
    """The sweep that a file holds, if there is one."""
    if path is None or not Path(path).is_file():
        return None
    found = Sweep.from_json(Path(path).read_text(encoding="utf-8"))
    plain = json.loads(json.dumps(settings))
    other = [name for name in {**found.settings, **plain} if found.settings.get(name) != plain.get(name)]
    if other:
        listed = ", ".join(f"{name} ({found.settings.get(name)!r}, now {plain.get(name)!r})" for name in other)
        raise ValueError(
            f"{path} holds a sweep with other settings: {listed}. Its points cannot be compared with new ones: choose "
            "another file, or delete this one."
        )
    return found


def _pruned(
    model: PreTrainedModel, made: PruningPlan, batches: Sequence[Batch], config: PruningConfig, recover: Recover | None
) -> PreTrainedModel:
    small = apply_plan(model, made)
    check_portable(small, config)
    if config.reconstruct:
        reconstruct(small, model, batches)
    return recovered(small, model, recover)


def _latencies(
    model: PreTrainedModel,
    plans: Mapping[float, PruningPlan | None],
    config: PruningConfig,
    *,
    batch_size: int | None,
    runs: int,
) -> dict[float, dict[str, Any]]:
    """By sparsity, the latency and speed-up of a point: of all models in turn, so that they can be compared."""
    if batch_size is None:
        return {sparsity: {"latency": None, "speedup": None} for sparsity in plans}
    models = [model if made is None else apply_plan(model, made) for made in plans.values()]
    found: list[Latency] = measure_latencies(
        models, batch_size=batch_size, sequence_length=config.sequence_length, runs=runs
    )
    return {
        sparsity: {"latency": latency, "speedup": found[0].median_ms / latency.median_ms}
        for sparsity, latency in zip(plans, found, strict=True)
    }


def _composed(model: PreTrainedModel, made: PruningPlan | None) -> PruningPlan | None:
    """A plan for this model in the dense model's numbering; None if both are one and nothing is removed."""
    attached: PruningPlan | None = getattr(model, "pruning_plan", None)
    return made if attached is None else attached if made is None else attached.then(made)


def _digest(made: PruningPlan | None) -> str:
    return "" if made is None else made.digest
