"""Draw the picture of the README, for light and for dark pages: `python docs/figures/readme_picture.py`.

Accuracy without training against the multiply-adds that are kept, from docs/results/no_retraining.json, which
benchmarks/no_retraining.py measured. The same rows give the same bytes; a test draws both files again.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

HERE = Path(__file__).parent
ROWS = HERE.parent / "results" / "no_retraining.json"
#: Of each panel: the data set in the rows, and what stands above it.
PANELS = {"trec": "TREC questions", "movie_reviews": "Movie reviews"}
#: Where the upper axis has a mark: per cent kept, and what that means.
FEWER = {100 / 2: "2× fewer", 100 / 3: "3×", 100 / 5: "5×", 100 / 10: "10×"}
#: What stands above the panels, and above the legend.
TITLE = "MiniLM-L6, pruned and not trained afterwards"
NOTE = "means of three calibration draws, with their range"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method: which rows it has, and how it looks."""

    scorer: str
    repair: str
    label: str
    colour: str
    marker: str


@dataclass(frozen=True, kw_only=True)
class Page:
    """The colours of a page: its paper, its ink, faint lines, and the blue that stands out on it."""

    paper: str
    ink: str
    faint: str
    blue: str


#: The colours of the lines are those of Okabe and Ito, which colour-blind readers can tell apart.
PAGES = {
    "light": Page(paper="#ffffff", ink="#1f2328", faint="#d1d9e0", blue="#0072B2"),
    "dark": Page(paper="#0d1117", ink="#e6edf3", faint="#30363d", blue="#56B4E9"),
}
FILES = {theme: HERE / f"accuracy_against_cost-{theme}.svg" for theme in PAGES}


def lines(page: Page) -> list[Line]:
    """The methods, from the best to the worst."""
    return [
        Line(
            scorer="residual_logit_fisher",
            repair="rounds",
            label="hfprune, the default: rounds with repair",
            colour=page.blue,
            marker="o",
        ),
        Line(
            scorer="fisher",
            repair="repair",
            label="Fisher, one shot, repaired by hfprune",
            colour="#009E73",
            marker="s",
        ),
        Line(
            scorer="fisher",
            repair="none",
            label="Fisher, one shot (Kwon et al. 2022)",
            colour="#D55E00",
            marker="^",
        ),
        Line(scorer="random", repair="none", label="random heads and neurons", colour="#CC79A7", marker="D"),
    ]


def values_of(rows: Sequence[dict[str, Any]], dataset: str, line: Line) -> dict[int, list[float]]:
    """By per cent of the MACs kept, the accuracies of the draws, from the most MACs to the fewest."""
    found: dict[int, list[float]] = {}
    wanted = {"dataset": dataset, "scorer": line.scorer, "repair": line.repair, "allocation": "global"}
    for row in rows:
        if wanted.items() <= row.items():
            found.setdefault(row["macs_kept"], []).append(row["accuracy"])
    return dict(sorted(found.items(), reverse=True))


def draw_line(axes: Axes, line: Line, values: dict[int, list[float]]) -> None:
    """The mean of the draws, and their range."""
    means = [sum(draws) / len(draws) for draws in values.values()]
    # a mean of equal numbers can differ from them in its last digit
    below = [max(0.0, mean - min(draws)) for mean, draws in zip(means, values.values(), strict=True)]
    above = [max(0.0, max(draws) - mean) for mean, draws in zip(means, values.values(), strict=True)]
    axes.errorbar(
        list(values),
        means,
        yerr=(below, above),
        color=line.colour,
        marker=line.marker,
        label=line.label,
        linewidth=2,
        markersize=6,
        elinewidth=1.5,
        capsize=3,
    )


def draw_panel(axes: Axes, rows: Sequence[dict[str, Any]], dataset: str, page: Page) -> None:
    """One data set: the dense model as a line across, and every method."""
    dense = next(row["dense_accuracy"] for row in rows if row["dataset"] == dataset)
    axes.axhline(dense, color=page.ink, linewidth=1.5, linestyle="--", label="dense model")
    # the default is drawn last, over the others
    for line in reversed(lines(page)):
        draw_line(axes, line, values_of(rows, dataset, line))
    best = lines(page)[0]
    for kept, draws in values_of(rows, dataset, best).items():
        label = f"{sum(draws) / len(draws):.1f}"
        # a number hides the grid behind it
        behind = {"facecolor": page.paper, "edgecolor": "none", "pad": 0.5}
        axes.text(kept, dense + 2.5, label, color=best.colour, fontsize=10, ha="center", va="bottom", bbox=behind)
    axes.set_title(f"{PANELS[dataset]} (dense model: {dense:.1f} %)", color=page.ink, fontsize=11, pad=8)
    axes.set_xlabel("multiply-adds kept in heads and neurons, %")
    axes.set_xlim(84, 6)
    axes.set_xticks(range(80, 0, -10))
    axes.set_ylim(0, 106)
    axes.set_yticks(range(0, 101, 20))
    axes.grid(axis="y", color=page.faint, linewidth=0.8)
    axes.set_axisbelow(True)
    upper = axes.secondary_xaxis("top")
    upper.set_xticks(list(FEWER), list(FEWER.values()), fontsize=10)
    for side in (axes, upper):
        side.tick_params(color=page.faint, labelcolor=page.ink)
        side.spines[:].set_color(page.faint)
    axes.xaxis.label.set_color(page.ink)
    axes.spines["right"].set_visible(False)


def draw(theme: str) -> str:
    """The picture as SVG: one panel a data set, the legend in the free corner of the last."""
    rows = json.loads(ROWS.read_text(encoding="utf-8"))
    page = PAGES[theme]
    # glyphs as paths look alike everywhere; names of elements follow from the salt, not from chance
    settings = {"svg.fonttype": "path", "svg.hashsalt": "hfprune", "font.family": "DejaVu Sans", "font.size": 11}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(9, 4.5), facecolor=page.paper, layout="constrained")
        figure.suptitle(TITLE, color=page.ink, fontsize=13, fontweight="bold")
        figure.get_layout_engine().set(w_pad=0.1, h_pad=0.06, wspace=0.04)
        panels = figure.subplots(1, len(PANELS), sharey=True)
        for axes, dataset in zip(panels, PANELS, strict=True):
            axes.set_facecolor(page.paper)
            draw_panel(axes, rows, dataset, page)
        panels[0].set_ylabel("accuracy on the test set, %", color=page.ink)
        handles, labels = panels[0].get_legend_handles_labels()
        legend = panels[-1].legend(
            handles[:1] + handles[:0:-1],
            labels[:1] + labels[:0:-1],
            loc="lower left",
            fontsize=10,
            title=NOTE,
            title_fontsize=10,
            alignment="left",
            labelcolor=page.ink,
            facecolor=page.paper,
            edgecolor="none",
            framealpha=1,
        )
        legend.get_title().set_color(page.ink)
        drawn = StringIO()
        figure.savefig(
            drawn,
            format="svg",
            metadata={"Date": None, "Creator": None, "Title": "Accuracy against multiply-adds kept"},
        )
    return drawn.getvalue()


def main() -> None:
    """Write both files."""
    for theme, path in FILES.items():
        path.write_text(draw(theme), encoding="utf-8")


if __name__ == "__main__":
    main()
