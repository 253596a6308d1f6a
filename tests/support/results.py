"""Figures of Markdown tables beside the measured rows that they must be means of.

`claims_of(text)` reads every table of a page (of docs/results/, the README, or any other) and knows a table by its
header. A table of accuracies or perplexities gives a `Claim` for each of its figures: what is shown, and what follows
from the rows in docs/results/*.json and from the records in model_cards/.
"""

import functools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hfprune

ROOT = Path(__file__).parents[2]
DEFAULT = hfprune.PruningConfig().scorer
#: Data sets by how the words of a label or a heading begin.
DATASETS = {"TREC": "trec", "Movie reviews": "movie_reviews", "movie reviews": "movie_reviews"}
#: The short table of language models: how a line begins, and its scorer, repair and steps.
LANGUAGE_MODELS = {
    "FLAP: ": ("fluctuation", "bias", 0),
    "`activation_norm`, ": ("activation_norm", "repair", 0),
    "`taylor`, ": ("taylor", "repair", 0),
    "the default": (DEFAULT, "rounds", 0),
    '`scorer="kl_fisher"`': ("kl_fisher", "rounds", 0),
    "and 200 steps ": (DEFAULT, "rounds", 200),
    "and 200 such ": ("kl_fisher", "rounds", 200),
}


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a page: the heading above it, its header, and its rows, as text."""

    heading: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A figure of a page.

    Attributes:
        shown: As it stands on the page.
        measured: What the rows give.
        what: Of which rows, for messages.
    """

    shown: str
    measured: float
    what: str

    def holds(self) -> bool:
        """Whether the figure is the measured one, rounded to its own digits."""
        number = re.search(r"-?\d[\d,]*(\.\d+)?", self.shown)
        if not number:
            return False
        digits = len(number[1] or ".") - 1
        # a figure in the middle between two may be rounded to either
        tolerance = 0.51 * 10**-digits
        return abs(float(number[0].replace(",", "")) - self.measured) <= tolerance


def tables_of(text: str) -> Iterator[Table]:
    """Every table, in order."""
    heading, lines = "", list[str]()
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(line)
            continue
        if lines:
            header, *rows = [_cells(found) for found in lines]
            rows = rows[1:]
            yield Table(heading=heading, header=header, rows=tuple(rows))
            lines = []
        if line.startswith("#"):
            heading = line.strip("# ")


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|"))


def claims_of(text: str) -> list[Claim]:
    """Of all tables of a page."""
    return [claim for table in tables_of(text) for claim in claims_of_table(table)]


def claims_of_table(table: Table) -> list[Claim]:
    """The figures that the kept rows can confirm; none for a table of anything else."""
    for known, read in KINDS:
        if known(table):
            return list(read(table))
    return []


@functools.cache
def measured_rows(name: str) -> list[dict[str, Any]]:
    """`no_retraining`, `recovery` or `language_models`: what the benchmark of this name wrote."""
    rows: list[dict[str, Any]] = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return rows


def values(file: str, figure: str, *, draws: int | None = None, **wanted: object) -> list[float]:
    """A figure of all rows that have these values, and are so many."""
    rows = [row for row in measured_rows(file) if wanted.items() <= row.items()]
    found = [row[figure] for row in rows if row[figure] is not None]
    assert found, f"docs/results/{file}.json has no {figure} of {wanted}"
    assert draws is None or len(found) == draws, f"{len(found)} rows of {wanted}, expected {draws}"
    return found


def mean(numbers: Sequence[float]) -> float:
    return sum(numbers) / len(numbers)


def half_range(numbers: Sequence[float]) -> float:
    return (max(numbers) - min(numbers)) / 2


def per_cents(header: Sequence[str]) -> dict[int, int]:
    """Columns whose title is a number of per cent, by their place."""
    found = {place: re.fullmatch(r"(?:.*, )?(\d+) %", title) for place, title in enumerate(header)}
    return {place: int(match[1]) for place, match in found.items() if match}


def dataset_in(label: str, otherwise: str = "") -> str:
    for words, name in DATASETS.items():
        if label.startswith(words):
            return name
    return otherwise


