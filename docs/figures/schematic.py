"""Figures of ideas: what a unit is, what surgery cuts, what reconstruction solves, and the steps of pruning."""

from matplotlib.figure import Figure
from style import LARGE, NORMAL, Canvas, Theme


def unit_head(theme: Theme) -> Figure:
    """One head: rows of the query, key and value projections, and columns of the output projection."""
    canvas = Canvas(theme, 3.0)
    heads = [None, theme.orange, None, None]
    canvas.text(0.45, 1.55, "residual\nstream")
    canvas.arrow((0.85, 1.55), (1.1, 1.55))
    for place, name in enumerate(("query", "key", "value")):
        x = 1.15 + 0.75 * place
        canvas.rows(x, 0.85, 0.6, 1.4, heads)
        canvas.text(x + 0.3, 2.4, name, size=NORMAL)
    canvas.text(2.2, 2.75, "producers", size=LARGE, bold=True)
    canvas.text(2.2, 0.62, "rows: outputs")
    canvas.arrow((3.3, 1.55), (3.6, 1.55))
    canvas.text(4.2, 2.4, "attention,\nhead by head")
    canvas.columns(3.65, 1.45, 1.1, 0.2, heads)
    canvas.text(4.2, 0.62, "one piece a head")
    canvas.arrow((4.8, 1.55), (5.05, 1.55))
    canvas.columns(5.1, 1.25, 1.1, 0.6, heads)
    canvas.text(5.65, 2.4, "output", size=NORMAL)
    canvas.text(5.65, 2.75, "consumer", size=LARGE, bold=True)
    canvas.text(5.65, 0.62, "columns: inputs")
    canvas.arrow((6.25, 1.55), (6.45, 1.55))
    canvas.text(6.72, 1.55, "sum")
    canvas.cell(2.25, 0.15, 0.22, 0.16, colour=theme.orange)
    canvas.text(2.57, 0.23, "one unit: the second of four heads", align="left")
    return canvas.figure


def unit_neuron(theme: Theme) -> Figure:
    """One neuron: a row of the first projection, and of the gate if there is one; a column of the second."""
    canvas = Canvas(theme, 3.0)
    neurons = [None] * 8
    neurons[2] = theme.orange
    canvas.text(0.45, 1.55, "residual\nstream")
    canvas.arrow((0.85, 1.55), (1.15, 1.55))
    canvas.rows(1.2, 0.85, 0.75, 1.4, neurons)
    canvas.text(1.575, 2.4, "up", size=NORMAL)
    canvas.rows(2.2, 0.85, 0.75, 1.4, neurons)
    canvas.text(2.575, 2.4, "gate, if any", size=NORMAL)
    canvas.text(2.075, 2.75, "producers", size=LARGE, bold=True)
    canvas.text(2.075, 0.62, "rows: outputs")
    canvas.arrow((3.05, 1.55), (3.4, 1.55))
    canvas.columns(3.45, 1.45, 1.3, 0.2, neurons)
    canvas.text(4.1, 2.4, "activation")
    canvas.text(4.1, 0.62, "one number a neuron")
    canvas.arrow((4.8, 1.55), (5.05, 1.55))
    canvas.columns(5.1, 1.2, 1.1, 0.7, neurons)
    canvas.text(5.65, 2.4, "down", size=NORMAL)
    canvas.text(5.65, 2.75, "consumer", size=LARGE, bold=True)
    canvas.text(5.65, 0.62, "columns: inputs")
    canvas.arrow((6.25, 1.55), (6.45, 1.55))
    canvas.text(6.72, 1.55, "sum")
    canvas.cell(2.25, 0.15, 0.22, 0.16, colour=theme.orange)
    canvas.text(2.57, 0.23, "one unit: the third of eight neurons", align="left")
    return canvas.figure


