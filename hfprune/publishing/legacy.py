"""Read checkpoints of models that transformers 4 pruned, with `pruned_heads` in the config; TextPruner writes such."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from hfprune.errors import CheckpointError
from hfprune.measuring.size import dense_size, measure_size
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.bounds import check_sizes, few_modules
from hfprune.publishing.contents import ADAPTER_FILE, irregular, is_covered, name_problems, setting_problems
from hfprune.publishing.provenance import public_name
from hfprune.publishing.record import PruningRecord, blocks_of
from hfprune.publishing.verification import class_of
from hfprune.publishing.weights import Shapes, stored_shapes
from hfprune.structure.anatomy import anatomy_of
from hfprune.structure.arguments import FLAG, PATH, checked, whole
from hfprune.structure.blocks import Block
from hfprune.structure.json_text import read_json
from hfprune.structure.lengths import with_fixed_lengths
from hfprune.structure.surgery import skeleton

logger = logging.getLogger(__name__)


@checked(folder=PATH, sequence_length=whole(least=1), pickled=FLAG)
def load_legacy(folder: str | Path, *, sequence_length: int = 128, pickled: bool = False) -> PreTrainedModel:
    """Load a checkpoint whose config lists `pruned_heads`, which transformers 5 ignores.

    The feed-forward widths come from the config, where TextPruner sets `intermediate_size`. The config does not say
    how wide they were before, so the plan counts them from their present width.

    Args:
        folder: The folder, with config.json and weights.
        sequence_length: Tokens in a sequence, for the plan's multiply-adds.
        pickled: Whether the weights may be read from pytorch_model.bin, as TextPruner writes it, by
            `torch.load(weights_only=True)`, which makes tensors and runs no code.

    Returns:
        A pruned model with plan and record, as `hfprune.load` gives it. `save` writes it as a checkpoint of hfprune.

    Raises:
        CheckpointError: There is no config, no `pruned_heads` in it, no weights, or they do not fit each other.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
    """
    folder = Path(folder)
    # first, as no later step may open what is no regular file; other files of any kind are never opened
    for problem in irregular(folder, _names_to_read(folder)):
        raise CheckpointError(f"{folder}: {problem}")
    config = _read_config(folder)
    pruned_heads = _read_pruned_heads(config.pop("pruned_heads", None), folder)
    stored = _shapes_of_weights(folder, pickled=pickled)
    # beside a model of transformers 4 there may be files of any kind, but an adapter would change its weights
    adapters = [ADAPTER_FILE] if (folder / ADAPTER_FILE).exists() else []
    for problem in chain(name_problems(adapters), setting_problems(folder)):
        raise CheckpointError(f"{folder}: {problem}")
    # without weights: the dense model only says what the blocks were
    check_sizes(config, stored)
    with few_modules(stored):
        dense_model = _empty_dense_model(config, folder)
    dense = anatomy_of(dense_model)
    kept = _kept_heads(dense.blocks, pruned_heads)
    small, _ = skeleton(dense.model, kept, blocks=dense.blocks)
    model = _load_weights(small, folder, pickled=pickled)
    # how many tokens a picture has shows only where the model runs
    blocks = with_fixed_lengths(model, dense.blocks)
    model.pruning_plan = PruningPlan.keep(blocks, kept, model_type=dense.model_type, sequence_length=sequence_length)
    model.pruning_record = _record_of(model, config, type(dense.model).__name__)
    return model


def _names_to_read(folder: Path) -> list[str]:
    """The names of the files in a folder that loading a model and its tokenizer may open."""
    if not folder.is_dir():
        return []
    return [path.name for path in sorted(folder.iterdir()) if not path.is_dir() and is_covered(path.name)]


def _read_config(folder: Path) -> dict[str, Any]:
    """The fields of config.json, where it is a config of transformers."""
    try:
        config = read_json((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} has no config.json that can be read: {error}") from error
    if not isinstance(config, dict) or "model_type" not in config:
        raise CheckpointError(f"config.json in {folder} names no model_type: it is not a checkpoint of transformers.")
    return config


def _read_pruned_heads(value: Any, folder: Path) -> dict[int, set[int]]:
    """The removed heads of each layer, from `pruned_heads` of a config. JSON has made strings of the layers."""
    if not isinstance(value, dict):
        raise CheckpointError(
            f"config.json in {folder} has no pruned_heads: nothing says which heads are gone. Load a model with plain "
            "widths by AutoModelForX.from_pretrained, and one that hfprune saved by hfprune.load."
        )
    pruned_heads = {}
    try:
        for layer, heads in value.items():
            pruned_heads[int(layer)] = {int(head) for head in heads}
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"pruned_heads in config.json of {folder} is no mapping from layers to lists of heads: {error}"
        ) from error
    return pruned_heads


def _shapes_of_weights(folder: Path, *, pickled: bool) -> Shapes:
    """The shapes of the weights in the format that the user allows, by name; refuses a folder that has none."""
    if pickled:
        names = (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)
        hint = ""
    else:
        names = (SAFETENSORS_SINGLE_FILE, SAFETENSORS_INDEX_FILE)
        hint = f" Pickled weights ({WEIGHTS_NAME}) are read only if you say so: --pickled, or pickled=True."
    has_weights = any((folder / name).is_file() for name in names)
    if not has_weights:
        raise CheckpointError(f"{folder} has no {names[0]}.{hint}")
    try:
        return stored_shapes(folder, pickled=pickled)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}.{hint}") from error


def _empty_dense_model(config: dict[str, Any], folder: Path) -> PreTrainedModel:
    """The model before pruning, on the meta device."""
    # `auto_map` names code that is not needed; the version is of the transformers that wrote the config
    ignored = ("auto_map", "transformers_version")
    fields = {name: value for name, value in config.items() if name not in ignored}
    dense_config = AutoConfig.for_model(**fields)
    cls = class_of(config.get("architectures") or [], str(folder))
    with torch.device("meta"):
        return cls(dense_config)


def _kept_heads(blocks: Sequence[Block], pruned_heads: Mapping[int, set[int]]) -> dict[str, list[int]]:
    """The heads that stay, by block name.

    Args:
        blocks: The blocks of the dense model.
        pruned_heads: The removed heads, by number of the layer.

    Returns:
        Indices of heads for every block of attention.

    Raises:
        CheckpointError: A layer or a head does not exist in the model.
    """
    attention = [block for block in blocks if block.unit != "neuron"]
    for layer, heads in pruned_heads.items():
        layer_exists = 0 <= layer < len(attention)
        if not layer_exists or not heads <= set(range(attention[layer].units)):
            raise CheckpointError(
                f"pruned_heads names heads {sorted(heads)[:8]} of layer {layer}, but the model has {len(attention)} "
                f"layers of {attention[0].units} heads."
            )
    kept = {}
    for layer, block in enumerate(attention):
        removed = pruned_heads.get(layer, set())
        kept[block.name] = [head for head in range(block.units) if head not in removed]
    return kept


def _load_weights(small: PreTrainedModel, folder: Path, *, pickled: bool) -> PreTrainedModel:
    """The model with the weights of the folder.

    Args:
        small: The empty model of the pruned shapes, which gives class and config.
        folder: The checkpoint folder.
        pickled: Whether the weights are in pytorch_model.bin.

    Returns:
        A new model.

    Raises:
        CheckpointError: Weights are missing or of other shapes, or the file holds more than tensors.
    """
    try:
        model, report = type(small).from_pretrained(
            folder, config=small.config, output_loading_info=True, use_safetensors=not pickled, weights_only=True
        )
    except (RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"the weights in {folder} do not have the shapes that its pruned_heads and intermediate_size say: {error}"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise CheckpointError(f"{folder} has no weights for {', '.join(missing[:5])}: it is not whole.")
    unexpected = sorted(report["unexpected_keys"])
    if unexpected:
        logger.warning("%s has tensors that the model does not use: %s", folder, unexpected[:5])
    loaded: PreTrainedModel = model
    return loaded


def _record_of(model: PreTrainedModel, config: Mapping[str, Any], model_class: str) -> PruningRecord:
    """The record of a model that others pruned: sizes and plan, but no config, as nobody knows how it was pruned."""
    plan: PruningPlan = model.pruning_plan
    anatomy = anatomy_of(model)
    size = measure_size(anatomy, sequence_length=plan.sequence_length)
    return PruningRecord(
        base_model=public_name(config.get("_name_or_path") or ""),
        model_class=model_class,
        config={},
        plan_digest=plan.digest,
        blocks=blocks_of(plan),
        sizes={"dense": asdict(dense_size(anatomy, size)), "pruned": asdict(size)},
    )
