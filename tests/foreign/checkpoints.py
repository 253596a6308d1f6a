"""Tiny checkpoints, dense and pruned, under the names that other projects' tests load from the Hub."""

import os
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import hfprune
from hfprune.planning import PruningPlan
from hfprune.structure import find_blocks
from hfprune.structure.architectures import base_model_type
from tests.support.tiny import SIZES, tiny_model
from tests.support.tiny_tokenizers import trained

#: Some methods of other libraries want a number of features that 8 divides, so neurons go eight at a time.
NEURONS = 8
#: Wide enough for ranks of 8 in every layer that is left. Token ids of other tests are small.
WIDER = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": 1024}
#: Decoders, by type: what their configs say beyond the sizes of the other tests.
CHANGES = {
    "gpt2": {"n_embd": 64, "n_inner": 64, "vocab_size": 1024},
    "gemma3_text": {**WIDER, "head_dim": 8},
    "llama": {**WIDER, "head_dim": 8},
    "mistral": {**WIDER, "head_dim": 8},
    "opt": {"hidden_size": 64, "ffn_dim": 64, "word_embed_proj_dim": 64, "vocab_size": 1024},
    "qwen2": WIDER,
}
GPTJ = {"n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8, "n_positions": 160, "vocab_size": 1024}
GPTJ |= {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}


def tiny(model_type: str) -> PreTrainedModel:
    """A tiny random decoder, or a classifier of the other types."""
    if model_type in CHANGES:
        return tiny_model(model_type, "AutoModelForCausalLM", **CHANGES[model_type])
    if model_type in SIZES:
        return tiny_model(model_type, **WIDER)
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **GPTJ)).eval()


def uneven(model: PreTrainedModel) -> PreTrainedModel:
    """The model with another width in every layer: one head less in the first, 8 and 16 neurons less."""
    kept = {}
    neurons = 0
    for index, block in enumerate(find_blocks(model)):
        if block.kind == "ffn":
            neurons += NEURONS
            kept[block.name] = list(range(neurons, block.units))
        elif index < 2:
            kept[block.name] = list(range(1, block.units))
    plan = PruningPlan.keep(
        find_blocks(model), kept, model_type=base_model_type(model.config.model_type), sequence_length=8
    )
    return hfprune.apply_plan(model, plan)


def as_repository(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, name: str, home: Path) -> None:
    """Save a model where huggingface_hub looks for what it has downloaded.

    Args:
        model: The model, dense or pruned.
        tokenizer: Its tokenizer.
        name: The repository, such as `gpt2` or `owner/name`.
        home: What `HF_HOME` is set to.
    """
    folder = home / "hub" / f"models--{name.replace('/', '--')}"
    commit = "0" * 40
    snapshot = folder / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    model.save_pretrained(snapshot)
    tokenizer.save_pretrained(snapshot)


def hub_of(names: dict[str, str], *, home: Path, is_pruned: bool) -> dict[str, str]:
    """A cache of the Hub with a tiny model under every name.

    Args:
        names: By name of a repository, the model type.
        home: The folder of the cache; it is made.
        is_pruned: Whether the models are pruned.

    Returns:
        Variables of the environment, for a process that uses the cache.
    """
    tokenizer = trained("byte_level")
    for name, model_type in names.items():
        model = tiny(model_type)
        as_repository(uneven(model) if is_pruned else model, tokenizer, name=name, home=home)
    return {"HF_HOME": os.fspath(home), "HF_HUB_CACHE": os.fspath(home / "hub"), "HF_HUB_OFFLINE": "1"}
