"""The pictures of a card: what is left of every layer, and accuracy against size. They need matplotlib."""

import importlib.util
import re
from pathlib import Path
from typing import Any

from hfprune.planning.plan import PruningPlan
from hfprune.publishing.record import PruningRecord

KEPT_UNITS, ACCURACY = "kept_units.png", "accuracy_against_size.png"
_BINS = 48


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def draw_pictures(record: PruningRecord, plan: PruningPlan, folder: Path) -> list[str]:
    """Draw what the record and the plan have data for; `can_draw` says whether that is possible.

    Args:
        record: What happened.
        plan: What stays.
        folder: Where the PNG files go.

    Returns:
        Their names.
    """
    names = pictures_of(record)
    _kept_units(plan, folder / KEPT_UNITS)
    if ACCURACY in names:
        _accuracy(record, folder / ACCURACY)
    return names


def pictures_of(record: PruningRecord) -> list[str]:
    """The names of the pictures that a record has data for."""
    return [KEPT_UNITS, ACCURACY] if record.metrics.get("dense") and record.sizes else [KEPT_UNITS]


def _kept_units(plan: PruningPlan, path: Path) -> None:
    """A heat map: a row a layer; every head is a cell, neurons are counted in up to 48 runs of equal length."""
    panels = {kind: {n: b for n, b in plan.blocks.items() if b.kind == kind} for kind in ("attention", "ffn")}
    panels = {kind: blocks for kind, blocks in panels.items() if blocks}
    rows = max(len(blocks) for blocks in panels.values())
    figure = _figure(2 + 5 * len(panels), 1.2 + 0.28 * rows)
    for number, (kind, blocks) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), number + 1)
        cells = min(_BINS, max(block.units for block in blocks.values()))
        shares = [[_share(block.kept, block.units, cell, cells) for cell in range(cells)] for block in blocks.values()]
        image = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axes.set_title("attention: heads" if kind == "attention" else f"feed-forward: neurons, in {cells} runs")
        labels = [f"{_layer(name)}: {len(b.kept)} of {b.units}" for name, b in blocks.items()]
        axes.set_yticks(range(len(labels)), labels, fontsize=8)
        axes.set_xticks([])
        if number == len(panels) - 1:
            figure.colorbar(image, ax=axes, label="share kept")
    figure.savefig(path)


def _share(kept: tuple[int, ...], units: int, cell: int, cells: int) -> float:
    """The share of the units in a cell that is kept.

    >>> [_share((0, 1, 4), 6, cell, 3) for cell in range(3)]
    [1.0, 0.0, 0.5]
    """
    first, end = cell * units // cells, max((cell + 1) * units // cells, cell * units // cells + 1)
    return sum(first <= unit < end for unit in kept) / (end - first)


def _layer(name: str) -> str:
    """The number of the layer in a block's name, or the name.

    >>> _layer("encoder.layer.11.attention")
    '11'
    """
    found = re.search(r"\.(\d+)\.", name)
    return found.group(1) if found else name


def _accuracy(record: PruningRecord, path: Path) -> None:
    metric = next(iter(record.metrics["dense"]))
    figure = _figure(6, 3.6)
    axes = figure.add_subplot()
    for stage, marker in (("dense", "s"), ("pruned", "o"), ("recovered", "^")):
        if (value := record.metrics.get(stage, {}).get(metric)) is not None:
            size = record.sizes["dense" if stage == "dense" else "pruned"]
            share = 100 * size["macs"] / record.sizes["dense"]["macs"]
            axes.plot([share], [value], marker, label=f"{stage}: {value:.4f} at {share:.0f} %", markersize=9)
    axes.set_xlim(0, 108)
    axes.margins(y=0.3)
    length = record.sizes["dense"]["sequence_length"]
    axes.set(xlabel=f"multiply-adds of the dense model, % ({length} tokens)", ylabel=metric)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=9)
    figure.savefig(path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # takes half a second

    return Figure(figsize=(width, height), dpi=110, layout="constrained")