def _by_cost(table: Table) -> Iterator[Claim]:
    dataset = ""
    for row in table.rows:
        label = row[0]
        dataset = dataset_in(label, dataset)
        scorer = next((name for name in ("random", "fisher") if name in label), DEFAULT)
        repair = "rounds" if "default" in label else "repair" if "repaired" in label else "none"
        wanted = {"dataset": dataset, "scorer": scorer, "repair": repair, "allocation": "global"}
        yield from _costs(table, row, wanted)


def _costs(table: Table, row: Sequence[str], wanted: dict[str, object]) -> Iterator[Claim]:
    for place, kept in per_cents(table.header).items():
        if row[place]:
            measured = mean(values("no_retraining", "accuracy", draws=3, macs_kept=kept, **wanted))
            yield Claim(shown=row[place], measured=measured, what=f"{wanted}, {kept} %")


def _by_scorer(table: Table) -> Iterator[Claim]:
    for label, _, _, accuracy, repaired, divergence in table.rows:
        in_rounds = "default" in label
        scorer = DEFAULT if in_rounds else label.strip("`")
        wanted = {"dataset": "trec", "scorer": scorer, "allocation": "global", "macs_kept": 50}
        mended = "rounds" if in_rounds else "repair"
        cells = [(accuracy, "accuracy", "none"), (repaired, "accuracy", mended), (divergence, "kl", mended)]
        for cell, figure, repair in cells:
            if cell:
                measured = mean(values("no_retraining", figure, draws=3, repair=repair, **wanted))
                yield Claim(shown=cell, measured=measured, what=f"{figure} of {wanted}, {repair}")


def _on_average(table: Table) -> Iterator[Claim]:
    for label, allocation, repair, *cells in table.rows:
        scorer = label.split("`")[1]
        wanted = {"scorer": scorer, "allocation": allocation.strip("`"), "repair": repair}
        for title, cell in zip(table.header[3:], cells, strict=True):
            if cell:
                costs = [int(number) for number in re.findall(r"\d+", title)]
                means = [
                    mean(values("no_retraining", "accuracy", dataset=dataset, macs_kept=kept, **wanted))
                    for dataset in ("trec", "movie_reviews")
                    for kept in costs
                ]
                yield Claim(shown=cell, measured=mean(means), what=f"average of {wanted} at {costs}")


def _every_row(table: Table) -> Iterator[Claim]:
    figure, costs = table.header[0], per_cents(table.header)
    for row in table.rows:
        dataset, scorer, allocation, repair = row[:4]
        wanted = {"dataset": dataset, "scorer": scorer, "allocation": allocation, "repair": repair.removesuffix(" *")}
        for place, kept in costs.items():
            if row[place]:
                found = values("no_retraining", figure, macs_kept=kept, **wanted)
                yield from _with_spread(row[place], found, f"{figure} of {wanted}, {kept} %")


def _with_spread(cell: str, found: Sequence[float], what: str) -> Iterator[Claim]:
    shown, _, spread = cell.partition(" ±")
    yield Claim(shown=shown, measured=mean(found), what=what)
    assert bool(spread) == (len(found) > 1), f"{cell}: {len(found)} draws of {what}"
    if spread:
        yield Claim(shown=spread, measured=half_range(found), what=f"spread of {what}")


def _recovery(table: Table) -> Iterator[Claim]:
    for label, *cells in table.rows:
        method = label.split("`")[1]
        dataset = ""
        for (place, kept), cell in zip(per_cents(table.header).items(), cells, strict=False):
            title = table.header[place]
            dataset = "movie_reviews" if title.startswith("reviews") else dataset_in(title, dataset)
            found = values("recovery", "accuracy", draws=3, dataset=dataset, method=method, macs_kept=kept)
            yield Claim(shown=cell, measured=mean(found), what=f"{method} on {dataset}, {kept} %")


