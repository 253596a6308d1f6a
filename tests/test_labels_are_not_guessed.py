"""Which class of the data is which of the model is known or asked for, and a model without its head is refused."""

import json
from dataclasses import replace

import pytest
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import AutoModel, BertConfig
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.data import load_text_dataset
from hfprune.data.labels import align_labels, numbers_of, parse_label_map
from hfprune.errors import CheckpointError
from hfprune.jobs.tasks import ModelArguments, TextArguments, TokenArguments, text_classification, token_classification
from tests.support.runs import save
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tags, tiny_texts

UNNAMED = BertConfig(num_labels=2)
NAMED = BertConfig(num_labels=2, id2label={0: "negative", 1: "positive"})
STARS = BertConfig(num_labels=5, id2label={number: str(number + 1) for number in range(5)})


def cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """With a classifier that says class 1 of every text, and texts of which three quarters are of class 1."""
    folder = tmp_path_factory.mktemp("labels")
    model = tiny_model("bert", num_labels=2)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data[:] = model.classifier.bias.new_tensor([0.0, 1.0])
    save(model, folder / "unnamed")
    model.config.id2label = {0: "negative", 1: "positive"}
    model.config.label2id = {"negative": 0, "positive": 1}
    save(model, folder / "named")
    texts = tiny_texts(40)["text"]
    for name, words in (("words", ("poor", "good")), ("numbers", (0, 1)), ("truth", (False, True))):
        rows = [f"{text},{words[row % 4 > 0]}" for row, text in enumerate(texts)]
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


def accuracy(home, model, data, *options):
    done = cli("evaluate", home / model, "--data", home / f"{data}.csv", "--max-length", 16, *options)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)["accuracy"]


class TestTheKernel:
    """A model without id2label, and a csv with good and poor."""

    def test_evaluate_asks_which_is_which(self, home):
        done = cli("evaluate", home / "unnamed", "--data", home / "words.csv")
        assert done.exit_code == 1
        assert "the classes good, poor, and the model has 2 classes without names (LABEL_0, LABEL_1)" in done.stderr
        assert "Say it: --label-map good=?,poor=?" in done.stderr
        assert done.stdout == ""

    @pytest.mark.parametrize("label_map", ["good=1,poor=0", '{"good": 1, "poor": 0}', "poor = LABEL_0, good = LABEL_1"])
    def test_with_the_map_the_number_is_right(self, home, label_map):
        assert accuracy(home, "unnamed", "words", "--label-map", label_map) == 0.75

    def test_the_other_way_round(self, home):
        assert accuracy(home, "unnamed", "words", "--label-map", "good=0,poor=1") == 0.25

    def test_numbers_are_numbers_of_the_model_whether_it_has_names_or_not(self, home):
        assert accuracy(home, "unnamed", "numbers") == 0.75
        assert accuracy(home, "named", "numbers") == 0.75
        assert accuracy(home, "named", "truth") == 0.75

    def test_names_of_the_model_in_a_map(self, home):
        assert accuracy(home, "named", "words", "--label-map", "good=positive,poor=negative") == 0.75


