"""Save and load pruned checkpoints: whole or not at all."""

import ctypes
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from hfprune.distributed import is_main_process
from hfprune.errors import CheckpointError
from hfprune.publishing.card import write_card
from hfprune.publishing.verification import RECORD_FILE, check_loadable, class_of, sha256
from hfprune.record import PruningRecord
from hfprune.structure.modeling_pruned import HUB_ARGUMENTS, PrunedModel, read_attachments, write_attachments

logger = logging.getLogger(__name__)

_RENAME_EXCHANGE = 2  # from linux/fs.h
_AT_FDCWD = -100  # from fcntl.h


def save(
    model: PreTrainedModel,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint: weights, config, tokenizer, plan, record, card, and loader code where it is needed.

    All of it is written into a folder beside `path` and then takes its place in one step, so a run that fails or is
    killed leaves either what was there before or the whole new checkpoint. Of several processes only the main one
    writes; the others return at once, whether or not it has finished, so it may also be called in the main process
    alone. Wait (`accelerator.wait_for_everyone()`) before all of them read it.

    Args:
        model: A model that `prune` or `apply_plan` returned, or that was loaded from such a checkpoint.
        path: The folder to write.
        tokenizer: Saved beside the model.
        overwrite: Whether a folder that is there already may be replaced.

    Returns:
        The folder.

    Raises:
        CheckpointError: The folder exists and is not empty, or the model was never pruned.
    """
    path = Path(path).resolve()
    if getattr(model, "pruning_plan", None) is None:
        raise CheckpointError(
            "the model has no pruning plan: it was not pruned by hfprune, or was loaded without its plan. Save a dense "
            "model with model.save_pretrained; load a pruned stock checkpoint with hfprune.load."
        )
    if not is_main_process():
        logger.info("the main process writes %s", path)
        return path
    if path.exists() and not path.is_dir():
        raise CheckpointError(f"{path} is a file; a checkpoint is a folder.")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise CheckpointError(f"{path} exists and is not empty. Choose another folder, or pass overwrite=True.")
    if path.is_dir() and any(path.iterdir()) and not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} holds something else than a checkpoint; it is not replaced. Choose another folder."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f".{path.name}.saving"  # one fixed name, so that what a killed run left is cleared
    shutil.rmtree(draft, ignore_errors=True)
    try:
        _write(model, draft, tokenizer)
        _replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path


def _write(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> None:
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    record: PruningRecord | None = getattr(model, "pruning_record", None)
    if record is None:
        record = PruningRecord(
            base_model="",
            model_class=type(model).__name__.removeprefix("Pruned"),
            config={},
            plan_digest=model.pruning_plan.digest,
        )
    weights = {file.name: sha256(file) for file in sorted(folder.glob("*.safetensors"))}
    model.pruning_record = replace(record, plan_digest=model.pruning_plan.digest)
    write_attachments(model, folder)
    (folder / RECORD_FILE).write_text(replace(model.pruning_record, files=weights).to_json(), encoding="utf-8")
    write_card(model, folder)
    for file in folder.rglob("*"):  # on disk before the rename makes it the checkpoint
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _replace(draft: Path, path: Path) -> None:
    """Put the finished folder in place of the old one: one atomic exchange where the system has it (Linux)."""
    if not path.exists():
        draft.rename(path)
        return
    if _exchange(draft, path):
        return  # the old checkpoint is in `draft` now, which the caller removes
    old = path.parent / f".{path.name}.old"
    shutil.rmtree(old, ignore_errors=True)
    path.rename(old)
    draft.rename(path)
    shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders in one system call; False where there is no such call."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    result: int = renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    return result == 0


def load(path: str | Path, **kwargs: Any) -> PreTrainedModel:
    """Load a pruned checkpoint, with `.pruning_plan` and `.pruning_record`, in the class that was saved.

    Args:
        path: A folder that `save` wrote, or the name of a repository on the Hub.
        **kwargs: As for `from_pretrained`: dtype, device_map, revision, token ...

    Returns:
        The model, in evaluation mode.

    Raises:
        CheckpointError: The folder has no plan, is damaged, or contradicts itself. Nothing is loaded then.
    """
    if Path(path).exists():
        check_loadable(path)
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if name in kwargs}
    config = AutoConfig.from_pretrained(path, **hub)
    model = class_of(config.architectures or [], str(path)).from_pretrained(path, **kwargs)
    if not isinstance(model, PrunedModel):
        read_attachments(model, path, **hub)
    if getattr(model, "pruning_plan", None) is None:
        raise CheckpointError(f"{path} has no pruning plan: load a dense model with AutoModelForX.from_pretrained.")
    loaded: PreTrainedModel = model
    return loaded
