"""Check a checkpoint folder against itself: weights, config, plan and record must say the same."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HOME, SAFETENSORS_INDEX_FILE, SAFETENSORS_SINGLE_FILE
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from hfprune.errors import CheckpointError, HfpruneError
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.probe import PROBE_FILE, Probe
from hfprune.publishing.record import PruningRecord, blocks_of
from hfprune.structure import modeling_pruned
from hfprune.structure.anatomy import find_blocks

logger = logging.getLogger(__name__)

#: What `auto_map` in config.json may name.
_LOADER_CLASS = re.compile(r"modeling_pruned\.Pruned\w+")

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
        A class of transformers or one that is registered with an Auto class, or a pruned one of such.

    Raises:
        CheckpointError: There is no name, or no such class.
    """
    name = architectures[0] if architectures else ""
    stock = modeling_pruned.stock_class(str(name).removeprefix("Pruned"))
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise CheckpointError(
            f"the config of {where} names architecture {name!r:.100}, which is no model of transformers, nor one that "
            "is registered with an Auto class. Its class, such as BertForSequenceClassification, belongs into "
            "`architectures` of config.json; if it is your own, import the module that registers it first."
        )
    cls: type[PreTrainedModel] = stock
    if str(name).startswith("Pruned"):
        cls = modeling_pruned.pruned_class(stock)
        modeling_pruned.register_config(
            modeling_pruned.base_class(cls.config_class).model_type
        )  # the table may lack it
    return cls


def check_loadable(folder: str | Path) -> None:
    """Read headers only, and refuse a folder that could not be loaded whole, or that brings code of its own.

    Args:
        folder: A checkpoint folder.

    Raises:
        CheckpointError: With the first problem found and what to do.
    """
    for problem in chain(
        *(find(Path(folder)) for find in (_code_problems, detours, _structure_problems, _record_problems))
    ):
        raise CheckpointError(f"{folder}: {problem}")
    for problem in _loader_problems(Path(folder)):
        logger.warning("%s: %s", folder, problem)  # ours is used instead


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
    problems = [
        *_file_problems(folder),
        *_code_problems(folder),
        *detours(folder),
        *_loader_problems(folder),
        *_structure_problems(folder),
    ]
    if problems:
        return problems
    plan = PruningPlan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
    record = PruningRecord.from_json((folder / RECORD_FILE).read_text(encoding="utf-8"))
    if record.plan_digest != plan.digest:
        return [f"{RECORD_FILE} is of plan {record.plan_digest[:12]}, {PLAN_FILE} is plan {plan.digest[:12]}"]
    if record.blocks and record.blocks != blocks_of(plan):
        return [f"{RECORD_FILE} has other blocks, or other numbers of units, than {PLAN_FILE}"]
    problem = _probe_problem(folder) if PROBE_FILE in record.files else None
    if problem is not None:
        return [problem]
    with suppress(OSError):  # a home that cannot be written to
        _checked(folder).parent.mkdir(parents=True, exist_ok=True)
        _checked(folder).touch()
    return []


def warn_if_unchecked(folder: Path) -> None:
    """Warn once a process if a checkpoint's probe was never run on this machine.

    Args:
        folder: The folder, or that of its files in the cache of the Hub.
    """
    record = folder / RECORD_FILE
    if not record.is_file() or PROBE_FILE not in record.read_text(encoding="utf-8"):
        return  # outputs were not saved
    mark = _checked(folder)
    if mark not in _warned and not mark.is_file():
        _warned.add(mark)
        logger.warning(
            "It was never checked on this machine that the checkpoint in %s computes what its author saw. `hfprune "
            "verify` does that.",
            folder,
        )


def _checked(folder: Path) -> Path:
    """The file that says that this record and these weight files, by size and time, were verified on this machine."""
    state = [sha256(folder / RECORD_FILE)]
    for path in sorted(folder.glob("*.safetensors")):
        state += [path.name, str(path.stat().st_size), str(path.stat().st_mtime_ns)]
    return Path(HF_HOME) / "hfprune" / "verified" / hashlib.sha256(" ".join(state).encode()).hexdigest()


def _file_problems(folder: Path) -> Iterator[str]:
    """Files that are not those that the record names."""
    if not (folder / PLAN_FILE).is_file():
        return  # no checkpoint of ours, as the structure says
    try:
        text = (folder / RECORD_FILE).read_text(encoding="utf-8")
        record = PruningRecord.from_json(text)
    except (OSError, RecursionError, ValueError) as error:
        yield f"{RECORD_FILE} cannot be read: {error}"
        return
    if text != record.to_json():
        yield f"{RECORD_FILE} is not as hfprune writes it: it was changed"
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


