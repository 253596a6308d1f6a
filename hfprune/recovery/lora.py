"""Recovery by low-rank adapters, through peft: attached to the projections of our blocks, merged before saving."""

from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from hfprune.structure.anatomy import find_blocks
from hfprune.structure.blocks import base_model_prefix

if TYPE_CHECKING:
    from peft import PeftModel


def with_adapters(model: PreTrainedModel, *, rank: int, alpha: int, dropout: float) -> "PeftModel":
    """Attach adapters to every projection of a model's blocks; they and a head of its own learn, the rest is frozen.

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
        raise ImportError("lora_rank > 0 needs peft: pip install 'hfprune[lora]' (or pip install peft).") from error
    prefix = base_model_prefix(model)
    blocks = [block for block in find_blocks(model, "group") if block.units]
    paths = dict.fromkeys(path for block in blocks for path in (*block.producers, block.consumer))
    tied = {id(parameter) for parameter in model.base_model.parameters()}
    heads = [
        name
        for name, module in model.named_children()
        if module is not model.base_model
        and any(True for _ in module.parameters())
        # a head that shares the embeddings would have to be trained as a copy of them
        and not any(id(parameter) in tied for parameter in module.parameters())
    ]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=[prefix + path for path in paths],
        modules_to_save=heads or None,
        fan_in_fan_out=any(not isinstance(model.base_model.get_submodule(path), nn.Linear) for path in paths),
    )
    return get_peft_model(model, config)


def has_adapters(model: nn.Module) -> bool:
    """Whether `with_adapters` made a model, and it was not merged since."""
    return hasattr(model, "merge_and_unload")


def merged(model: "PeftModel") -> PreTrainedModel:
    """The model that adapters were attached to, with what they learned in its weights.

    Args:
        model: What `with_adapters` returned.

    Returns:
        The model, of its own class, without peft; its base is still frozen.
    """
    plain: PreTrainedModel = model.merge_and_unload()
    return plain
