"""What a model predicts decides what commands measure, before its weights are read."""

import json

import pytest
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from tests.support.runs import save, text_home
from tests.support.tiny import tiny_model

QUICK = ["--max-length", 16, "--calibration-samples", 16]
#: The commands that measure a classifier, without their data.
COMMANDS = {
    "evaluate": lambda home, model: ["evaluate", home / model],
    "sweep": lambda home, model: ["sweep", home / model, *QUICK],
    "prune": lambda home, model: ["prune", home / model, home / "never", *QUICK, "--max-drop", 3],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = text_home(tmp_path_factory.mktemp("measured"))
    save(tiny_model("bert", num_labels=1), folder / "one_number")
    save(tiny_model("bert", num_labels=3, problem_type="regression"), folder / "three_numbers")
    save(tiny_model("bert", num_labels=1, problem_type="multi_label_classification"), folder / "one_label")
    return folder


def refusal(*arguments):
    """The one line in which a command refuses."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    return done.stderr


@pytest.fixture
def nothing_is_read(monkeypatch):
    """Weights and texts that must not be read."""

    def refuse(*_, **__):
        raise AssertionError("it was read")

    monkeypatch.setattr("hfprune.cli.measuring.load_model", refuse)
    monkeypatch.setattr("hfprune.jobs.loading.load_model", refuse)
    monkeypatch.setattr("hfprune.jobs.tasks.texts.load_text_dataset", refuse)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("three_numbers", "the model gives 3 numbers to a text (regression), and the data has one label a text"),
        ("one_label", "the model gives any number of its 1 classes to a text (multi_label_classification)"),
    ],
)
def test_what_one_label_a_text_cannot_measure(home, command, model, message):
    assert message in refusal(*COMMANDS[command](home, model), "--data", home / "data.csv")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("model", "metric", "task"), [("dense", "auc", "classification"), ("one_number", "accuracy", "regression")]
)
@pytest.mark.usefixtures("nothing_is_read")
def test_metrics_are_refused_first(home, command, model, metric, task):
    option = "--metrics" if command == "evaluate" else "--sample-metric"
    said = refusal(*COMMANDS[command](home, model), "--data", home / "data.csv", option, metric)
    assert f"'{metric}'" in said
    assert f" a {task}; these " in said


@pytest.mark.usefixtures("nothing_is_read")
def test_a_metric_of_plain_text(home):
    said = refusal("evaluate", home / "dense", "--text", home / "never.txt", "--metrics", "auc")
    assert "the metric of --text is perplexity, got auc" in said


@pytest.mark.parametrize("metric", ["accuracy", "log_likelihood"])
def test_a_search_prints_the_metric_of_both_models_last(home, metric):
    output = home / f"by_{metric}"
    file = home / f"{metric}.json"
    given = [
        "--max-drop",
        50,
        "--sample-metric",
        metric,
        "--scorer",
        "l2",
        "--no-reconstruct",
        "--schedule",
        "one_shot",
    ]
    arguments = ["prune", home / "dense", output, "--data", home / "data.csv", "--search-file", file, *QUICK, *given]
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    points = json.loads(file.read_text())["points"]
    dense, pruned = points[0]["metric"], points[-1]["metric"]
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [metric, f"{dense:.4f}", f"{pruned:.4f}"] in rows
    assert f"{metric}: on the 80 samples by which the search chose" in done.stdout
    # the card of a record with metrics says that they are of a test split
    assert hfprune.load(output).pruning_record.metrics == {}
