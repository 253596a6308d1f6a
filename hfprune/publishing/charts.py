"""The pictures of a card: the share of units kept in every layer, and accuracy against size. They need matplotlib."""

import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hfprune.planning.plan import BlockPlan, PruningPlan
from hfprune.publishing.record import PruningRecord

#: File names of the pictures.
KEPT_UNITS = "kept_units.png"
ACCURACY = "accuracy_against_size.png"
#: The most cells of a row in the picture of kept units.
_MOST_CELLS = 48
#: The marker of each stage in the picture of accuracy against size.
_MARKERS = {"dense": "s", "pruned": "o", "recovered": "^"}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_pictures(record: PruningRecord, plan: PruningPlan, folder: Path) -> list[str]:
    """Draw the pictures that the record and the plan have data for. It needs matplotlib: ask `can_draw` before.

    Args:
        record: The record of the pruned model.
        plan: The plan of the pruned model.
        folder: The folder that the PNG files are written into.

    Returns:
        The names of the files.
    """
    names = pictures_of(record)
    _draw_kept_units(plan, folder / KEPT_UNITS)
    if ACCURACY in names:
        _draw_accuracy(record, folder / ACCURACY)
    return names


def pictures_of(record: PruningRecord) -> list[str]:
    """The names of the pictures that a record has data for."""
    if record.metrics.get("dense") and record.sizes:
        return [KEPT_UNITS, ACCURACY]
    return [KEPT_UNITS]


def _draw_kept_units(plan: PruningPlan, path: Path) -> None:
    """Draw a heat map of the share of units kept: a panel for each kind of block, in it a row for each layer."""
    blocks_of_kind: dict[str, dict[str, BlockPlan]] = {}
    for kind in ("attention", "ffn"):
        blocks = {name: block for name, block in plan.blocks.items() if block.kind == kind}
        if blocks:
            blocks_of_kind[kind] = blocks
    most_rows = max(len(blocks) for blocks in blocks_of_kind.values())
    panels = len(blocks_of_kind)
    figure = _figure(2 + 5 * panels, 1.2 + 0.28 * most_rows)
    for position, (kind, blocks) in enumerate(blocks_of_kind.items(), start=1):
        axes = figure.add_subplot(1, panels, position)
        image = _draw_panel(axes, kind, blocks)
        # all panels share one scale of colours, so one legend at the right end is enough
        if position == panels:
            figure.colorbar(image, ax=axes, label="share kept")
    figure.savefig(path)


def _draw_panel(axes: Any, kind: str, blocks: Mapping[str, BlockPlan]) -> Any:
    """Draw the blocks of one kind: a cell for every head; neurons, which are too many, in runs of equal length.

    Args:
        axes: The panel, as matplotlib's axes.
        kind: The kind of the blocks.
        blocks: Their plans by name, from the first layer to the last.

    Returns:
        The image, which a colour bar can explain.
    """
    most_units = max(block.units for block in blocks.values())
    cells = min(_MOST_CELLS, most_units)
    shares = []
    labels = []
    for name, block in blocks.items():
        shares.append([_share_kept(block, cell, cells) for cell in range(cells)])
        labels.append(f"{_layer_number(name)}: {len(block.kept)} of {block.units}")
    image = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    if kind == "attention":
        axes.set_title("attention: heads")
    else:
        axes.set_title(f"feed-forward: neurons, in {cells} runs")
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.set_xticks([])
    return image


def _share_kept(block: BlockPlan, cell: int, cells: int) -> float:
    """The share of the units in one cell that is kept.

    >>> block = BlockPlan(kind="ffn", unit="neuron", units=6, kept=(0, 1, 4), unit_params=1, unit_macs=1)
    >>> [_share_kept(block, cell, cells=3) for cell in range(3)]
    [1.0, 0.0, 0.5]
    """
    first = cell * block.units // cells
    # a block with fewer units than cells shows some unit in several cells, so that none is empty
    end = max((cell + 1) * block.units // cells, first + 1)
    kept = sum(first <= unit < end for unit in block.kept)
    return kept / (end - first)


def _layer_number(block_name: str) -> str:
    """The number of the layer in a block's name; the whole name if there is none.

    >>> _layer_number("encoder.layer.11.attention")
    '11'
    """
    number = re.search(r"\.(\d+)\.", block_name)
    return number.group(1) if number else block_name


def _draw_accuracy(record: PruningRecord, path: Path) -> None:
    """Draw the first metric at every stage against the multiply-adds, in percent of the dense model's."""
    metric = next(iter(record.metrics["dense"]))
    dense_size = record.sizes["dense"]
    figure = _figure(6, 3.6)
    axes = figure.add_subplot()
    for stage, marker in _MARKERS.items():
        value = record.metrics.get(stage, {}).get(metric)
        if value is None:
            continue
        # recovery changes weights only, so a recovered model has the size of the pruned one
        size = record.sizes["dense" if stage == "dense" else "pruned"]
        share = 100 * size["macs"] / dense_size["macs"]
        axes.plot([share], [value], marker, label=f"{stage}: {value:.4f} at {share:.0f} %", markersize=9)
    axes.set_xlim(0, 108)
    axes.margins(y=0.3)
    length = dense_size["sequence_length"]
    axes.set(xlabel=f"multiply-adds of the dense model, % ({length} tokens)", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9)
    figure.savefig(path)


def _figure(width: float, height: float) -> Any:
    """An empty figure of a size in inches."""
    # matplotlib takes half a second to import
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")
