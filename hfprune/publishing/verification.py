"""Check a checkpoint folder: weights, config, plan and record must agree, and nothing in it may bring foreign code.

A check yields its problems, one line each. It reads files as data and never runs code from the folder.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.constants import HF_HOME
from transformers import AutoConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from hfprune.errors import CheckpointError, HfpruneError
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.bounds import check_layers, check_sizes, check_table, few_modules
from hfprune.publishing.contents import (
    CONFIG_FILE,
    LOADER_FILE,
    PLAN_FILE,
    RECORD_FILE,
    digest_problems,
    file_problems,
    is_covered,
    names_in,
    pending_problems,
    setting_problems,
    sha256,
)
from hfprune.publishing.probe import PROBE_FILE, Probe
from hfprune.publishing.quantized import plain_shapes, setting_problems_of
from hfprune.publishing.record import PruningRecord, blocks_of, record_in
from hfprune.structure import modeling_pruned
from hfprune.structure.anatomy import anatomy_of
from hfprune.structure.arguments import PATH, checked
from hfprune.structure.json_text import read_json
from hfprune.structure.surgery import sizes_of_layers

logger = logging.getLogger(__name__)

#: SHA-256 of the `modeling_pruned.py` of earlier releases, which their checkpoints carry.
EARLIER_LOADERS: frozenset[str] = frozenset(
    {
        # before the code moved into folders by purpose
        "9b5cd39facadf7ce37a509e1226dcb7259505e4fab09ad55b49872e0aac30325",
        # before it left the digests of files out of a record that is saved again
        "2b68cf1bf119400d94ff573c77dca6308aef03b82f6bd6732801b642e4bcca90",
        # before emptied blocks left no module with a size of 0, a new head could be put on a pruned body, and slices of
        # what is no number of heads were refused
        "c72c7ee0c19cea6ada81a652d30caa79e5163513bcd151f85cc87e79e8a4b205",
    }
)
#: Marks of the checkpoints that this process has warned about already.
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
    config = _read_config(Path(folder))
    return class_of(config.get("architectures") or [], str(folder))


def _read_config(folder: Path) -> dict[str, Any]:
    """The content of config.json."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder} has no config.json: it is not the folder of a checkpoint.")
    try:
        config = read_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON ({error}). Download or save the checkpoint again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds {config!r:.50} where names and values are expected.")
    return config


def class_of(architectures: list[str], where: str) -> type[PreTrainedModel]:
    """The class of the first name in `architectures`, pruned or stock.

    Args:
        architectures: Names, as in config.json.
        where: The checkpoint, for an error message.

    Returns:
        A class of transformers or one that is registered with an Auto class, or the pruned class made from it.

    Raises:
        CheckpointError: There is no name, or no such class.
    """
    first = architectures[0] if architectures else ""
    # a damaged config may have a number here
    name = str(first)
    stock = modeling_pruned.stock_class(name.removeprefix("Pruned"))
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise CheckpointError(
            f"the config of {where} names architecture {first!r:.100}, which is no model of transformers, nor one that "
            "is registered with an Auto class. Its class, such as BertForSequenceClassification, belongs into "
            "`architectures` of config.json; if it is your own, import the module that registers it first."
        )
    if not name.startswith("Pruned"):
        return stock
    pruned: type[PreTrainedModel] = modeling_pruned.pruned_class(stock)
    # hfprune registers the types of its table when it is imported, but this one may have been proven
    modeling_pruned.register_config(modeling_pruned.base_class(pruned.config_class).model_type)
    return pruned


def check_loadable(folder: str | Path) -> None:
    """Refuse a folder that could not be loaded whole, or that brings code of its own. Only headers are read.

    Args:
        folder: A checkpoint folder.

    Raises:
        CheckpointError: With the first problem and what to do about it.
    """
    folder = Path(folder)
    # what may be hostile comes first: `_structure_problems` builds the model, and must not meet it
    problems = chain(
        file_problems(folder),
        setting_problems(folder),
        _structure_problems(folder),
        _record_problems(folder),
    )
    for problem in problems:
        raise CheckpointError(f"{folder}: {problem}")
    for problem in _loader_problems(folder):
        # no reason to refuse: hfprune's own loader is used instead
        logger.warning("%s: %s", folder, problem)


