"""Files with other suffixes, separators and encodings, CoNLL, texts without labels; and what never goes to the Hub."""

import bz2
import gzip
import json
import lzma

import datasets
import numpy as np
import pytest
from transformers import EvalPrediction
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.data import load_text_dataset, load_texts
from hfprune.data.files import read_file
from hfprune.data.loading import load_splits
from hfprune.jobs.tasks import ModelArguments, TextArguments, TokenArguments, text_classification, token_classification
from hfprune.measuring.metrics import METRICS, compute_metrics_for
from tests.support.runs import save, text_home
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_tags, tiny_texts

ROWS = [("a dög", "what"), ("the cat", "who"), ("a city", "where")]
CSV = "text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return text_home(tmp_path_factory.mktemp("files"))


def rows_of(rows):
    return [(row["text"], row["label"]) for row in rows]


@pytest.mark.parametrize("name", ["CAPS.CSV", "Mixed.Csv", "x.csv.gz", "x.csv.bz2", "X.CSV.XZ", "x.tsv", "X.TSV.gz"])
def test_names(here, name):
    text = CSV.replace(",", "\t") if "tsv" in name.lower() else CSV
    openers = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    opener = openers.get((here / name).suffix.lower(), open)
    with opener(here / name, "wt", encoding="utf-8") as file:
        file.write(text)
    assert rows_of(read_file(name, "train")) == ROWS


@pytest.mark.parametrize("separator", [";", "|", "\t", "\\t"])
def test_separators(here, separator):
    (here / "data.csv").write_text(CSV.replace(",", separator.replace("\\t", "\t")))
    with pytest.raises(ValueError, match="has no comma: its columns seem to be separated by .*: --separator"):
        read_file("data.csv", "train")
    assert rows_of(read_file("data.csv", "train", separator=separator)) == ROWS


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl", "data.txt", "data.csv.gz", "data.conll"])
def test_encodings(here, name):
    lines = {
        "jsonl": "".join(json.dumps({"text": text, "label": label}, ensure_ascii=False) + "\n" for text, label in ROWS),
        "conll": "dög O\n\nthe O\ncat B-X\n",
        "txt": "a dög\nthe cat\n",
        "tsv": CSV.replace(",", "\t"),
    }.get(name.split(".")[1], CSV)
    opener = gzip.open if name.endswith(".gz") else open
    with opener(here / name, "wb") as file:
        file.write(lines.encode("latin-1"))
    with pytest.raises(ValueError, match=f"'{name}' is not in utf-8: the byte 0xf6 in it.*--encoding latin-1"):
        read_file(name, "train")
    assert "dög" in str(read_file(name, "train", encoding="latin-1")[0])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["data.csv", "data.txt", "data.jsonl", "data.conll", "data.csv.gz"])
def test_a_byte_order_mark_names_the_encoding(here, name, encoding):
    opener = gzip.open if name.endswith(".gz") else open
    with opener(here / name, "wb") as file:
        file.write(CSV.encode(encoding))
    # latin-1 would read any bytes, and these as nonsense
    for wrong in (None, "latin-1"):
        with pytest.raises(ValueError, match=f"begins with the byte-order mark of {encoding}.*--encoding {encoding} "):
            read_file(name, "train", encoding=wrong)
    if "csv" in name:
        assert rows_of(read_file(name, "train", encoding=encoding)) == ROWS


@pytest.mark.parametrize(("name", "text"), [("data.csv", "text,label\n"), ("data.tsv", "text\tlabel\n")])
def test_a_head_without_rows(here, name, text):
    (here / name).write_text(text)
    with pytest.raises(ValueError, match=f"the train file '{name}' has no rows. Write at least one"):
        read_file(name, "train")


