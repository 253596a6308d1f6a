"""Mistakes with files, models and metrics are one line, in commands and in scripts."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hfprune.cli.app import app
from hfprune.errors import HfpruneError, one_line
from tests.support.runs import save, settings, text_home, write
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_texts

SCRIPTS = Path(__file__).parents[1] / "scripts"
HERE = {"dataloader_pin_memory": False, "disable_tqdm": True}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = text_home(tmp_path_factory.mktemp("mistakes"))
    save(tiny_model("bert", "AutoModel"), folder / "body")
    save(tiny_model("bert", num_labels=3, problem_type="multi_label_classification"), folder / "multi")
    texts = tiny_texts(20)["text"]
    rows = [json.dumps({"text": text, "label": [row % 2, 1, 0]}) for row, text in enumerate(texts)]
    (folder / "hot.jsonl").write_text("\n".join(rows) + "\n")
    rows = [json.dumps({"text": text, "label": {"id": row}}) for row, text in enumerate(texts)]
    (folder / "nested.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "broken.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", \n')
    (folder / "hot.csv").write_text("text,label\n" + "\n".join(f'{text},"[1, 0, 1]"' for text in texts) + "\n")
    return folder


class TestCommands:
    @pytest.mark.parametrize(
        ("command", "model", "data", "options", "message"),
        [
            ("evaluate", "dense", "hot.jsonl", [], "row 0 (from 0) of the train split has a class twice in 'label'"),
            ("evaluate", "multi", "hot.jsonl", [], "row 0 (from 0) of the train split has a class twice in 'label'"),
            ("evaluate", "dense", "hot.csv", [], "knows the classes what, where, who, the data has [1, 0, 1]"),
            ("evaluate", "dense", "nested.jsonl", [], "the column 'label' holds {'id': Value('int64')}; expected one"),
            ("evaluate", "dense", "broken.jsonl", [], "broken.jsonl' cannot be read"),
            ("evaluate", "multi", "data.csv", [], "gives any number of its 3 classes to a text"),
            (
                "prune",
                "body",
                "data.csv",
                [],
                "body is a BertModel, which tells of no task. Take a checkpoint with the",
            ),
            ("sweep", "body", "data.csv", ["--task", "text_classification"], "BertModel, which is no model of the ta"),
            ("prune", "dense", "data.csv", ["--task", "poetry"], "unknown task 'poetry'. Known: "),
            (
                "prune",
                "dense",
                "data.csv",
                ["--txt-column", "text"],
                "no option --txt-column. Did you mean --text_column?",
            ),
            ("prune", "dense", "data.csv", ["--sparsty", 0.5], "no option --sparsty. Did you mean --sparsity?"),
            ("sweep", "dense", "data.csv", ["--metrics", "f1"], "--metrics cannot be set here"),
            (
                "evaluate",
                "dense",
                "data.csv",
                ["--train-file", "x.csv"],
                "--train_file cannot be set here: --data names",
            ),
            (
                "evaluate",
                "dense",
                "data.csv",
                ["--metrics", "auc"],
                "'auc' does not fit a classification; these do: acc",
            ),
            (
                "evaluate",
                "dense",
                "data.csv",
                ["--metrics", "f1:macro"],
                "these do: accuracy, f1, f1_macro, f1_we",
            ),
            ("evaluate", "dense", "data.csv", ["--metrics", "pearson"], "'pearson' does not fit a classification"),
            ("sweep", "dense", "data.csv", ["--sample-metric", "f1"], "'f1' is no metric of single samples of a cl"),
            ("prune", "dense", "data.csv", ["--sample-metric", "accuracy"], "--sample-metric and --search-file go "),
            ("evaluate", "nowhere", "data.csv", [], "nowhere"),
        ],
    )
    def test_they_say_it_in_one_line(self, home, command, model, data, options, message):
        output = [home / "out"] if command == "prune" else []
        quick = ["--max-length", 16] if command == "evaluate" else ["--max-length", 16, "--calibration-samples", 8]
        arguments = [command, home / model, *output, "--data", home / data, *quick, *options]
        done = CliRunner().invoke(app, list(map(str, arguments)))
        assert done.exit_code == 1, done.output
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""
        assert not (home / "out").exists()

    def test_a_script_of_the_name_of_a_metric_is_not_run(self, home, monkeypatch):
        monkeypatch.chdir(home)
        for name in ("exact_match.py", "exact_match/exact_match.py"):
            (home / name).parent.mkdir(exist_ok=True)
            (home / name).write_text("from pathlib import Path\nPath('ran').touch()\n")
        done = CliRunner().invoke(app, ["evaluate", "dense", "--data", "data.csv", "--metrics", "exact_match"])
        assert done.exit_code == 1
        assert "'exact_match' does not fit a classification; these do: accuracy" in done.stderr
        assert not (home / "ran").exists()

    def test_where_it_was_found_is_shown_on_request(self, home, monkeypatch):
        monkeypatch.setenv("HFPRUNE_TRACEBACK", "1")
        done = CliRunner().invoke(app, ["evaluate", str(home / "dense"), "--data", str(home / "hot.jsonl")])
        assert isinstance(done.exception, ValueError)


class TestScripts:
    def run(self, monkeypatch, name, *arguments):
        monkeypatch.setattr(sys, "argv", [str(SCRIPTS / name), *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"sparsity": 50}, "sparsity must be in [0, 1), got 50"),
            ({"train_file": "hot.jsonl"}, "row 0 (from 0) of the train split has a class twice in 'label'"),
            ({"train_file": "nowhere.csv"}, "the train file 'nowhere.csv' does not exist"),
            ({"train_file": "data.xlsx"}, "the train file 'data.xlsx' does not exist"),
            ({"metrics": ["auc"]}, "the metric 'auc' does not fit a classification; these do: accuracy"),
            ({"spartisy": 0.5}, "--spartisy"),
            ({"model_name_or_path": "nowhere/model"}, "couldn't find them in the cached files"),
            ({"early_stopping_patience": 2}, "early_stopping_patience=2 needs to know what is better"),
        ],
    )
    def test_text_classification(self, home, monkeypatch, tmp_path, changes, message):
        monkeypatch.chdir(home)
        values = {**settings(home, **HERE), "output_dir": str(tmp_path / "out"), **changes}
        with pytest.raises(SystemExit) as stopped:
            self.run(monkeypatch, "run_text_classification.py", write(tmp_path, values))
        assert str(stopped.value).startswith("run_text_classification.py: ")
        assert message in str(stopped.value)
        assert len(str(stopped.value).splitlines()) == 1

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--spartisy", 0.5], "there is no option --spartisy. Did you mean --sparsity? See --help."),
            (["--train-fiel=x"], "there is no option --train-fiel. Did you mean --train_file? See --help."),
            (["--qqqqqqqqqq"], "there is no option --qqqqqqqqqq. See --help."),
            (["--sparsity", 0.5, "0.6"], "'0.6' is neither an option nor the value of one. See --help."),
            (["--sparsity", "half"], "argument --sparsity: invalid float value: 'half'. See --help."),
            (["--sparsity"], "argument --sparsity: expected one argument. See --help."),
        ],
    )
    def test_wrong_options(self, monkeypatch, capsys, words, message):
        with pytest.raises(SystemExit) as stopped:
            self.run(monkeypatch, "run_mlm.py", "--model_name_or_path", "x", *words)
        assert str(stopped.value) == f"run_mlm.py: {message}"
        # argparse would print its usage, a line an option
        assert capsys.readouterr() == ("", "")

    def test_an_option_that_must_be_there(self, monkeypatch, capsys):
        with pytest.raises(SystemExit, match=r"^run_mlm.py: .* required: --model_name_or_path.*See --help\.$"):
            self.run(monkeypatch, "run_mlm.py")
        assert capsys.readouterr() == ("", "")

    @pytest.mark.parametrize(
        "name",
        [
            "run_audio_classification.py",
            "run_image_classification.py",
            "run_language_modeling.py",
            "run_mlm.py",
            "run_text_classification.py",
            "run_token_classification.py",
        ],
    )
    def test_each_of_them(self, monkeypatch, tmp_path, name):
        arguments = [
            "--model_name_or_path",
            "nowhere/model",
            "--train_file",
            "no.txt",
            "--output_dir",
            tmp_path / "out",
        ]
        with pytest.raises(SystemExit, match=f"^{name}: .*(couldn't find them|'no.txt' does not exist)"):
            self.run(monkeypatch, name, *arguments)

    @pytest.mark.script
    @pytest.mark.slow
    def test_as_a_user_runs_it(self, home):
        script = SCRIPTS / "run_text_classification.py"
        files = ["--model_name_or_path", home / "dense", "--train_file", home / "hot.jsonl"]
        done = subprocess.run(
            [sys.executable, script, *files, "--output_dir", home / "run"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("run_text_classification.py: the column 'label' holds List")


def test_messages_of_others_lose_their_line_breaks():
    assert one_line(OSError("no such file.\n\n   Look elsewhere.")) == "no such file. Look elsewhere."
    assert one_line(HfpruneError("two things:\n- one")) == "two things:\n- one"
    assert one_line(ValueError()) == "ValueError"
