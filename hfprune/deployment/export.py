"""Export a model to a file of another runtime, and prove there that it computes the same."""

import copy
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    default_data_collator,
)

from hfprune.data.packages import model_title
from hfprune.deployment.examples import held_out_batches, trace_batch
from hfprune.deployment.folders import EXPORT_FILE, check_replaceable, export_problem, files_in
from hfprune.deployment.loading import load_model, place_of, probe_of, tokenizer_of
from hfprune.deployment.proof import (
    Comparison,
    Difference,
    Reading,
    Spread,
    check_within,
    in_pytorch,
    reading_of,
    written_alike,
)
from hfprune.deployment.results import Export
from hfprune.deployment.rows import Collator, calibration_batches, check_rows, evaluate
from hfprune.deployment.targets import (
    OpenOptions,
    Runner,
    Target,
    WriteOptions,
    check_installed,
    check_quantization,
    get_target,
    versions_of,
)
from hfprune.errors import CheckpointError, ExportError, one_line
from hfprune.publishing.contents import CONFIG_FILE
from hfprune.publishing.listing import list_export, weights_of
from hfprune.publishing.probe import Probe
from hfprune.publishing.quantized import quantizer_of
from hfprune.publishing.replacement import draft_for, finish_interrupted, put
from hfprune.structure.arguments import FLAG, PATH, TEXT, checked, optional, whole
from hfprune.structure.examples import example_inputs
from hfprune.structure.modeling_pruned import base_class
from hfprune.structure.pruned_layers import without_sizes
from hfprune.structure.wrapping import unwrapped

#: Fields of the config of a pruned model that only its class in PyTorch reads.
_ONLY_PYTORCH = ("pruning_config", "auto_map", "transformers_weights")


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """Where an export is to be listed.

    Attributes:
        folder: The folder of the checkpoint.
        weights: The digest of its weights.
    """

    folder: Path
    weights: str


