"""measure_latency_table(): time a model with the sublayers of one shape cut to many widths."""

import copy
import hashlib
import json
import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.isotonic import IsotonicRegression
from transformers import PreTrainedModel

from hfprune.errors import BudgetError, PlanMismatchError
from hfprune.measuring.backends import get_backend
from hfprune.measuring.latency import check_timing, threads_of_torch, times_in_turn
from hfprune.measuring.latency_table import LatencyTable, SublayerTimes
from hfprune.measuring.table_checks import name_of_device, shape_of_model
from hfprune.showing.progress import Progress, progress
from hfprune.structure.anatomy import Anatomy, anatomy_of
from hfprune.structure.arguments import ATTENTION_UNIT, FLAG, PATH, TEXT, checked, optional, whole
from hfprune.structure.blocks import Block
from hfprune.structure.specs import AttentionUnit
from hfprune.structure.surgery import keep_units
from hfprune.structure.wrapping import unwrapped

logger = logging.getLogger(__name__)
#: Up to so many numbers of heads are all measured; of neurons, and of more heads, so many widths are.
_MOST_LEVELS = 17
_POINTS = 12
#: Wide layers are measured at multiples of this, which suit every kernel.
_GRID = 32
#: The multiples that are compared with the widths between them.
_STEP = 8
#: What a config says besides how the model computes, or what is among the conditions anyway.
_NAMES_IN_CONFIG = (
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "torch_dtype",
    "transformers_version",
)
#: A smaller difference between widths on and off the step is noise.
_LEAST_EFFECT = 1.02


@checked(
    batch_size=whole(least=1),
    sequence_length=whole(least=1),
    threads=optional(whole(least=1)),
    backend=TEXT,
    runs=whole(least=1),
    warmup=whole(least=0),
    attention_unit=optional(ATTENTION_UNIT),
    cache=optional(PATH),
    again=FLAG,
)
def measure_latency_table(
    model: PreTrainedModel,
    *,
    batch_size: int,
    sequence_length: int,
    threads: int | None = None,
    backend: str = "eager",
    dtype: torch.dtype | None = None,
    runs: int = 20,
    warmup: int = 3,
    attention_unit: AttentionUnit | None = None,
    cache: str | Path | None = None,
    again: bool = False,
) -> LatencyTable:
    """Measure what the sublayers of a model take, by how many units they have.

    For every shape of sublayer and every width, the sublayers of that shape are cut to the width in a copy of the
    model, by the surgery that prunes; all others stay dense. The copy and the dense model take turns, pass by pass, so
    that other work on the machine slows both alike. The median of the ratios of neighbouring passes is what counts. The
    difference to the dense model, shared among the sublayers that were cut, is what one of them saves. A copy with all
    sublayers cut to their first width tells the rest, and the times are scaled so that all parts together take what the
    dense model takes. Times are made
    monotone by isotonic regression, and interpolated between the widths. A plan would gain from widths that look fast
    by chance, so times are drawn towards a straight line as far as noise explains their distance from it (`steadied`).

    All numbers of heads are measured up to 16, and about 12 widths of feed-forward layers at multiples of 32. Three
    widths between multiples of 8 tell whether the kernels are slower there.

    Args:
        model: The dense model. It stays as it is.
        batch_size: Sequences in a batch.
        sequence_length: Tokens in a sequence.
        threads: Threads of PyTorch on the CPU; None: as many as it has now.
        backend: How the model is run: `eager`, `compile`, or another one of `known_backends()`; `import
            hfprune.deployment` adds `onnx` and `openvino`.
        dtype: The type of the weights; None: the model's own.
        runs: Timed passes for every width.
        warmup: Untimed passes before them.
        attention_unit: What one unit of attention is, as for `anatomy_of`.
        cache: A folder of tables. One that was measured under the same conditions (processor, threads, dtype, backend,
            versions, shapes of the model, batch and length) is read from it, and a new one is written into it.
        again: Measure it even if the folder has it.

    Returns:
        The table.

    Raises:
        BudgetError: No unit takes any time, as far as the runs tell.
        PlanMismatchError: The model was pruned already.
        UnsupportedArchitectureError: The model type is not in the table of architectures, and no entry could be proven.
        ValueError: The model cannot take so long a sequence, or the backend is unknown.

    Examples:
        >>> from hfprune.measuring.block_times import measure_latency_table
        >>> table = measure_latency_table(dense, batch_size=2, sequence_length=8, runs=2)
        >>> for times in table.sublayers:
        ...     print(times.blocks, times.widths)
        ('encoder.layer.0.attention', 'encoder.layer.1.attention') (0, 1, 2, 3, 4)
        ('encoder.layer.0.ffn', 'encoder.layer.1.ffn') (0, 8, 16, 24, 32)
    """
    get_backend(backend)
    model = unwrapped(model)
    check_timing(model, batch_size=batch_size, sequence_length=sequence_length, runs=runs)
    if dtype is not None and dtype != model.dtype:
        model = copy.deepcopy(model).to(dtype)
    anatomy = anatomy_of(model, attention_unit)
    if anatomy.units != anatomy.dense_units:
        raise PlanMismatchError(
            "a latency table is measured on the dense model, and this model was pruned already. The table of the dense "
            "model holds for every model that is cut from it."
        )
    timing = _Timing(
        batch_size=batch_size,
        sequence_length=sequence_length,
        runs=runs,
        warmup=warmup,
        backend=backend,
    )
    with threads_of_torch(threads):
        conditions = _conditions(anatomy, timing)
        path = None
        if cache is not None:
            path = Path(cache) / f"{_digest(conditions)[:16]}.json"
            if path.is_file() and not again:
                logger.info("the latency table is in %s already", path)
                return LatencyTable.load(path)
        table = _measured(anatomy, timing, conditions)
    _check_prunable(table)
    if path is not None:
        table.save(path)
    return table


