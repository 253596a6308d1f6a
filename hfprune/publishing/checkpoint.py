"""Save and load pruned checkpoints: either whole or not at all."""

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfprune.distributed import is_main_process
from hfprune.encoders import opened
from hfprune.errors import CheckpointError
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.card import write_card
from hfprune.publishing.contents import RECORD_FILE, names_in, sha256
from hfprune.publishing.encoders import write_modules
from hfprune.publishing.hub import fetch
from hfprune.publishing.probe import PROBE_FILE, Probe
from hfprune.publishing.quantized import quantizer_of
from hfprune.publishing.record import PruningRecord, blocks_of
from hfprune.publishing.replacement import draft_for, entries_of, finish_interrupted, put
from hfprune.publishing.saveable import check_draft, check_finite_weights, check_saveable, untied_state
from hfprune.publishing.verification import check_digests, check_loadable, model_class, remember_checked
from hfprune.structure.anatomy import anatomy_of
from hfprune.structure.arguments import FLAG, PATH, checked
from hfprune.structure.modeling_pruned import (
    FORMAT_VERSION,
    HUB_ARGUMENTS,
    PrunedModel,
    base_class,
    read_attachments,
    set_sizes_of_layers,
    write_attachments,
)
from hfprune.structure.surgery import sizes_of_layers
from hfprune.structure.wrapping import unwrapped

logger = logging.getLogger(__name__)


