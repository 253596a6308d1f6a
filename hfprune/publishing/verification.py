"""Check a checkpoint folder against itself: weights, config, plan and record must say the same."""

import hashlib
import json
import logging
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
import transformers
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedModel

from hfprune.errors import CheckpointError, HfpruneError
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.probe import PROBE_FILE, Probe
from hfprune.record import PruningRecord
from hfprune.structure import modeling_pruned
from hfprune.structure.blocks import find_blocks

logger = logging.getLogger(__name__)

PLAN_FILE, RECORD_FILE = "pruning_plan.json", "pruning_record.json"
#: SHA-256 of the `modeling_pruned.py` of earlier releases, which their checkpoints carry.
EARLIER_LOADERS: frozenset[str] = frozenset()
#: Files that change what a model does.
_MATTERS = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt", ".py")
_warned: set[Path] = set()


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
    """Read headers only, and refuse a folder that could not be loaded whole, or that brings code of its own.

    Args:
        folder: A checkpoint folder.

    Raises:
        CheckpointError: With the first problem found and what to do.
    """
    for problem in chain(_code_problems(Path(folder)), _structure_problems(Path(folder))):
        raise CheckpointError(f"{folder}: {problem}")


def verify(folder: str | Path) -> list[str]:
    """Everything that is wrong with a checkpoint folder; an empty list if it computes what its author saw.

    Nothing in the folder is executed. Where nothing else is wrong the model is loaded, on the CPU, and run on the
    probe; that this was done is kept in the cache of the Hub, so that loading no longer warns.

    Args:
        folder: The folder.

    Returns:
        Problems: missing, damaged, changed or foreign files, shapes that disagree with config or plan, digests that do
        not match, and outputs that differ from those that the author saved.
    """
    folder = Path(folder)
    problems = [*_file_problems(folder), *_code_problems(folder), *_structure_problems(folder)]
    if problems:
        return problems
    plan = PruningPlan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
    record = PruningRecord.from_json((folder / RECORD_FILE).read_text(encoding="utf-8"))
    if record.plan_digest != plan.digest:
        return [f"{RECORD_FILE} is of plan {record.plan_digest[:12]}, {PLAN_FILE} is plan {plan.digest[:12]}"]
    problem = _probe_problem(folder)
    if problem is not None:
        return [problem]
    _checked(folder).parent.mkdir(parents=True, exist_ok=True)
    _checked(folder).touch()
    return []


def warn_if_unchecked(folder: Path) -> None:
    """Warn once a process if a checkpoint's probe was never run on this machine.

    Args:
        folder: The folder, or that of its files in the cache of the Hub.
    """
    if not (folder / RECORD_FILE).is_file() or not (folder / PROBE_FILE).is_file():
        return
    mark = _checked(folder)
    if mark not in _warned and not mark.is_file():
        _warned.add(mark)
        logger.warning(
            "It was never checked on this machine that the checkpoint in %s computes what its author saw. `hfprune "
            "verify` does that.",
            folder,
        )


def _checked(folder: Path) -> Path:
    """The file that says that this checkpoint, by its record, was verified on this machine."""
    return Path(HF_HOME) / "hfprune" / "verified" / sha256(folder / RECORD_FILE)


def _file_problems(folder: Path) -> Iterator[str]:
    """Files that are not those that the record names."""
    if not (folder / PLAN_FILE).is_file():
        return  # no checkpoint of ours, as the structure says
    try:
        record = PruningRecord.from_json((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"{RECORD_FILE} cannot be read: {error}"
        return
    if not record.files:
        return  # save_pretrained alone, as Trainer does it, records no digests
    for name, digest in sorted(record.files.items()):
        if not (folder / name).is_file():
            yield f"{name} is missing. Download or save the checkpoint again"
        elif sha256(folder / name) != digest:
            yield f"{name} is not the file that was saved: its SHA-256 differs"
    for path in sorted(folder.iterdir()):
        if path.suffix in _MATTERS and path.name not in record.files:
            yield f"{path.name} is not part of what was saved. Remove it"


def _code_problems(folder: Path) -> Iterator[str]:
    """Code that is not the loader of this hfprune. It is compared, never run."""
    loader = Path(modeling_pruned.__file__)
    for path in sorted(folder.glob("*.py")) if folder.is_dir() else []:
        if path.name != loader.name:
            yield f"{path.name} is code that hfprune does not write; it was not run. Remove it, or do not trust this"
        elif sha256(path) != sha256(loader) and sha256(path) not in EARLIER_LOADERS:
            yield (
                f"{path.name} is not the loader of this hfprune or of an earlier one; it was not run. If the record "
                "names a newer hfprune, upgrade; else do not trust this checkpoint"
            )
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = (config.get("auto_map") or {}).values()
        foreign = [name for name in named if not str(name).startswith(f"{loader.stem}.Pruned")]
    except (AttributeError, OSError, ValueError):
        return  # which the structure says
    if foreign:
        yield f"auto_map in config.json names code that hfprune does not write: {foreign[0]!r:.100}. It was not run"


def _probe_problem(folder: Path) -> str | None:
    """What the probe says of the loaded model; nothing where there is no probe."""
    if not (folder / PROBE_FILE).is_file():
        return None
    try:
        probe = Probe.from_json((folder / PROBE_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        return str(error)
    _warned.add(_checked(folder))
    model = model_class(folder).from_pretrained(folder, dtype=getattr(torch, probe.dtype))
    return probe.problem_of(model)


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
            skeleton = model_class(folder)(AutoConfig.from_pretrained(folder, trust_remote_code=False))
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
