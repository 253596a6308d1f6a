"""How plans, scores, sweeps, comparisons and records show: as tables, data frames, pictures, and in a notebook."""

import json
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import torch
import transformers
from nbclient import NotebookClient

import hfprune
from hfprune import PruningPlan, PruningRecord
from hfprune.planning import BlockPlan
from hfprune.publishing.charts import draw_accuracy
from hfprune.publishing.record import PruningRecord as Record
from hfprune.scoring import Scores
from hfprune.showing import picture, units
from hfprune.showing.curves import Dot, span_of
from hfprune.showing.picture import theme_of
from hfprune.showing.progress import progress, tracked
from tests.support.plans import uneven_plan
from tests.support.sweeps import answers, curve, point
from tests.support.tiny import tiny_batch, tiny_model

ROOT = Path(__file__).parent.parent
CARDS = ROOT / "model_cards"
HOSTILE = "<script>alert('x')</script>"


def card_plan(name):
    return PruningPlan.from_json((CARDS / f"{name}.plan.json").read_text())


def card_record(name):
    return PruningRecord.from_json((CARDS / f"{name}.json").read_text())


def small_plan(kept=(0, 2)):
    attention = BlockPlan(kind="attention", units=3, kept=kept, unit_params=10, unit_macs=100)
    ffn = BlockPlan(kind="ffn", units=200, kept=tuple(range(0, 200, 2)), unit_params=2, unit_macs=20)
    blocks = {"layer.0.attention": attention, "layer.0.ffn": ffn}
    return PruningPlan(model_type="bert", sequence_length=8, blocks=blocks)


def measured():
    return curve(
        point(0, per_sample=answers(900, 100), latency_ms=10.0),
        point(0.4, per_sample=answers(890, 110), latency_ms=7.0),
        point(0.8, per_sample=answers(500, 500), latency_ms=3.0),
    )


