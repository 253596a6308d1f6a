"""score(): scores of every unit of a model, by a registered scorer or by a hybrid of two."""

import re
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.distributed import from_main_process
from hfprune.errors import CalibrationError
from hfprune.scoring.calibration import total_samples
from hfprune.scoring.checks import check_batches
from hfprune.scoring.label_checks import labelled_batches
from hfprune.scoring.registry import Scorer, ScoringRun, get_scorer, get_statistic
from hfprune.scoring.scores import Scores
from hfprune.structure.anatomy import ModelOrAnatomy, anatomy_of, model_of
from hfprune.structure.arguments import ATTENTION_UNIT, FLAG, SEED, TEXT, checked, optional
from hfprune.structure.batches import Batch
from hfprune.structure.blocks import Block
from hfprune.structure.devices import check_can_run, refuse_quantized
from hfprune.structure.running import outside_inference_mode, recomputed, refuse_tuples
from hfprune.structure.sharing import alone_with
from hfprune.structure.specs import AttentionUnit
from hfprune.structure.wrapping import unwrapped

#: How a hybrid joins two rankings of the units.
Rule = Literal["any", "all", "rank"]
_HYBRID = re.compile(r"hybrid\(\s*(\w+)\s*,\s*(\w+)\s*,\s*(?:rule\s*=\s*)?(\w+)\s*\)")


@checked(scorer=TEXT)
def scorers_in(scorer: str) -> tuple[list[Scorer], Rule | None]:
    """Look up the registered scorers that a name refers to, and the rule that joins them.

    Args:
        scorer: The name of a registered scorer, or `hybrid(a, b, rule)`.

    Returns:
        One scorer and None, or two scorers and the rule of the hybrid.

    Raises:
        ValueError: A scorer or the rule is unknown.

    Examples:
        >>> from hfprune.scoring import scorers_in
        >>> scorers, rule = scorers_in("hybrid(l2, fisher, rank)")
        >>> [scorer.name for scorer in scorers], rule
        (['l2', 'fisher'], 'rank')
    """
    hybrid_name = _HYBRID.fullmatch(scorer.strip())
    if hybrid_name is None:
        return [get_scorer(scorer)], None
    first, second, asked_rule = hybrid_name.groups()
    rules: tuple[Rule, ...] = get_args(Rule)
    for rule in rules:
        if rule == asked_rule:
            return [get_scorer(first), get_scorer(second)], rule
    raise ValueError(f"the rule of a hybrid is one of {', '.join(rules)}, got {asked_rule!r} in {scorer!r}.")


@checked(scorer=TEXT)
def one_shot_form(scorer: str) -> str:
    """The scorer to use in the place of another where the model is scored only once.

    The `residual_` scorers give low scores to all units that can replace each other. That is right if only a few of
    them go before the model is scored again, and wrong if all of them may go at once.

    Args:
        scorer: The name of a registered scorer, or of a hybrid.

    Returns:
        The name that the scorer declares as `one_shot`; a hybrid's own name, as a hybrid declares none.

    Raises:
        ValueError: A scorer or the rule of a hybrid is unknown.

    Examples:
        >>> from hfprune.scoring import one_shot_form
        >>> one_shot_form("residual_logit_fisher"), one_shot_form("taylor")
        ('logit_fisher', 'taylor')
    """
    scorers, rule = scorers_in(scorer)
    if rule is not None:
        return scorer
    return scorers[0].one_shot


