"""Multiple choice: forms of the data, pairs of texts, metrics, and the whole story."""

import json
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import EvalPrediction

import hfprune
from hfprune.data.choices import ChoiceColumns, read_choices, tokenize_choices
from hfprune.jobs.tasks import ChoiceArguments, ModelArguments, multiple_choice
from hfprune.publishing.verification import verify
from tests.support.processes import run_python
from tests.support.runs import choice_home, run_here, settings, write
from tests.support.tiny_data import tiny_choices, tiny_tokenizer

SCRIPT = Path(__file__).parent.parent / "scripts" / "run_multiple_choice.py"


@pytest.fixture
def home(tmp_path):
    return choice_home(tmp_path)


def load(home, file="data.jsonl", **changes):
    named = ModelArguments(model_name_or_path=str(home / "dense"))
    return multiple_choice(named, ChoiceArguments(train_file=str(home / file), max_length=16, **changes), seed=0)


def read(rows, **columns):
    return read_choices(DatasetDict(train=Dataset.from_list(rows)), ChoiceColumns(**columns))["train"]


ROW = {"question": "what", "choices": ["dog", "cat", "city"], "label": 2}


class TestData:
    def test_every_form_of_choices_and_labels(self):
        expected = {"context": "", "question": "what", "choices": ["dog", "cat", "city"], "label": 2}
        assert read([ROW])[0] == expected
        for label in ("C", "2"):
            assert read([{**ROW, "label": label}])[0] == expected
        # as in ARC and CommonsenseQA: names, which may be numbers of another kind
        named = {"text": ROW["choices"], "label": ["1", "2", "3"]}
        assert read([{"question": "what", "choices": named, "answerKey": "3"}], label="answerKey")[0] == expected
        numbered = Dataset.from_list([ROW]).cast_column("label", ClassLabel(names=["0", "1", "2"]))
        assert read_choices(DatasetDict(train=numbered), ChoiceColumns())["train"][0] == expected
        # as in SWAG
        swag = {"sent1": "the dog is", "sent2": "it", "ending0": "is a", "ending1": "is the", "label": 0}
        columns = {"question": "sent2", "context": "sent1", "choices": ("ending0", "ending1")}
        assert read([swag], **columns)[0] == {
            "context": "the dog is",
            "question": "it",
            "choices": ["is a", "is the"],
            "label": 0,
        }

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"label": 3},
                "row 1 .* of the train split has the label 3 in 'label', and 3 .* from 0 to 2, or .* A",
            ),
            ({"label": -1}, "has the label -1"),
            ({"choices": ["dog"]}, r"the choices are \['dog'\] in choices: .*; expected at least two texts"),
            ({"choices": ["dog", "cat"], "label": 0}, "numbers of choices: 1 have 3, 1 have 2. A batch needs the same"),
        ],
    )
    def test_what_is_refused(self, changes, message):
        with pytest.raises(ValueError, match=message):
            read([ROW, {**ROW, **changes}])

    @pytest.mark.parametrize("label", ["D", "", "²", "dog", 1.0])
    def test_labels_that_are_no_choice(self, label):
        with pytest.raises(ValueError, match="row 0 .* has the label"):
            read([{**ROW, "label": label}])

    def test_texts_in_place_of_lists(self):
        with pytest.raises(ValueError, match="the choices are 'dog' in choices: .*string"):
            read([{**ROW, "choices": "dog"}])

    def test_a_context_stands_first_and_the_question_with_the_choice(self):
        def texts(**changes):
            row = {**ROW, "context": "", **changes}
            tokenized = tokenize_choices(DatasetDict(train=Dataset.from_list([row])), tiny_tokenizer(), max_length=9)
            assert tokenized["train"]["labels"][:] == [2]
            return [tiny_tokenizer().decode(ids) for ids in tokenized["train"][0]["input_ids"]]

        assert texts() == [f"[BOS] what [EOS] {choice} [EOS]" for choice in ROW["choices"]]
        assert texts(context="who is the dog of the city")[0] == "[BOS] who is the dog [EOS] what dog [EOS]"


class TestTask:
    def test_batches_and_metrics(self, home):
        task = load(home)
        assert task.data.num_rows == {"train": 64, "validation": 8, "test": 8}
        rows = task.data["train"].select([0, 1, 2, 3])
        batch = task.collator(list(rows))
        longest = max(len(ids) for row in rows["input_ids"] for ids in row)
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, 3, longest)
        assert batch["labels"].tolist() == rows["labels"][:]
        logits = np.array([[0.0, 1, 2], [0, 2, 1], [3, 0, 0], [0, 0, 1]])
        prediction = EvalPrediction(predictions=logits, label_ids=np.array([2, 1, 0, 1]))
        assert task.compute_metrics(prediction, rows) == {"accuracy": 0.75}
        assert task.sample_metrics["accuracy"](prediction, rows) == [1, 1, 1, 0]
        likelihood = task.sample_metrics["log_likelihood"](prediction, rows)[0]
        assert likelihood == pytest.approx(2 - np.log(1 + np.e + np.e**2))

    def test_a_test_split_without_labels_counts_as_missing(self, home):
        rows = [{**row, "label": ""} for row in tiny_choices(10)]
        (home / "test.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        rows = [{**row, "label": "ABC"[row["label"]]} for row in tiny_choices(40)]
        (home / "letters.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
        task = load(home, "letters.jsonl", test_file=str(home / "test.jsonl"))
        assert task.data.num_rows == {"train": 32, "validation": 4, "test": 4}

    def test_what_is_refused(self, home):
        with pytest.raises(ValueError, match="unknown metric 'f1' of multiple choice; these are: accuracy"):
            load(home, metrics=["f1"])
        with pytest.raises(ValueError, match="choice_columns names one column, choices: a column with a list"):
            load(home, choice_columns=["choices"])
        with pytest.raises(ValueError, match="has no column 'endings'; its columns are question, choices, label"):
            load(home, choices_column="endings")


@pytest.mark.script
def test_the_whole_story(home, client):
    outcome = run_here(
        multiple_choice,
        ChoiceArguments,
        home,
        train_file=str(home / "data.jsonl"),
        dense_epochs=6,
        dense_learning_rate=0.01,
        num_train_epochs=3,
        scorer="fisher",
    )
    assert outcome.results["dense_accuracy"] == 1  # the dog is right
    assert outcome.results["recovered_accuracy"] == 1
    assert verify(outcome.folder) == []
    assert type(hfprune.load(outcome.folder)).__name__ == "PrunedBertForMultipleChoice"
    # transformers has no pipeline of multiple choice
    said = client(
        f"""
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer
folder = {str(outcome.folder)!r}
model = AutoModelForMultipleChoice.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
pairs = tokenizer(["who is it"] * 3, ["a cat", "the river", "of the dog"], padding=True, return_tensors="pt")
with torch.no_grad():
    logits = model(**{{name: value[None] for name, value in pairs.items()}}).logits
say(module=type(model).__module__, chosen=int(logits[0].argmax()))
""",
        with_hfprune=False,
    )
    assert said["module"].startswith("transformers_modules.")
    assert said["chosen"] == 2


@pytest.mark.script
@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes(home):
    values = settings(home, train_file=str(home / "data.jsonl"), num_train_epochs=1, eval_strategy="epoch")
    run_python(SCRIPT, write(home, values), processes=2)
    record = hfprune.load(home / "out" / "model").pruning_record
    assert set(record.metrics["recovered"]) == {"accuracy"}
    assert verify(home / "out" / "model") == []
