"""Text classification with several classes a text: data, labels, metrics by hand, and the whole story."""

import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from transformers import EvalPrediction, PretrainedConfig

import hfprune
from hfprune.data import load_text_dataset
from hfprune.data.label_sets import align_label_sets, from_columns, number_label_sets
from hfprune.jobs.tasks import ModelArguments, TextArguments, text_classification
from hfprune.measuring.label_sets import f1_of_each, label_set_metrics_for, log_likelihood_of_each
from hfprune.publishing.verification import verify
from tests.support.runs import run_here, save
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_texts, tiny_tokenizer

CLASSES = ["animal", "place", "question"]
ALL = ["f1_micro", "f1_macro", "precision_micro", "recall_micro", "exact_match"]
WORDS_OF = {"animal": ("dog", "cat"), "place": ("city", "river"), "question": ("who", "where")}


def rows(count=96):
    """Texts with the classes that their words say."""
    found = []
    for text in tiny_texts(count)["text"]:
        words = text.split()
        found.append({"text": text, "label": [name for name in CLASSES if set(words) & set(WORDS_OF[name])]})
    return found


@pytest.fixture
def home(tmp_path):
    names = {"id2label": {0: "question", 1: "animal", 2: "place"}, "num_labels": 3}
    save(tiny_model("bert", problem_type="multi_label_classification", **names), tmp_path / "dense")
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows())))
    return tmp_path


def load(home, file="data.jsonl", **changes):
    model = {name: changes.pop(name) for name in ("dense_epochs",) if name in changes}
    named = ModelArguments(model_name_or_path=str(home / "dense"), **model)
    return text_classification(named, TextArguments(train_file=str(home / file), max_length=16, **changes), seed=0)


def splits(**columns):
    return DatasetDict(train=Dataset.from_dict(columns))


def prediction(logits, labels):
    return EvalPrediction(predictions=np.array(logits), label_ids=np.array(labels, dtype=np.float32))


class TestMetrics:
    # given: {0}, {0, 1}, {}; real: {0}, {1}, {}
    FOUND = prediction([[2.0, -1, -3], [1, 2, -1], [-1, -1, -1]], [[1, 0, 0], [0, 1, 0], [0, 0, 0]])

    def test_by_hand(self):
        names, compute = label_set_metrics_for(
            ["f1_micro", "f1_macro", "precision_micro", "recall_micro", "exact_match"]
        )
        found = compute(self.FOUND)
        assert list(found) == names
        assert found["f1_micro"] == pytest.approx(2 * 2 / (3 + 2))  # 2 right, 3 given, 2 real
        # class 0: 1 right, 2 given, 1 real; class 1: all right; class 2: there is none
        assert found["f1_macro"] == pytest.approx((2 / 3 + 1 + 0) / 3)
        assert found["precision_micro"] == pytest.approx(2 / 3)
        assert found["recall_micro"] == 1
        assert found["exact_match"] == pytest.approx(2 / 3)

    def test_of_each_text(self):
        assert f1_of_each(self.FOUND) == pytest.approx([1, 2 / 3, 1])
        logits, labels = self.FOUND.predictions, self.FOUND.label_ids
        probabilities = 1 / (1 + np.exp(-logits))
        expected = np.log(np.where(labels == 1, probabilities, 1 - probabilities)).mean(-1)
        assert log_likelihood_of_each(self.FOUND) == pytest.approx(expected.tolist())

    def test_usual_ones_and_unknown_ones(self):
        assert label_set_metrics_for([])[0] == ["f1_micro", "f1_macro"]
        with pytest.raises(ValueError, match="'accuracy' does not fit texts with several classes each; these do: f1"):
            label_set_metrics_for(["accuracy"])