@dataclass(frozen=True, kw_only=True)
class _Source:
    """What is exported.

    Attributes:
        model: The model in float32 on the CPU, in evaluation mode: a copy.
        tokenizer: Its tokenizer.
        name: What the user calls it.
        probe: The probe in its folder, if there is one and it was computed in float32.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    probe: Probe | None


@checked(
    to=TEXT,
    output=PATH,
    quantize=optional(TEXT),
    threads=optional(whole(least=1)),
    record=FLAG,
    revision=optional(TEXT),
    overwrite=FLAG,
)
def export(
    model: PreTrainedModel | str | Path,
    to: str,
    output: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quantize: str | None = None,
    data: Any = None,
    calibration: Any = None,
    collator: Collator | None = None,
    metrics: Sequence[str] = (),
    threads: int | None = None,
    record: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> Export:
    """Write a model as a file of another runtime, and prove that it computes what the model computes.

    The file is opened in its runtime and run on batches of other sizes than it was made with, and on your data. If its
    outputs are not those of PyTorch in float32, it is refused and nothing is left. The folder gets the config, the
    tokenizer and a report, `hfprune_export.json`, too. Everything is written into a hidden folder beside `output`,
    which then takes its place in one step. With `record` the proof is also listed in the checkpoint that was exported.

    Args:
        model: A pruned or dense model, or the folder or Hub name of one.
        to: The target: `onnx`, `openvino`, `executorch`, `litert`, `gguf` or `torch`, or one that was registered since.
        output: The folder to write.
        tokenizer: The tokenizer; of a folder or Hub name by default the one that is there.
        quantize: How to quantise the weights, one of the target's `quantizations`; None: not at all.
        data: Tokenized rows to compare both models on, all of them; with labels also their metrics.
        calibration: Tokenized rows whose activations a quantiser may look at, a sample of 128; by default `data`, which
            the table then says.
        collator: Makes batches of rows; by default it pads with the tokenizer.
        metrics: Names of metrics for data with labels, as `hfprune evaluate` knows them; by default the usual one.
        threads: How many threads the runtime may use when both are compared; None: as many as it likes.
        record: Whether the folder `model` of a pruned checkpoint lists the export, with its differences and metrics, in
            its record and, unless somebody edited it, in its card. Its other files stay the same.
        revision: Branch, tag or commit of a repository on the Hub.
        overwrite: Whether the folder may replace an export that is there already, if it holds no other files.

    Returns:
        What was written, and how far it is from the model in PyTorch.

    Raises:
        ExportError: The target cannot take the model, or its file computes something else. No file is left.
        MissingDependencyError: A package of the target is not installed; the message has the command.
        CheckpointError: The output is a file or holds files of something else; the model or its tokenizer cannot be
            loaded, or it computes something else than its probe says; or its record cannot list the export.
        ValueError: The target or the quantisation is unknown, or data, labels or metrics do not fit, or `record` is
            asked of a model in memory or on the Hub, or `revision` of a model in memory.

    Examples:
        >>> import hfprune
        >>> small = hfprune.prune(dense, dataset, config, collator=collator)
        >>> exported = hfprune.export(small, "torch", "exported", tokenizer=tokenizer)
        >>> exported.target, exported.differences[0].largest < 1e-5
        ('torch', True)
        >>> sorted(file.name for file in exported.path.glob("*.json") if "export" in file.name)
        ['export.json', 'hfprune_export.json']
    """
    return export_to(
        get_target(to),
        model,
        output,
        tokenizer=tokenizer,
        quantize=quantize,
        data=data,
        calibration=calibration,
        collator=collator,
        metrics=metrics,
        threads=threads,
        record=record,
        revision=revision,
        overwrite=overwrite,
    )


def export_to(
    target: Target,
    model: PreTrainedModel | str | Path,
    output: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    quantize: str | None = None,
    data: Any = None,
    calibration: Any = None,
    collator: Collator | None = None,
    metrics: Sequence[str] = (),
    threads: int | None = None,
    record: bool = False,
    revision: str | None = None,
    overwrite: bool = False,
) -> Export:
    """What `export` does, for a target that need not be registered.

    Args:
        target: The target.
        model: As for `export`.
        output: The folder to write.
        tokenizer: The tokenizer.
        quantize: How to quantise the weights, one of the target's `quantizations`; None: not at all.
        data: Tokenized rows to compare both models on.
        calibration: Tokenized rows whose activations a quantiser may look at.
        collator: Makes batches of rows.
        metrics: Names of metrics.
        threads: How many threads the runtime may use.
        record: Whether the checkpoint lists the export.
        revision: Of a repository.
        overwrite: Whether an export may be replaced.

    Returns:
        What was written.

    Raises:
        ExportError: As for `export`.
        MissingDependencyError: A package of the target is not installed.
        CheckpointError: As for `export`.
        ValueError: As for `export`.
    """
    check_quantization(target, quantize)
    check_installed(target)
    place = Path(output).resolve()
    finish_interrupted(place, judge=export_problem)
    check_replaceable(place, overwrite=overwrite)
    listing = _listing_of(model) if record else None
    source = _source_of(model, tokenizer, revision)
    reason = target.refusal(source.model)
    if reason is not None:
        raise ExportError(f"{source.name} cannot be {target.done}: {reason}.")
    batch = trace_batch(source.model, source.tokenizer)
    reading = reading_of(source.model, batch)
    if data is not None:
        check_rows(source.model, data, metrics, reading)
    collator = collator or _collator_for(source.tokenizer)
    calibrated_on = _calibrated_on(target, quantize, data, calibration)
    calibration = data if calibrated_on == "data" else calibration
    options = WriteOptions(
        quantization=quantize,
        tokenizer=source.tokenizer,
        batch=batch,
        calibration=[] if calibrated_on is None else calibration_batches(source.model, calibration, collator),
        name=source.name,
    )
    began = time.perf_counter()
    place.parent.mkdir(parents=True, exist_ok=True)
    with _threads_kept(), draft_for(place, judge=export_problem) as draft:
        size_bytes = _write(target, source, draft, options)
        runner = _opened(target, draft, OpenOptions(threads=threads))
        spread = Spread(reading)
        comparisons = _comparisons(source, runner, spread)
        found: Mapping[str, Mapping[str, float]] = {}
        if data is not None:
            on_data = Comparison("the data", spread)
            found = evaluate(source.model, runner, data, comparison=on_data, collator=collator, metrics=metrics)
            comparisons.append(on_data)
        differences = [comparison.difference() for comparison in comparisons]
        check_within(differences, target.tolerance[quantize], spread, target.name)
        rounding = _rounding(target, quantize, source, runner, reading)
        text = written_alike(source.model, runner, options.batch, quantized=quantize is not None)
        result = Export(
            path=place,
            target=target.name,
            quantization=quantize,
            model=source.name,
            plan_digest=_plan_digest(source.model),
            size_bytes=size_bytes,
            weights_bytes=_weights_bytes(source.model),
            differences=tuple(differences),
            rounding=rounding,
            text=text,
            metrics=found,
            calibrated_on=calibrated_on,
            files=tuple(sorted([*files_in(draft), EXPORT_FILE])),
            versions=versions_of(target),
            seconds=round(time.perf_counter() - began, 1),
        )
        (draft / EXPORT_FILE).write_text(result.to_json(), encoding="utf-8")
        if target.conclude is not None:
            target.conclude(draft, result)
        put(draft, place, overwrite=overwrite)
    return result if listing is None else _listed(result, listing)


def _listing_of(model: PreTrainedModel | str | Path) -> _Listing:
    """The checkpoint that is to list an export; before any work, as a model in memory has no record on the disk."""
    if not isinstance(model, str | Path) or not Path(model).is_dir():
        raise ValueError(
            "record=True (--record) writes into the folder of a checkpoint, and the model is none: save it first with "
            "hfprune.save and name the folder, or leave it out."
        )
    return _Listing(folder=Path(model), weights=weights_of(Path(model)))


def _listed(result: Export, listing: _Listing) -> Export:
    """List an export, which is in its place already, in the checkpoint that it was made of."""
    try:
        listed = list_export(listing.folder, result.entry(listing.weights))
    except CheckpointError as error:
        error.add_note(f"The export itself is in {result.path}.")
        raise
    return replace(result, listed=listed)


def _calibrated_on(target: Target, quantization: str | None, data: Any, calibration: Any) -> str | None:
    """Which rows a quantiser looks at: `calibration`, or the `data` that metrics are measured on; None for none."""
    if quantization not in target.calibrated:
        return None
    if calibration is not None and calibration is not data:
        return "calibration"
    return None if data is None else "data"


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Give PyTorch its number of threads back, which a target of PyTorch sets for all."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _source_of(
    model: PreTrainedModel | str | Path, tokenizer: PreTrainedTokenizerBase | None, revision: str | None
) -> _Source:
    """Load what is to be exported, and copy it: exporters patch the model that they read."""
    if isinstance(model, str | Path):
        return _named_source(str(model), tokenizer, revision)
    if revision is not None:
        raise ValueError(f"revision={revision!r} is of a repository on the Hub, and the model is in memory.")
    inside = unwrapped(model)
    name = Path(inside.name_or_path or type(inside).__name__).name
    _refuse_quantized(inside)
    return _Source(model=_as_reference(copy.deepcopy(inside)), tokenizer=tokenizer, name=name, probe=None)


def _named_source(model: str, tokenizer: PreTrainedTokenizerBase | None, revision: str | None) -> _Source:
    """Load the model of a folder or repository, and check it by its probe."""
    loaded = load_model(model, revision=revision)
    _refuse_quantized(loaded)
    reference = _as_reference(loaded)
    place = place_of(model, revision=revision)
    title = model_title(model)
    probe = probe_of(Path(place))
    problem = probe.problem_of(reference) if probe is not None else None
    if problem is not None:
        raise CheckpointError(f"{model}: {problem}. Run: hfprune verify {model}")
    return _Source(
        model=reference,
        tokenizer=tokenizer or tokenizer_of(place, revision=revision),
        name=Path(title).name if Path(title).is_dir() else title,
        probe=probe,
    )


def _refuse_quantized(model: PreTrainedModel) -> None:
    """Refuse a model that cannot become float32 again."""
    quantizer = quantizer_of(model)
    if quantizer is not None:
        raise ExportError(
            f"the weights of this {type(model).__name__} are quantised already, by {quantizer}. Take the checkpoint "
            "from before it was quantised."
        )


def _as_reference(model: PreTrainedModel) -> PreTrainedModel:
    """A model in float32 on the CPU, in evaluation mode, whose weights need no gradients."""
    reference: PreTrainedModel = model.to("cpu", torch.float32).eval()
    reference.requires_grad_(False)
    return reference


def _collator_for(tokenizer: PreTrainedTokenizerBase | None) -> Collator:
    """Pads with the tokenizer; without one the rows must have the same length."""
    collator: Collator = default_data_collator
    if tokenizer is not None:
        collator = DataCollatorWithPadding(tokenizer)
    return collator


def _write(target: Target, source: _Source, draft: Path, options: WriteOptions) -> int:
    """Write all files of an export, and give the bytes of those that the target wrote."""
    _write_config(source.model, draft)
    if source.tokenizer is not None:
        source.tokenizer.save_pretrained(draft)
    before = {path.relative_to(draft) for path in draft.rglob("*")}
    try:
        target.write(source.model, draft, options)
    except ExportError:
        # it says already what is wrong
        raise
    except Exception as error:
        raise ExportError(
            f"{source.name} could not be {target.done}: {type(error).__name__}: {one_line(error)}"
        ) from error
    written = [path for path in draft.rglob("*") if path.relative_to(draft) not in before and path.is_file()]
    return sum(path.stat().st_size for path in written)


def _opened(target: Target, draft: Path, options: OpenOptions) -> Runner:
    """Open an export in its runtime."""
    try:
        return target.open(draft, options)
    except Exception as error:
        raise ExportError(
            f"the {target.name} file was written, and its runtime cannot open it: {type(error).__name__}: "
            f"{one_line(error)}"
        ) from error


def _write_config(model: PreTrainedModel, folder: Path) -> None:
    """Write the config of the dense type: runtimes and their pipelines know that, and read no table of shapes."""
    values: dict[str, Any] = without_sizes(model.config).to_dict()
    for name in _ONLY_PYTORCH:
        values.pop(name, None)
    values["model_type"] = base_class(type(model.config)).model_type
    values["architectures"] = [base_class(type(model)).__name__]
    (folder / CONFIG_FILE).write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def _comparisons(source: _Source, runner: Runner, spread: Spread) -> list[Comparison]:
    """Compare the exported model on the probe, and on texts of other sizes than it was made with."""
    reference = in_pytorch(source.model)
    comparisons = [_on_the_probe(source, runner, spread)]
    for batch in held_out_batches(source.model, source.tokenizer):
        samples = len(next(iter(batch.values())))
        name = "one sample" if samples == 1 else f"{samples} samples"
        mask = batch.get("attention_mask")
        if mask is not None and not bool(mask[:, 0].all()):
            name += ", padded in front"
        comparison = Comparison(name, spread)
        comparison.add(reference(batch), _run(runner, batch), batch)
        comparisons.append(comparison)
    return comparisons


def _rounding(
    target: Target, quantization: str | None, source: _Source, runner: Runner, reading: Reading
) -> Difference | None:
    """Compare a quantised file with PyTorch that has its weights: a much narrower bound than for those before."""
    if quantization is None or target.rounded is None:
        return None
    spread = Spread(reading)
    comparison = Comparison("the weights of the file", spread)
    reference = in_pytorch(target.rounded(source.model, quantization))
    for batch in held_out_batches(source.model, source.tokenizer):
        comparison.add(reference(batch), _run(runner, batch), batch)
    difference = comparison.difference()
    check_within([difference], target.rounded_tolerance, spread, target.name)
    return difference


def _on_the_probe(source: _Source, runner: Runner, spread: Spread) -> Comparison:
    """Compare on the input of the probe, one sample at a time."""
    probe = source.probe or Probe.of(source.model)
    reference = in_pytorch(source.model)
    comparison = Comparison("the probe", spread)
    ids = torch.tensor(probe.input_ids, dtype=torch.long, device="cpu")
    for row in torch.tensor_split(ids, len(ids)):
        batch = example_inputs(source.model, row)
        comparison.add(reference(batch), _run(runner, batch), batch)
    return comparison


def _run(runner: Runner, batch: Mapping[str, Any]) -> torch.Tensor:
    """Run an exported model; what its runtime cannot do is an `ExportError`."""
    try:
        return runner(batch)
    except Exception as error:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
        raise ExportError(
            f"the exported model does not run on {shapes}: {type(error).__name__}: {one_line(error)}"
        ) from error


def _plan_digest(model: PreTrainedModel) -> str:
    """The digest of the plan of a pruned model; empty for a dense one."""
    plan = getattr(model, "pruning_plan", None)
    return "" if plan is None else plan.digest


def _weights_bytes(model: PreTrainedModel) -> int:
    """The bytes of the parameters in float32; a shared one counts once."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
