"""Quantise a model after pruning: a checkpoint with smaller weights, and the proof of what it computes."""

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfprune.deployment.export import export_to
from hfprune.deployment.loading import load_model
from hfprune.deployment.methods import Method, get_method
from hfprune.deployment.proof import in_pytorch, written_greedily
from hfprune.deployment.results import Export
from hfprune.deployment.rows import Collator
from hfprune.deployment.targets import OpenOptions, Runner, Target, WriteOptions, check_installed
from hfprune.publishing.checkpoint import write_files
from hfprune.publishing.contents import RECORD_FILE
from hfprune.publishing.listing import state_quantization, weights_of
from hfprune.publishing.saveable import check_draft, check_saveable
from hfprune.publishing.verification import remember_checked
from hfprune.structure.arguments import FLAG, PATH, TEXT, checked, optional, whole
from hfprune.structure.modeling_pruned import read_attachments, write_attachments
from hfprune.structure.predictions import predicts_next_token

#: bitsandbytes would take a GPU by itself, and the comparison is made on the CPU.
_ON_THE_CPU: dict[str, Any] = {"device_map": {"": "cpu"}}


@checked(output=PATH, method=TEXT, threads=optional(whole(least=1)), revision=optional(TEXT), overwrite=FLAG)
def quantize(
    model: PreTrainedModel | str | Path,
    output: str | Path,
    *,
    method: str = "int8",
    tokenizer: PreTrainedTokenizerBase | None = None,
    data: Any = None,
    collator: Collator | None = None,
    metrics: Sequence[str] = (),
    threads: int | None = None,
    revision: str | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a checkpoint with quantised weights, and compare it with the model before.

    The checkpoint is an ordinary one: `hfprune.load`, `hfprune verify` and the Auto classes of transformers take it,
    where the package of the method is installed. It is loaded again from its files before it takes its place, and run
    beside the model in float32. If it is further off than the method may be, it is refused and nothing is left.

    Args:
        model: A pruned or dense model, or the folder or Hub name of one. It stays as it is.
        output: The folder to write.
        method: `int8` or `int8-weights` (torchao), `bitsandbytes-8bit` or `bitsandbytes-4bit`, or one that was
            registered since.
        tokenizer: The tokenizer; of a folder or Hub name by default the one that is there.
        data: Tokenized rows to compare both models on, all of them; with labels also their metrics.
        collator: Makes batches of rows; by default it pads with the tokenizer.
        metrics: Names of metrics for data with labels, as `hfprune evaluate` knows them; by default the usual one.
        threads: How many threads of the CPU compare; None: as many as PyTorch has now.
        revision: Branch, tag or commit of a repository on the Hub.
        overwrite: Whether the folder may replace what `quantize` wrote there before.

    Returns:
        What was written, and how far it is from the model before.

    Raises:
        ExportError: The method cannot take the model, or the quantised model is too far off. No file is left.
        MissingDependencyError: The package of the method is not installed; the message has the command.
        CheckpointError: The output is a file or holds files of something else; the model or its tokenizer cannot be
            loaded, or it computes something else than its probe says.
        ValueError: The method is unknown, or data, labels or metrics do not fit.

    Examples:
        >>> import hfprune
        >>> hfprune.quantize("small", "small-quanto", method="quanto")
        Traceback (most recent call last):
        ...
        ValueError: method must be one of int8, int8-weights, bitsandbytes-8bit, bitsandbytes-4bit, got 'quanto'. ...

        Where torchao is installed:

        >>> small = hfprune.prune(dense, dataset, config, collator=collator)
        >>> result = hfprune.quantize(small, "small-int8", tokenizer=tokenizer)  # doctest: +SKIP
        >>> hfprune.load("small-int8").pruning_plan == small.pruning_plan  # doctest: +SKIP
        True
    """
    return export_to(
        target_of(get_method(method), name=Path(output).resolve().name),
        model,
        output,
        tokenizer=tokenizer,
        quantize=method,
        data=data,
        collator=collator,
        metrics=metrics,
        threads=threads,
        revision=revision,
        overwrite=overwrite,
    )


def check_method(name: str) -> None:
    """Refuse a method that is unknown or whose package is not installed; callers do so before long work.

    Args:
        name: The method.

    Raises:
        MissingDependencyError: The package is not installed; the message has the command.
        ValueError: No method has that name.
    """
    check_installed(target_of(get_method(name), name=""))


def target_of(method: Method, *, name: str) -> Target:
    """A method as a target of `export_to`, whose files are a checkpoint.

    Args:
        method: The method.
        name: The location that the checkpoint's card gives.

    Returns:
        The target.
    """
    return Target(
        name=method.package,
        extra="quantize",
        modules=(method.package,),
        packages=(method.package,),
        quantizations={method.name: method.does},
        tolerance={None: method.tolerance, method.name: method.tolerance},
        write=partial(_write, method, name),
        open=_open,
        conclude=partial(_state, name),
        refusal=method.refusal,
        done=f"quantised by {method.name}",
    )


def _write(method: Method, name: str, model: PreTrainedModel, folder: Path, options: WriteOptions) -> None:  # noqa: ARG001 (the tokenizer is there already)
    """Quantise a copy of the model, and write it as a checkpoint.

    transformers quantises weights while it loads them, so they are written as they are first.
    """
    config = method.config(method.left(model))
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="plain-") as plain:
        model.save_pretrained(plain)
        write_attachments(model, Path(plain))
        loaded = type(model).from_pretrained(plain, quantization_config=config, **_ON_THE_CPU)
        read_attachments(loaded, plain)
    quantized: PreTrainedModel = loaded.eval()
    if getattr(quantized, "pruning_plan", None) is None:
        quantized.save_pretrained(folder, save_original_format=False)
        return
    check_saveable(quantized)
    write_files(quantized, folder, name=name)
    check_draft(folder, folder, quantized)
    # its outputs for the probe were computed here a moment ago
    remember_checked(folder)


def _state(name: str, folder: Path, result: Export) -> None:
    """Write into the record and the card of the checkpoint what the comparison gave."""
    if (folder / RECORD_FILE).is_file():
        state_quantization(folder, result.entry(weights_of(folder)), location=name)


def _open(folder: Path, options: OpenOptions) -> Runner:
    """Load a quantised checkpoint from its files."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model = load_model(str(folder), **_ON_THE_CPU).eval()
    return _Writing(model) if predicts_next_token(model) else in_pytorch(model)


class _Writing:
    """A quantised decoder, which also writes texts."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._run = in_pytorch(model)

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The logits for a batch."""
        return self._run(batch)

    def generate(self, input_ids: Tensor, new_tokens: int) -> Tensor:
        """Write greedily."""
        return written_greedily(self._run, input_ids, new_tokens)