def labels_of(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


class TestHtml:
    def test_texts_are_escaped(self):
        record = Record(base_model=HOSTILE, model_class="Bert", config={"scorer": HOSTILE}, plan_digest="")
        record = record.with_(metrics={"dense": {HOSTILE: 0.5}})
        plan = replace(small_plan(), blocks={HOSTILE: small_plan().blocks["layer.0.ffn"]})
        scores = Scores(by_block={HOSTILE: torch.ones(2)}, scorer=HOSTILE, samples=1)
        sweep = replace(measured(), settings={**measured().settings, "metric": HOSTILE, "scorer": HOSTILE})
        for shown in (record, plan, plan.compare(plan), scores, sweep):
            html = shown._repr_html_()
            assert "<script" not in html
            assert "&lt;script&gt;" in html

    def test_no_colours_are_set(self):
        for shown in (small_plan(), small_plan().compare(small_plan()), measured(), card_record("minilm-l6-trec")):
            assert not re.search(r"color|background|#[0-9a-f]{3}", shown._repr_html_())

    def test_of_a_plan(self):
        html = small_plan()._repr_html_()
        cells = re.findall(r"<td[^>]*>(.*?)</td>", html)
        assert cells[:4] == ["layer.0.attention", "head", "2", "3"]
        assert "removed 48.8% of prunable MACs" in html

    def test_of_scores(self):
        scores = Scores(by_block={"a.ffn": torch.tensor([3.0, 1.0, 1.5]), "b": torch.ones(0)}, scorer="l2", samples=7)
        cells = re.findall(r"<td[^>]*>(.*?)</td>", scores._repr_html_())
        assert cells == ["a.ffn", "3", "1", "1.5", "3", "b", "0", "", "", ""]
        assert "scores by l2, of 7 calibration samples" in str(scores)

    def test_of_a_sweep(self):
        cells = re.findall(r"<td[^>]*>(.*?)</td>", measured()._repr_html_())
        assert cells[0] == "0.00"
        assert cells.count("knee") == 1
        assert "0.8900" in cells

    def test_of_a_record(self):
        record = card_record("minilm-l6-trec")
        html = record._repr_html_()
        assert "residual_logit_fisher" in html
        assert "22,715,526 → 17,128,742 (−24.6%)" in html
        assert "0.9410 dense, 0.9390 pruned, 0.9420 recovered" in html
        assert "238.3 ms → 118.6 ms (2.01× faster)" in html
        assert "sparsity asked for: 0.52 of prunable macs" in str(record)


class TestDataFrames:
    def test_of_a_plan(self):
        frame = small_plan().to_pandas()
        assert frame["kept"].tolist() == [2, 100]
        assert frame["unit"].tolist() == ["head", "neuron"]
        assert frame["layer"].tolist() == [0, 0]
        assert frame["params_removed"].tolist() == [10, 200]
        assert frame["macs_removed"].sum() == 100 + 100 * 20

    def test_a_block_that_was_gone_has_no_share(self):
        gone = BlockPlan(kind="ffn", units=0, kept=(), unit_params=2, unit_macs=2)
        plan = PruningPlan(model_type="bert", sequence_length=8, blocks={"layer.0.ffn": gone})
        assert math.isnan(plan.to_pandas()["share"][0])
        assert plan.plot().axes[0].get_title() == "feed-forward: neurons"

    def test_of_scores(self):
        scores = Scores(by_block={"a": torch.tensor([3.0, 1.0]), "b": torch.tensor([0.5])}, scorer="l2", samples=7)
        frame = scores.to_pandas()
        assert frame.groupby("block")["score"].sum().to_dict() == {"a": 4.0, "b": 0.5}
        assert frame["unit"].tolist() == [0, 1, 0]

    def test_of_a_sweep(self):
        frame = measured().to_pandas()
        assert frame["accuracy"].tolist() == [0.9, 0.89, 0.5]
        assert frame["drop"].tolist() == pytest.approx([0, 0.01, 0.4])
        assert frame["knee"].tolist() == [False, True, False]
        assert frame["samples"].tolist() == [1000] * 3
        assert math.isnan(frame["drop_at_most"][0])
        assert frame["drop_at_most"][1] == measured().drop(measured().points[1]).upper
        assert (frame["low"] < frame["accuracy"]).all()
        assert (frame["high"] > frame["accuracy"]).all()
        assert frame["latency_ms"].tolist() == [10, 7, 3]

    def test_of_a_comparison(self):
        frame = small_plan((0, 2)).compare(small_plan((0, 1))).to_pandas()
        assert frame[["both", "only_a", "only_b", "neither"]].values.tolist() == [[1, 1, 1, 0], [100, 0, 0, 100]]

    def test_of_a_record(self):
        frame = card_record("smollm2-135m").to_pandas().set_index("stage")
        assert frame.index.tolist() == ["dense", "pruned", "recovered"]
        assert frame.loc["recovered", "params"] == frame.loc["pruned", "params"] == 102_664_512
        assert frame.loc["dense", "perplexity"] == pytest.approx(25.645, abs=1e-3)
        assert frame.loc["pruned", "latency_ms"] == pytest.approx(279.65, abs=0.01)


class TestUnitNames:
    def test_of_a_model(self):
        grouped = uneven_plan(tiny_model("llama"))
        assert {block.unit_name for block in grouped.blocks.values()} == {"key/value group", "neuron"}
        by_queries = uneven_plan(tiny_model("llama"), attention_unit="query")
        assert {block.unit_name for block in by_queries.blocks.values()} == {"query head", "neuron"}
        # a decoder with a cache, in which no heads share a key
        plain = uneven_plan(tiny_model("gpt2"))
        assert {block.unit_name for block in plain.blocks.values()} == {"head", "neuron"}
        for plan in (grouped, by_queries, plain):
            again = PruningPlan.from_json(plan.to_json())
            assert again == plan
            assert again.to_pandas().equals(plan.to_pandas())

    def test_of_files_that_do_not_say_it(self):
        """Those of earlier versions: a cache, and units that are groups."""
        assert "heads" not in card_plan("smollm2-135m").to_json()
        assert card_plan("smollm2-135m").blocks["layers.0.attention"].unit_name == "key/value group"
        assert card_plan("minilm-l6-trec").blocks["encoder.layer.0.attention"].unit_name == "head"

    def test_a_file_with_a_wrong_number_of_heads(self):
        data = json.loads(small_plan().to_json())
        data["heads"] = {"layer.0.attention": -1}
        with pytest.raises(ValueError, match=r"its numbers whole ones from 0, got \[-1\]"):
            PruningPlan.from_json(json.dumps(data))
        data["heads"] = [1]
        with pytest.raises(ValueError, match="not a pruning plan: AttributeError"):
            PruningPlan.from_json(json.dumps(data))

    def test_blocks_in_files_have_the_fields_that_earlier_versions_read(self):
        """These refuse a block with another field, and pass over fields of the whole plan."""
        data = json.loads(uneven_plan(tiny_model("llama")).to_json())
        fields = {name for block in data["blocks"].values() for name in block}
        assert fields == {"kind", "units", "kept", "unit_params", "unit_macs", "unit_cache_bytes"}
        assert data["heads"] == {"layers.0.attention": 2, "layers.1.attention": 2}


class TestPicturesOfUnits:
    def test_of_an_encoder(self):
        heads, neurons = card_plan("minilm-l6-trec").plot().axes[:2]
        assert heads.get_title() == "attention: heads"
        assert (heads.get_xlabel(), heads.get_ylabel()) == ("head, by its number", "layer")
        assert labels_of(heads.xaxis) == [str(head) for head in range(12)]
        assert labels_of(heads.yaxis) == ["0", "1", "2", "3", "4", "5"]
        assert neurons.get_title() == "feed-forward: neurons"
        assert neurons.get_xlabel() == "neuron, by its number (each cell: 32 neurons)"
        assert labels_of(neurons.xaxis) == ["0", "256", "512", "768", "1024", "1280"]
        # 1,536 neurons end at the right edge
        assert neurons.get_xlim() == (-0.5, 1535.5)
        notes = labels_of(heads.child_axes[0].yaxis)
        assert notes[1] == "10 of 12"

    def test_of_a_grouped_decoder(self):
        groups = card_plan("smollm2-135m").plot().axes[0]
        assert groups.get_title() == "attention: key/value groups"
        assert groups.get_xlabel() == "key/value group, by its number"
        assert labels_of(groups.yaxis)[-1] == "29"

    def test_cells_are_shares(self):
        rows = [units.UnitRow(block="a", unit="neuron", values=[1.0] * 48 + [0.0] * 49)]
        table, run = units._cells(rows)
        assert run == 3
        assert table[0].tolist() == [1.0] * 16 + [0.0] * 17

    def test_stacks_of_an_encoder_decoder_are_told_apart(self):
        titles = [axes.get_title() for axes in uneven_plan(tiny_model("t5")).plot().axes]
        assert any(title.startswith("encoder.block, ") for title in titles)
        assert any(title.startswith("decoder.block, ") for title in titles)

    def test_of_scores(self):
        scores = Scores(
            by_block={"layer.0.attention": torch.tensor([1e-4, 1.0, 2.0]), "layer.0.ffn": torch.tensor([-1.0, 2.0])},
            scorer="mine",
            samples=7,
        )
        figure = scores.plot()
        assert figure.get_suptitle() == "scores by mine, of 7 calibration samples"
        assert figure.axes[0].get_title() == "attention: heads or key/value groups"
        bars = [axes.get_ylabel() for axes in figure.axes[2:]]
        assert bars == ["score,\nlogarithmic", "score"]
        with pytest.raises(ValueError, match="no scores to draw: no block has units left"):
            Scores(by_block={"a": torch.ones(0)}, scorer="mine", samples=7).plot()

    def test_of_a_comparison(self):
        axes = small_plan((0, 2)).compare(small_plan((0, 1))).plot().axes[0]
        assert axes.get_xlabel() == "share of the block's heads, %"
        widths = [bars[0].get_width() for bars in axes.containers]
        assert widths == pytest.approx([100 / 3, 100 / 3, 100 / 3, 0])
        assert axes.get_legend_handles_labels()[1] == ["kept by both", "only by A", "only by B", "by neither"]


class TestPicturesOfMeasurements:
    def test_a_sweep_has_error_bars(self):
        found = measured()
        macs, latency = found.plot().axes
        assert macs.get_xlabel() == "prunable MACs kept, % (8 tokens)"
        assert latency.get_xlabel() == "median latency, ms (batch 2, 8 tokens, cpu, float32)"
        assert macs.get_ylabel() == "accuracy (bars: 95 % interval of 1,000 samples)"
        ends = []
        for container in macs.containers:
            for segment in container[2][0].get_segments():
                ends.append((segment[0][1], segment[1][1]))
        expected = [each.interval() for each in found.points]
        assert ends == [pytest.approx(interval) for interval in expected]
        # Wilson's interval of 900 of 1,000, from another source
        assert expected[0] == pytest.approx((0.8799, 0.9171), abs=1e-4)
        legend = [text.get_text() for text in macs.get_legend().get_texts()]
        assert "knee: sparsity 0.4" in legend
        assert "dense: 0.9000" in legend

    def test_without_values_of_samples_there_are_no_bars(self):
        axes = curve(point(0, 0.9), point(0.5, 0.88)).plot().axes[0]
        assert axes.get_ylabel() == "accuracy"
        assert not any(container.has_yerr for container in axes.containers)

    def test_other_values_get_the_interval_of_student(self):
        low, high = point(0, per_sample=(4.0, 6.0)).interval()
        # t of one degree of freedom at 0.975 is 12.7062; s / √n is 1
        assert (low, high) == (pytest.approx(5 - 12.7062, abs=1e-3), pytest.approx(5 + 12.7062, abs=1e-3))
        assert point(0, per_sample=(1.0,)).interval() is None

    @pytest.mark.parametrize(
        ("values", "least"),
        [([0.941, 0.939], 0.1), ([0.999, 1.0], 0.1), ([0.0, 0.001], 0.1), ([94.1, 93.9], 9.4), ([25.6, 36.3], 10.7)],
    )
    def test_an_axis_does_not_magnify_noise(self, values, least):
        low, high = span_of([Dot(x=0, y=value) for value in values])
        assert high - low >= least - 1e-9
        assert low < min(values)
        assert high > max(values)

    def test_an_axis_is_longer_than_its_error_bars(self):
        low, high = span_of([Dot(x=0, y=0.5, interval=(0.4, 0.6))])
        assert high - low >= 0.6
        assert span_of([Dot(x=0, y=0.0)])[1] > 0

    def test_of_a_card(self):
        axes = draw_accuracy(card_record("minilm-l6-trec"), theme_of("light")).axes[0]
        assert axes.get_xlabel() == "multiply-adds of the dense model, % (64 tokens)"
        assert axes.get_ylabel() == "accuracy"
        low, high = axes.get_ylim()
        assert high - low >= 0.1 - 1e-9
        falling = draw_accuracy(card_record("smollm2-135m"), theme_of("light")).axes[0]
        assert falling.get_ylabel() == "perplexity (less is better)"


class TestKnee:
    def test_above_dense_on_few_samples_is_none(self):
        found = curve(
            point(0, per_sample=answers(82, 8)),
            point(0.4, per_sample=answers(83, 7)),
            point(0.8, per_sample=answers(40, 50)),
        )
        assert found.knee is None
        assert "knee" not in found.table()

    def test_a_rise_that_is_shown_is_no_noise(self):
        found = curve(
            point(0, per_sample=answers(800, 200)),
            point(0.4, per_sample=answers(900, 100)),
            point(0.8, per_sample=answers(400, 600)),
        )
        assert found.knee is found.points[1]

    def test_a_fall_within_the_noise_has_none(self):
        rights = (82, 81, 79)
        few = curve(*(point(0.4 * i, per_sample=answers(right, 90 - right)) for i, right in enumerate(rights)))
        assert few.knee is None
        # the same shares of a hundred times as many samples
        many = curve(*(point(0.4 * i, per_sample=answers(100 * r, 9000 - 100 * r)) for i, r in enumerate(rights)))
        assert many.knee is many.points[1]

    def test_without_values_of_samples(self):
        assert curve(point(0, 0.9), point(0.4, 0.89), point(0.8, 0.5)).knee.sparsity == 0.4
        assert curve(point(0, 0.9), point(0.4, 0.91), point(0.8, 0.5)).knee is None


class TestFiles:
    @pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.PDF", b"%PDF")])
    def test_suffixes(self, name, begins, tmp_path):
        path = tmp_path / "new" / name
        small_plan().plot(path)
        assert path.read_bytes().startswith(begins)
        first = path.read_bytes()
        small_plan().plot(path)
        assert path.read_bytes() == first
        assert [file.name for file in path.parent.iterdir()] == [name], "no draft is left"

    @pytest.mark.parametrize("name", ["plan.jpg", "plan"])
    def test_another_suffix(self, name, tmp_path):
        for shown in (small_plan(), measured(), small_plan().compare(small_plan())):
            with pytest.raises(ValueError, match=rf"saved as .png, .svg, .pdf, got '{name}': give the file one of"):
                shown.plot(tmp_path / name)
        assert not list(tmp_path.iterdir())

    def test_an_error_leaves_the_old_file(self, tmp_path, monkeypatch):
        path = tmp_path / "plan.png"
        small_plan().plot(path)
        before = path.read_bytes()

        def fail(descriptor):
            raise OSError("the disk is full")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="the disk is full"):
            card_plan("minilm-l6-trec").plot(path)
        assert path.read_bytes() == before
        assert [file.name for file in tmp_path.iterdir()] == ["plan.png"]

    def test_themes(self):
        for name in ("light", "dark"):
            figure = measured().plot(theme=name)
            red, green, blue, opaque = figure.get_facecolor()
            assert opaque == 1
            is_light = (red + green + blue) / 3 > 0.5
            assert is_light == (name == "light")
            ink = figure.axes[0].xaxis.label.get_color()
            assert (int(ink[1:3], 16) < 128) == is_light, "texts stand out"
        with pytest.raises(ValueError, match="theme must be one of light, dark, got 'blue'"):
            small_plan().plot(theme="blue")
        assert set(picture._THEMES) == {"light", "dark"}


