"""Extractive question answering: data, windows, answers, metrics by hand, and the whole story."""

import gzip
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from transformers import EvalPrediction

import hfprune
from hfprune.data.questions import load_questions
from hfprune.data.windows import tokenize_questions
from hfprune.jobs.tasks import ModelArguments, QuestionArguments, question_answering
from hfprune.measuring.answers import Window, answer_f1, answer_metrics, answer_of, best_span, exact_match, normalised
from hfprune.publishing.verification import verify
from hfprune.recovery.arguments import RecoveryArguments
from tests.support.processes import run_python
from tests.support.runs import question_home, run_here, settings, write
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_squad, tiny_tokenizer

SCRIPT = Path(__file__).parent.parent / "scripts" / "run_question_answering.py"
#: Windows that are shorter than most contexts here.
SHORT = {"max_length": 12, "doc_stride": 2, "max_question_length": 4}


@pytest.fixture
def home(tmp_path):
    return question_home(tmp_path)


def load(home, file="data.json", **changes):
    model = {name: changes.pop(name) for name in ("dense_epochs",) if name in changes}
    named = ModelArguments(model_name_or_path=str(home / "dense"), **model)
    return question_answering(named, QuestionArguments(train_file=str(home / file), **{**SHORT, **changes}), seed=0)


def flat_rows(rows=20, **changes):
    answers = {"text": ["dog"], "answer_start": [4]}
    return [{"question": "who", "context": f"the dog {i}", "answers": answers, **changes} for i in range(rows)]


def write_rows(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))


class TestMetrics:
    def test_answers_are_compared_as_by_the_script_of_squad(self):
        assert normalised("The  quick, brown-fox; An A.") == "quick brownfox"
        assert normalised("theatre another") == "theatre another"  # articles are whole words
        assert exact_match("The Eiffel Tower!", ["eiffel tower"]) == 1
        assert exact_match("Eiffel", ["eiffel tower"]) == 0
        # 2 of 3 words are right, and 2 of 4 are found: 2 · 2 / (3 + 4)
        assert answer_f1("red red house", ["a red house of the town"]) == pytest.approx(2 * 2 / (3 + 4))
        assert answer_f1("red house", ["green tree", "red"]) == pytest.approx(2 / 3)  # the best of several counts
        assert answer_f1("town", ["red"]) == 0
        assert [answer_f1("", []), answer_f1("red", []), answer_f1("", ["red"])] == [1, 0, 0]
        assert answer_f1("", ["the"]) == 1  # nothing is left of the only right answer

    def test_means_over_all_questions_and_over_those_with_and_without_answer(self):
        measured = answer_metrics(["red house", "", "tree", "x"], [["red"], [], ["tree"], []])
        assert measured["f1"] == pytest.approx((2 / 3 + 1 + 1 + 0) / 4)
        assert measured["exact_match"] == pytest.approx(2 / 4)
        assert measured["has_answer_f1"] == pytest.approx((2 / 3 + 1) / 2)
        assert measured["no_answer_f1"] == pytest.approx(1 / 2)
        assert set(answer_metrics(["red"], [["red"]])) == {"f1", "exact_match"}


def window(start, end, offsets, **changes):
    return Window(start_logits=np.array(start), end_logits=np.array(end), offsets=np.array(offsets), **changes)


class TestAnswers:
    def test_the_best_span_is_that_of_a_search_over_all(self):
        random = np.random.default_rng(0)
        offsets = np.array([[-1, -1]] * 3 + [[3 * i, 3 * i + 2] for i in range(12)] + [[-1, -1]])
        for _ in range(50):
            start, end = random.normal(size=(2, 16))
            found = best_span(window(start, end, offsets), n_best=16, max_tokens=4)
            scores = {}
            for first, last in product(range(3, 15), repeat=2):
                if first <= last < first + 4:
                    scores[first, last] = start[first] + end[last]
            (first, last), score = max(scores.items(), key=lambda entry: entry[1])
            assert (found.start, found.end) == (offsets[first, 0], offsets[last, 1])
            assert found.score == pytest.approx(score)

    def test_only_the_likeliest_tokens_are_paired(self):
        offsets = [[0, 1], [2, 3], [4, 5]]
        # the likeliest last token is before the likeliest first one
        crossed = window([0.0, 1.0, 9.0], [9.0, 0.0, 1.0], offsets)
        assert best_span(crossed, n_best=1) is None
        assert best_span(crossed, n_best=2).score == 10
        assert answer_of([window([9.0], [9.0], [[-1, -1]])], "") == ""

    def test_the_best_window_answers(self):
        context = "red green blue"
        first = window([0.0, 3.0, 1.0], [0.0, 2.0, 1.0], [[-1, -1], [0, 3], [4, 9]])
        second = window([0.0, 1.0, 4.0], [0.0, 1.0, 4.0], [[-1, -1], [4, 9], [9, 14]])
        assert answer_of([first, second], context) == "blue"  # without the space that its token holds
        assert answer_of([first], context) == "red"

    def test_no_answer(self):
        offsets = [[0, 3], [-1, -1]]
        sure = window([2.0, 3.0], [2.0, 4.0], offsets, no_answer=1)
        unsure = window([0.0, 1.0], [0.0, 1.5], offsets, no_answer=1)
        assert answer_of([sure], "red") == "red"  # where every question has an answer
        assert answer_of([sure], "red", may_be_unanswerable=True) == ""  # 7 − 4 is above 0
        assert answer_of([sure], "red", may_be_unanswerable=True, threshold=3.5) == "red"
        assert answer_of([sure, unsure], "red", may_be_unanswerable=True) == "red"  # 2.5 of the second window − 4