def _recovery_with_spread(table: Table) -> Iterator[Claim]:
    dataset = dataset_in(table.heading)
    for method, steps, *cells in table.rows:
        for kept, cell in zip(per_cents(table.header).values(), cells, strict=True):
            wanted = {"dataset": dataset, "method": method, "macs_kept": kept, "steps": int(steps)}
            accuracy, divergence, _ = cell.split(", ")
            yield from _with_spread(accuracy, values("recovery", "accuracy", draws=3, **wanted), f"{wanted}")
            yield Claim(shown=divergence, measured=mean(values("recovery", "kl", **wanted)), what=f"kl of {wanted}")


def _perplexity(kept: int, scorer: str, repair: str, steps: int) -> float:
    wanted = {"kept": kept, "method": scorer, "repair": repair, "steps": steps}
    (found,) = values("language_models", "perplexity", **wanted)
    return found


def _language_models(table: Table) -> Iterator[Claim]:
    for scorer, repair, steps, *cells in table.rows:
        names = (scorer.strip("`"), repair, int(steps))
        for kept, cell in zip(per_cents(table.header).values(), cells, strict=False):
            if cell:
                yield Claim(shown=cell, measured=_perplexity(kept, *names), what=f"perplexity of {names}, {kept} %")


def _language_models_in_short(table: Table) -> Iterator[Claim]:
    for label, *cells in table.rows:
        names = next(found for start, found in LANGUAGE_MODELS.items() if label.startswith(start))
        for kept, cell in zip(per_cents(table.header).values(), cells, strict=True):
            yield Claim(shown=cell, measured=_perplexity(kept, *names), what=f"perplexity of {names}, {kept} %")


def _summary(table: Table) -> Iterator[Claim]:
    """A row a model and data set; titles are `dense`, `50 % of the MACs`, `70 % of the parameters`, `speed-up`."""
    scorer = DEFAULT
    for label, *cells in table.rows:
        language_model = "MiniLM" not in label
        scorer = label.split("`")[1] if "`" in label else scorer
        dataset = next((name for words, name in DATASETS.items() if words in label), "")
        for title, cell in zip(table.header[1:], cells, strict=True):
            kept = re.match(r"(\d+) % of the (MACs|parameters)", title)
            if "speed-up" in title:
                yield from _speed_ups(cell, "smollm2" if language_model else f"minilm-l6-{dataset}")
            elif title == "dense" and cell:
                file, figure = ("language_models", "perplexity") if language_model else ("no_retraining", "accuracy")
                of = {} if language_model else {"dataset": dataset}
                yield Claim(shown=cell, measured=mean(values(file, f"dense_{figure}", **of)), what=f"dense {label}")
            elif kept and cell and language_model:
                names = (scorer, "rounds", 200 if "200 steps" in label else 0)
                yield Claim(shown=cell, measured=_perplexity(int(kept[1]), *names), what=f"{names}, {title}")
            elif kept and cell:
                wanted = {"dataset": dataset, "scorer": DEFAULT, "repair": "rounds", "allocation": "global"}
                found = values("no_retraining", "accuracy", draws=3, macs_kept=int(kept[1]), **wanted)
                yield Claim(shown=cell, measured=mean(found), what=f"{label}, {title}")


def _comparison(table: Table) -> Iterator[Claim]:
    """A row a way to get a smaller model; the dense accuracies stand in the first column of each data set."""
    unrepaired = {"repair": "none", "allocation": "global"}
    ways: dict[str, tuple[str, dict[str, object]]] = {
        "hfprune's default": ("no_retraining", {"scorer": DEFAULT, "repair": "rounds", "allocation": "global"}),
        "and fine-tuned": ("recovery", {"method": "fine_tuning"}),
        "Fisher scores": ("no_retraining", {"scorer": "fisher", **unrepaired}),
        "a dense model of fewer layers": ("recovery", {"method": "fewer_layers"}),
        "random units": ("no_retraining", {"scorer": "random", **unrepaired}),
    }
    for label, *cells in table.rows:
        dataset = ""
        for title, cell in zip(table.header[1:], cells, strict=True):
            dataset = "movie_reviews" if title.startswith("reviews") else dataset_in(title, dataset)
            if label == "dense" and cell:
                measured = mean(values("no_retraining", "dense_accuracy", dataset=dataset))
                yield Claim(shown=cell, measured=measured, what=f"dense on {dataset}")
            elif cell:
                file, wanted = next(found for start, found in ways.items() if label.startswith(start))
                kept = int(title.split()[-2])
                found = values(file, "accuracy", draws=3, dataset=dataset, macs_kept=kept, **wanted)
                yield Claim(shown=cell, measured=mean(found), what=f"{label} on {dataset}, {kept} %")


