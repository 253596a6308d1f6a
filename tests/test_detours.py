"""Ways around the checks of `load`: the command `evaluate`, and scripts that bear the name of a metric."""

import json
import os
from pathlib import Path

import pytest
from datasets import Dataset
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.measuring.metrics import compute_metrics_for, load_metric
from tests.support.plans import quick_checkpoint, uneven_plan
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_tokenizer

#: Leaves a file where it is run.
SCRIPT = "from pathlib import Path\nPath('executed').touch()\nraise SystemExit('executed')\n"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.csv"
    Dataset.from_dict({"text": ["a cat", "the dog", "a man"], "label": [0, 1, 2]}).to_csv(path)
    return path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class TestEvaluate:
    """`hfprune evaluate` checks a pruned checkpoint as `hfprune.load` does."""

    def test_it_evaluates(self, tmp_path, data):
        result = run("evaluate", quick_checkpoint(tmp_path / "small"), "--data", data)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["samples"] == 3

    def test_a_flipped_weight(self, tmp_path, data):
        folder = quick_checkpoint(tmp_path / "small")
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-5] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        result = run("evaluate", folder, "--data", data)
        assert result.exit_code == 1
        assert "model.safetensors is not the file that was saved: its SHA-256 differs" in result.output

    @pytest.mark.parametrize("name", ["helper.py", "custom_generate/generate.py", "more.json", "added_tokens.json"])
    def test_files_that_are_not_ours(self, name, tmp_path, data):
        folder = quick_checkpoint(tmp_path / "small")
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
        result = run("evaluate", folder, "--data", data)
        assert result.exit_code == 1
        assert f"{name} is " in result.output

    def test_a_pipe(self, tmp_path, data):
        folder = quick_checkpoint(tmp_path / "small")
        (folder / "tokenizer.json").unlink()
        os.mkfifo(folder / "tokenizer.json")
        result = run("evaluate", folder, "--data", data)
        assert result.exit_code == 1
        assert "tokenizer.json is no regular file" in result.output

    def test_a_model_without_a_classifier(self, tmp_path, data):
        model = tiny_model("gpt2", "AutoModelForCausalLM")
        small = hfprune.apply_plan(model, uneven_plan(model))
        folder = hfprune.save(small, tmp_path / "lm", tokenizer=tiny_tokenizer())
        result = run("evaluate", folder, "--data", data, "--task", "text_classification")
        assert result.exit_code == 1
        assert "is a PrunedGPT2LMHeadModel, which is no model of the task text_classification" in result.output


class TestMetrics:
    """A metric by name never runs a script on this machine."""

    @pytest.fixture(autouse=True)
    def here(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder = tmp_path / "exact_match"
        folder.mkdir()
        (folder / "exact_match.py").write_text(SCRIPT)
        (tmp_path / "mine.py").write_text(SCRIPT)

    @pytest.mark.parametrize("name", ["exact_match", "mine.py", "./exact_match", "exact_match/exact_match.py", "a/b"])
    def test_scripts_are_not_run(self, name):
        with pytest.raises(ValueError, match="unknown metric"):
            load_metric(name)
        with pytest.raises(ValueError, match="does not fit"):
            compute_metrics_for([name])
        assert not Path("executed").exists()

    def test_an_absolute_path(self, tmp_path):
        with pytest.raises(ValueError, match="unknown metric"):
            load_metric(str(tmp_path / "exact_match"))
        assert not Path("executed").exists()

    def test_our_own_come_first(self, tmp_path):
        (tmp_path / "f1").mkdir()
        (tmp_path / "f1" / "f1.py").write_text(SCRIPT)
        assert load_metric("f1").compute(predictions=[0, 1], references=[0, 1]) == {"f1": 1.0}

    def test_the_command(self, tmp_path, data):
        folder = quick_checkpoint(tmp_path / "small")
        result = run("evaluate", folder, "--data", data, "--metrics", "exact_match")
        assert result.exit_code == 1
        assert "the metric 'exact_match' does not fit" in result.output
        assert not Path("executed").exists()
