"""score(): every unit of a model by a registered scorer, or by a hybrid of two."""

import re
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.distributed import from_main_process
from hfprune.scoring.calibration import check_batches
from hfprune.scoring.registry import Scorer, ScoringRun, get_scorer, get_statistic
from hfprune.scoring.scores import Scores
from hfprune.structure.anatomy import ModelOrAnatomy, anatomy_of
from hfprune.structure.batches import Batch, count_samples
from hfprune.structure.blocks import Block
from hfprune.structure.devices import check_can_run
from hfprune.structure.running import recomputed
from hfprune.structure.specs import AttentionUnit

#: How a hybrid joins two rankings of the units.
Rule = Literal["any", "all", "rank"]
_HYBRID = re.compile(r"hybrid\(\s*(\w+)\s*,\s*(\w+)\s*,\s*(?:rule\s*=\s*)?(\w+)\s*\)")


def scorers_in(scorer: str) -> tuple[list[Scorer], Rule | None]:
    """The registered scorers that a scorer's name stands for, and how they are joined.

    Args:
        scorer: The name of a registered scorer, or `hybrid(a, b, rule)`.

    Returns:
        One scorer and None, or two and the rule.

    Raises:
        ValueError: No scorer has that name, or no rule.
    """
    found = _HYBRID.fullmatch(scorer.strip())
    if found is None:
        return [get_scorer(scorer)], None
    rules: tuple[Rule, ...] = get_args(Rule)
    for rule in rules:
        if rule == found[3]:
            return [get_scorer(found[1]), get_scorer(found[2])], rule
    raise ValueError(f"the rule of a hybrid is one of {', '.join(rules)}, got {found[3]!r} in {scorer!r}.")


def score(
    model: ModelOrAnatomy,
    batches: Sequence[Batch],
    *,
    scorer: str = "residual_logit_fisher",
    seed: int = 0,
    teacher: PreTrainedModel | None = None,
    attention_unit: AttentionUnit | None = None,
    gradient_checkpointing: bool = False,
) -> Scores:
    """Score every unit of a model. The model is exactly as before afterwards, also after an error.

    Where `torch.distributed` is initialised, all processes must call it with the same batches: each takes its share,
    and all get the main process's scores. The model may be spread over devices or offloaded (`device_map`); scorers of
    weight gradients refuse offloaded weights.

    Args:
        model: The model, dense or pruned, or its anatomy, which spares reading it again.
        batches: Calibration batches, as `hfprune.scoring.calibration_batches` makes them.
        scorer: The name of a registered scorer, or `hybrid(a, b, rule)` with two of them and `any`, `all` or `rank`.
        seed: Of everything that is drawn.
        teacher: Draws the labels for scorers with `labels="model"`; the model itself if not given. In rounds of
            pruning it is the dense model.
        attention_unit: What units of attention with shared key/value heads are, as in `PruningConfig`. None: what the
            model was pruned by, or else `group`.
        gradient_checkpointing: Keep only the inputs of layers, and run each again in the backward pass: the same
            scores with less memory and more time. Smaller batches do as much where one sample fits.

    Returns:
        Scores of all blocks, in the model's present numbering.

    Raises:
        ValueError: No scorer has that name.
        CalibrationError: There are no batches, or they lack what the scorer needs.
        StructureError: The model does not look as its entry says, or has weights that the scorer cannot reach.
        NonFiniteScoreError: A score is NaN or infinite; the message names block, units and batch.
    """
    entries, rule = scorers_in(scorer)
    anatomy = anatomy_of(model, attention_unit)
    dense = anatomy.model if teacher is None else teacher
    batches = check_batches(batches, anatomy.model, taker="score")
    check_can_run(anatomy.model)
    check_can_run(dense)
    by_block = anatomy.zeros()
    blocks = [block for block in anatomy.blocks if block.units]
    if blocks:
        with recomputed(anatomy.model, blocks if gradient_checkpointing else []):
            by_scorer = [
                _scores_by(
                    ScoringRun(
                        model=anatomy.model, blocks=blocks, batches=batches, scorer=entry, seed=seed, teacher=dense
                    )
                )
                for entry in entries
            ]
        by_block |= by_scorer[0] if rule is None else hybrid(by_scorer[0], by_scorer[1], blocks, rule)
    from_main_process(by_block.values())
    samples = sum(count_samples(batch) for batch in batches)
    return Scores(by_block=by_block, scorer=scorer, samples=samples)


def _scores_by(run: ScoringRun) -> dict[str, Tensor]:
    """The scores of one scorer: its statistic of every block, put through its formula."""
    scores = {}
    # Gram matrices are large, so a pass may give one block after the other
    for name, statistics in get_statistic(run.scorer.reads).read(run):
        scores[name] = run.scorer.function(statistics).float()
    return scores


def hybrid(
    first: dict[str, Tensor], second: dict[str, Tensor], blocks: Sequence[Block], rule: Rule
) -> dict[str, Tensor]:
    """Join two scores by the ranks that they give to the units.

    All units of the model are ranked by score for each of their parameters, so that heads and neurons compare. At any
    threshold on the result, `any` removes exactly what either score would remove, `all` what both would, and `rank`
    goes by the mean of the two ranks.

    Args:
        first: Scores by block name, `(units,)` each.
        second: The same of another scorer.
        blocks: The blocks, which say what a unit has of parameters.
        rule: `any`, `all` or `rank`.

    Returns:
        Joined ranks from 0 to 1, times the parameters of a unit: `(units,)` float32 by block name.
    """
    ranks = torch.stack([_ranks(scores, blocks) for scores in (first, second)])
    joined = {"any": ranks.amin(0), "all": ranks.amax(0), "rank": ranks.mean(0)}[rule]
    parts = torch.split(joined, [block.units for block in blocks])
    return {block.name: part * block.unit_params for block, part in zip(blocks, parts, strict=True)}


def _ranks(scores: dict[str, Tensor], blocks: Sequence[Block]) -> Tensor:
    """Rank from 0 to 1 of every unit of the model, in the order of the blocks; ties by order."""
    density = torch.cat([scores[block.name].double() / block.unit_params for block in blocks])
    ranks = torch.empty(len(density))
    ranks[density.argsort(stable=True)] = torch.linspace(0, 1, len(density))
    return ranks