class TestData:
    def test_every_form_of_the_data_gives_the_same_questions(self, tmp_path):
        squad = tiny_squad(40)
        (tmp_path / "squad.json").write_text(json.dumps(squad, indent=1))
        with gzip.open(tmp_path / "squad.json.gz", "wt") as file:
            json.dump(squad, file)
        rows = []
        structs = []
        for paragraph in squad["data"][0]["paragraphs"]:
            question = paragraph["qas"][0]
            row = {"id": question["id"], "context": paragraph["context"], "question": question["question"]}
            lists = {name: [answer[name] for answer in question["answers"]] for name in ("text", "answer_start")}
            rows.append({**row, "answers": lists})
            structs.append({**row, "answers": question["answers"]})
        write_rows(tmp_path / "rows.jsonl", rows)
        write_rows(tmp_path / "structs.jsonl", structs)
        (tmp_path / "data.json").write_text(json.dumps({"version": 1, "data": rows}))
        Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
        expected = load_questions(str(tmp_path / "squad.json"))
        assert expected.num_rows == {"train": 32, "validation": 4, "test": 4}
        for name in ("squad.json.gz", "rows.jsonl", "structs.jsonl", "data.json", "rows.parquet"):
            found = load_questions(files={"train": str(tmp_path / name)})
            assert {split: found[split].to_dict() for split in found} == {
                split: expected[split].to_dict() for split in expected
            }, name

    def test_questions_about_one_context_stay_together(self, tmp_path):
        rows = [row for row in flat_rows(10) for _ in range(5)]
        write_rows(tmp_path / "rows.jsonl", rows)
        splits = load_questions(files={"train": str(tmp_path / "rows.jsonl")})
        assert splits.num_rows == {"train": 40, "validation": 5, "test": 5}
        contexts = [set(split["context"]) for split in splits.values()]
        assert sum(map(len, contexts)) == len(set.union(*contexts)) == 10
        write_rows(tmp_path / "one.jsonl", rows[:5])
        with pytest.raises(ValueError, match="whose rows all have one 'context'.* or a file for test"):
            load_questions(files={"train": str(tmp_path / "one.jsonl")})

    def test_an_answer_beside_its_place_is_found_again(self, tmp_path, caplog):
        answers = {"text": ["dog"], "answer_start": [9]}
        rows = flat_rows(context="dog the dog is a dog", answers=answers)
        write_rows(tmp_path / "rows.jsonl", [*flat_rows(), *rows])
        data = load_questions(files={name: str(tmp_path / "rows.jsonl") for name in ("train", "validation", "test")})
        assert data["train"]["starts"][-1] == [8]
        assert "20 of 40 questions of the train split have an answer that does not stand where" in caplog.text

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (flat_rows(answers="dog"), r"the column 'answers' holds Value\('string'\); expected .* its answers"),
            (flat_rows(answers={"text": ["dog"]}), "the column 'answers' holds"),
            (flat_rows(answers={"text": ["dog"], "answer_start": [4, 5]}), "the column 'answers' holds"),
            (flat_rows(context=None), "20 of 20 rows of the train split have no 'context'"),
            (flat_rows(context="a cat"), "20 of 20 questions of the train .* first is row 0 .*: 'dog' in 'a cat'"),
            ([{"text": "a"}] * 20, "the data set has no column 'question'; its columns are text"),
            (
                flat_rows(answers={"text": [], "answer_start": []}),
                "none of the 20 questions of the train split has an answer in 'answers'",
            ),
        ],
    )
    def test_rows_of_another_form(self, tmp_path, rows, message):
        write_rows(tmp_path / "rows.jsonl", rows)
        with pytest.raises(ValueError, match=message):
            load_questions(files={"train": str(tmp_path / "rows.jsonl")})

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"data": []}, "the train file .* holds no question"),
            ({"data": [{"paragraphs": [{"qas": []}]}]}, r"data\[0\].paragraphs\[0\] has no 'context', only qas"),
            ({"data": [{"paragraphs": [{"context": "a", "qas": [{"id": 1}]}]}]}, "qas has no 'question', only id"),
            ({"data": [{"title": "a"}, {"paragraphs": []}]}, r"data\[0\] has no 'paragraphs', only title"),
            ({"validation": []}, "has no column 'question'; its columns are validation"),
        ],
    )
    def test_files_that_look_like_squad(self, tmp_path, content, message):
        (tmp_path / "data.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=message):
            load_questions(files={"train": str(tmp_path / "data.json")})

    def test_what_is_missing(self, tmp_path):
        (tmp_path / "data.json").write_text(json.dumps(tiny_squad()))
        with pytest.raises(ValueError, match="has the splits test, but no 'train'"):
            load_questions(files={"test": str(tmp_path / "data.json")})
        with pytest.raises(ValueError, match="file .*none.json' does not exist"):
            load_questions(files={"train": str(tmp_path / "none.json")})
        with pytest.raises(ValueError, match="give either the name of a data set or its files"):
            load_questions()


def questions(**changes):
    given = {"question": "who is it", "context": "a cat is of the city", "texts": ["the city"], "starts": [12]}
    return DatasetDict(train=Dataset.from_list([{**given, **changes}]))


class TestWindows:
    def test_windows_overlap_and_know_where_their_tokens_stand(self):
        windows = tokenize_questions(questions(), tiny_tokenizer(), max_length=10, doc_stride=2, max_question_length=3)[
            "train"
        ]
        decoded = [tiny_tokenizer().decode(ids) for ids in windows["input_ids"]]
        # [BOS] who is [UNK] [EOS] … [EOS] leave four tokens for the context, and the next window repeats two of them
        assert decoded == [
            "[BOS] who is [UNK] [EOS] a cat is of [EOS]",
            "[BOS] who is [UNK] [EOS] is of the city [EOS]",
        ]
        assert windows["offset_mapping"][1] == [[-1, -1]] * 5 + [[6, 8], [9, 11], [12, 15], [16, 20], [-1, -1]]
        assert windows["start_positions"][:] == [0, 7]
        assert windows["end_positions"][:] == [0, 8]
        assert windows["example_id"][:] == [0, 0]
        assert windows["answers"][:] == [["the city"], ["the city"]]
        assert windows["context"][0] == "a cat is of the city"

    def test_long_questions_are_cut(self):
        windows = tokenize_questions(
            questions(question="  who is the dog of the city"),
            tiny_tokenizer(),
            max_length=10,
            doc_stride=1,
            max_question_length=3,
        )["train"]
        assert tiny_tokenizer().decode(windows["input_ids"][0]).startswith("[BOS] who is the [EOS] a cat")

    def test_half_an_answer_is_none(self):
        windows = tokenize_questions(
            questions(texts=["of the city"], starts=[9]),
            tiny_tokenizer(),
            max_length=9,
            doc_stride=1,
            max_question_length=3,
        )["train"]
        assert len(windows) == 3  # of three tokens each: a cat is, is of the, the city
        assert windows["start_positions"][:] == [0, 0, 0]

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"doc_stride": 5}, "max_length=12 tokens has room for 5 tokens .* doc_stride=5 of them"),
            ({"max_question_length": 40}, "has room for 0 tokens of the context"),
            (
                {"max_question_length": 0},
                "max_question_length must be at least 1 and doc_stride at least 0, got 0 and 2",
            ),
            ({"doc_stride": -1}, "got 4 and -1"),
        ],
    )
    def test_windows_without_room(self, home, changes, message):
        with pytest.raises(ValueError, match=message):
            load(home, **changes)