class TestOtherDoors:
    def test_sweep_and_a_search(self, home):
        for command in (["sweep"], ["prune", home / "out", "--max-drop", 0.5]):
            done = cli(
                command[0], home / "unnamed", *command[1:], "--data", home / "words.csv", "--calibration-samples", 4
            )
            assert done.exit_code == 1
            assert "which is which cannot be told" in done.stderr
            assert not (home / "out").exists()

    def test_prune_that_needs_no_labels_goes_on_and_says_so(self, home):
        quick = ["--calibration-samples", 8, "--schedule", "one_shot", "--max-length", 16, "--scorer", "l2"]
        done = cli("prune", home / "unnamed", home / "small", "--data", home / "words.csv", *quick)
        assert done.exit_code == 0, done.output
        assert "goes on without labels, and measures nothing: the data has the classes good, poor" in done.stderr
        assert "accuracy" not in done.stdout
        assert hfprune.load(home / "small").pruning_record.metrics == {}

    def test_prune_with_a_map_measures(self, home):
        quick = [
            "--calibration-samples",
            8,
            "--schedule",
            "one_shot",
            "--max-length",
            16,
            "--label-map",
            "good=1,poor=0",
        ]
        # the head of this classifier is all zeros, so scorers that go by its logits cannot tell units apart
        quick += ["--scorer", "l2"]
        done = cli("prune", home / "unnamed", home / "measured", "--data", home / "words.csv", *quick)
        assert done.exit_code == 0, done.output
        assert set(hfprune.load(home / "measured").pruning_record.metrics) == {"dense", "pruned"}

    def test_the_python_api(self, home):
        data = load_text_dataset(files={"train": str(home / "words.csv")})
        with pytest.raises(ValueError, match="which is which cannot be told"):
            align_labels(data, UNNAMED)
        aligned = align_labels(data, UNNAMED, label_map={"good": 1, "poor": 0})
        assert {row["label"] == 1 for row in aligned["train"]} == {True, False}
        before = {row["text"]: data["train"].features["label"].int2str(row["label"]) for row in data["train"]}
        for row in aligned["train"]:
            assert row["label"] == (before[row["text"]] == "good")

    @pytest.mark.parametrize(("model", "data"), [("named", "numbers"), ("unnamed", "numbers"), ("named", "truth")])
    def test_the_script_takes_numbers(self, home, model, data):
        task = text_classification(
            ModelArguments(str(home / model)), TextArguments(train_file=str(home / f"{data}.csv"), max_length=8), seed=0
        )
        labels = [label for split in task.data.values() for label in split["labels"]]
        assert sum(labels) == 30

    def test_the_script_asks(self, home):
        data = TextArguments(train_file=str(home / "words.csv"), max_length=8)
        with pytest.raises(ValueError, match="which is which cannot be told"):
            text_classification(ModelArguments(str(home / "unnamed")), data, seed=0)
        task = text_classification(
            ModelArguments(str(home / "unnamed")), replace(data, label_map="good=1,poor=0"), seed=0
        )
        assert sum(label for split in task.data.values() for label in split["labels"]) == 30

    def test_a_model_that_is_fine_tuned_here_gets_the_numbers_of_the_map(self, home):
        data = TextArguments(train_file=str(home / "words.csv"), max_length=8, label_map="good=0,poor=1")
        task = text_classification(ModelArguments(str(home / "unnamed"), dense_epochs=1), data, seed=0)
        assert task.labels["id2label"] == {0: "good", 1: "poor"}
        assert sum(label for split in task.data.values() for label in split["labels"]) == 10
        with pytest.raises(ValueError, match="gets a class for every class of the data .*; the label map says"):
            text_classification(
                ModelArguments(str(home / "unnamed"), dense_epochs=1), replace(data, label_map="good=0,poor=2"), seed=0
            )

    def test_tags(self, tmp_path):
        save(tiny_model("bert", "AutoModelForTokenClassification", num_labels=3), tmp_path / "dense")
        (tmp_path / "tags.jsonl").write_text("\n".join(map(json.dumps, tiny_tags(20))))
        named = ModelArguments(str(tmp_path / "dense"))
        data = TokenArguments(train_file=str(tmp_path / "tags.jsonl"), max_length=8)
        with pytest.raises(ValueError, match="the classes B-X, I-X, O, and the model has 3 classes without names"):
            token_classification(named, data, seed=0)
        task = token_classification(named, replace(data, label_map="O=0,B-X=1,I-X=2"), seed=0)
        labels = [label for row in task.data["train"]["labels"] for label in row if label != -100]
        assert max(set(labels), key=labels.count) == 0
        assert task.metrics == ["f1", "precision", "recall", "accuracy"]


class TestNumbersOf:
    @pytest.mark.parametrize(
        ("config", "names", "options", "expected"),
        [
            (NAMED, ["positive", "negative"], {}, [1, 0]),
            (NAMED, ["0", "1"], {}, [0, 1]),
            (NAMED, ["1"], {}, [1]),
            (UNNAMED, ["LABEL_1", "LABEL_0"], {}, [1, 0]),
            (UNNAMED, ["good", "poor"], {"have_numbers": True}, [0, 1]),
            (STARS, ["1", "2", "3", "4", "5"], {}, [0, 1, 2, 3, 4]),
            (STARS, ["0", "1", "4"], {}, [0, 1, 4]),
            (STARS, ["bad", "fine"], {"label_map": {"bad": "1", "fine": "5"}}, [0, 4]),
            (STARS, ["bad", "fine"], {"label_map": {"bad": 1, "fine": 4}}, [1, 4]),
        ],
    )
    def test_what_can_be_told(self, config, names, options, expected):
        assert list(numbers_of(config, names, **options).values()) == expected

    @pytest.mark.parametrize(
        ("config", "names", "options", "message"),
        [
            (UNNAMED, ["good", "poor"], {}, "without names .* which is which cannot be told"),
            (UNNAMED, ["a", "b", "c"], {"have_numbers": True}, "the model has 2 classes without names"),
            (UNNAMED, ["1", "2"], {}, "the classes 1, 2, and the model has 2 classes without names"),
            (
                NAMED,
                ["good", "poor"],
                {"have_numbers": True},
                "knows the classes negative, positive, the data has good",
            ),
            (STARS, ["1", "2"], {}, "names of classes of the model and numbers of others"),
            (UNNAMED, ["good", "poor"], {"label_map": {"good": 1}}, "the label map has good, but not poor"),
            (UNNAMED, ["good"], {"label_map": {"good": 2}}, "says good=2, .* no such class.* numbers 0 to 1"),
            (NAMED, ["good"], {"label_map": {"good": "fine"}}, "says good=fine, but the model has no such class"),
        ],
    )
    def test_what_cannot(self, config, names, options, message):
        with pytest.raises(ValueError, match=message):
            numbers_of(config, names, **options)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "a label map reads good=1,poor=0, got ''"),
            ("good", "a label map reads good=1,poor=0, got 'good'"),
            ("good=1,good=0", "must name every class of the data once"),
            ('{"good": 1.5}', "must give a number or a name of the model, got 1.5"),
            ('{"good": 1', "begins as JSON and is none"),
        ],
    )
    def test_maps_that_are_none(self, text, message):
        with pytest.raises(ValueError, match=message):
            parse_label_map(text)

    def test_numbers_of_a_source_are_kept(self):
        rows = Dataset.from_dict({"label": [1, 0]}).cast_column("label", ClassLabel(names=["good", "poor"]))
        assert align_labels(DatasetDict(train=rows), UNNAMED)["train"]["label"][:] == [1, 0]

    def test_rows_without_a_label(self):
        rows = Dataset.from_dict({"label": [1, -1]}).cast_column("label", ClassLabel(names=["positive", "negative"]))
        with pytest.raises(ValueError, match=r"the train split has rows without a label \(-1\)"):
            align_labels(DatasetDict(train=rows), NAMED)

    def test_whole_numbers_for_a_model_that_predicts_a_number(self):
        config = BertConfig(num_labels=1)
        rows = Dataset.from_dict({"label": [5, 3]}).class_encode_column("label")
        assert align_labels(DatasetDict(train=rows), config)["train"]["label"][:] == [5.0, 3.0]
        words = Dataset.from_dict({"label": ["good", "poor"]}).class_encode_column("label")
        with pytest.raises(ValueError, match="predicts a number, and the data has the classes good, poor"):
            align_labels(DatasetDict(train=words), config)


