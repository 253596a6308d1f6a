"""Checkpoints as transformers 4 and TextPruner wrote them."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel

import hfprune
from hfprune import PruningPlan
from hfprune.structure import find_blocks
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_tokenizer

#: The removed heads by layer.
GONE = {0: [1, 3], 1: [0]}


def old_checkpoint(
    folder: Path, gone: Mapping[int, list[int]] = GONE, *, neurons: int = 40, tokenizer: bool = False
) -> PreTrainedModel:
    """As transformers 4 wrote it after `prune_heads` (and TextPruner after cutting all FFNs alike), and the model."""
    dense = tiny_model("bert", num_labels=3)
    kept = {}
    for index, block in enumerate(find_blocks(dense)):
        if block.kind == "attention":
            kept[block.name] = [head for head in range(block.units) if head not in gone.get(index // 2, [])]
        else:
            kept[block.name] = list(range(neurons))
    small = hfprune.apply_plan(dense, PruningPlan.keep(find_blocks(dense), kept, model_type="bert", sequence_length=8))
    small.save_pretrained(folder)
    config = dense.config.to_dict()
    config.update(
        pruned_heads={str(layer): heads for layer, heads in gone.items()},
        intermediate_size=neurons,
        transformers_version="4.30.0",
        architectures=["BertForSequenceClassification"],
        _name_or_path="google-bert/bert-base-uncased",
    )
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("pruning_plan.json", "modeling_pruned.py", "pruning_record.json"):
        (folder / name).unlink(missing_ok=True)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return small


def pickle_weights(folder: Path, model: PreTrainedModel) -> None:
    """Put pickled weights in the place of the others, as TextPruner saves them."""
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