class TestTask:
    def test_right_logits_give_right_answers(self, home):
        task = load(home)
        rows = task.data["train"]
        longest = max(map(len, rows["input_ids"]))
        logits = np.full((2, len(rows), longest + 3), -100.0)  # as Trainer pads
        for number, row in enumerate(rows):
            logits[:, number, : len(row["input_ids"])] = 0
            logits[0, number, row["start_positions"]] = 5
            logits[1, number, row["end_positions"]] = 5
        labels = (np.array(rows["start_positions"]), np.array(rows["end_positions"]))
        prediction = EvalPrediction(predictions=tuple(logits), label_ids=labels)
        assert set(task.compute_metrics(prediction, rows).values()) == {1.0}
        asked = len(set(rows["example_id"]))
        assert asked < len(rows)  # a sample is a question, and not a window
        assert {name: metric(prediction, rows) for name, metric in task.sample_metrics.items()} == {
            "f1": [1.0] * asked,
            "exact_match": [1.0] * asked,
        }
        assert task.metrics == ["f1", "exact_match", "has_answer_f1", "no_answer_f1"]
        assert load(home, metrics=["exact_match"]).metrics == ["exact_match"]

    def test_batches_are_padded_on_the_right(self, home):
        task = load(home)
        task.processor.padding_side = "left"
        rows = task.data["train"].select([0, 1, 2])
        assert len(set(map(len, rows["input_ids"]))) > 1
        batch = task.collator(list(rows))
        assert set(batch) == {"input_ids", "attention_mask", "start_positions", "end_positions"}
        assert batch["attention_mask"].sum(1).tolist() == list(map(len, rows["input_ids"]))
        assert batch["attention_mask"][:, 0].tolist() == [1, 1, 1]
        assert task.calibration_collator is task.collator

    def test_what_is_refused(self, home):
        with pytest.raises(ValueError, match="unknown metric 'bleu' of question answering on this data; these are: f1"):
            load(home, metrics=["bleu"])
        with pytest.raises(ValueError, match="n_best_size and max_answer_length must be at least 1, got 0 and 30"):
            load(home, n_best_size=0)
        (home / "v1.json").write_text(json.dumps(tiny_squad(unanswerable=False)))
        with pytest.raises(ValueError, match="unknown metric 'no_answer_f1' .*; these are: f1, exact_match"):
            load(home, "v1.json", metrics=["no_answer_f1"])

    def test_predictions_are_in_the_order_of_the_rows(self, home):
        """Also where rows are grouped by length, which mixes them up in evaluation too if nothing is done."""
        task = load(home)
        model = task.model(fine_tuned=home / "none")
        measured = []
        for strategy in ("random", "group_by_length"):
            args = RecoveryArguments(
                str(home / "out"), train_sampling_strategy=strategy, use_cpu=True, report_to="none", disable_tqdm=True
            )
            args.per_device_eval_batch_size = 3
            trainer = task.trainer(model, args)
            trainer.compute_metrics = None
            measured.append(trainer.predict(task.data["test"]).predictions[0])
        np.testing.assert_allclose(measured[0], measured[1], rtol=1e-5, atol=1e-6)