@checked(path=PATH, overwrite=FLAG)
def save(
    model: PreTrainedModel,
    path: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint: weights, config, tokenizer, plan, record, card, and loader code where it is needed.

    Everything is written into a draft, a hidden folder beside `path`, which then takes the place of `path` in one step.
    A run that fails or is killed therefore leaves either the old content or the whole new checkpoint. Where `path`
    itself cannot be exchanged (a mount, a folder in one that is read-only, the working directory), its files are: then
    `hfprune.load` and the next save finish what a killed run began. Several processes may save to one path.

    Of several processes only the main one writes; the others return at once and do not wait for it, so `save` may also
    be called in the main process alone. Wait (`accelerator.wait_for_everyone()`) before all of them read the folder.

    Args:
        model: A model that `prune` or `apply_plan` returned, or that was loaded from such a checkpoint. A
            `SentenceTransformer` or `CrossEncoder` is saved whole, so that its own class loads the folder; `load` loads
            the model in it.
        path: The folder to write.
        tokenizer: A tokenizer to save beside the model; a `SentenceTransformer` or `CrossEncoder` has one of its own.
        overwrite: Whether the folder may replace a checkpoint that is there already.

    Returns:
        The folder.

    Raises:
        CheckpointError: The model was never pruned, is quantized in a way that `load` would not take, or has weights
            that are NaN or infinite, or `load` would refuse what was written; or the path is a file, a folder with
            something in it that is to be kept (`overwrite=False`), or a folder of something else than a checkpoint, or
            it cannot be written to; or the finished draft could not take its place, and then the message says where
            the draft is.

    Examples:
        >>> import hfprune
        >>> small = hfprune.prune(dense, dataset, config, collator=collator)
        >>> folder = hfprune.save(small, "small", tokenizer=tokenizer)
        >>> sorted(file.name for file in folder.glob("*pruning*") if file.suffix == ".json")
        ['pruning_plan.json', 'pruning_probe.json', 'pruning_record.json']

        Any Auto class loads it:

        >>> from transformers import AutoModelForSequenceClassification
        >>> type(AutoModelForSequenceClassification.from_pretrained("small")).__name__
        'PrunedBertForSequenceClassification'
    """
    path = Path(path).resolve()
    encoder = opened(model)
    model = unwrapped(model) if encoder is None else encoder.body
    if getattr(model, "pruning_plan", None) is None:
        raise CheckpointError(
            "the model has no pruning plan: it was not pruned by hfprune, or was loaded without its plan. Save a dense "
            "model with model.save_pretrained; load a pruned stock checkpoint with hfprune.load."
        )
    if not is_main_process():
        logger.info("the main process writes %s", path)
        return path
    _check_replaceable(path, overwrite=overwrite)
    check_saveable(model)
    if encoder is not None:
        check_finite_weights(encoder.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    with draft_for(path) as draft:
        if encoder is not None:
            write_modules(encoder, draft)
        write_files(model, draft, tokenizer, name=path.name)
        check_draft(draft, path, model)
        put(draft, path, overwrite=overwrite)
    # its outputs for the probe were computed here a moment ago
    remember_checked(path)
    return path


def _check_replaceable(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that a checkpoint may not take the place of."""
    if not path.exists():
        return
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file; a checkpoint is a folder.")
    if not entries_of(path):
        return
    if not overwrite:
        raise CheckpointError(f"{path} exists and is not empty. Choose another folder, or pass overwrite=True.")
    # replacing removes the whole folder, so one mistyped path could cost somebody's work
    if not (path / "config.json").is_file():
        raise CheckpointError(
            f"{path} holds something else than a checkpoint; it is not replaced. Choose another folder."
        )


def write_files(
    model: PreTrainedModel, folder: Path, tokenizer: PreTrainedTokenizerBase | None = None, *, name: str
) -> None:
    """Write all files of a checkpoint into a folder, which is then checked and put in its place by the caller.

    Args:
        model: A model that `check_saveable` took.
        folder: A draft. Files in it that are a checkpoint's, such as a tokenizer's, become part of it.
        tokenizer: A tokenizer to save beside the model.
        name: The location that its card gives.
    """
    _update_record(model)
    if quantizer_of(model) is None:
        model.save_pretrained(folder, state_dict=untied_state(model))
    else:
        # the names that a dense checkpoint of the type has are not to be had of quantised weights that were loaded
        model.save_pretrained(folder, save_original_format=False)
    write_attachments(model, folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    _write_probe(model, folder)
    record = _write_digests(model.pruning_record, folder)
    # after the digests: the card may be edited
    write_card(model, folder, location=name, record=record)
    _sync(folder)


def _update_record(model: PreTrainedModel) -> None:
    """Bring the record and the summary in the config in line with the model's plan."""
    plan: PruningPlan = model.pruning_plan
    record: PruningRecord | None = getattr(model, "pruning_record", None)
    if record is None:
        # `apply_plan` alone makes a model with a plan and no record
        record = PruningRecord(
            base_model="",
            model_class=base_class(type(model)).__name__,
            config={},
            plan_digest=plan.digest,
        )
    record = record.with_(plan_digest=plan.digest, blocks=blocks_of(plan))
    # a model of a stock class has no table of shapes, so there `pruning_config` starts with the format alone
    pruning_config = getattr(model.config, "pruning_config", None) or {"format_version": FORMAT_VERSION}
    model.pruning_record = record
    model.config.pruning_config = {**pruning_config, "summary": summary(record, plan)}


def _write_probe(model: PreTrainedModel, folder: Path) -> None:
    """Write the probe, if the model runs on it."""
    try:
        probe = Probe.of(model)
        (folder / PROBE_FILE).write_text(probe.to_json(), encoding="utf-8")
    except Exception as error:  # noqa: BLE001 (a failed probe must not cost the model)
        logger.warning("No probe is saved, as the model did not run on it: %s: %s", type(error).__name__, error)


def _write_digests(record: PruningRecord, folder: Path) -> PruningRecord:
    """Write the record anew, with the SHA-256 of all other files in the folder, and give it back."""
    digests = {}
    for name in names_in(folder):
        # a record cannot hold its own digest
        if name != RECORD_FILE:
            digests[name] = sha256(folder / name)
    written = replace(record, files=digests)
    (folder / RECORD_FILE).write_text(written.to_json(), encoding="utf-8")
    return written


def _sync(folder: Path) -> None:
    """Flush all files to the disk: after a crash, the renamed folder must not hold empty files."""
    for path in folder.rglob("*"):
        if path.is_file():
            # not "rb", as Windows syncs only files that can be written
            with path.open("r+b") as file:
                os.fsync(file.fileno())


def summary(record: PruningRecord, plan: PruningPlan) -> dict[str, Any]:
    """The few facts of a record that config.json repeats under `pruning_config`.

    Args:
        record: The record.
        plan: The plan.

    Returns:
        Values that JSON can hold.
    """
    return {
        "base_model": record.base_model,
        "scorer": record.config.get("scorer", ""),
        "mac_sparsity": round(plan.sparsity("macs"), 4),
        "param_sparsity": round(plan.sparsity("params"), 4),
        "plan_digest": plan.digest,
        "hfprune": record.versions.get("hfprune", ""),
    }


@checked(path=PATH, verify=FLAG)
def load(path: str | Path, *, verify: bool = True, **kwargs: Any) -> PreTrainedModel:
    """Load a pruned checkpoint, with `.pruning_plan` and `.pruning_record`, in the class that was saved.

    Args:
        path: A folder that `save` wrote, or the name of a repository on the Hub.
        verify: Whether to compare the SHA-256 of every file with the record first, which reads each file once more.
        **kwargs: As for `from_pretrained`: dtype, device_map, revision, token ...

    Returns:
        The model, in evaluation mode. With `output_loading_info=True` a tuple, as `from_pretrained` gives it, of
        the model and a report of missing and unexpected weights.

    Raises:
        CheckpointError: There is no such folder or repository, or it has no plan, is damaged, contradicts itself, was
            changed since it was saved, or brings code that hfprune did not write. Then nothing was loaded or run.

    Examples:
        >>> import hfprune
        >>> small = hfprune.prune(dense, dataset, config, collator=collator)
        >>> folder = hfprune.save(small, "small", tokenizer=tokenizer)
        >>> again = hfprune.load("small")
        >>> again.pruning_plan == small.pruning_plan
        True
    """
    hub_arguments = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs}
    finish_interrupted(Path(path).resolve())
    folder = fetch(path, **hub_arguments)
    check_loadable(folder)
    if verify:
        check_digests(folder)
    # hfprune has the loader's code itself, so none of the checkpoint's has to be trusted
    kwargs.pop("trust_remote_code", None)
    loaded = model_class(folder).from_pretrained(folder, **kwargs)
    model: PreTrainedModel = loaded[0] if isinstance(loaded, tuple) else loaded
    is_stock = not isinstance(model, PrunedModel)
    if is_stock:
        # a stock class knows nothing of plans and records
        read_attachments(model, folder)
    elif "layers" not in model.config.pruning_config:
        # saved by an earlier version, whose config said the sizes of the dense model only
        anatomy = anatomy_of(model)
        set_sizes_of_layers(model, sizes_of_layers(model, anatomy.blocks, anatomy.units))
    if folder != Path(path):
        # the model came from the Hub: its name is that of the repository, not of a folder in the cache
        model.config._name_or_path = str(path)
        model.name_or_path = str(path)
    return loaded