@checked(scorer=TEXT, seed=SEED, attention_unit=optional(ATTENTION_UNIT), gradient_checkpointing=FLAG)
@outside_inference_mode
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
    """Score every unit of a model.

    Afterwards the model is exactly as before, also after an error. It may be spread over devices or offloaded
    (`device_map`); scorers of weight gradients refuse offloaded weights.

    Where `torch.distributed` is initialised, all processes must call it with the same batches. Each process then works
    on a share of the batches, and all get the scores of the main process.

    Args:
        model: The model, dense or pruned, or its anatomy. An anatomy spares reading the structure again.
        batches: Calibration batches, as `hfprune.scoring.calibration_batches` makes them.
        scorer: The name of a registered scorer, or `hybrid(a, b, rule)` with two of them and `any`, `all` or `rank`.
        seed: The seed of all random draws.
        teacher: The model that draws the labels for scorers that need the labels of a model (`kl_fisher`). None: the
            scored model itself. When a model is pruned in rounds, it is the dense model.
        attention_unit: The unit of attention with shared key/value heads, as in `PruningConfig`. None: the unit that
            the model was pruned by, or `group` if it was not pruned.
        gradient_checkpointing: Keep only the inputs of layers, and run every layer again in the backward pass: the
            same scores with less memory and more time. Smaller batches save as much, if one sample fits in memory.

    Returns:
        Scores of all blocks. Units are numbered as in this model.

    Raises:
        ValueError: A scorer or the rule of a hybrid is unknown.
        CalibrationError: There are no batches, or they lack what the scorer needs.
        StructureError: The model does not look as its entry says, returns tuples where the scorer needs logits, or has
            weights that the scorer cannot reach.
        NonFiniteScoreError: A score is NaN or infinite; the message names block, units and batch.

    Examples:
        >>> import hfprune
        >>> scores = hfprune.score(dense, batches, scorer="logit_fisher")
        >>> for block, values in scores.items():
        ...     print(block, tuple(values.shape))
        encoder.layer.0.attention (4,)
        encoder.layer.0.ffn (32,)
        encoder.layer.1.attention (4,)
        encoder.layer.1.ffn (32,)

        Two scorers joined: the mean of the ranks that they give to each unit.

        >>> joined = hfprune.score(dense, batches, scorer="hybrid(l2, fisher, rank)")
        >>> joined.scorer, int(joined["encoder.layer.0.attention"].argmax())
        ('hybrid(l2, fisher, rank)', 0)
    """
    entries, rule = scorers_in(scorer)
    refuse_quantized(unwrapped(model_of(model)))
    # before the model is read, which takes seconds if its type is not in the table
    if any(entry.labels != "none" for entry in entries):
        refuse_tuples(model_of(model))
        refuse_tuples(unwrapped(model_of(model) if teacher is None else teacher))
    needs_labels = any(entry.labels == "data" for entry in entries)
    batches = check_batches(batches, model_of(model), taker="score", needs_labels=needs_labels)
    if needs_labels:
        batches = labelled_batches(batches, model_of(model))
    anatomy = anatomy_of(model, attention_unit)
    teacher = anatomy.model if teacher is None else unwrapped(teacher)
    check_can_run(anatomy.model)
    check_can_run(teacher)
    # a block that was removed has no units to score: it keeps its empty tensor
    by_block = anatomy.zeros()
    blocks = [block for block in anatomy.blocks if block.units]
    if blocks:
        by_scorer = []
        with (
            alone_with(anatomy.model, teacher),
            recomputed(anatomy.model, blocks if gradient_checkpointing else []),
        ):
            for entry in entries:
                run = ScoringRun(
                    model=anatomy.model, blocks=blocks, batches=batches, scorer=entry, seed=seed, teacher=teacher
                )
                by_scorer.append(_scores_by(run))
        if rule is None:
            by_block |= by_scorer[0]
        else:
            by_block |= hybrid(by_scorer[0], by_scorer[1], blocks, rule)
    # processes on different hardware may differ in the last bit, and so in the plan
    from_main_process(by_block.values())
    return Scores(by_block=by_block, scorer=scorer, samples=total_samples(batches))


def _scores_by(run: ScoringRun) -> dict[str, Tensor]:
    """The scores of one scorer, by block name: its formula, applied to the statistic of every block."""
    scores = {}
    # Gram matrices are large: their pass gives one block after the other, and each goes before the next one comes
    for name, statistics in get_statistic(run.scorer.reads).read(run):
        scores[name] = run.scorer.function(statistics).float()
    if run.scorer.needs and not any(values.any() for values in scores.values()):
        raise CalibrationError(
            f"all scores of {run.scorer.name} are 0: in these batches no unit changes what the scorer measures, so it "
            "cannot tell which to keep. Look at the labels and masks of the batches, and at the weights of the head."
        )
    return scores


def hybrid(
    first: dict[str, Tensor], second: dict[str, Tensor], blocks: Sequence[Block], rule: Rule
) -> dict[str, Tensor]:
    """Join two scores by the ranks that they give to the units.

    All units of the model are ranked by score per parameter, so that heads and neurons compare. At any threshold on the
    result, `any` removes exactly the units that at least one of the two scores would remove, `all` the units that both
    would remove, and `rank` goes by the mean of the two ranks.

    Args:
        first: Scores by block name, `(units,)` each.
        second: Scores of another scorer, in the same form.
        blocks: The blocks; each says how many parameters a unit has.
        rule: `any`, `all` or `rank`.

    Returns:
        Joined ranks from 0 to 1, times the parameters of a unit, `(units,)` float32 by block name.
    """
    ranks = torch.stack([_ranks(first, blocks), _ranks(second, blocks)])
    if rule == "any":
        joined = ranks.amin(0)
    elif rule == "all":
        joined = ranks.amax(0)
    else:
        joined = ranks.mean(0)
    ranks_of_blocks = torch.split(joined, [block.units for block in blocks])
    scores = {}
    for block, ranks_of_block in zip(blocks, ranks_of_blocks, strict=True):
        # the score per parameter is then the joined rank again
        scores[block.name] = ranks_of_block * block.unit_params
    return scores


def _ranks(scores: dict[str, Tensor], blocks: Sequence[Block]) -> Tensor:
    """The rank, from 0 to 1, of every unit of the model, in the order of the blocks; equal units in their order."""
    density = torch.cat([scores[block.name].double() / block.unit_params for block in blocks])
    ranks = torch.empty(len(density), dtype=torch.float32, device="cpu")
    ranks[density.argsort(stable=True)] = torch.linspace(0, 1, len(density), dtype=torch.float32, device="cpu")
    return ranks