@pytest.mark.parametrize("name", ["data.csv", "data.txt", "data.jsonl", "data.json", "data.conll"])
def test_an_empty_file(here, name):
    (here / name).write_text("")
    with pytest.raises(ValueError, match=f"{name}.*(has no rows|cannot be read|holds no sentence)"):
        read_file(name, "train")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("data.csv", {"encoding": "latin-0"}, "there is no encoding 'latin-0'; the usual ones are"),
        ("data.csv", {"separator": ";;"}, "the separator must be one character, got ';;'"),
        ("data.txt", {"separator": ";"}, "'data.txt' has no columns to separate"),
        ("data.parquet", {"encoding": "latin-1"}, "'data.parquet' says itself how its texts are encoded"),
        ("data.xlsx", {}, r"'data.xlsx' should end in one of .csv, .tsv, .json, .jsonl, .parquet, .txt, .conll \(also"),
        ("data.csv.zip", {}, "'data.csv.zip' should end in one of"),
        ("nowhere.csv", {}, "'nowhere.csv' does not exist"),
    ],
)
def test_what_is_refused(here, name, options, message):
    if name != "nowhere.csv":
        (here / name).write_text(CSV)
    with pytest.raises(ValueError, match=message):
        read_file(name, "train", **options)


@pytest.mark.parametrize(
    "name", ["mine.xlsx", "data/train.odt", "data.doc", "nowhere.csv", "./folder", "a/b/c", "/no/such", "NO.CSV.GZ"]
)
def test_what_is_a_file_never_goes_to_the_hub(here, monkeypatch, name):
    def ask(*arguments, **options):
        raise AssertionError(f"went to the Hub: {arguments}")

    monkeypatch.setattr(datasets, "load_dataset", ask)
    for load in (load_text_dataset, load_texts):
        with pytest.raises(ValueError, match="does not exist|there is no folder"):
            load(name)


@pytest.mark.parametrize("name", ["nyu-mll/glue", "imdb", "me/texts-v1.1", "hf://datasets/me/texts.csv"])
def test_names_of_the_hub_do(monkeypatch, name):
    asked = []

    def ask(name, *arguments, **options):
        asked.append(name)
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", ask)
    with pytest.raises(ConnectionError):
        load_text_dataset(name)
    assert asked == [name.removeprefix("hf://datasets/")]


class TestConll:
    TEXT = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\n\n\nPeter NNP B-PER\n"

    def test_words_and_last_columns(self, here):
        (here / "data.conll").write_text(self.TEXT)
        assert read_file("data.conll", "train").to_dict() == {
            "tokens": [["EU", "rejects"], ["Peter"]],
            "ner_tags": [["B-ORG", "O"], ["B-PER"]],
        }

    @pytest.mark.parametrize(
        "begin", ["-DOCSTART- -X- O O\r\n\r\n", "# id 8 domain=train\n", "# text = EU rejects\n# a=b\n"]
    )
    def test_four_columns_with_what_stands_between_sentences(self, here, begin):
        sentence = "EU NNP I-NP I-ORG\r\n# # O O\r\n= = O O\r\n"
        (here / "data.conll").write_text(f"{begin}{sentence}\r\n{begin}# # O O\n", newline="")
        assert read_file("data.conll", "train").to_dict() == {
            "tokens": [["EU", "#", "="], ["#"]],
            "ner_tags": [["I-ORG", "O", "O"], ["O"]],
        }

    def test_a_txt_file_is_not_taken_for_one(self, here):
        (here / "data.txt").write_text(self.TEXT)
        with pytest.raises(ValueError, match="its columns are text. A txt file has one text a line"):
            load_splits(files={"train": "data.txt"}, columns=["tokens", "ner_tags"])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("EU NNP O\nrejects O\n", "line 2 .* has 2 columns, expected 3"),
            ("EU\n", "has 1 columns"),
            ("\n", "no sent"),
        ],
    )
    def test_what_is_refused(self, here, text, message):
        (here / "data.conll").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_file("data.conll", "train")

    def test_the_script(self, here):
        labels = {"num_labels": 3, "id2label": {0: "I-X", 1: "O", 2: "B-X"}}
        save(tiny_model("bert", "AutoModelForTokenClassification", **labels), here / "dense")
        sentences = []
        for row in tiny_tags(20):
            sentences.append("\n".join(f"{word}\t{tag}" for word, tag in zip(*row.values(), strict=True)))
        (here / "tags.CONLL").write_text("\n\n".join(sentences))
        data = TokenArguments(train_file="tags.CONLL", separator="\\t", max_length=8)
        task = token_classification(ModelArguments("dense"), data, seed=0)
        assert task.data.num_rows == {"train": 16, "validation": 2, "test": 2}


