"""Every task in every command: `prune`, `evaluate`, `sweep` and `recover` find the task by the model's class."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import AutoModel
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.publishing.verification import verify
from tests.support.runs import (
    causal_home,
    chat_home,
    mlm_home,
    pair_home,
    picture_home,
    question_home,
    save,
    sound_home,
    speech_home,
    text_home,
    token_home,
)
from tests.support.tiny import tiny_model
from tests.test_encoders import TEXTS, sentence_encoder


@dataclass(frozen=True, kw_only=True)
class Case:
    """A task on tiny data.

    Attributes:
        home: Makes a folder with the model `dense` and the data.
        data: The data in that folder.
        metric: The first metric.
        options: Options of the data.
        named: Whether the class of the model does not tell of the task.
    """

    home: Callable[[Path], Path]
    data: str
    metric: str
    options: tuple[object, ...] = ("--max_length", 16)
    named: bool = False


def encoder_home(home):
    pytest.importorskip("sentence_transformers")
    sentence_encoder(home / "body").save_pretrained(str(home / "dense"))
    (home / "data.txt").write_text("\n".join(TEXTS) + "\n")
    return home


TASKS = {
    "text_classification": Case(home=text_home, data="data.csv", metric="accuracy"),
    "token_classification": Case(home=token_home, data="data.jsonl", metric="precision"),
    "masked_language_modelling": Case(home=mlm_home, data="data.txt", metric="perplexity"),
    "causal_language_modelling": Case(home=causal_home, data="data.txt", metric="perplexity"),
    "chat": Case(home=chat_home, data="data.jsonl", metric="perplexity", options=("--max_length", 64), named=True),
    "question_answering": Case(
        home=question_home,
        data="data.json",
        metric="f1",
        options=("--max_length", 16, "--doc_stride", 2, "--max_question_length", 4),
    ),
    "summarization": Case(
        home=pair_home,
        data="data.jsonl",
        metric="rougeL",
        options=("--max_length", 16, "--max_target_length", 8),
    ),
    "image_classification": Case(home=picture_home, data="pictures", metric="accuracy", options=()),
    "audio_classification": Case(home=sound_home, data="sounds", metric="accuracy", options=()),
    "speech_recognition": Case(home=speech_home, data="spoken.jsonl", metric="wer", options=()),
    "sentence_embeddings": Case(home=encoder_home, data="data.txt", metric="cosine"),
}
QUICK = ("--scorer", "l2", "--no-reconstruct", "--schedule", "one_shot", "--calibration-samples", 8)
#: Of a short training on the CPU.
TRAINING = ("--max_steps", 2, "--per_device_train_batch_size", 4, "--use_cpu", "--report_to", "none", "--save_strategy")


def cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module", params=TASKS)
def case(request, tmp_path_factory):
    case = TASKS[request.param]
    home = case.home(tmp_path_factory.mktemp("task"))
    given = ("--data", home / case.data, *case.options)
    if case.named:
        given += ("--task", request.param)
    done = cli("prune", home / "dense", home / "small", *given, *QUICK)
    assert done.exit_code == 0, done.output
    return home, given, case.metric, done.stdout


def test_prune_prints_both_and_saves(case):
    home, _, metric, shown = case
    assert f"{metric}, " in shown or f"{metric}: on" in shown
    rows = [line.split()[0] for line in shown.splitlines() if line.strip()]
    assert metric in rows
    assert verify(home / "small") == []
    assert metric in hfprune.load(home / "small").pruning_record.metrics["pruned"]


def test_evaluate(case):
    home, given, metric, _ = case
    if metric == "cosine":
        given += ("--reference_model", home / "dense")
    done = cli("evaluate", home / "small", *given, "--split", "test")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found[metric] == pytest.approx(hfprune.load(home / "small").pruning_record.metrics["pruned"][metric])
    assert found["samples"] > 0


def test_sweep(case):
    home, given, _, _ = case
    sparsities = ("--sparsity", 0.2, "--sparsity", 0.6, "--latency-batch-size", 1)
    done = cli("sweep", home / "dense", *given, "--split", "test", *sparsities, *QUICK[:3], *QUICK[5:])
    assert done.exit_code == 0, done.output
    # a line for the dense model and for each point
    assert len([line for line in done.stdout.splitlines() if line.strip()[:1].isdigit()]) >= 2


def test_recover(case, tmp_path):
    home, given, metric, _ = case
    if metric == "cosine":
        given += ("--reference_model", home / "dense")
    training = ("--teacher", home / "dense", "--hidden_states_weight", 0, *TRAINING, "no")
    done = cli("recover", home / "small", tmp_path / "out", *given, *training)
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