def unit_groups(theme: Theme) -> Figure:
    """Grouped heads: what goes when one group is removed, and when one query head of every group is removed."""
    canvas = Canvas(theme, 2.7)
    _grouped(canvas, 0.2, 'attention_unit="group"', removed_queries=(3, 4, 5), removed_pairs=(1,))
    canvas.text(1.7, 0.3, "one unit goes: a key/value head\nand all its query heads")
    _grouped(canvas, 3.8, 'attention_unit="query"', removed_queries=(1, 3), removed_pairs=())
    canvas.text(5.3, 0.3, "two units go: one query head of\nevery group; keys and values stay")
    return canvas.figure


def _grouped(
    canvas: Canvas, left: float, title: str, *, removed_queries: tuple[int, ...], removed_pairs: tuple[int, ...]
) -> None:
    """Six query heads over two key/value heads, 3 inches wide, with some of them removed."""
    theme = canvas.theme
    canvas.text(left + 1.5, 2.5, title, size=NORMAL, code=True)
    for pair in range(2):
        start = left + 1.55 * pair
        colour = (theme.blue, theme.orange)[pair]
        for place in range(3):
            head = 3 * pair + place
            canvas.cell(start + 0.5 * place, 1.7, 0.42, 0.42, colour=colour, hatched=head in removed_queries)
            canvas.line((start + 0.5 * place + 0.21, 1.7), (start + 0.71, 1.32), colour=theme.muted)
        canvas.cell(start + 0.31, 0.9, 0.8, 0.42, colour=colour, hatched=pair in removed_pairs)
    canvas.text(left + 1.5, 2.24, "query heads", colour=theme.muted)
    canvas.text(left + 1.5, 0.74, "key/value heads", colour=theme.muted)


def surgery(theme: Theme) -> Figure:
    """A plan that keeps four of six units: rows of the producer and columns of the consumer before and after."""
    canvas = Canvas(theme, 2.75)
    kept = [theme.blue] * 6
    canvas.text(1.7, 2.5, "before", size=LARGE, bold=True)
    canvas.rows(0.3, 0.65, 1.1, 1.5, kept, hatched=(2, 4))
    canvas.text(0.85, 0.45, "producer, 6 rows")
    canvas.columns(1.65, 0.85, 1.5, 1.1, kept, hatched=(2, 4))
    canvas.text(2.4, 0.45, "consumer, 6 columns")
    for unit in range(6):
        canvas.text(0.2, 2.025 - 0.25 * unit, str(unit), colour=theme.muted)
        canvas.text(1.775 + 0.25 * unit, 2.05, str(unit), colour=theme.muted)
    canvas.text(3.78, 2.02, "plan:", size=NORMAL, bold=True)
    canvas.text(3.78, 1.78, "keep 0 1 3 5", size=NORMAL)
    canvas.arrow((3.3, 1.4), (4.3, 1.4))
    canvas.text(5.6, 2.5, "after", size=LARGE, bold=True)
    canvas.rows(4.55, 0.9, 1.1, 1.0, kept[:4])
    canvas.text(5.1, 0.45, "4 rows")
    canvas.columns(5.85, 0.85, 1.0, 1.1, kept[:4])
    canvas.text(6.35, 0.45, "4 columns")
    for place, unit in enumerate((0, 1, 3, 5)):
        canvas.text(4.45, 1.775 - 0.25 * place, str(unit), colour=theme.muted)
        canvas.text(5.975 + 0.25 * place, 2.05, str(unit), colour=theme.muted)
    canvas.text(3.5, 0.15, "The residual stream keeps its width: the producer's inputs and the consumer's outputs.")
    return canvas.figure