class TestCommands:
    def cli(self, *arguments):
        return CliRunner().invoke(app, list(map(str, arguments)))

    def test_a_file_as_a_spreadsheet_writes_it(self, home):
        text = (home / "data.csv").read_text().replace(",", ";").replace("dog", "dög")
        (home / "SEMI.CSV").write_bytes(text.encode("latin-1"))
        options = ["--separator", ";", "--encoding", "latin-1", "--max-length", 16]
        done = self.cli("evaluate", home / "dense", "--data", home / "SEMI.CSV", *options)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["samples"] == 80
        task = text_classification(
            ModelArguments(str(home / "dense")),
            TextArguments(train_file=str(home / "SEMI.CSV"), separator=";", encoding="latin-1", max_length=8),
            seed=0,
        )
        assert sum(task.data.num_rows.values()) == 80

    def test_texts_without_labels(self, home):
        (home / "unlabelled.csv").write_text("\n".join(["text", *tiny_texts(40)["text"]]) + "\n")
        quick = ["--calibration-samples", 16, "--schedule", "one_shot", "--max-length", 16]
        given = ["prune", home / "dense", home / "unlabelled", "--data", home / "unlabelled.csv", *quick]
        for needs in (["--scorer", "fisher"], ["--label-column", "label"], ["--max-drop", 0.5]):
            refused = self.cli(*given, *needs)
            assert refused.exit_code == 1
            assert "has no column 'label'; its columns are text" in refused.stderr
        done = self.cli(*given)
        assert done.exit_code == 0, done.output
        assert "goes on without labels, and measures nothing: the data set has no column 'label'" in done.stderr
        assert hfprune.load(home / "unlabelled").pruning_record.metrics == {}
        wrong = self.cli(*given, "--overwrite", "--text-column", "sentence")
        assert "has no column 'sentence'; its columns are text" in wrong.stderr


class TestMetrics:
    LOGITS = ((2.0, 0.0), (0.0, 1.0), (1.0, 0.0), (0.0, 3.0))
    LABELS = (0, 1, 1, 1)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("precision", 1.0),
            ("recall", 2 / 3),
            ("f1", 0.8),
            ("f1_macro", (2 / 3 + 0.8) / 2),
            ("f1_weighted", (2 / 3 + 3 * 0.8) / 4),
            ("precision_macro", 0.75),
            ("recall_macro", (1 + 2 / 3) / 2),
            ("roc_auc", 1.0),
        ],
    )
    def test_of_two_classes_by_hand(self, name, value):
        prediction = self.prediction(self.LOGITS, self.LABELS)
        assert compute_metrics_for([name])(prediction) == {name: pytest.approx(value)}

    def prediction(self, logits, labels):
        return EvalPrediction(predictions=np.array(logits), label_ids=np.array(labels))

    def test_the_area_counts_pairs_in_order(self):
        logits = [[0.0, 0.1], [0.0, 0.4], [0.0, 0.35], [0.0, 0.8]]
        found = compute_metrics_for(["roc_auc"])(self.prediction(logits, [0, 0, 1, 1]))
        assert found == {"roc_auc": 0.75}  # 3 of 4 pairs of a sample of each class

    def test_three_classes_of_which_two_occur(self):
        """They are not taken for two classes, whose f1 is that of class 1."""
        logits = [[3.0, 0, 0], [0, 3.0, 0], [0, 3.0, 0]]
        assert compute_metrics_for(["f1"])(self.prediction(logits, [0, 0, 1]))["f1"] == pytest.approx(2 / 3)

    def test_an_area_without_a_class(self):
        with pytest.raises(ValueError, match="of class 0 there are 0 of 4. Evaluate on more samples"):
            compute_metrics_for(["roc_auc"])(self.prediction(self.LOGITS, [1, 1, 1, 1]))

    def test_unknown_names_list_what_there_is(self):
        with pytest.raises(ValueError, match="'auc' does not fit a classification; these do: accuracy, f1, .*roc_auc"):
            compute_metrics_for(["auc"])
        assert {"precision", "recall", "roc_auc", "f1_macro", "f1_weighted"} <= METRICS.keys()

    def test_the_command(self, home):
        names = ["f1_macro", "roc_auc", "precision", "recall"]
        options = [part for name in names for part in ("--metrics", name)]
        done = CliRunner().invoke(
            app, ["evaluate", str(home / "dense"), "--data", str(home / "data.csv"), "--max-length", "16", *options]
        )
        assert done.exit_code == 0, done.output
        assert names == [name for name in json.loads(done.stdout) if name in METRICS]