class TestData:
    def test_every_form_of_the_labels(self, home):
        expected = load(home).data["test"]["labels"][:]
        assert {value for label in expected for value in label} == {0.0, 1.0}
        numbered = [{**row, "label": [CLASSES.index(name) for name in row["label"]]} for row in rows()]
        features = Features(text=Value("string"), label=List(ClassLabel(names=CLASSES)))
        Dataset.from_list(numbered, features=features).to_parquet(home / "named.parquet")
        assert load(home, "named.parquet").data["test"]["labels"][:] == expected
        lines = [f"{row['text']},{','.join(str(int(name in row['label'])) for name in CLASSES)}" for row in rows()]
        (home / "columns.csv").write_text("\n".join([f"text,{','.join(CLASSES)}", *lines]))
        assert load(home, "columns.csv", label_columns=CLASSES).data["test"]["labels"][:] == expected

    def test_labels_of_a_model_that_is_fine_tuned_here(self, home):
        task = load(home, dense_epochs=1)
        assert task.labels["id2label"] == dict(enumerate(CLASSES))
        assert task.labels["problem_type"] == "multi_label_classification"
        assert load(home, dense_epochs=1, label_map="animal=2,place=1,question=0").labels["id2label"][2] == "animal"
        task = load(home)
        assert task.labels == {"problem_type": "multi_label_classification"}
        assert task.metrics == ["f1_micro", "f1_macro"]
        assert list(task.sample_metrics) == ["f1", "log_likelihood"]

    def test_columns_of_truth_values(self):
        data = from_columns(splits(text=["a", "b"], x=[True, False], y=["0", "1"]), ["y", "x"], "label")
        assert data["train"]["label"][:] == [[1], [0]]
        assert data["train"].features["label"].feature.names == ["y", "x"]
        assert data["train"].column_names == ["text", "label"]

    def test_classes_that_only_the_model_has(self):
        config = PretrainedConfig(id2label={0: "x", 1: "y", 2: "z"})
        data = number_label_sets(splits(label=[["z"], ["x", "z"]]), "label")
        assert align_label_sets(data, config, "label")["train"]["label"][:] == [[0, 0, 1], [1, 0, 1]]

    @pytest.mark.parametrize(
        ("columns", "label_columns", "message"),
        [
            ({"x": [1, 2], "y": [0, 1]}, ["x", "y"], "the column 'x' holds 2; expected 1 for texts of this class"),
            ({"x": [1, 0]}, ["x"], "label_columns must name at least two columns, got x"),
            ({"x": [1, 0]}, ["x", "z"], "has no column 'z'; its columns are x"),
        ],
    )
    def test_columns_that_are_none(self, columns, label_columns, message):
        with pytest.raises(ValueError, match=message):
            from_columns(splits(**columns), label_columns, "label")

    def test_what_is_refused(self, home):
        with pytest.raises(ValueError, match=r"row 0 .* has a class twice in 'label': \[0, 1, 0\].* write a column"):
            number_label_sets(splits(label=[[0, 1, 0], [1, 0, 0]]), "label")
        with pytest.raises(ValueError, match="holds lists of .*float.*; expected lists of classes"):
            number_label_sets(splits(label=[[0.5, 1.0]]), "label")
        with pytest.raises(ValueError, match="the model is one of regression, and the data has a list of classes"):
            align_label_sets(splits(label=[[]]), PretrainedConfig(problem_type="regression"), "label")
        one_each = "\n".join(json.dumps({**row, "label": "animal"}) for row in rows())
        (home / "one.jsonl").write_text(one_each)
        with pytest.raises(ValueError, match="gives any number of its 3 classes .*name several columns"):
            load(home, "one.jsonl")
        tiny_model("bert", num_labels=3, problem_type="multi_label_classification").save_pretrained(home / "dense")
        with pytest.raises(ValueError, match="classes without names .*: which is which cannot be told"):
            load(home)

    def test_the_function_of_the_library(self, home):
        data = load_text_dataset(files={"train": str(home / "data.jsonl")})
        assert data["train"].features["label"].feature.names == CLASSES


@pytest.mark.script
def test_the_whole_story(home, client):
    tiny_model("bert", num_labels=3).save_pretrained(home / "dense")
    outcome = run_here(
        text_classification,
        TextArguments,
        home,
        train_file=str(home / "data.jsonl"),
        dense_epochs=16,
        dense_learning_rate=0.01,
        num_train_epochs=3,
        scorer="fisher",
    )
    assert outcome.results["dense_f1_micro"] > 0.9  # the classes follow from the words
    assert outcome.results["recovered_f1_micro"] > 0.9
    assert verify(outcome.folder) == []
    model = hfprune.load(outcome.folder)
    assert model.config.problem_type == "multi_label_classification"
    assert set(model.pruning_record.metrics["recovered"]) == {"f1_micro", "f1_macro"}
    said = client(
        f"""
from transformers import pipeline
classify = pipeline("text-classification", {str(outcome.folder)!r}, trust_remote_code=True, top_k=None)
say(scores={{found["label"]: found["score"] for found in classify(["who is the dog"])[0]}})
""",
        with_hfprune=False,
    )
    # a probability of its own for each class
    with torch.no_grad():
        logits = model(**tiny_tokenizer()("who is the dog", return_tensors="pt")).logits[0]
    expected = dict(zip(CLASSES, logits.sigmoid().tolist(), strict=True))
    assert said["scores"] == pytest.approx(expected, abs=1e-4)