def _record_problems(folder: Path) -> Iterator[str]:
    """What is wrong with the record, where there is one."""
    try:
        if (folder / RECORD_FILE).is_file():
            PruningRecord.from_json((folder / RECORD_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"{RECORD_FILE} cannot be read: {error}"


def _code_problems(folder: Path) -> Iterator[str]:
    """Code that hfprune does not write, or the name of such. Nothing of it is run."""
    loader = Path(modeling_pruned.__file__)
    for path in sorted(folder.glob("*.py")):
        if path.name != loader.name:
            yield f"{path.name} is code that hfprune does not write; it was not run. Remove it, or do not trust this"
    for path in sorted(folder.glob("*.json")):
        try:
            named = json.loads(path.read_text(encoding="utf-8")).get("auto_map") or {}
            ours = path.name == "config.json" and all(_LOADER_CLASS.fullmatch(value) for value in named.values())
        except (AttributeError, OSError, RecursionError, TypeError, ValueError):
            continue  # a list or a damaged file names nothing
        if named and not ours:
            yield f"auto_map in {path.name} names code that hfprune does not write: {named!r:.150}. It was not run"


def detours(folder: Path) -> Iterator[str]:
    """What would make transformers read weights or code that are not those of a checkpoint folder, one line each."""
    if (folder / "adapter_config.json").exists():
        yield "adapter_config.json leads to weights elsewhere. hfprune writes none: merge the adapter, or remove it"
    found: list[tuple[str, object]] = []  # of the config and the configs in it
    with suppress(OSError, RecursionError, ValueError):  # what is no config is named elsewhere
        text = (folder / "config.json").read_text(encoding="utf-8")
        json.loads(text, object_pairs_hook=lambda pairs: found.extend(pairs) or dict(pairs))  # type: ignore[func-returns-value]
    for name, value in found:
        kernels = name in ("attn_implementation", "experts_implementation") and "/" in str(value)  # a repository
        weights = name == "transformers_weights" and value not in (None, modeling_pruned.STOCK_CLASSES)
        if kernels or weights:
            yield f"config.json sets {name} to {value!r:.100}, which leads elsewhere. Remove it"


def _loader_problems(folder: Path) -> Iterator[str]:
    """A loader that is not ours; hfprune compares it and never runs it."""
    ours = Path(modeling_pruned.__file__)
    path = folder / ours.name
    if path.is_file() and sha256(path) not in {sha256(ours), *EARLIER_LOADERS}:
        yield (
            f"{path.name} is not the loader of this hfprune or of an earlier one; it was not run. If the record names "
            "a newer hfprune, upgrade; else do not trust this checkpoint with trust_remote_code=True"
        )


def _probe_problem(folder: Path) -> str | None:
    """What the probe says of the loaded model; nothing where there is no probe."""
    if not (folder / PROBE_FILE).is_file():
        return None
    try:
        probe = Probe.from_json((folder / PROBE_FILE).read_text(encoding="utf-8"))
        _warned.add(_checked(folder))
        return probe.problem_of(model_class(folder).from_pretrained(folder, dtype=getattr(torch, probe.dtype)))
    except Exception as error:  # noqa: BLE001 (whatever a stranger's numbers make fail is a problem to report)
        return f"the model cannot be run on {PROBE_FILE}: {type(error).__name__}: {error}"


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
        cls, config = model_class(folder), AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if getattr(config, "num_hidden_layers", 0) > len(stored):
            raise CheckpointError(f"config.json asks for {config.num_hidden_layers} layers, of {len(stored)} tensors")
        with torch.device("meta"):
            skeleton = cls(config)
        skeleton.pruning_plan = plan  # which says what its units are
        units = {block.name: block.units for block in find_blocks(skeleton)}
    except (HfpruneError, ValueError) as error:
        yield str(error)
        return
    except Exception as error:  # noqa: BLE001 (whatever a stranger's config makes fail is a problem to report)
        yield f"the shape table in config.json does not fit the model: {type(error).__name__}: {error}"
        return
    for name, block in plan.blocks.items():
        if units.get(name) != len(block.kept):
            yield (
                f"the plan keeps {len(block.kept)} units of {name!r}, the config says {units.get(name)}. The plan and "
                "the config are not of the same checkpoint"
            )
    yield from _shape_problems(skeleton, stored)


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """The weight files, and the tensors that the index takes from each; None: all of them."""
    if (folder / SAFETENSORS_SINGLE_FILE).is_file():
        return {folder / SAFETENSORS_SINGLE_FILE: None}
    index = folder / SAFETENSORS_INDEX_FILE
    if not index.is_file():
        raise CheckpointError("there are no .safetensors files: the weights are missing. Download or save it again")
    files: dict[Path, set[str] | None] = {}
    for tensor, name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].items():
        if not re.fullmatch(r"\w[\w.-]*\.safetensors", str(name)) or not (folder / name).is_file():
            raise CheckpointError(
                f"{index.name} takes {tensor} from {name!r:.100}, which is no weight file of this folder"
            )
        files[folder / name] = {*(files.get(folder / name) or ()), tensor}
    return files


def _stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in the files that transformers will read, and in no others."""
    files = _weight_files(folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for path, named in files.items():
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    if named is None or name in named:
                        shapes[name] = tuple(file.get_slice(name).get_shape())
        except SafetensorError as error:
            raise CheckpointError(
                f"{path.name} is damaged or cut short ({path.stat().st_size} bytes): {error}. Download or save it again"
            ) from error
    return shapes


def _shape_problems(skeleton: PreTrainedModel, stored: dict[str, tuple[int, ...]]) -> Iterator[str]:
    absent = {*(getattr(skeleton, "all_tied_weights_keys", None) or ()), *(skeleton._keys_to_ignore_on_save or ())}
    state = skeleton.state_dict()
    # transformers saves some models with names and shapes of earlier versions
    must = revert_weight_conversion(skeleton, {name: state[name] for name in state if name not in absent})
    expected = {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(skeleton, state).items()}
    for name, shape in expected.items():
        if name in stored and stored[name] != shape:
            yield (
                f"{name} is {stored[name]} in the weights, but the shape table in config.json says {shape}. They are "
                "not of the same checkpoint; nothing was loaded"
            )
        elif name not in stored and name in must:
            yield f"{name} is missing from the weights"
    for name in sorted(set(stored) - set(expected)):
        yield f"{name} is in the weights, but the model has no such tensor"
