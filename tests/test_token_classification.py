"""Token classification: labels of word pieces, tags of the data and of the model, and the whole story."""

import json

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

import hfprune
from hfprune.jobs.tasks import ModelArguments, TokenArguments, token_classification
from hfprune.jobs.tasks.tokens import tokenize_words
from hfprune.publishing.verification import verify
from tests.support.runs import run_here, save, token_home
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_tags, tiny_tokenizer


@pytest.fixture
def home(tmp_path):
    return token_home(tmp_path)


def load(home, file="data.jsonl", **changes):
    model = {name: changes.pop(name) for name in ("dense_epochs",) if name in changes}
    named = ModelArguments(model_name_or_path=str(home / "dense"), **model)
    data = TokenArguments(train_file=str(home / file), max_length=16, **changes)
    return token_classification(named, data, seed=0)


def test_the_first_piece_of_a_word_has_its_label():
    words = {"tokens": [["the", "dog-cat", "is", "river"], ["a"]], "ner_tags": [["O", "B", "O", "O"], ["O"]]}
    columns = {"token_column": "tokens", "tag_column": "ner_tags", "numbers": {"O": 0, "B": 1}}
    data = DatasetDict(train=Dataset.from_dict(words))
    found = tokenize_words(data, tiny_tokenizer(), max_length=7, **columns)["train"]
    assert found["labels"] == [[-100, 0, 1, -100, -100, 0, -100], [-100, 0, -100]]  # dog, -, cat; river is cut off
    assert set(found.column_names) == {"input_ids", "attention_mask", "labels"}
    words["ner_tags"][1] = ["O", "O"]
    with pytest.raises(ValueError, match="a text has 1 words in 'tokens' and 2 tags in 'ner_tags'.*: a"):
        tokenize_words(DatasetDict(train=Dataset.from_dict(words)), tiny_tokenizer(), max_length=7, **columns)


def test_tags_get_the_numbers_of_a_fine_tuned_model(home):
    task = load(home)
    real = [label for row in task.data["test"]["labels"] for label in row if label != -100]
    assert set(real) <= {0, 1, 2}
    assert max(set(real), key=real.count) == 1  # O, as the model numbers it
    assert task.metrics == ["f1", "precision", "recall", "accuracy"]
    assert task.labels == {}


def test_tags_of_a_model_that_is_fine_tuned_here(home):
    task = load(home, dense_epochs=1)
    assert task.labels["id2label"] == {0: "B-X", 1: "I-X", 2: "O"}


def test_named_numbers_and_bare_numbers(home):
    names = ["O", "B-X", "I-X"]
    rows = [{**row, "ner_tags": [names.index(tag) for tag in row["ner_tags"]]} for row in tiny_tags()]
    features = Features(tokens=Sequence(Value("string")), ner_tags=Sequence(ClassLabel(names=names)))
    Dataset.from_list(rows, features=features).to_parquet(home / "named.parquet")
    assert load(home, "named.parquet").data["test"]["labels"] == load(home).data["test"]["labels"]
    assert load(home, "named.parquet", dense_epochs=1).labels["id2label"] == {0: "O", 1: "B-X", 2: "I-X"}
    Dataset.from_list(rows).to_json(home / "bare.jsonl")
    task = load(home, "bare.jsonl", dense_epochs=1)
    assert task.labels["id2label"] == {0: "0", 1: "1", 2: "2"}
    assert task.metrics == ["accuracy"]
    task = load(home, "bare.jsonl")  # bare numbers are those of the model, whose names the metrics use
    assert task.metrics == ["f1", "precision", "recall", "accuracy"]
    assert {label for row in task.data["train"]["labels"] for label in row} == {-100, 0, 1, 2}


def test_what_is_refused(home):
    with pytest.raises(ValueError, match="has no column 'words'; its columns are tokens, ner_tags"):
        load(home, token_column="words")
    with pytest.raises(ValueError, match="the metric 'pearson' does not fit these tags; these do: f1, precision"):
        load(home, metrics=["pearson"])
    rows = "\n".join(json.dumps({"tokens": ["a"], "ner_tags": "O"}) for _ in range(20))
    (home / "flat.jsonl").write_text(rows)
    with pytest.raises(ValueError, match="the column 'ner_tags' holds .*; expected a list of one tag a word"):
        load(home, "flat.jsonl")


def test_the_whole_story(home):
    outcome = run_here(
        token_classification,
        TokenArguments,
        home,
        train_file=str(home / "data.jsonl"),
        dense_epochs=20,
        dense_learning_rate=0.01,
        num_train_epochs=20,
        scorer="fisher",
        metrics=["f1", "accuracy"],
    )
    assert outcome.results["dense_f1"] > 0.9  # the tags follow from the words
    assert outcome.results["recovered_f1"] > 0.9
    assert verify(outcome.folder) == []
    model = hfprune.load(outcome.folder)
    assert type(model).__name__ == "PrunedBertForTokenClassification"
    assert set(model.pruning_record.metrics["recovered"]) == {"f1", "accuracy"}
    assert model.config.id2label == {0: "B-X", 1: "I-X", 2: "O"}
    assert "pipeline_tag: token-classification" in (outcome.folder / "README.md").read_text()


def test_roberta_tokenizers_are_told_that_words_stand_alone(home, monkeypatch):
    seen = {}

    def from_pretrained(source, **options):
        seen.update(options)
        return tiny_tokenizer()

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", from_pretrained)
    labels = {"num_labels": 3, "id2label": {0: "I-X", 1: "O", 2: "B-X"}}
    save(tiny_model("roberta", "AutoModelForTokenClassification", **labels), home / "dense")
    load(home)
    assert seen["add_prefix_space"] is True
