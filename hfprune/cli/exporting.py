"""What `hfprune export` and `hfprune quantize` run: the data of the command, and the work."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hfprune.cli.task_data import TaskData, split_of
from hfprune.deployment.export import export
from hfprune.deployment.quantize import check_method, quantize
from hfprune.deployment.results import Export
from hfprune.deployment.targets import check_installed, check_quantization, get_target


def exported(
    model: str,
    to: str,
    output: Path | None,
    *,
    quantize: str | None,
    data: TaskData | None,
    split: str | None,
    metrics: Sequence[str],
    threads: int | None,
    record: bool,
    revision: str | None,
    overwrite: bool,
) -> Export:
    """Export a model by its name.

    Args:
        model: Folder or repository.
        to: The target.
        output: The folder to write; None: beside the working directory's other files, by the names of both.
        quantize: How to quantise.
        data: Texts with labels to measure on.
        split: A split of it; None: all of a file, or else test.
        metrics: Names of metrics.
        threads: Threads of the runtime.
        record: Whether the checkpoint lists the export.
        revision: Of a repository.
        overwrite: Whether an export may be replaced.

    Returns:
        What was written.

    Raises:
        CheckpointError: The model does not classify texts, and texts with labels are given.
        ExportError: The file cannot be written, or computes something else.
        MissingDependencyError: A package of the target is not installed.
        ValueError: An option does not fit.
    """
    # before data is read and the model is loaded
    target = get_target(to)
    check_quantization(target, quantize)
    check_installed(target)
    folder = output or _beside(model, to, quantize)
    measured: dict[str, Any] = {}
    if data is not None:
        measured = _rows(data, split, calibrates=quantize in target.calibrated)
        measured["metrics"] = metrics
    return export(
        model,
        to,
        folder,
        quantize=quantize,
        threads=threads,
        record=record,
        revision=revision,
        overwrite=overwrite,
        **measured,
    )


def quantized(
    model: str,
    method: str,
    output: Path | None,
    *,
    data: TaskData | None,
    split: str | None,
    metrics: Sequence[str],
    threads: int | None,
    revision: str | None,
    overwrite: bool,
) -> Export:
    """Quantise a model by its name.

    Args:
        model: Folder or repository.
        method: The method.
        output: The folder to write; None: beside the working directory's other files, by the names of both.
        data: Texts with labels to measure on.
        split: A split of it; None: all of a file, or else test.
        metrics: Names of metrics.
        threads: Threads of the CPU.
        revision: Of a repository.
        overwrite: Whether an earlier one may be replaced.

    Returns:
        What was written.

    Raises:
        CheckpointError: The model does not classify texts, and texts with labels are given.
        ExportError: The model cannot be quantised, or computes something else then.
        MissingDependencyError: The package of the method is not installed.
        ValueError: An option does not fit.
    """
    # before data is read and the model is loaded
    check_method(method)
    folder = output or _beside(model, method)
    measured: dict[str, Any] = {}
    if data is not None:
        measured = _rows(data, split, calibrates=False)
        measured["metrics"] = metrics
        # no method looks at data
        del measured["calibration"]
    return quantize(model, folder, method=method, threads=threads, revision=revision, overwrite=overwrite, **measured)


def _rows(data: TaskData, split: str | None, *, calibrates: bool) -> dict[str, Any]:
    """The rows that are measured, those that a quantiser sees, and what makes batches of them."""
    # a quantiser must not see the rows that are measured, so a single file is cut where one looks at data
    task = data.load(whole=split is None and not calibrates)
    return {
        "tokenizer": task.processor,
        "data": split_of(task.data, split or "test"),
        "calibration": split_of(task.data, "train"),
        "collator": task.collator,
    }


def _beside(model: str, *parts: str | None) -> Path:
    """A folder in the working directory, named by the model and what is made of it."""
    names = [Path(model).resolve().name, *(part for part in parts if part)]
    return Path("-".join(names))
