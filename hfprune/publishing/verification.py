"""Check a checkpoint folder against itself: weights, config, plan and record must say the same."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedModel

from hfprune.errors import CheckpointError, HfpruneError
from hfprune.planning.plan import PruningPlan
from hfprune.record import PruningRecord
from hfprune.structure import modeling_pruned
from hfprune.structure.blocks import find_blocks

PLAN_FILE, RECORD_FILE = "pruning_plan.json", "pruning_record.json"


def model_class(folder: str | Path) -> type[PreTrainedModel]:
    """The class that `architectures` in config.json names.

    Args:
        folder: A checkpoint folder.

    Returns:
        A class of transformers, or a pruned one.

    Raises:
        CheckpointError: There is no config.json, or it names no class of transformers.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json: it is not the folder of a checkpoint.")
    try:
        names = json.loads(path.read_text(encoding="utf-8")).get("architectures") or []
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}). Download or save the checkpoint again.") from error
    return class_of(names, str(folder))


def class_of(architectures: list[str], where: str) -> type[PreTrainedModel]:
    """The class of the first name in `architectures`, pruned or stock.

    Args:
        architectures: Names, as in config.json.
        where: What to call the checkpoint in an error.

    Returns:
        A class of transformers, or a pruned one.

    Raises:
        CheckpointError: There is no name, or no such class.
    """
    name = architectures[0] if architectures else ""
    module = modeling_pruned if name.startswith("Pruned") else transformers
    found = getattr(module, name, None) if name else None
    if found is None:
        raise CheckpointError(f"the config of {where} names architecture {name!r}, which transformers does not have.")
    cls: type[PreTrainedModel] = found
    return cls


def check_loadable(folder: str | Path) -> None:
    """Read headers only, and refuse a folder that could not be loaded whole.

    Args:
        folder: A checkpoint folder.

    Raises:
        CheckpointError: With the first problem found and what to do.
    """
    for problem in _structure_problems(Path(folder)):
        raise CheckpointError(f"{folder}: {problem}")


def verify(folder: str | Path) -> list[str]:
    """Everything that is wrong with a checkpoint folder; an empty list if it is what its author saved.

    Args:
        folder: The folder.

    Returns:
        Problems: missing or damaged files, shapes that disagree with config or plan, digests that do not match.
    """
    folder = Path(folder)
    problems = list(_structure_problems(folder))
    if problems:
        return problems
    plan = PruningPlan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
    try:
        record = PruningRecord.from_json((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [f"{RECORD_FILE} cannot be read: {error}"]
    if record.plan_digest != plan.digest:
        problems.append(f"the record is of plan {record.plan_digest[:12]}, the plan here is {plan.digest[:12]}")
    weights = {path.name for path in folder.glob("*.safetensors")}
    if record.files and set(record.files) != weights:  # save_pretrained alone records no digests
        problems.append(f"the record names weight files {sorted(record.files)}, the folder has {sorted(weights)}")
    for name in sorted(weights & set(record.files)):
        if sha256(folder / name) != record.files[name]:
            problems.append(f"{name} is not the file that was saved: its SHA-256 differs")
    return problems


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _structure_problems(folder: Path) -> Iterator[str]:
    """What would keep the folder from loading whole, most basic first; stops where more cannot be known."""
    if not folder.is_dir():
        yield "there is no such folder"
        return
    if not (folder / PLAN_FILE).is_file():
        yield (
            f"there is no {PLAN_FILE}, so this is not a checkpoint of hfprune. Load a dense model with "
            "AutoModelForX.from_pretrained"
        )
        return
    try:
        plan = PruningPlan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
        stored = _stored_shapes(folder)
        with torch.device("meta"):
            skeleton = model_class(folder)(AutoConfig.from_pretrained(folder))
        units = {block.name: block.units for block in find_blocks(skeleton)}
    except (HfpruneError, ValueError) as error:
        yield str(error)
        return
    except (AttributeError, KeyError, TypeError) as error:
        yield f"the shape table in config.json does not fit the model: {type(error).__name__}: {error}"
        return
    for name, block in plan.blocks.items():
        if units.get(name) != len(block.kept):
            yield (
                f"the plan keeps {len(block.kept)} units of {name!r}, the config says {units.get(name)}. The plan and "
                "the config are not of the same checkpoint"
            )
    yield from _shape_problems(skeleton, stored)


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise CheckpointError("there are no .safetensors files: the weights are missing. Download or save it again")
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    shapes[name] = tuple(file.get_slice(name).get_shape())
        except SafetensorError as error:
            raise CheckpointError(
                f"{path.name} is damaged or cut short ({path.stat().st_size} bytes): {error}. Download or save it again"
            ) from error
    return shapes


def _shape_problems(skeleton: PreTrainedModel, stored: dict[str, tuple[int, ...]]) -> Iterator[str]:
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    tied = set(getattr(skeleton, "all_tied_weights_keys", None) or {})
    for name, shape in expected.items():
        if name in stored and stored[name] != shape:
            yield (
                f"{name} is {stored[name]} in the weights, but the shape table in config.json says {shape}. They are "
                "not of the same checkpoint; nothing was loaded"
            )
        elif name not in stored and name not in tied:
            yield f"{name} is missing from the weights"
    for name in sorted(set(stored) - set(expected)):
        yield f"{name} is in the weights, but the model has no such tensor"