class TestProgress:
    @pytest.fixture(autouse=True)
    def bars(self, monkeypatch):
        """The other tests run without bars."""
        monkeypatch.setattr(transformers.utils.logging, "_tqdm_active", True)

    def test_only_the_outermost_bar_is_drawn(self, capsys):
        with tracked([1, 2], desc="Sweeping", unit="point") as points:
            for _ in points:
                with tracked(range(3), desc="Scoring", unit="batch") as batches:
                    assert list(batches) == [0, 1, 2]
        lines = re.split(r"[\r\n]+", capsys.readouterr().err)
        assert all(line.startswith("Sweeping") for line in lines if line.strip())
        assert "Scoring" in "".join(lines)
        assert "Scoring" not in [line for line in lines if line.strip()][-1]

    def test_an_error_ends_the_bar(self, capsys):
        with pytest.raises(ZeroDivisionError) as kept, progress(3, desc="Scoring", unit="batch"):
            raise ZeroDivisionError
        assert kept.value is not None
        with progress(1, desc="Perplexity", unit="batch") as counted:
            counted.update()
        assert "Perplexity: 100%" in capsys.readouterr().err


def test_apply_plan_leaves_a_record():
    model = tiny_model("bert")
    plan = uneven_plan(model)
    small = hfprune.apply_plan(model, plan)
    record = small.pruning_record
    assert record.plan_digest == plan.digest
    assert record.model_class == "BertForSequenceClassification"
    assert record.blocks["encoder.layer.0.ffn"]["after"] == small.pruning_plan.units_after["encoder.layer.0.ffn"]
    assert record.config == record.sizes == {}
    # longer than the model's positions: nothing is measured
    long = replace(plan, sequence_length=10_000)
    assert hfprune.apply_plan(model, long).pruning_record.plan_digest == plan.digest
    assert PruningRecord.from_json(record.to_json()) == record
    data = [tiny_batch()]
    again = hfprune.prune(small, data, hfprune.PruningConfig(sparsity=0.8, sequence_length=8, scorer="l2"))
    assert len(again.pruning_record.earlier) == 1