def check_digests(folder: Path) -> None:
    """Refuse a folder with a file that is not the one that was saved.

    Args:
        folder: A checkpoint folder that `check_loadable` took. One without a record, or with a record without digests,
            as `Trainer` writes it, has nothing to compare with.

    Raises:
        CheckpointError: With the first such file.
    """
    path = folder / RECORD_FILE
    if not path.is_file():
        return
    record = PruningRecord.from_json(path.read_text(encoding="utf-8"))
    if not record.files:
        return
    for problem in digest_problems(folder, record.files):
        raise CheckpointError(f"{folder}: {problem}. To load it all the same, pass verify=False.")


def placing_problem(folder: Path) -> str | None:
    """Why what an interrupted save wrote must not be put in its place: it is not, in every file, what `save` writes.

    Args:
        folder: The folder that the save wrote. Nothing in it is executed.

    Returns:
        The first problem; None if there is none.
    """
    problems = chain(
        file_problems(folder),
        setting_problems(folder),
        _structure_problems(folder),
        _record_and_digest_problems(folder),
        _digests_missing(folder),
        _loader_problems(folder),
    )
    return next(problems, None)


def _digests_missing(folder: Path) -> Iterator[str]:
    """A readable record without the digests that every `save` writes."""
    record = record_in(folder)
    if not record.files:
        yield f"{RECORD_FILE} has no SHA-256 of any file, and hfprune.save writes them all"


@checked(folder=PATH)
def verify(folder: str | Path) -> list[str]:
    """Everything that is wrong with a checkpoint folder; an empty list if it computes what its author saw.

    Nothing in the folder is executed. Where no file is wrong, the model is loaded on the CPU and run on the probe. A
    success is noted in the cache of the Hub, so that loading the checkpoint no longer warns.

    Args:
        folder: The folder.

    Returns:
        One line for each problem, such as a missing, damaged, changed or foreign file, a shape that disagrees with
        config or plan, a digest that does not match, or outputs that differ from those that the author saved.

    Examples:
        >>> import hfprune
        >>> from hfprune.publishing.verification import verify
        >>> small = hfprune.prune(dense, dataset, config, collator=collator)
        >>> folder = hfprune.save(small, "small", tokenizer=tokenizer)
        >>> verify("small")
        []
        >>> (folder / "pruning_probe.json").unlink()
        >>> verify("small")
        ['pruning_probe.json is missing. Download or save the checkpoint again']
    """
    folder = Path(folder)
    # first, as no later check may open what is no regular file, or speak of files that are about to be exchanged
    strange = [*file_problems(folder), *pending_problems(folder)]
    if strange:
        return strange
    settings = list(setting_problems(folder))
    problems = [*_record_and_digest_problems(folder), *settings, *_loader_problems(folder)]
    # the model that the config describes is built only where no setting could lead elsewhere
    if not settings:
        problems += _structure_problems(folder)
    if problems:
        return problems
    # the checks have read both files without an error
    plan = PruningPlan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
    record = record_in(folder)
    if record.plan_digest != plan.digest:
        return [f"{RECORD_FILE} is of plan {record.plan_digest[:12]}, {PLAN_FILE} is plan {plan.digest[:12]}"]
    if record.blocks and record.blocks != blocks_of(plan):
        return [f"{RECORD_FILE} has other blocks, or other numbers of units, than {PLAN_FILE}"]
    if PROBE_FILE in record.files:
        problem = _probe_problem(folder)
        if problem is not None:
            return [problem]
    remember_checked(folder)
    return []


def remember_checked(folder: Path) -> None:
    """Note that a checkpoint computes, on this machine, what its author saw: `verify` found so, or it was saved here.

    Args:
        folder: The checkpoint's folder.
    """
    # a home that cannot be written to is no problem of the checkpoint
    with suppress(OSError):
        mark = _mark_of(folder)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def was_checked(folder: Path) -> bool:
    """Whether it was noted on this machine that a checkpoint computes what its author saw.

    Args:
        folder: The checkpoint's folder.

    Returns:
        Whether it was.
    """
    return _mark_of(folder).is_file()


