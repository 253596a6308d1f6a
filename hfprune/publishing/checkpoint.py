"""Save and load pruned checkpoints: whole or not at all."""

import ctypes
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfprune.distributed import is_main_process
from hfprune.errors import CheckpointError
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.card import write_card
from hfprune.publishing.hub import fetch
from hfprune.publishing.probe import PROBE_FILE, Probe
from hfprune.publishing.record import PruningRecord, blocks_of
from hfprune.publishing.verification import RECORD_FILE, check_loadable, model_class, sha256
from hfprune.structure.modeling_pruned import (
    FORMAT_VERSION,
    HUB_ARGUMENTS,
    PrunedModel,
    base_class,
    read_attachments,
    write_attachments,
)

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
        _write(model, draft, tokenizer, path.name)
        _replace(draft, path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path


def _write(model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None, name: str) -> None:
    plan, record = model.pruning_plan, getattr(model, "pruning_record", None)
    if record is None:
        record = PruningRecord(
            base_model="",
            model_class=base_class(type(model)).__name__,
            config={},
            plan_digest=plan.digest,
        )
    model.pruning_record = record.with_(plan_digest=plan.digest, blocks=blocks_of(plan))
    model.config.pruning_config = {
        **(getattr(model.config, "pruning_config", None) or {"format_version": FORMAT_VERSION}),
        "summary": summary(model.pruning_record, plan),
    }
    model.save_pretrained(folder)
    write_attachments(model, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    try:
        (folder / PROBE_FILE).write_text(Probe.of(model).to_json(), encoding="utf-8")
    except Exception as error:  # noqa: BLE001 (a proof must not cost the model)
        logger.warning("No probe is saved, as the model did not run on it: %s: %s", type(error).__name__, error)
    files = {
        file.name: sha256(file) for file in sorted(folder.iterdir()) if file.is_file() and file.name != RECORD_FILE
    }
    text = replace(model.pruning_record, files=files).to_json()
    (folder / RECORD_FILE).write_text(text, encoding="utf-8")
    write_card(model, folder, location=name)
    for file in folder.rglob("*"):  # on disk before the rename makes it the checkpoint
        if file.is_file():
            with file.open("r+b") as handle:  # Windows syncs no file that cannot be written
                os.fsync(handle.fileno())


def summary(record: PruningRecord, plan: PruningPlan) -> dict[str, Any]:
    """The few facts of a record that stand in config.json too, under `pruning_config`.

    Args:
        record: The record.
        plan: The plan.

    Returns:
        Plain values.
    """
    return {
        "base_model": record.base_model,
        "scorer": record.config.get("scorer", ""),
        "mac_sparsity": round(plan.sparsity("macs"), 4),
        "param_sparsity": round(plan.sparsity("params"), 4),
        "plan_digest": plan.digest,
        "hfprune": record.versions.get("hfprune", ""),
    }


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
        The model, in evaluation mode; with `output_loading_info=True` what was missing or unexpected beside it.

    Raises:
        CheckpointError: There is no such folder or repository, or it has no plan, is damaged, contradicts itself, or
            brings code that is not ours. Nothing is loaded or run then.
    """
    hub = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    folder = fetch(path, **hub)
    check_loadable(folder)
    kwargs.pop("trust_remote_code", None)  # none is needed
    loaded = model_class(folder).from_pretrained(folder, **kwargs)
    model: PreTrainedModel = loaded[0] if isinstance(loaded, tuple) else loaded
    if not isinstance(model, PrunedModel):
        read_attachments(model, folder)
    if folder != Path(path):
        model.config._name_or_path = model.name_or_path = str(path)
    return loaded