def _check_prunable(table: LatencyTable) -> None:
    """Refuse times that are all noise, before they are saved: no model can be pruned by them."""
    if table.prunable_ms <= 0:
        raise BudgetError(
            f"no unit takes any time, measured with {table.setting}: the model takes {table.dense_ms:.3f} ms with all "
            "units and without any. Measure it with more runs, larger batches or longer sequences, or on a quieter "
            "machine."
        )


@dataclass(frozen=True, kw_only=True)
class _Timing:
    """How models are timed: the arguments of `times_in_turn`."""

    batch_size: int
    sequence_length: int
    runs: int
    warmup: int
    backend: str


def _measured(anatomy: Anatomy, timing: _Timing, conditions: Mapping[str, Any]) -> LatencyTable:
    """The table, measured now."""
    shapes = _same_shapes(anatomy.blocks)
    wanted = [(blocks, _widths(blocks[0]), _between(blocks[0])) for blocks in shapes]
    # the last width is the dense one, which needs no copy; one copy more has the first width everywhere
    total = 1 + sum(len(widths) - 1 + len(between) for _, widths, between in wanted)
    watch = _Watch(anatomy, timing)
    sublayers = []
    with progress(total, desc="Timing", unit="width") as counted:
        for blocks, widths, between in wanted:
            shares = {blocks[0].units: _Share(value=1.0, error=0.0)}
            for width in (*widths[:-1], *between):
                shares[width] = watch.share(dict.fromkeys(blocks, width), counted)
            sublayers.append(_Shape(blocks=blocks, widths=widths, between=between, shares=shares))
        first_widths = {block: widths[0] for blocks, widths, _ in wanted for block in blocks}
        emptied = watch.share(first_widths, counted)
    dense_ms = statistics.median(watch.dense)
    times = [_times(shape, dense_ms) for shape in sublayers]
    rest_ms = min(emptied.value, 1.0) * dense_ms
    # each shape was cut alone, and together they may save more or less than the sum of that
    together = sum(found.milliseconds[-1] * len(found.blocks) for found in times)
    if together > 0:
        times = [_scaled(found, (dense_ms - rest_ms) / together) for found in times]
    return LatencyTable(
        model_type=anatomy.model_type,
        sublayers=tuple(times),
        rest_ms=rest_ms,
        backend=timing.backend,
        device=anatomy.model.device.type,
        dtype=str(anatomy.model.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        batch_size=timing.batch_size,
        sequence_length=timing.sequence_length,
        runs=timing.runs,
        fingerprint=dict(conditions),
    )


class _Watch:
    """Times cut models against the dense one.

    Args:
        anatomy: The dense model.
        timing: How models are timed.
    """

    def __init__(self, anatomy: Anatomy, timing: _Timing) -> None:
        self.anatomy = anatomy
        self.timing = timing
        #: The times of all passes of the dense model, in milliseconds.
        self.dense: list[float] = []

    def share(self, widths: Mapping[Block, int], counted: Progress) -> "_Share":
        """How long the model takes with some blocks cut, as a share of the dense model's time.

        Args:
            widths: For blocks that are cut, how many units they keep.
            counted: Counts the copy.

        Returns:
            The median over pairs of neighbouring passes, and its standard error.
        """
        kept = {block.name: _spread(block, width) for block, width in widths.items()}
        small = keep_units(self.anatomy.model, kept, blocks=self.anatomy.blocks)
        timing = self.timing
        dense_times, small_times = times_in_turn(
            [self.anatomy.model, small],
            batch_size=timing.batch_size,
            sequence_length=timing.sequence_length,
            runs=timing.runs,
            warmup=timing.warmup,
            backend=timing.backend,
        )
        self.dense += dense_times
        counted.update()
        ratios = [cut / whole for cut, whole in zip(small_times, dense_times, strict=True)]
        low, middle, high = np.quantile(ratios, [0.25, 0.5, 0.75]).tolist()
        # as of a normal distribution, from its quartiles, which passes that were interrupted do not move
        deviation = (high - low) / 1.349
        return _Share(value=middle, error=1.253 * deviation / math.sqrt(len(ratios)))


@dataclass(frozen=True, kw_only=True)
class _Share:
    """How long a cut model takes, as a share of the dense model's time, and the standard error of that."""

    value: float
    error: float


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """What was measured of the blocks of one shape: by width, the model's time as a share of the dense one's."""

    blocks: Sequence[Block]
    widths: Sequence[int]
    between: Sequence[int]
    shares: Mapping[int, _Share]


def _times(shape: _Shape, dense_ms: float) -> SublayerTimes:
    """The times of one sublayer, monotone, and how much slower widths off the step are."""
    count = len(shape.blocks)

    def of_one(width: int) -> float:
        """What one sublayer takes beyond what it takes at the first width."""
        return (shape.shares[width].value - shape.shares[shape.widths[0]].value) * dense_ms / count

    errors = [shape.shares[width].error * dense_ms / count for width in shape.widths]
    steady = steadied(shape.widths, [of_one(width) for width in shape.widths], errors)
    milliseconds = monotone(shape.widths, steady)
    block = shape.blocks[0]
    times = SublayerTimes(
        blocks=tuple(block.name for block in shape.blocks),
        unit=block.unit,
        units=block.units,
        widths=tuple(shape.widths),
        milliseconds=tuple(milliseconds),
    )
    effects = []
    for width in shape.between:
        expected = times.at(width)
        if expected > 0:
            effects.append(of_one(width) / expected)
    effect = statistics.median(effects) if effects else 1.0
    if effect < _LEAST_EFFECT:
        return times
    return SublayerTimes(
        blocks=times.blocks,
        unit=times.unit,
        units=times.units,
        widths=times.widths,
        milliseconds=times.milliseconds,
        step=_STEP,
        off_step=round(effect, 4),
    )


def _scaled(times: SublayerTimes, factor: float) -> SublayerTimes:
    """The times of a sublayer, each by a factor."""
    return replace(times, milliseconds=tuple(round(time * factor, 6) for time in times.milliseconds))


def steadied(widths: Sequence[int], milliseconds: Sequence[float], errors: Sequence[float]) -> list[float]:
    """Times of sublayers, drawn towards a straight line as far as they are noise.

    The line is a fixed cost and a cost for each unit. With r² the mean squared distance of the times from it and s² the
    mean squared standard error, a time keeps the share max(0, 1 − s²/r²) of its distance (the shrinkage of James and
    Stein 1961, "Estimation with quadratic loss"). Times without noise stay, so that steps of kernels are seen.

    >>> steadied([0, 8, 16, 24, 32], [0.0, 2.0, 2.0, 4.0, 4.0], errors=[0.0] * 5)
    [0.0, 2.0, 2.0, 4.0, 4.0]
    >>> steadied([0, 8, 16, 24, 32], [0.0, 2.0, 2.0, 4.0, 4.0], errors=[0.9] * 5)
    [0.0, 1.8, 2.6, 3.4, 4.2]

    Args:
        widths: Increasing numbers of units.
        milliseconds: A time for each. The first is that of a sublayer without units, and stays.
        errors: The standard error of each.

    Returns:
        The times.
    """
    with_units = np.array(milliseconds[1:])
    # a line goes through any two points
    if len(with_units) < 3:
        return list(milliseconds)
    slope, fixed = np.polyfit(widths[1:], with_units, deg=1)
    # no sublayer takes less than nothing
    line = np.maximum(fixed + slope * np.array(widths[1:]), 0.0)
    distance = float(np.mean((with_units - line) ** 2))
    noise = float(np.mean(np.square(errors[1:])))
    kept = max(0.0, 1 - noise / distance) if distance else 1.0
    steady = line + kept * (with_units - line)
    return [milliseconds[0], *(round(float(time), 9) for time in steady)]


def monotone(widths: Sequence[int], milliseconds: Sequence[float]) -> list[float]:
    """Times that never fall as widths grow, and start at 0: isotonic regression.

    >>> monotone([0, 8, 16, 24], [0.1, 2.0, 1.0, 3.0])
    [0.0, 1.4, 1.4, 2.9]

    Args:
        widths: Increasing numbers of units.
        milliseconds: A time for each.

    Returns:
        The nearest times that never fall, as differences to the first.
    """
    fitted = IsotonicRegression().fit_transform(list(widths), list(milliseconds)).tolist()
    return [round(time - fitted[0], 6) for time in fitted]


def _same_shapes(blocks: Sequence[Block]) -> list[list[Block]]:
    """The blocks in groups of one shape, so that a group is measured once."""
    by_shape: dict[tuple[Any, ...], list[Block]] = {}
    for block in blocks:
        rows = tuple((piece.parameter, piece.rows, piece.role) for piece in block.slices)
        sizes = (block.units, block.groups, block.width, block.unit_params, block.unit_token_macs, block.unit_pair_macs)
        name = block.name.removeprefix(f"{block.layer}.")
        shape = (name, block.unit, block.uses, block.least, block.tokens, block.source_tokens, sizes, rows)
        by_shape.setdefault(shape, []).append(block)
    # a block without units has nothing to measure
    return [found for found in by_shape.values() if found[0].units]


def _widths(block: Block) -> list[int]:
    """The numbers of units to measure, from the fewest to all."""
    step = block.groups
    levels = range(_first(block), block.units + 1, step)
    if block.unit != "neuron" and len(levels) <= _MOST_LEVELS:
        return list(levels)
    if block.unit == "neuron":
        step = _GRID if block.units >= _POINTS * _GRID else _STEP
    spacing = step * max(1, round(block.units / step / (_POINTS - 2)))
    inside = [width for width in range(spacing, block.units, spacing) if width > _first(block)]
    # the narrowest sublayer tells its fixed cost
    narrowest = max(_first(block) + block.groups, step)
    return sorted({_first(block), min(narrowest, block.units), *inside, block.units})


def _first(block: Block) -> int:
    """The fewest units that the model can run with, of which every group has as many."""
    return -(-block.least // block.groups) * block.groups


def _between(block: Block) -> list[int]:
    """Three widths between multiples of the step, where kernels may be slower; none of heads, or of narrow layers."""
    if block.unit != "neuron" or block.units < _POINTS * _STEP:
        return []
    widths = []
    for share in (0.3, 0.5, 0.8):
        multiple = round(share * block.units / _GRID) * _GRID
        widths.append(max(multiple, _STEP) - 3)
    return [width for width in dict.fromkeys(widths) if width > block.least]


def _spread(block: Block, width: int) -> list[int]:
    """Units to keep: as many of every group."""
    size = block.units // block.groups
    each = width // block.groups
    kept: list[int] = []
    for group in range(block.groups):
        kept += range(group * size, group * size + each)
    return kept


def _conditions(anatomy: Anatomy, timing: _Timing) -> dict[str, Any]:
    """Everything that the times depend on."""
    model = anatomy.model
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    packages = ("hfprune", "torch", "transformers", *get_backend(timing.backend).packages)
    return {
        "device": name_of_device(model.device),
        "dtype": str(model.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "backend": timing.backend,
        "attention": model.config._attn_implementation or "",
        "attention_unit": anatomy.attention_unit,
        "batch_size": timing.batch_size,
        "sequence_length": timing.sequence_length,
        "runs": timing.runs,
        "versions": {package: version(package) for package in packages},
        **shape_of_model(model),
        # heads, windows and activations show in no shape
        "model": f"shapes {_digest(shapes)[:16]}, units {_digest(anatomy.dense_units)[:16]}, "
        f"config {_digest(_timed_config(model))[:16]}",
    }


def _timed_config(model: PreTrainedModel) -> dict[str, Any]:
    """The fields of the config that times may depend on."""
    fields = dict(model.config.to_diff_dict())
    for name in _NAMES_IN_CONFIG:
        fields.pop(name, None)
    return fields


def _digest(values: Mapping[str, Any]) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
