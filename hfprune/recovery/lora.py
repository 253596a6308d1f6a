"""Recovery by low-rank adapters, through peft: attached to the projections of the blocks, merged before saving."""

from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from hfprune.structure.anatomy import anatomy_of
from hfprune.structure.blocks import base_model_prefix

if TYPE_CHECKING:
    from peft import PeftModel


def with_adapters(model: PreTrainedModel, *, rank: int, alpha: int, dropout: float) -> "PeftModel":
    """Attach adapters to every projection of a model's blocks, and freeze the model but for heads of its own.

    Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".

    Args:
        model: The model; its modules are replaced in place until `merged`.
        rank: Rank of the adapters.
        alpha: They are scaled by alpha / rank.
        dropout: Dropout before them.

    Returns:
        The model, wrapped.

    Raises:
        ImportError: peft is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ImportError("lora_rank > 0 needs peft: pip install peft") from error
    prefix = base_model_prefix(model)
    targets = []
    transposed = False
    for path in _projections(model):
        targets.append(prefix + path)
        # weights of transformers' Conv1D are transposed, which peft must be told
        if not isinstance(model.base_model.get_submodule(path), nn.Linear):
            transposed = True
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=targets,
        modules_to_save=_heads(model) or None,
        fan_in_fan_out=transposed,
    )
    return get_peft_model(model, config)


def _projections(model: PreTrainedModel) -> list[str]:
    """Paths from the base model of all projections of blocks that have units left, each once."""
    paths: dict[str, None] = {}
    # by groups also where units are query heads, which own no key and value projection
    for block in anatomy_of(model, "group").blocks:
        if block.units:
            paths |= dict.fromkeys((*block.producers, block.consumer))
    return list(paths)


def _heads(model: PreTrainedModel) -> list[str]:
    """Names of the modules beside the base model that have parameters, all of them their own."""
    in_base = set(map(id, model.base_model.parameters()))
    heads = []
    for name, module in model.named_children():
        parameters = list(module.parameters())
        # a head that shares the embeddings would have to be trained as a copy of them
        owns_all = in_base.isdisjoint(map(id, parameters))
        if module is not model.base_model and parameters and owns_all:
            heads.append(name)
    return heads


def has_adapters(model: nn.Module) -> bool:
    """Whether a model carries adapters: `with_adapters` attached them, and they were not merged since."""
    return hasattr(model, "merge_and_unload")


def merged(model: "PeftModel") -> PreTrainedModel:
    """Merge adapters into the weights of the model that they were attached to.

    Args:
        model: What `with_adapters` returned.

    Returns:
        That model, without peft; its base model is still frozen.
    """
    plain: PreTrainedModel = model.merge_and_unload()
    return plain
