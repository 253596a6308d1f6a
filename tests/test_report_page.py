"""The report of a checkpoint: one page of HTML with what the record and the plan say, which needs no network."""

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.errors import CheckpointError
from hfprune.measuring.size import Size
from hfprune.reporting import draw_report, write_report
from hfprune.sweeping import Sweep, SweepPoint
from tests.support.tiny import tiny_batch, tiny_model

QUICK = {"sequence_length": 8, "scorer": "l2", "reconstruct": False, "min_units": 0}
LATENCY = {
    "median_ms": 2.0,
    "low_ms": 1.5,
    "high_ms": 2.5,
    "runs": 20,
    "device": "cpu",
    "dtype": "float32",
    "threads": 1,
    "batch_size": 2,
    "sequence_length": 8,
}
HOSTILE = "<script>alert(1)</script>"
#: Attributes that make a browser read something else.
LINKS = ("src", "href", "srcset", "action", "data", "poster", "background")


class Page(HTMLParser):
    """The tags, the links and the texts of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.texts, self.unclosed = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in LINKS]
        if tag not in ("meta", "img", "source"):
            self.unclosed.append(tag)

    def handle_endtag(self, tag):
        assert self.unclosed.pop() == tag

    def handle_data(self, data):
        self.texts.append(" ".join(data.split()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    small = hfprune.prune(tiny_model("bert", num_labels=3), [tiny_batch()], hfprune.PruningConfig(**QUICK))
    small.pruning_record = small.pruning_record.with_(
        base_model="google-bert/bert-base-uncased",
        metrics={"dense": {"accuracy": 0.9}, "pruned": {"accuracy": 0.8}, "recovered": {"accuracy": 0.89}},
        latencies={"dense": LATENCY, "pruned": {**LATENCY, "median_ms": 1.0}},
        datasets=["trec"],
        recovery={"learning_rate": 3e-5, "note": HOSTILE},
        command=f"hfprune prune {HOSTILE}",
    )
    return hfprune.save(small, tmp_path_factory.mktemp("checkpoints") / "small-bert")


def sweep_of(params):
    """A sweep that began with a model of so many parameters."""
    points = []
    for sparsity, right in ((0.0, 90), (0.5, 80)):
        left = round(1000 * (1 - sparsity))
        costs = {"params": params - 1000 + left, "prunable_params": left, "macs": left, "prunable_macs": left}
        size = Size(**costs, sequence_length=8, weight_bytes=4 * left)
        right_or_not = (1.0,) * right + (0.0,) * (100 - right)
        point = SweepPoint(
            sparsity=sparsity,
            plan_digest="",
            mac_sparsity=sparsity,
            param_sparsity=sparsity,
            metric=right / 100,
            per_sample=right_or_not,
            size=size,
            latency=None,
            seconds=1.0,
        )
        points.append(point)
    settings = {"metric": "accuracy", "budget": "macs", "scorer": "l2"}
    return Sweep(points=tuple(points), settings=settings, scoring_seconds=None)


@pytest.fixture(scope="module")
def sweep_file(folder, tmp_path_factory):
    dense = hfprune.load(folder).pruning_record.sizes["dense"]
    sweep = sweep_of(dense["params"])
    return sweep.save(tmp_path_factory.mktemp("sweeps") / "sweep.json")


class TestContent:
    def test_the_numbers_of_record_and_plan(self, folder):
        texts = Page(draw_report(folder)).texts
        record = hfprune.load(folder).pruning_record
        assert "small-bert, pruned" in texts
        assert "0.8900" in texts
        assert f"{record.sizes['pruned']['params']:,}" in texts
        assert "1.50 to 2.50" in texts
        assert {"learning_rate", "3e-05"} <= set(texts)
        assert any("every file but the card is the one that was saved" in text for text in texts)

    def test_a_bar_for_every_block_as_long_as_what_stays(self, folder):
        page = draw_report(folder)
        plan = hfprune.load(folder).pruning_plan
        widths = [float(width) for width in re.findall(r'<i style="width: ([\d.]+)%">', page)]
        expected = [round(100 * len(block.kept) / block.units, 2) for block in plan.blocks.values()]
        assert sorted(widths) == pytest.approx(sorted(expected))

    def test_a_record_with_little_in_it(self, tmp_path):
        dense = tiny_model("llama", "AutoModelForCausalLM")
        plan = hfprune.prune(dense, [tiny_batch()], hfprune.PruningConfig(**QUICK)).pruning_plan
        folder = hfprune.save(hfprune.apply_plan(dense, plan), tmp_path / "small")
        page = Page(draw_report(folder))
        assert "Latency" not in page.texts
        assert "Where units were removed" in page.texts

    def test_the_curve_of_a_sweep(self, folder, sweep_file):
        pytest.importorskip("matplotlib")
        page = Page(draw_report(folder, sweep=sweep_file))
        assert "Accuracy against size" in page.texts
        pictures = [link for link in page.links if link.startswith("data:image/svg+xml;base64,")]
        assert len(set(pictures)) == 2


class TestSafety:
    def test_texts_of_the_record_are_no_markup(self, folder):
        page = draw_report(folder)
        assert HOSTILE not in page
        assert page.count("&lt;script&gt;") == 2
        assert "script" not in Page(page).tags

    def test_nothing_is_read_from_elsewhere(self, folder, sweep_file):
        page = Page(draw_report(folder, sweep=sweep_file))
        assert all(link.startswith("data:") for link in page.links)
        assert not page.unclosed

    def test_a_damaged_checkpoint_is_refused(self, folder, tmp_path):
        copy = shutil.copytree(folder, tmp_path / "copy")
        (copy / "config.json").write_text("{}")
        with pytest.raises(CheckpointError, match="A report is drawn of a sound checkpoint only"):
            write_report(copy, tmp_path / "report.html")
        assert not (tmp_path / "report.html").exists()

    def test_the_sweep_of_another_model_is_refused(self, folder, tmp_path):
        other = sweep_of(123_456).save(tmp_path / "other.json")
        with pytest.raises(ValueError, match="began with a model of 123,456 parameters"):
            draw_report(folder, sweep=other)

    def test_no_checkpoint(self, tmp_path):
        with pytest.raises(CheckpointError, match="nowhere"):
            draw_report(tmp_path / "nowhere")


class TestCommand:
    def test_it_writes_a_page_and_replaces_none(self, folder, sweep_file, tmp_path):
        arguments = ["report", str(folder), "--output", str(tmp_path / "r.html"), "--sweep", str(sweep_file)]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert (tmp_path / "r.html").read_text().startswith("<!doctype html>")
        again = CliRunner().invoke(app, arguments)
        assert again.exit_code == 1
        assert "--overwrite" in again.output
        assert CliRunner().invoke(app, [*arguments, "--overwrite"]).exit_code == 0

    def test_a_file_that_is_no_sweep(self, folder, tmp_path):
        (tmp_path / "no.json").write_text("{}")
        done = CliRunner().invoke(app, ["report", str(folder), "--sweep", str(tmp_path / "no.json")])
        assert done.exit_code == 1
        assert "sweep" in done.output


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_in_a_browser(folder, sweep_file, tmp_path):
    page = write_report(folder, tmp_path / "report.html", sweep=sweep_file)
    picture = tmp_path / "report.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1100,2400", f"--screenshot={picture}"]
    done = subprocess.run(["chromium", *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert picture.stat().st_size > 20_000
    logged = [*options[:-1], "--enable-logging=stderr", "--dump-dom"]
    dumped = subprocess.run(["chromium", *logged, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "Where units were removed" in dumped.stdout
    assert "Content Security Policy" not in dumped.stderr
    # the policy does forbid what is not in the file, and the log does say so
    bad = tmp_path / "bad.html"
    bad.write_text(page.read_text().replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'))
    refused = subprocess.run(["chromium", *logged, bad.as_uri()], capture_output=True, text=True, timeout=120)
    assert "Content Security Policy" in refused.stderr
