"""The task of sentence embeddings: the whole job, from texts to a folder that sentence-transformers loads."""

import json
from pathlib import Path

import pytest
import torch

import hfprune
from hfprune.encoders import AutoSentenceEmbedder, opened
from hfprune.jobs.run import run
from hfprune.jobs.settings import parse
from hfprune.jobs.tasks import (
    EmbeddingArguments,
    ModelArguments,
    RerankerArguments,
    get_task,
    rerankers,
    reranking,
    sentence_embeddings,
)
from hfprune.publishing.verification import verify
from tests.test_encoders import PAIRS, TEXTS, body_folder, sentence_encoder, vectors

sentence_transformers = pytest.importorskip("sentence_transformers")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("home")
    sentence_encoder(folder / "body").save_pretrained(str(folder / "dense"))
    (folder / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    return folder


def test_what_is_right_are_the_dense_embeddings(home):
    arguments = EmbeddingArguments(train_file=str(home / "texts.txt"), max_length=16)
    task = sentence_embeddings(ModelArguments(str(home / "dense")), arguments, seed=0)
    assert "labels" not in task.data["train"].column_names
    model = task.model(fine_tuned=home / "none")
    batch = task.collator([task.data["test"][number] for number in range(3)])
    with torch.no_grad():
        assert float(model(**batch).loss) == pytest.approx(0, abs=1e-10)
    assert task.metrics[0] == "cosine"


def test_the_whole_job(home, tmp_path):
    words = ["--model_name_or_path", home / "dense", "--output_dir", tmp_path / "out"]
    words += ["--train_file", home / "texts.txt", "--max_length", 16, "--sparsity", 0.4, "--calibration_samples", 16]
    words += ["--max_steps", 2, "--use_cpu", "true", "--report_to", "none", "--save_strategy", "no"]
    words += ["--hidden_states_weight", 0]
    arguments = parse(get_task("sentence_embeddings").arguments, None, [str(word) for word in words])
    shown = run(sentence_embeddings, arguments, program="test")
    assert "cosine" in str(shown)
    folder = tmp_path / "out" / "model"
    assert verify(folder) == []
    record = hfprune.load(folder).pruning_record
    assert record.metrics["dense"]["cosine"] == pytest.approx(1)
    assert 0.5 < record.metrics["recovered"]["cosine"] < 1
    whole = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert [type(module).__name__ for module in whole] == ["Transformer", "Pooling", "Dense", "Normalize"]
    again = AutoSentenceEmbedder.from_pretrained(folder)
    assert torch.allclose(opened(again).embed(TEXTS), vectors(whole), atol=1e-6)


def test_another_model_may_say_what_is_right(home):
    arguments = EmbeddingArguments(
        train_file=str(home / "texts.txt"), max_length=16, reference_model=str(home / "dense"), metrics=["cosine_5"]
    )
    task = sentence_embeddings(ModelArguments(str(home / "dense")), arguments, seed=0)
    assert task.metrics == ["cosine_5"]
    arguments.metrics = ["rouge"]
    with pytest.raises(ValueError, match="unknown metric 'rouge' of sentence embeddings"):
        sentence_embeddings(ModelArguments(str(home / "dense")), arguments, seed=0)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("pairs")
    body_folder(folder / "dense", head="AutoModelForSequenceClassification", num_labels=1)
    body_folder(folder / "three", head="AutoModelForSequenceClassification", num_labels=3)
    rows = [json.dumps({"query": one, "passage": two}) for one, two in PAIRS]
    (folder / "pairs.jsonl").write_text("\n".join(rows) + "\n")
    return folder


class TestRerankers:
    def test_the_whole_job(self, pairs, tmp_path):
        words = ["--model_name_or_path", pairs / "dense", "--output_dir", tmp_path / "out"]
        words += ["--train_file", pairs / "pairs.jsonl", "--max_length", 32, "--sparsity", 0.4]
        words += ["--calibration_samples", 16, "--max_steps", 2, "--use_cpu", "true", "--report_to", "none"]
        words += ["--save_strategy", "no", "--hidden_states_weight", 0]
        arguments = parse(get_task("reranking").arguments, None, [str(word) for word in words])
        run(reranking, arguments, program="test")
        record = hfprune.load(tmp_path / "out" / "model").pruning_record
        assert record.metrics["dense"]["pearson"] == pytest.approx(1)
        again = sentence_transformers.CrossEncoder(str(tmp_path / "out" / "model"), device="cpu")
        assert again.predict(PAIRS).shape == (len(PAIRS),)

    def test_several_scores(self, pairs):
        arguments = RerankerArguments(train_file=str(pairs / "pairs.jsonl"))
        with pytest.raises(ValueError, match="gives 3 scores to a pair"):
            reranking(ModelArguments(str(pairs / "three")), arguments, seed=0)

    def test_each_model_is_of_its_own_revision(self, pairs, monkeypatch):
        loaded = []
        load = rerankers.load_encoder

        def recorded(source, *, revision, **options):
            loaded.append((Path(source).name, revision))
            return load(source, **options)

        monkeypatch.setattr(rerankers, "load_encoder", recorded)
        data = RerankerArguments(train_file=str(pairs / "pairs.jsonl"), reference_model=str(pairs / "dense"))
        reranking(ModelArguments(str(pairs / "dense"), model_revision="v2"), data, seed=0)
        assert loaded == [("dense", "v2"), ("dense", None)]
