"""The figures of docs/results/ are those of the rows that benchmarks wrote, and of the published records."""

import importlib
import importlib.util
import re
from dataclasses import replace

import pytest

from tests.support.results import ROOT, claims_of, claims_of_table, measured_rows, records, tables_of

FOLDER = ROOT / "docs" / "results"
#: How many figures of each page are checked, at least.
PAGES = {
    "docs/results/index.md": 16,
    "docs/results/no-retraining.md": 1000,
    "docs/results/recovery.md": 150,
    "docs/results/language-models.md": 80,
    "docs/results/model-cards.md": 36,
}
#: Tables without kept rows, by how their header begins: seconds and memory, commands.
NOT_KEPT = {
    ("", "37 tokens: seconds"),
    ("samples", "tokens"),
    ("", "extra MiB"),
    ("", "weights"),
    ("texts", "tokens"),
    # tests/test_vocabulary_growth.py compares it with its rows
    ("vocabulary", "characters of text"),
    ("checkpoint", "command"),
    # tests/test_card.py draws this page again
    ("suite", "passed"),
    ("model", "passed"),
    # tests/test_card.py draws the page of deployment again, from its rows
    ("runtime", "model"),
    ("runtime", "weights"),
    ("runtime", "batch"),
    # and those of embeddings and of all tasks
    ("scorer", "samples"),
    ("task", "data"),
}


@pytest.mark.parametrize("page", PAGES)
def test_figures_are_those_of_measured_rows(page):
    claims = claims_of((ROOT / page).read_text(encoding="utf-8"))
    assert len(claims) >= PAGES[page]
    wrong = [claim for claim in claims if not claim.holds()]
    assert not wrong


def test_figures_of_the_readme_are_those_of_measured_rows():
    """Accuracies, perplexities and speed-ups, in whatever tables of the pages the README shows."""
    claims = claims_of((ROOT / "README.md").read_text(encoding="utf-8"))
    claims = [claim for claim in claims if not claim.what.startswith("kl")]
    assert len(claims) == 32
    wrong = [claim for claim in claims if not claim.holds()]
    assert not wrong


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda path: path.stem)
def test_every_table_is_checked_or_known_to_have_no_rows(path):
    for table in tables_of(path.read_text(encoding="utf-8")):
        if table.header[:2] not in NOT_KEPT:
            assert claims_of_table(table), f"no test knows the table under {table.heading!r}: {table.header}"


@pytest.mark.parametrize("page", PAGES)
def test_a_wrong_figure_is_found(page):
    """In every table: its first figure, and one more."""
    for table in tables_of((ROOT / page).read_text(encoding="utf-8")):
        claims = claims_of_table(table)
        if claims:
            shown = claims[0].shown
            number = re.search(r"[\d,.]+", shown)[0]
            other = f"{float(number.replace(',', '')) + 1:.{len(number.partition('.')[2])}f}"
            assert claims[0].holds()
            assert not replace(claims[0], shown=shown.replace(number, other)).holds()


def test_all_rows_of_language_models_are_shown():
    (table,) = [
        table
        for table in tables_of((FOLDER / "language-models.md").read_text(encoding="utf-8"))
        if table.header[:3] == ("scorer", "repair", "steps")
    ]
    shown = {(scorer.strip("`"), repair, int(steps)) for scorer, repair, steps, *_ in table.rows}
    rows = measured_rows("language_models")
    assert shown == {(row["method"], row["repair"], row["steps"]) for row in rows}
    assert len(claims_of_table(table)) == len(rows)
    assert len({row["settings"]["seed"] for row in rows}) == 1


@pytest.mark.parametrize("name", ["no_retraining", "recovery"])
def test_all_accuracies_are_shown(name):
    """Every data set, method and cost that has a row is in a table of its page."""
    page = (FOLDER / f"{name.replace('_', '-')}.md").read_text(encoding="utf-8")
    rows = measured_rows(name)
    if name == "recovery":
        cells = {(row["dataset"], row["method"], row["macs_kept"]) for row in rows}
        kinds = {("method", "steps")}
        figures = 3  # mean, spread, divergence
    else:
        cells = {(row["dataset"], row["scorer"], row["allocation"], row["repair"], row["macs_kept"]) for row in rows}
        kinds = {("accuracy", "scorer")}
        figures = 1
    claims = [claim for table in tables_of(page) if table.header[:2] in kinds for claim in claims_of_table(table)]
    assert len([claim for claim in claims if not claim.what.startswith(("spread", "kl"))]) == len(cells)
    assert len(claims) >= figures * len(cells)


def test_the_table_of_the_demo_is_that_of_its_record():
    """The published checkpoint minilm-l6-trec is the demo's."""
    record = records()["minilm-l6-trec"]
    text = (FOLDER / "demo.md").read_text(encoding="utf-8")
    lines = dict(re.findall(r"^ *([a-zA-Z][^:\n]*?)  +(\S.*)$", text.partition("```text")[2], re.MULTILINE))
    sizes, metrics, latencies = record["sizes"], record["metrics"], record["latencies"]
    found = {name: re.split(r"\s{2,}", value) for name, value in lines.items()}
    assert found["accuracy"] == [f"{metrics[of]['accuracy']:.4f}" for of in ("dense", "pruned", "recovered")]
    for name, size in (("parameters", "params"), ("MACs (64 tokens)", "macs")):
        dense, pruned = sizes["dense"][size], sizes["pruned"][size]
        assert found[name] == [f"{dense:,}", f"{pruned:,}", f"−{100 * (1 - pruned / dense):.1f}%"]
    dense, pruned = latencies["dense"]["median_ms"], latencies["pruned"]["median_ms"]
    assert found["latency, ms"] == [f"{dense:.1f}", f"{pruned:.1f}", f"{dense / pruned:.2f}× faster"]
    assert f"({latencies['pruned']['low_ms']:.1f} to {latencies['pruned']['high_ms']:.1f} ms pruned)" in text


def test_the_memory_of_large_models_follows_from_the_formula(monkeypatch):
    """As `python benchmarks/memory.py --windows 8` prints it, in GiB."""
    pytest.importorskip("matplotlib")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    memory = importlib.import_module("memory")
    page = (FOLDER / "language-models.md").read_text(encoding="utf-8")
    (table,) = [table for table in tables_of(page) if table.header[1] == "weights"]
    assert [row[0] for row in table.rows] == list(memory.LARGE)
    for name, *shown in table.rows:
        shape = memory.LARGE[name]
        need = memory.formula(shape, tokens=8 * 256, calibration=8 * 256, size=2)
        works = ("inference", "kl_fisher", "default", "repair", "repair_files")
        expected = [2 * shape.weights, *(need[work] for work in works)]
        assert shown == [f"{number / 2**30:.1f}" for number in expected]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_picture_is_drawn_from_the_rows(theme):
    pytest.importorskip("matplotlib")
    path = ROOT / "docs" / "figures" / "readme_picture.py"
    spec = importlib.util.spec_from_file_location("readme_picture", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    drawn = script.draw(theme)
    assert drawn == script.FILES[theme].read_text(encoding="utf-8"), f"run: python {path.relative_to(ROOT)}"
    # a page that shows it loads nothing from elsewhere
    assert "<image" not in drawn
    assert "@import" not in drawn
