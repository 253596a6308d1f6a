"""`prune --max-drop`: any metric of single samples, all rows that are free, a file to go on from, a line a model."""

import json

import pytest
import torch
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.sweeping import Sweep, correctness
from hfprune.sweeping.samples import per_sample, sample_metrics
from tests.support.runs import save, text_home
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_texts

QUICK = ["--max-length", 16, "--calibration-samples", 16, "--schedule", "one_shot"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = text_home(tmp_path_factory.mktemp("drop"))
    save(tiny_model("bert", num_labels=1, problem_type="regression"), folder / "regression")
    rows = [f"{text},{row / 7}" for row, text in enumerate(tiny_texts(60)["text"])]
    (folder / "numbers.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    lines = (folder / "data.csv").read_text().splitlines()
    (folder / "held_out.csv").write_text("\n".join(lines[:31]) + "\n")
    (folder / "unlabelled.csv").write_text("\n".join(line.split(",")[0] for line in lines) + "\n")
    return folder


def cli(command, *arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in (command, *arguments)])
    assert "Traceback" not in done.output
    return done


def search(home, output, *options, model="dense", data="data.csv"):
    return cli("prune", home / model, home / output, "--data", home / data, *QUICK, "--max-drop", 3, *options)


class TestRows:
    def test_all_that_calibration_does_not_take(self, home):
        done = search(home, "rest", "--scorer", "l2")
        assert done.exit_code == 0, done.output
        assert "mean over 64 samples" in done.stdout

    def test_all_where_calibration_needs_none(self, home):
        done = search(home, "all", "--scorer", "l2", "--no-reconstruct")
        assert done.exit_code == 0, done.output
        assert "mean over 80 samples" in done.stdout

    def test_all_of_another_file_with_texts_without_labels(self, home):
        options = ["--scorer", "l2", "--held-out", home / "held_out.csv"]
        done = search(home, "other", *options, data="unlabelled.csv")
        assert done.exit_code == 0, done.output
        assert "mean over 30 samples" in done.stdout

    def test_sweep(self, home):
        options = [
            "--max-length",
            16,
            "--calibration-samples",
            16,
            "--scorer",
            "l2",
            "--latency-batch-size",
            1,
            "--sparsity",
            0.4,
        ]
        done = cli("sweep", home / "dense", "--data", home / "data.csv", *options)
        assert "mean over 64 samples" in done.stdout
        done = cli("sweep", home / "dense", "--data", home / "data.csv", *options, "--held-out", home / "held_out.csv")
        assert "mean over 30 samples" in done.stdout


class TestMetrics:
    @pytest.mark.parametrize(
        ("model", "data", "metric", "used"),
        [
            ("dense", "data.csv", None, "accuracy"),
            ("dense", "data.csv", "log_likelihood", "log_likelihood"),
            ("regression", "numbers.csv", None, "negative_squared_error"),
            ("regression", "numbers.csv", "negative_absolute_error", "negative_absolute_error"),
        ],
    )
    def test_of_every_task(self, home, model, data, metric, used):
        asked = ["--sample-metric", metric] if metric else []
        options = ["--scorer", "l2", "--no-reconstruct", "--max-drop", 50, "--overwrite"]
        done = search(home, f"by_{used}", *options, *asked, model=model, data=data)
        assert done.exit_code == 0, done.output
        assert f"{used}: mean over" in done.stdout

    @pytest.mark.parametrize(("outputs", "metric"), [(3, "log_likelihood"), (1, "negative_squared_error")])
    def test_values_by_hand(self, outputs, metric):
        model = tiny_model("bert", num_labels=outputs)
        batch = tiny_batch()
        rows = len(batch["input_ids"])
        batch["labels"] = torch.arange(rows) % 3 if outputs > 1 else torch.arange(rows) / 3
        found = per_sample(metric, [batch], regression=outputs == 1)(model)
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logits = model(**inputs).logits.detach()
        for row, value in enumerate(found):
            label = batch["labels"][row]
            expected = logits[row].log_softmax(-1)[label] if outputs > 1 else -((logits[row, 0] - label) ** 2)
            assert value == pytest.approx(float(expected), rel=1e-5)

    def test_metrics_of_whole_data_sets_are_refused(self, home):
        done = search(home, "none", "--sample-metric", "f1")
        assert done.exit_code == 1
        assert "'f1' is no metric of single samples of a classification; these are: accuracy, log_likeli" in done.stderr
        assert sample_metrics(regression=True)[0] == "negative_squared_error"


class TestGoingOn:
    def test_a_search_goes_on_from_its_file(self, home, monkeypatch):
        file = home / "search.json"
        options = ["--scorer", "l2", "--no-reconstruct", "--search-file", file]
        first = search(home, "first", *options)
        assert first.exit_code == 0, first.output
        lines = [line for line in first.stderr.splitlines() if line.startswith(("dense: ", "sparsity "))]
        points = Sweep.from_json(file.read_text()).points
        assert len(lines) == len(points) > 3  # a line for every model
        assert lines[0].startswith("dense: accuracy 0.")
        assert "within the limit" in lines[1]

        # as after a kill: the last model that was measured is not in the file
        cut = json.loads(file.read_text())
        cut["points"] = cut["points"][:-1]
        file.write_text(json.dumps(cut))
        made = []
        prune = hfprune.sweeping.search.prune
        monkeypatch.setattr("hfprune.sweeping.search.prune", lambda *a, **k: made.append(1) or prune(*a, **k))
        second = search(home, "second", *options)
        assert second.exit_code == 0, second.output
        assert len(made) == 1
        again = search(home, "third", *options)  # all is measured, only the model is made
        assert len(made) == 2
        assert f"(from {file})" in again.stderr
        plans = {hfprune.load(home / name).pruning_plan.digest for name in ("first", "second", "third")}
        assert len(plans) == 1

    def test_a_file_of_other_settings_or_samples(self, home):
        file = home / "settings.json"
        options = ["--scorer", "l2", "--no-reconstruct", "--search-file", file]
        assert search(home, "settings", *options).exit_code == 0
        other = search(home, "settings2", "--scorer", "l1", "--no-reconstruct", "--search-file", file)
        assert "holds a sweep with other settings: scorer ('l2', now 'l1')" in other.stderr
        others = search(home, "settings3", *options, "--held-out", home / "held_out.csv")
        assert others.exit_code == 1
        assert "holds a search on other samples: its dense model has" in others.stderr or "calibration" in others.stderr

    def test_the_api(self, tmp_path):
        model = tiny_model("bert", num_labels=2)
        batch = {**tiny_batch(), "labels": torch.zeros(len(tiny_batch()["input_ids"]), dtype=torch.long)}
        config = hfprune.PruningConfig(sequence_length=8, calibration_samples=2, scorer="l2", reconstruct=False)
        given = {"max_drop": 3.0, "evaluate": correctness([batch]), "step": 0.3, "save_to": tmp_path / "search.json"}
        small, tried = hfprune.prune_within(model, [batch], config, **given)
        again, read = hfprune.prune_within(model, [batch], config, **given)
        assert again.pruning_plan == small.pruning_plan
        assert [p.sparsity for p in read.points] == [p.sparsity for p in tried.points]
        with pytest.raises(ValueError, match="holds a search on other samples: its dense model has"):
            hfprune.prune_within(
                model, [batch], config, **{**given, "evaluate": lambda model: [True] * 90 + [False] * 10}
            )


class TestPruneMeasures:
    def test_dense_and_pruned(self, home):
        given = ["--data", home / "data.csv", *QUICK, "--sparsity", 0.4]
        done = cli("prune", home / "dense", home / "measured", *given)
        assert done.exit_code == 0, done.output
        metrics = hfprune.load(home / "measured").pruning_record.metrics
        evaluated = cli("evaluate", home / "dense", "--data", home / "data.csv", "--max-length", 16, "--split", "test")
        assert metrics["dense"]["accuracy"] == pytest.approx(json.loads(evaluated.stdout)["accuracy"])
        line = next(line for line in done.stdout.splitlines() if line.startswith("accuracy"))
        assert line.split() == [
            "accuracy",
            f"{metrics['dense']['accuracy']:.4f}",
            f"{metrics['pruned']['accuracy']:.4f}",
        ]
        assert "accuracy: on 8 samples; `hfprune evaluate` measures on all" in done.stdout
        assert "recovered" not in done.stdout

    def test_on_a_held_out_file(self, home):
        given = ["--data", home / "unlabelled.csv", *QUICK, "--held-out", home / "held_out.csv"]
        done = cli("prune", home / "dense", home / "held", *given)
        assert done.exit_code == 0, done.output
        assert "accuracy: on 30 samples" in done.stdout