@pytest.fixture(scope="module")
def bodies(tmp_path_factory):
    """An encoder, a language model, and an encoder whose config says that it is a classifier."""
    folder = tmp_path_factory.mktemp("bodies")
    classifier = tiny_model("bert", num_labels=2)
    save(classifier.base_model, folder / "encoder")
    save(tiny_model("bert", "AutoModelForMaskedLM"), folder / "masked")
    save(tiny_model("llama", "AutoModelForCausalLM"), folder / "causal")
    save(tiny_model("t5", "AutoModelForSeq2SeqLM"), folder / "summaries")
    save(classifier.base_model, folder / "claimed")
    config = json.loads((folder / "claimed" / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (folder / "claimed" / "config.json").write_text(json.dumps(config))
    rows = [f"{text},{row % 2}" for row, text in enumerate(tiny_texts(20)["text"])]
    (folder / "data.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    return folder


class TestAMissingHead:
    @pytest.mark.parametrize("command", ["evaluate", "prune", "sweep"])
    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("encoder", "is a BertModel, which is no model of the task text_classification"),
            ("masked", "is a BertForMaskedLM, which is no model of the task text_classification"),
            ("causal", "is a LlamaForCausalLM, which is no model of the task text_classification"),
            ("summaries", "is a T5ForConditionalGeneration, which is no model of the task text_classification"),
            ("claimed", "lacks 2 weights of a BertForSequenceClassification: classifier.bias, classifier.weight"),
        ],
    )
    def test_commands(self, bodies, command, body, message):
        output = [bodies / "out"] if command == "prune" else []
        options = ["--task", "text_classification", "--max-length", 8]
        done = cli(command, bodies / body, *output, "--data", bodies / "data.csv", *options)
        assert done.exit_code == 1
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""

    def test_scripts(self, bodies):
        data = TextArguments(train_file=str(bodies / "data.csv"), max_length=8)
        task = text_classification(ModelArguments(str(bodies / "encoder")), data, seed=0)
        with pytest.raises(
            CheckpointError, match="lacks 2 weights of a BertForSequenceClassification: classifier.bias"
        ):
            task.model(fine_tuned=bodies / "none")
        assert task.model(fine_tuned=bodies / "none", will_be_fine_tuned=True).num_labels == 2
        teacher = ModelArguments(str(bodies / "encoder"), teacher_model=str(bodies / "encoder"))
        with pytest.raises(CheckpointError, match="lacks 2 weights"):
            task.teacher(teacher, tiny_model("bert", num_labels=2))

    def test_other_commands_take_encoders(self, bodies):
        assert cli("inspect", bodies / "encoder").exit_code == 0
        assert cli("inspect", bodies / "claimed").exit_code == 1

    def test_a_pruned_classifier_passes(self, bodies, tmp_path):
        config = hfprune.PruningConfig(sparsity=0.3, sequence_length=8, calibration_samples=4, scorer="l2")
        small = hfprune.prune(tiny_model("bert", num_labels=2), [tiny_batch()], replace(config, reconstruct=False))
        hfprune.save(small, tmp_path / "small")
        save(small.__class__.from_pretrained(tmp_path / "small"), tmp_path / "again")
        done = cli("evaluate", tmp_path / "again", "--data", bodies / "data.csv", "--max-length", 8)
        assert done.exit_code == 0, done.output
        assert type(AutoModel.from_pretrained(tmp_path / "small")).__name__ == "PrunedBertModel"