def test_a_head_of_classes_becomes_one_of_spans(home):
    tiny_model("bert", num_labels=3).save_pretrained(home / "dense")
    task = load(home, dense_epochs=1)
    model = task.model(fine_tuned=home / "none", will_be_fine_tuned=True)
    assert model.qa_outputs.out_features == 2


@pytest.mark.script
def test_the_whole_story(home, client):
    outcome = run_here(
        question_answering,
        QuestionArguments,
        home,
        train_file=str(home / "data.json"),
        **{**SHORT, "sequence_length": 12},
        dense_epochs=8,
        dense_learning_rate=0.01,
        num_train_epochs=4,
        scorer="fisher",
        train_sampling_strategy="group_by_length",
        eval_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="f1",
    )
    assert outcome.results["dense_f1"] > 0.9  # the answer is the animal
    assert outcome.results["recovered_f1"] > 0.9
    assert verify(outcome.folder) == []
    model = hfprune.load(outcome.folder)
    assert type(model).__name__ == "PrunedBertForQuestionAnswering"
    assert set(model.pruning_record.metrics["recovered"]) == {
        "f1",
        "exact_match",
        "has_answer_f1",
        "no_answer_f1",
    }
    assert "pipeline_tag: question-answering" in (outcome.folder / "README.md").read_text()
    # transformers 5 has no pipeline of question answering any more
    said = client(
        f"""
import torch
from transformers import AutoModelForQuestionAnswering, AutoTokenizer
folder = {str(outcome.folder)!r}
model = AutoModelForQuestionAnswering.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
asked = tokenizer("what name", "is the cat a city", return_tensors="pt")
with torch.no_grad():
    output = model(**asked)
first, last = output.start_logits[0].argmax(), output.end_logits[0].argmax()
say(module=type(model).__module__, answer=tokenizer.decode(asked["input_ids"][0, first : last + 1]))
""",
        with_hfprune=False,
    )
    assert said["module"].startswith("transformers_modules.")
    assert said["answer"] == "cat"


@pytest.mark.script
@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes(home):
    values = settings(home, train_file=str(home / "data.json"), num_train_epochs=1, **SHORT, eval_strategy="epoch")
    run_python(SCRIPT, write(home, values), processes=2)
    record = hfprune.load(home / "out" / "model").pruning_record
    assert set(record.metrics["recovered"]) == {"f1", "exact_match", "has_answer_f1", "no_answer_f1"}
    assert verify(home / "out" / "model") == []
