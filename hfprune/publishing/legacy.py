"""Read checkpoints that transformers 4 pruned: `pruned_heads` in the config, as TextPruner and others wrote them."""

import json
import logging
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from hfprune.errors import CheckpointError
from hfprune.measuring.size import dense_size, measure_size
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.record import PruningRecord, blocks_of, public_name
from hfprune.publishing.verification import class_of, detours
from hfprune.structure.anatomy import find_blocks
from hfprune.structure.architectures import base_model_type
from hfprune.structure.blocks import Block
from hfprune.structure.surgery import skeleton

logger = logging.getLogger(__name__)


def load_legacy(folder: str | Path, *, sequence_length: int = 128, pickled: bool = False) -> PreTrainedModel:
    """Load a checkpoint whose config lists `pruned_heads`, which transformers 5 ignores.

    Its feed-forward widths are those of its config (TextPruner sets `intermediate_size` there): what was cut from them
    is not known, so the plan counts from the present width.

    Args:
        folder: The folder, with config.json and weights.
        sequence_length: Tokens in a sequence, for the plan's multiply-adds.
        pickled: Whether the weights may be read from pytorch_model.bin, as TextPruner writes it, by
            `torch.load(weights_only=True)`, which makes tensors and runs no code.

    Returns:
        A pruned model with plan and record, as `hfprune.load` gives it; `save` writes it in our form.

    Raises:
        CheckpointError: There is no config, no `pruned_heads` in it, no weights, or they do not fit each other.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
    """
    folder = Path(folder)
    config = _config(folder)
    heads = _pruned_heads(config.pop("pruned_heads", None), folder)
    _check_weights(folder, pickled=pickled)
    for problem in detours(folder):
        raise CheckpointError(f"{folder}: {problem}")
    dense_config = AutoConfig.for_model(
        **{k: v for k, v in config.items() if k not in ("auto_map", "transformers_version")}
    )
    with torch.device("meta"):
        dense = class_of(config.get("architectures") or [], str(folder))(dense_config)
    blocks = find_blocks(dense)
    kept = _kept(blocks, heads)
    small, _ = skeleton(dense, kept, blocks=blocks)
    try:
        model, report = type(small).from_pretrained(
            folder, config=small.config, output_loading_info=True, use_safetensors=not pickled, weights_only=True
        )
    except UnpicklingError as error:
        raise CheckpointError(f"{folder}/{WEIGHTS_NAME} holds more than tensors and is not read: {error}") from error
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the weights in {folder} do not have the shapes that its pruned_heads and intermediate_size say: {error}"
        ) from error
    if report["missing_keys"]:
        missing = ", ".join(sorted(report["missing_keys"])[:5])
        raise CheckpointError(f"{folder} has no weights for {missing}: it is not whole.")
    if report["unexpected_keys"]:
        logger.warning("%s has tensors that the model does not use: %s", folder, sorted(report["unexpected_keys"])[:5])
    model.pruning_plan = PruningPlan.keep(
        blocks, kept, model_type=base_model_type(dense_config.model_type), sequence_length=sequence_length
    )
    size = measure_size(model, sequence_length=sequence_length)
    model.pruning_record = PruningRecord(
        base_model=public_name(config["_name_or_path"]) if config.get("_name_or_path") else "",
        model_class=type(dense).__name__,
        config={},
        plan_digest=model.pruning_plan.digest,
        blocks=blocks_of(model.pruning_plan),
        sizes={"dense": vars(dense_size(model, size)), "pruned": vars(size)},
    )
    loaded: PreTrainedModel = model
    return loaded


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no config.json that can be read: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"config.json in {folder} names no model_type: it is not a checkpoint of transformers.")
    return config


def _pruned_heads(value: Any, folder: Path) -> dict[int, set[int]]:
    """Heads that are gone, by layer."""
    if not isinstance(value, dict):
        raise CheckpointError(
            f"config.json in {folder} has no pruned_heads: nothing says which heads are gone. Load a model with plain "
            "widths by AutoModelForX.from_pretrained, and one that hfprune saved by hfprune.load."
        )
    try:
        return {int(layer): {int(head) for head in heads} for layer, heads in value.items()}
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"pruned_heads in config.json of {folder} is no mapping from layers to lists of heads: {error}"
        ) from error


def _kept(blocks: list[Block], heads: dict[int, set[int]]) -> dict[str, list[int]]:
    """Heads that are left, by block."""
    attention = [block for block in blocks if block.kind == "attention"]
    for layer, gone in heads.items():
        if not 0 <= layer < len(attention) or any(not 0 <= head < attention[layer].units for head in gone):
            raise CheckpointError(
                f"pruned_heads names heads {sorted(gone)[:8]} of layer {layer}, but the model has {len(attention)} "
                f"layers of {attention[0].units} heads."
            )
    return {
        block.name: [head for head in range(block.units) if head not in heads.get(layer, ())]
        for layer, block in enumerate(attention)
    }


def _check_weights(folder: Path, *, pickled: bool) -> None:
    names = (WEIGHTS_NAME, WEIGHTS_INDEX_NAME) if pickled else (SAFETENSORS_SINGLE_FILE, SAFETENSORS_INDEX_FILE)
    if any((folder / name).is_file() for name in names):
        return
    hint = (
        "" if pickled else f" Pickled weights ({WEIGHTS_NAME}) are read only if you say so: --pickled, or pickled=True."
    )
    raise CheckpointError(f"{folder} has no {names[0]}.{hint}")