def what_was_checked(folder: Path) -> str:
    """What it means that `verify` found nothing in a folder: it can only check what its author recorded.

    Args:
        folder: The folder.

    Returns:
        A sentence.
    """
    record = record_in(folder)
    said = "weights, config, plan and record agree"
    if record.files:
        said = "every file but the card is the one that was saved"
    if PROBE_FILE in record.files:
        return f"{said}, and the model computes what its author saw"
    return f"{said}; outputs were not saved to compare with"


def warn_if_unchecked(folder: Path) -> None:
    """Warn, once in a process, if the probe of a checkpoint was never run on this machine.

    Args:
        folder: The checkpoint's folder, or its folder in the cache of the Hub.
    """
    record_file = folder / RECORD_FILE
    if not record_file.is_file():
        return
    # without a probe there are no outputs to compare with
    if PROBE_FILE not in record_file.read_text(encoding="utf-8"):
        return
    mark = _mark_of(folder)
    if mark in _warned or mark.is_file():
        return
    _warned.add(mark)
    logger.warning(
        "It was never checked on this machine that the checkpoint in %s computes what its author saw. `hfprune "
        "verify` does that.",
        folder,
    )


def _mark_of(folder: Path) -> Path:
    """The empty file whose existence says that a checkpoint was verified on this machine.

    Its name is a digest of all files that are read when the checkpoint is loaded, but of the weights only size and
    time: hashing them would slow down every loading.
    """
    state: list[str] = []
    for name in names_in(folder):
        path = folder / name
        if path.suffix == ".safetensors":
            status = path.stat()
            state += [name, str(status.st_size), str(status.st_mtime_ns)]
        elif is_covered(name) or name == RECORD_FILE:
            state += [name, sha256(path)]
    digest = hashlib.sha256(" ".join(state).encode()).hexdigest()
    return Path(HF_HOME) / "hfprune" / "verified" / digest


def _record_and_digest_problems(folder: Path) -> Iterator[str]:
    """Files that are missing, changed or added since the record was written."""
    if not (folder / PLAN_FILE).is_file():
        # not a checkpoint of hfprune: `_structure_problems` says so
        return
    try:
        text = (folder / RECORD_FILE).read_text(encoding="utf-8")
        record = PruningRecord.from_json(text)
    except (OSError, ValueError) as error:
        yield f"{RECORD_FILE} cannot be read: {error}"
        return
    # the digest covers the values, the text covers how they are written
    if text != record.to_json():
        yield f"{RECORD_FILE} is not as hfprune writes it: it was changed"
    # save_pretrained alone, as Trainer calls it, records no digests
    if record.files:
        yield from digest_problems(folder, record.files)


def _record_problems(folder: Path) -> Iterator[str]:
    """A record that cannot be read. A checkpoint may have none."""
    path = folder / RECORD_FILE
    try:
        if path.is_file():
            PruningRecord.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"{RECORD_FILE} cannot be read: {error}"


def _loader_problems(folder: Path) -> Iterator[str]:
    """A loader that is not the one of any release; hfprune compares it and never runs it."""
    path = folder / LOADER_FILE
    if not path.is_file():
        return
    present = hashlib.sha256(modeling_pruned.loader_text().encode()).hexdigest()
    if sha256(path) not in {present, *EARLIER_LOADERS}:
        yield (
            f"{path.name} is not the loader of this hfprune or of an earlier one; it was not run. If the record names "
            "a newer hfprune, upgrade; else do not trust this checkpoint with trust_remote_code=True"
        )


def _probe_problem(folder: Path) -> str | None:
    """How the outputs of the loaded model differ from the probe's; None if they agree, or there is no probe."""
    path = folder / PROBE_FILE
    if not path.is_file():
        return None
    try:
        probe = Probe.from_json(path.read_text(encoding="utf-8"))
        # loading calls `warn_if_unchecked`, which has no reason to warn while the check runs
        _warned.add(_mark_of(folder))
        # bitsandbytes would take a GPU by itself
        place = {"device_map": {"": "cpu"}} if _read_config(folder).get("quantization_config") else {}
        model = model_class(folder).from_pretrained(folder, dtype=getattr(torch, probe.dtype), **place)
        return probe.problem_of(model)
    except Exception as error:  # noqa: BLE001 (whatever a stranger's numbers make fail is a problem to report)
        return f"the model cannot be run on {PROBE_FILE}: {type(error).__name__}: {error}"


