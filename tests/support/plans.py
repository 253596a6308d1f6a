"""Plans with a different width in every layer."""

import torch

from hfprune.planning import PruningPlan
from hfprune.structure import find_blocks
from hfprune.structure.architectures import base_model_type


def uneven_kept(model, *, seed: int = 1) -> dict[str, list[int]]:
    """Random units, fewer in every further block."""
    generator = torch.Generator().manual_seed(seed)
    kept, attentions = {}, 0
    for index, block in enumerate(find_blocks(model)):
        count = block.units - 1 - attentions if block.kind == "attention" else block.units - 3 - 5 * index
        attentions += block.kind == "attention"
        kept[block.name] = sorted(torch.randperm(block.units, generator=generator)[: max(1, count)].tolist())
    return kept


def uneven_plan(model, *, seed: int = 1) -> PruningPlan:
    return PruningPlan.keep(
        find_blocks(model),
        uneven_kept(model, seed=seed),
        model_type=base_model_type(model.config.model_type),
        sequence_length=8,
    )


def removed_blocks(model):
    """The feed-forward block of the first layer and the attention of the last, where they can go."""
    blocks = [block for block in find_blocks(model) if block.least == 0]
    attentions = [block for block in blocks if block.kind == "attention"]
    return [next(block for block in blocks if block.kind == "ffn"), *attentions[-1:]]


def removed_plan(model) -> PruningPlan:
    return PruningPlan.keep(
        find_blocks(model),
        {block.name: [] for block in removed_blocks(model)},
        model_type=base_model_type(model.config.model_type),
        sequence_length=8,
    )


def as_gates(model, kept) -> dict[str, torch.Tensor]:
    return {
        block.name: torch.zeros(block.units).index_fill(0, torch.tensor(kept[block.name], dtype=torch.long), 1.0)
        for block in find_blocks(model)
    }