def executed(folder, *cells):
    """The cells of a notebook after the real kernel has run them."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
    return notebook.cells


SETUP = """
from tests.support.tiny import tiny_batch, tiny_model
import hfprune
model = tiny_model("bert")
data = [tiny_batch(seed=i) for i in range(3)]
config = hfprune.PruningConfig(sparsity=0.5, sequence_length=8)
"""
SCORER = """
from hfprune.scoring import known_scorers, register_scorer

@register_scorer("mine", reads="weights")
def mine(statistics):
    return statistics.weights.abs().{how}(1)
"""
OTHER = """
try:
    @register_scorer("mine", reads="weights")
    def another(statistics):
        return statistics.weights.sum(1)
except ValueError as error:
    print(error)
"""
#: Without ipywidgets bars are lines of text.
NO_WIDGETS = "import sys, warnings\nsys.modules['ipywidgets'] = None\nwarnings.simplefilter('ignore')\n"


@pytest.mark.script
def test_in_a_notebook(tmp_path):
    cells = executed(
        tmp_path,
        NO_WIDGETS + SETUP,
        "small = hfprune.prune(model, data, config)",
        "small.pruning_plan.plot()",
        "small.pruning_plan",
        SCORER.format(how="amax"),
        SCORER.format(how="amin"),
        "import torch\n"
        "from types import SimpleNamespace\n"
        "print(known_scorers()['mine'].function(SimpleNamespace(weights=torch.tensor([[1.0, 2.0]]))))",
        OTHER,
        "%matplotlib inline\nimport matplotlib.pyplot\nsmall.pruning_plan.plot(theme='dark')",
    )
    _, pruned, plot, plan, _, _, scored, refused, inline = (cell.outputs for cell in cells)
    # one bar, which ends as one line
    text = "".join(output["text"] for output in pruned)
    assert {output["name"] for output in pruned} == {"stderr"}
    assert text.count("\n") == 1
    assert text.rpartition("\r")[2].startswith("Pruning: 100%")
    assert "\x1b" not in text
    for shown in (plot, inline):
        (output,) = shown
        assert output["output_type"] == "execute_result"
        assert output["data"]["image/png"].startswith("iVBOR")
    assert "<table>" in plan[0]["data"]["text/html"]
    assert scored[0]["text"] == "tensor([1.])\n"
    assert refused[0]["text"] == "a scorer named 'mine' is registered already.\n"