def _structure_problems(folder: Path) -> Iterator[str]:
    """Reasons why the folder would not load whole, the most basic first; it stops where it can see no further."""
    if not folder.is_dir():
        yield "there is no such folder"
        return
    if not (folder / PLAN_FILE).is_file():
        yield (
            f"there is no {PLAN_FILE}, so this is not a checkpoint of hfprune, or no longer a whole one. Load a dense "
            "model with AutoModelForX.from_pretrained, and download or save a pruned one again"
        )
        return
    try:
        plan = PruningPlan.from_json((folder / PLAN_FILE).read_text(encoding="utf-8"))
        config = _read_config(folder)
        for problem in setting_problems_of(config):
            raise CheckpointError(problem)
        shapes = plain_shapes(folder, config)
        skeleton = _skeleton(folder, plan, shapes)
        anatomy = anatomy_of(skeleton)
        # a stock config has no table
        table = getattr(skeleton.config, "pruning_config", None) or {}
        check_table(table, anatomy.blocks)
        units = anatomy.units
        check_layers(table, sizes_of_layers(skeleton, anatomy.blocks, units))
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
    yield from _shape_problems(skeleton, shapes)


def _skeleton(folder: Path, plan: PruningPlan, stored: Mapping[str, tuple[int, ...]]) -> PreTrainedModel:
    """The model that the config describes, without weights, on the meta device.

    Args:
        folder: The checkpoint folder.
        plan: Its plan, which says whether units of attention are groups or query heads.
        stored: The shapes in its weight files, by name.

    Returns:
        The empty model, with the plan.

    Raises:
        CheckpointError: The config asks for sizes that the weights do not have, or names no class of transformers.
    """
    check_sizes(_read_config(folder), stored)
    cls = model_class(folder)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    # modules take memory even without weights, so a hostile number of layers could use up all of it
    with few_modules(stored), torch.device("meta"):
        skeleton = cls(config)
    skeleton.pruning_plan = plan
    return skeleton


def _shape_problems(skeleton: PreTrainedModel, stored: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Tensors in the weight files that are missing, too many, or of another shape than the skeleton's.

    Args:
        skeleton: The model that the config describes, on the meta device.
        stored: The shapes in the weight files, by name.

    Yields:
        One line for each such tensor.
    """
    state = skeleton.state_dict()
    not_saved = _names_not_saved(skeleton)
    required_state = {name: tensor for name, tensor in state.items() if name not in not_saved}
    required = _as_saved(skeleton, required_state, stored)
    expected = _as_saved(skeleton, state, stored)
    for name, tensor in expected.items():
        shape = tuple(tensor.shape)
        if name in stored and stored[name] != shape:
            yield (
                f"{name} is {stored[name]} in the weights, but the shape table in config.json says {shape}. They are "
                "not of the same checkpoint; nothing was loaded"
            )
        elif name not in stored and name in required:
            yield f"{name} is missing from the weights"
    for name in sorted(set(stored) - set(expected)):
        # earlier versions saved the weights of removed blocks, which hold no number
        if 0 in stored[name]:
            continue
        yield f"{name} is in the weights, but the model has no such tensor"


def _as_saved(
    skeleton: PreTrainedModel, state: dict[str, torch.Tensor], stored: Mapping[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """Tensors by the names, and in the shapes, that a checkpoint has.

    transformers saves some stock models by earlier names. Pruned models keep the names of their modules, but those that
    earlier versions of hfprune saved may have the other ones.
    """
    by_earlier_names: dict[str, torch.Tensor] = revert_weight_conversion(skeleton, state)
    return max((state, by_earlier_names), key=lambda named: len(named.keys() & stored.keys()))


def _names_not_saved(model: PreTrainedModel) -> set[str]:
    """The weights of a model that a checkpoint may lack: copies of tied weights, and what its class does not save."""
    tied = getattr(model, "all_tied_weights_keys", None) or ()
    ignored = model._keys_to_ignore_on_save or ()
    return {*tied, *ignored}
