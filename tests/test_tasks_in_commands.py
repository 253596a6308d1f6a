"""Every task in every command: `prune`, `evaluate`, `sweep` and `recover` find the task by the model's class."""

import json

import pytest
from transformers import AutoModel
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.publishing.verification import verify
from tests.support.runs import causal_home, mlm_home, pair_home, save, text_home, token_home
from tests.support.tiny import tiny_model

#: By task: what makes its tiny model and data, the file of the data, and the first metric.
TASKS = {
    "text_classification": (text_home, "data.csv", "accuracy"),
    "token_classification": (token_home, "data.jsonl", "precision"),
    "masked_language_modelling": (mlm_home, "data.txt", "perplexity"),
    "causal_language_modelling": (causal_home, "data.txt", "perplexity"),
    "summarization": (pair_home, "data.jsonl", "rougeL"),
}
QUICK = ("--scorer", "l2", "--no-reconstruct", "--schedule", "one_shot", "--calibration-samples", 8, "--max-length", 16)
#: Of a short training on the CPU.
TRAINING = ("--max_steps", 2, "--per_device_train_batch_size", 4, "--use_cpu", "--report_to", "none", "--save_strategy")


def cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module", params=TASKS)
def case(request, tmp_path_factory):
    make_home, data, metric = TASKS[request.param]
    home = make_home(tmp_path_factory.mktemp("task"))
    done = cli("prune", home / "dense", home / "small", "--data", home / data, *QUICK)
    assert done.exit_code == 0, done.output
    return home, home / data, metric, done.stdout


def test_prune_prints_both_and_saves(case):
    home, _, metric, shown = case
    assert f"{metric}, " in shown or f"{metric}: on" in shown
    rows = [line.split()[0] for line in shown.splitlines() if line.strip()]
    assert metric in rows
    assert verify(home / "small") == []
    assert metric in hfprune.load(home / "small").pruning_record.metrics["pruned"]


def test_evaluate(case):
    home, data, metric, _ = case
    done = cli("evaluate", home / "small", "--data", data, "--max-length", 16, "--split", "test")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found[metric] == pytest.approx(hfprune.load(home / "small").pruning_record.metrics["pruned"][metric])
    assert found["samples"] > 0


def test_sweep(case):
    home, data, _, _ = case
    sparsities = ("--sparsity", 0.2, "--sparsity", 0.6, "--latency-batch-size", 1)
    done = cli("sweep", home / "dense", "--data", data, "--split", "test", *sparsities, *QUICK[:3], *QUICK[5:])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("20.0") + done.stdout.count("0.2") > 0


def test_recover(case, tmp_path):
    home, data, metric, _ = case
    given = ("--teacher", home / "dense", "--data", data, "--max_length", 16, *TRAINING, "no")
    done = cli("recover", home / "small", tmp_path / "out", *given)
    assert done.exit_code == 0, done.output
    assert "recovered" in done.stdout
    assert verify(tmp_path / "out" / "model") == []
    small = hfprune.load(home / "small")
    again = hfprune.load(tmp_path / "out" / "model")
    assert again.pruning_plan == small.pruning_plan
    record = again.pruning_record
    assert [*record.metrics] == ["dense", "pruned", "recovered"]
    assert set(record.metrics["recovered"]) == set(record.metrics["pruned"])
    assert metric in record.metrics["recovered"]
    assert record.recovery["steps"] == 2
    assert record.recovery["teacher_model"] == "dense"


def test_recover_refuses(tmp_path):
    home = text_home(tmp_path)
    data = ("--data", home / "data.csv", "--max_length", 16)
    done = cli("recover", home / "dense", home / "out", *data)
    assert "dense is no pruned checkpoint. `hfprune run` prunes a model and recovers it." in done.stderr
    done = cli("recover", home / "dense", home / "out", *data, "--num_train_epochs", 0)
    assert "num_train_epochs=0 trains nothing" in done.stderr
    done = cli("recover", home / "dense", home / "out", *data, "--num_epochs", 1)
    assert "there is no option --num_epochs" in done.stderr
    assert not (home / "out").exists()


def test_options_of_a_task_before_the_model_are_told(tmp_path):
    home = token_home(tmp_path)
    done = cli("prune", "--tag_column", "ner_tags", home / "dense", home / "out", "--data", home / "data.jsonl")
    assert done.exit_code == 1
    assert "'--tag_column' stands where the name of a model is expected" in done.stderr


def test_a_body_is_of_no_task(tmp_path):
    save(tiny_model("bert", "AutoModel"), tmp_path / "body")
    assert type(AutoModel.from_pretrained(tmp_path / "body")).__name__ == "BertModel"
    done = cli("prune", tmp_path / "body", tmp_path / "out", "--data", "trec")
    assert "body is a BertModel, which tells of no task" in done.stderr