def reconstruction(theme: Theme) -> Figure:
    """The residual streams of the dense and the pruned model behind one consumer, their difference, and the solve."""
    canvas = Canvas(theme, 3.3)
    for y, name, colour, inside in (
        (2.55, "dense", theme.blue, "whole block"),
        (0.95, "pruned", theme.orange, "units that stay"),
    ):
        canvas.text(0.4, y, name, size=NORMAL, bold=True, colour=colour)
        canvas.line((0.8, y), (1.1, y), colour=colour)
        canvas.line((1.0, y), (1.0, y + 0.5), colour=colour)
        canvas.line((1.0, y + 0.5), (4.1, y + 0.5), colour=colour)
        canvas.arrow((4.1, y + 0.5), (4.1, y + 0.13), colour=colour)
        canvas.arrow((1.0, y), (1.25, y), colour=colour)
        canvas.box(1.25, y - 0.25, 1.2, 0.5, inside)
        canvas.arrow((2.45, y), (2.85, y), colour=colour)
        canvas.box(2.85, y - 0.25, 0.9, 0.5, "consumer" if name == "dense" else "consumer\nW")
        canvas.arrow((3.75, y), (3.98, y), colour=colour)
        canvas.text(4.1, y, "+", size=LARGE, bold=True)
        canvas.arrow((4.22, y), (4.7, y), colour=colour)
        canvas.text(4.98, y, "stream", colour=colour)
    canvas.text(2.65, 1.14, "x", size=NORMAL, bold=True)
    canvas.arrow((4.98, 2.4), (4.98, 1.1), colour=theme.muted, both=True)
    canvas.text(5.08, 1.75, "e: the difference", align="left")
    canvas.box(2.1, 0.08, 3.4, 0.36, "ΔW: the change of W with ΔW·x nearest to e", colour=theme.green)
    canvas.arrow((6.3, 1.6), (5.5, 0.26), colour=theme.green, bend=-0.4)
    canvas.arrow((3.3, 0.44), (3.3, 0.68), colour=theme.green)
    return canvas.figure


def rounds(theme: Theme) -> Figure:
    """A round as a loop of four steps, which begins with the dense model and ends with the pruned one."""
    canvas = Canvas(theme, 2.75)
    canvas.box(0.2, 1.55, 1.05, 0.6, "dense\nmodel")
    canvas.arrow((1.25, 1.85), (2.05, 1.85))
    canvas.box(2.05, 1.55, 1.2, 0.6, "score", colour=theme.blue, bold=True)
    canvas.arrow((3.25, 1.85), (3.75, 1.85))
    canvas.box(3.75, 1.55, 1.2, 0.6, "plan", colour=theme.blue, bold=True)
    canvas.arrow((4.35, 1.55), (4.35, 1.05))
    canvas.box(3.75, 0.45, 1.2, 0.6, "surgery", colour=theme.blue, bold=True)
    canvas.arrow((3.75, 0.75), (3.25, 0.75))
    canvas.box(2.05, 0.45, 1.2, 0.6, "repair", colour=theme.blue, bold=True)
    canvas.arrow((2.65, 1.05), (2.65, 1.55))
    canvas.text(2.75, 1.3, "again", align="left")
    canvas.line((2.65, 0.45), (2.65, 0.15))
    canvas.line((2.65, 0.15), (6.25, 0.15))
    canvas.arrow((6.25, 0.15), (6.25, 0.45))
    canvas.text(5.25, 0.3, "sparsity reached")
    canvas.box(5.7, 0.45, 1.1, 0.6, "pruned\nmodel")
    canvas.line((0.725, 1.55), (0.725, 0.75), colour=theme.muted)
    canvas.arrow((0.725, 0.75), (2.05, 0.75), colour=theme.muted)
    canvas.text(1.35, 0.58, "the aim of repair", colour=theme.muted)
    canvas.text(3.5, 2.45, "one round: keeps about four fifths of the cost", size=NORMAL)
    return canvas.figure


def pipeline(theme: Theme) -> Figure:
    """Six steps from a dense model to a checkpoint, and what each of them gives."""
    canvas = Canvas(theme, 1.2)
    steps = (
        ("score", "a number\nfor each unit", theme.blue),
        ("plan", "the units\nthat stay", theme.blue),
        ("surgery", "a smaller\nmodel", theme.blue),
        ("repair", "consumers\nsolved anew", theme.blue),
        ("recovery", "training,\nif you like", theme.orange),
        ("checkpoint", "weights, plan,\nrecord", theme.green),
    )
    for place, (name, gives, colour) in enumerate(steps):
        x = 0.06 + 1.16 * place
        canvas.box(x, 0.6, 1.04, 0.5, name, colour=colour, bold=True)
        canvas.text(x + 0.52, 0.3, gives)
        if place:
            canvas.arrow((x - 0.12, 0.85), (x, 0.85))
    return canvas.figure
