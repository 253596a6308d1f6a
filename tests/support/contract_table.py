"""The table of the contract: how far apart gated, pruned and reloaded models are, for every cell that ran."""

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers

PROPERTY = "contract cell"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What one cell measured: the largest differences of the logits (hidden states where there is no head)."""

    model_type: str
    head: str
    attention: str
    pruned: float
    reloaded: float


def cells_of(reports: Iterable) -> list[Cell]:
    """The cells that were measured, from the reports of tests that ran, passed or failed."""
    return [Cell(**value) for report in reports for name, value in report.user_properties if name == PROPERTY]


def in_terminal(cells: list[Cell]) -> list[str]:
    r"""One line a model type: the largest differences over its heads.

    >>> cell = {"model_type": "bert", "attention": "sdpa", "reloaded": 0.0}
    >>> print(*in_terminal([Cell(head=h, pruned=p, **cell) for h, p in (("A", 1e-7), ("B", 3e-7))]), sep="\n")
    max |Δ logits|        heads   gated − pruned: sdpa   eager   pruned − reloaded
    bert                      2                  3e-07       -                   0
    """
    lines = ["max |Δ logits|        heads   gated − pruned: sdpa   eager   pruned − reloaded"]
    for model_type in sorted({cell.model_type for cell in cells}):
        own = [cell for cell in cells if cell.model_type == model_type]
        sdpa, eager = (_largest(c.pruned for c in own if c.attention == name) for name in ("sdpa", "eager"))
        reloaded, heads = _largest(c.reloaded for c in own), len({c.head for c in own})
        lines.append(f"{model_type:<20} {heads:>6} {sdpa:>22} {eager:>7} {reloaded:>19}")
    return lines


def in_markdown(cells: list[Cell]) -> str:
    """One line a model type and head, for a file."""
    lines = [
        "# The contract, cell by cell",
        "",
        "Gating units to 0, removing them, and saving and loading the smaller model give the same: the largest "
        "|difference| of the logits (hidden states without a head) of random models with two layers of different "
        "widths, in float32. Drawn by `make contract`; a cell passes up to 1e-05 before reloading and at 0 after it. "
        f"{len(cells)} cells, {platform.machine()}, torch {torch.__version__.partition('+')[0]}, transformers "
        f"{transformers.__version__}; another machine rounds otherwise.",
        "",
        "| model type | head | gated − pruned, sdpa | eager | pruned − reloaded |",
        "|---|---|---|---|---|",
    ]
    for model_type, head in sorted({(cell.model_type, cell.head) for cell in cells}):
        own = [cell for cell in cells if (cell.model_type, cell.head) == (model_type, head)]
        sdpa, eager = (_largest(c.pruned for c in own if c.attention == name) for name in ("sdpa", "eager"))
        name = head.removeprefix("AutoModel").removeprefix("For") or "-"
        lines.append(f"| {model_type} | {name} | {sdpa} | {eager} | {_largest(c.reloaded for c in own)} |")
    return "\n".join(lines) + "\n"


def summarize(terminal, path: str | None) -> None:
    """Write the table into pytest's summary, and into a file where one is asked for; nothing if no cell ran."""
    cells = cells_of(report for name in ("passed", "failed") for report in terminal.stats.get(name, ()))
    if not cells:
        return
    terminal.section(f"contract: {len(cells)} cells")
    for line in in_terminal(cells):
        terminal.write_line(line)
    if path is not None:
        Path(path).write_text(in_markdown(cells), encoding="utf-8")
        terminal.write_line(f"cell by cell: {path}")


def _largest(values: Iterable[float]) -> str:
    found = max(values, default=None)
    return "-" if found is None else f"{found:.0e}" if found else "0"
