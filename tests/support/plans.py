"""Plans with a different width in every layer, and checkpoints that are made quickly."""

import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch

import hfprune
from hfprune import PruningConfig
from hfprune.planning import PruningPlan
from hfprune.publishing import card
from hfprune.showing.picture import can_draw
from hfprune.structure import find_blocks
from hfprune.structure.architectures import base_model_type
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenizer

QUICK = {"sparsity": 0.5, "sequence_length": 8, "scorer": "l2", "reconstruct": False, "schedule": "one_shot"}


def quick_checkpoint(folder: Path) -> Path:
    """A pruned classifier with its tokenizer. It is made once, with its pictures, and copied for each test."""
    # new times, as after a download: a checkpoint that was verified is recognised by the time of its weights
    return shutil.copytree(Path(_quick_checkpoint().name), folder, copy_function=shutil.copyfile)


@cache
def _quick_checkpoint() -> TemporaryDirectory:
    made = TemporaryDirectory(prefix="quick_checkpoint")
    small = hfprune.prune(tiny_model("bert", num_labels=3), [tiny_batch()], PruningConfig(**QUICK))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "can_draw", can_draw)
        hfprune.save(small, made.name, tokenizer=tiny_tokenizer())
    return made


def uneven_kept(model, *, seed: int = 1, attention_unit=None) -> dict[str, list[int]]:
    """Random units, fewer in every further block."""
    generator = torch.Generator().manual_seed(seed)
    kept, attentions = {}, 0
    for index, block in enumerate(find_blocks(model, attention_unit)):
        count = block.units - 1 - attentions if block.kind == "attention" else block.units - 3 - 5 * index
        attentions += block.kind == "attention"
        if block.groups == 1:
            kept[block.name] = sorted(torch.randperm(block.units, generator=generator)[: max(1, count)].tolist())
        else:  # as many query heads of every group
            size = block.units // block.groups
            stay = max(1, size - attentions)
            chosen = [torch.randperm(size, generator=generator)[:stay] + size * g for g in range(block.groups)]
            kept[block.name] = sorted(torch.cat(chosen).tolist())
    return kept


def uneven_plan(model, *, seed: int = 1, attention_unit=None) -> PruningPlan:
    return PruningPlan.keep(
        find_blocks(model, attention_unit),
        uneven_kept(model, seed=seed, attention_unit=attention_unit),
        model_type=base_model_type(model.config.model_type),
        sequence_length=8,
    )


def removed_blocks(model):
    """The feed-forward block of the first layer and the attention of the last, where they can go."""
    blocks = [block for block in find_blocks(model) if block.least == 0]
    ffns, attentions = ([block for block in blocks if block.kind == kind] for kind in ("ffn", "attention"))
    return [*ffns[:1], *attentions[-1:]]


def removed_plan(model) -> PruningPlan:
    return PruningPlan.keep(
        find_blocks(model),
        {block.name: [] for block in removed_blocks(model)},
        model_type=base_model_type(model.config.model_type),
        sequence_length=8,
    )


def as_gates(model, kept) -> dict[str, torch.Tensor]:
    unit = "query" if any(name.endswith(".queries") for name in kept) else "group"
    return {
        block.name: torch.zeros(block.units).index_fill(0, torch.tensor(kept[block.name], dtype=torch.long), 1.0)
        for block in find_blocks(model, unit)
    }