def records() -> dict[str, dict[str, Any]]:
    """Of the published checkpoints, by name."""
    paths = sorted((ROOT / "model_cards").glob("*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths if not path.name.endswith(".plan.json")}


def speed_up(record: dict[str, Any]) -> float:
    return record["latencies"]["dense"]["median_ms"] / record["latencies"]["pruned"]["median_ms"]


def removed(record: dict[str, Any], size: str) -> float:
    """Per cent of a size (`prunable_macs`, `prunable_params`, `params`) that the pruned model lacks."""
    return 100 * (1 - record["sizes"]["pruned"][size] / record["sizes"]["dense"][size])


def _speed_ups(cell: str, checkpoints: str) -> Iterator[Claim]:
    """Of `2.01 × at 48 %`: the record of such a checkpoint that keeps as much."""
    for shown, kept in re.findall(r"([\d.]+) × at (\d+) %", cell):
        budget = "prunable_params" if checkpoints == "smollm2" else "prunable_macs"
        found = [
            record
            for name, record in records().items()
            if name.startswith(checkpoints) and round(100 - removed(record, budget)) == int(kept)
        ]
        assert len(found) == 1, f"{cell}: {len(found)} published checkpoints {checkpoints}* keep {kept} %"
        yield Claim(shown=shown, measured=speed_up(found[0]), what=f"speed-up of {checkpoints} at {kept} %")


def _checkpoints(table: Table) -> Iterator[Claim]:
    for row in table.rows:
        name = row[0].split("`")[1]
        record = records()[name]
        figures = {
            "MACs removed": removed(record, "prunable_macs"),
            "prunable parameters removed": removed(record, "prunable_params"),
            "all parameters removed": removed(record, "params"),
            "faster": speed_up(record),
        }
        for title, of in (("dense", "dense"), ("without training", "pruned"), ("recovered", "recovered")):
            metrics = record["metrics"][of]
            figures[title] = metrics["perplexity"] if "perplexity" in metrics else 100 * metrics["accuracy"]
        for title, cell in zip(table.header[1:], row[1:], strict=True):
            if title == "latency, ms":
                dense, pruned = cell.split(" → ")
                for which, shown in (("dense", dense), ("pruned", pruned)):
                    median = record["latencies"][which]["median_ms"]
                    yield Claim(shown=shown, measured=median, what=f"latency of {name}, {which}")
            else:
                yield Claim(shown=cell, measured=figures[title], what=f"{title} of {name}")


#: How to know each kind of table by its header, and what reads it.
KINDS: tuple[tuple[Callable[[Table], bool], Callable[[Table], Iterator[Claim]]], ...] = (
    (lambda table: table.header[0] == "MACs kept", _by_cost),
    (lambda table: table.header[:2] == ("scorer", "reads"), _by_scorer),
    (lambda table: table.header[0] == "average accuracy", _on_average),
    (lambda table: table.header[1:4] == ("scorer", "allocation", "repair"), _every_row),
    (lambda table: table.header[:2] == ("method", "TREC, 50 %"), _recovery),
    (lambda table: table.header[:2] == ("method", "steps"), _recovery_with_spread),
    (lambda table: table.header[:3] == ("scorer", "repair", "steps"), _language_models),
    (lambda table: table.header[1:] == ("80 %", "70 %", "50 %"), _language_models_in_short),
    (lambda table: table.header[0] == "model and data", _summary),
    (lambda table: table.header[:2] == ("", "TREC: 50 %"), _comparison),
    (lambda table: table.header[0] == "checkpoint" and table.header[1] != "command", _checkpoints),
)
