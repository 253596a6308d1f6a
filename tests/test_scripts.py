"""The script and the command, as a user runs them, on a tiny model and a tiny file."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hfprune
from hfprune import PruningConfig
from hfprune.cli.app import app
from hfprune.publishing.verification import verify
from tests.support.processes import run_python
from tests.support.runs import (
    causal_home,
    chat_home,
    choice_home,
    mlm_home,
    pair_home,
    picture_home,
    picture_settings,
    question_home,
    settings,
    text_home,
    token_home,
    write,
)
from tests.support.tiny import tiny_batch, tiny_model

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "run_text_classification.py"
#: Of runs in this process, where warnings are errors.
HERE = {"dataloader_pin_memory": False, "disable_tqdm": True}


@pytest.fixture
def home(tmp_path):
    return text_home(tmp_path)


def run(*arguments, script=SCRIPT):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
        check=False,
    )


@pytest.fixture
def run_here(monkeypatch):
    """The script with these arguments in this process, which saves the imports of another."""

    def run_script(*arguments, script=SCRIPT):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        runpy.run_path(str(script), run_name="__main__")

    return run_script


@pytest.mark.script
class TestScript:
    def test_the_whole_story_from_a_yaml_file(self, home):
        done = run(write(home, settings(home, dense_epochs=1, metrics=["accuracy", "f1"])))
        assert done.returncode == 0, done.stderr[-3000:]
        results = json.loads((home / "out" / "results.json").read_text())
        assert set(results) >= {
            "dense_accuracy",
            "pruned_accuracy",
            "recovered_accuracy",
            "mac_sparsity",
            "param_sparsity",
            "speedup",
            "seconds",
        }
        assert 0.4 <= results["mac_sparsity"] < 0.6
        assert "recovered" in done.stdout
        assert "× faster" in done.stdout
        model = hfprune.load(home / "out" / "model")
        record = model.pruning_record
        assert record.metrics["recovered"]["accuracy"] == results["recovered_accuracy"]
        assert set(record.metrics["dense"]) == {"accuracy", "f1"}
        assert record.recovery["steps"] == 16
        assert record.latencies["pruned"]["batch_size"] == 2
        assert record.base_model == "dense"
        assert verify(home / "out" / "model") == []
        card = (home / "out" / "model" / "README.md").read_text()
        assert f"| accuracy | {results['dense_accuracy']:.4f} |" in card
        assert str(home) not in (home / "out" / "model" / "config.json").read_text()

    def test_arguments_and_no_recovery(self, home, run_here):
        values = settings(home, num_train_epochs=0, metrics="accuracy", allocation="uniform", **HERE)
        run_here(*(part for name, value in values.items() for part in (f"--{name}", value)))
        results = json.loads((home / "out" / "results.json").read_text())
        assert "pruned_accuracy" in results
        assert "recovered_accuracy" not in results
        assert "recover" not in (home / "out" / "model" / "README.md").read_text().partition("## How to load")[0]

    @pytest.mark.slow
    def test_a_killed_run_goes_on_where_it_was(self, home, run_here):
        values = settings(home, num_train_epochs=15, save_strategy="steps", save_steps=8)
        path = write(home, values)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        deadline = time.monotonic() + 120
        while not list((home / "out").glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        states = sorted((home / "out").glob("checkpoint-*/trainer_state.json"), key=os.path.getmtime)
        assert states, "no checkpoint was written before the kill"
        assert not (home / "out" / "results.json").exists()
        before = hfprune.load(home / "out" / "pruned").pruning_plan
        run_here(write(home, {**values, **HERE, "resume_from_checkpoint": str(states[0].parent)}))
        model = hfprune.load(home / "out" / "model")
        assert model.pruning_plan == before
        assert model.pruning_record.recovery["steps"] == 120

    # test_together.py shows the same of the functions, and test_causal_text.py of another script
    @pytest.mark.slow
    @pytest.mark.distributed
    def test_two_processes_make_the_same_plan_and_one_checkpoint(self, home):
        """Torchrun starts two gloo processes on a CPU, which `accelerate launch --cpu` does not."""
        alone = run(write(home, settings(home, num_train_epochs=0, output_dir=str(home / "alone"))))
        assert alone.returncode == 0, alone.stderr[-3000:]
        path = write(home, settings(home, num_train_epochs=1, dense_epochs=0))
        run_python(SCRIPT, path, processes=2)
        model = hfprune.load(home / "out" / "model")
        assert model.pruning_plan.digest == hfprune.load(home / "alone" / "model").pruning_plan.digest
        assert model.pruning_record.recovery["steps"] == 4  # 64 rows, 2 processes of 8
        assert verify(home / "out" / "model") == []

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"scorer": "best"}, "unknown scorer 'best'"),
            ({"calibration_samples": 5000}, "calibration needs 5000 samples, the data has 64"),
        ],
    )
    def test_mistakes_are_found_before_the_dense_model_is_trained(self, home, run_here, changes, message):
        with pytest.raises(SystemExit, match=f"^run_text_classification.py: .*{message}"):
            run_here(write(home, settings(home, dense_epochs=1, **HERE, **changes)))
        assert not (home / "out" / "dense_training").exists()
        assert not (home / "out" / "dense").exists()

    @pytest.mark.parametrize(
        ("name", "make_home", "changes", "metric"),
        [
            ("run_token_classification.py", token_home, {"train_file": "data.jsonl"}, "f1"),
            ("run_multiple_choice.py", choice_home, {"train_file": "data.jsonl"}, "accuracy"),
            ("run_mlm.py", mlm_home, {"train_file": "data.txt"}, "perplexity"),
            ("run_language_modeling.py", causal_home, {"train_file": "data.txt"}, "perplexity"),
            ("run_chat.py", chat_home, {"train_file": "data.jsonl"}, "perplexity"),
            ("run_summarization.py", pair_home, {"train_file": "data.jsonl"}, "rougeL"),
            (
                "run_question_answering.py",
                question_home,
                {"train_file": "data.json", "doc_stride": 2, "max_question_length": 4},
                "f1",
            ),
            ("run_image_classification.py", picture_home, {"train_file": "pictures"}, "accuracy"),
        ],
    )
    def test_the_other_scripts(self, tmp_path, name, make_home, changes, metric, run_here, capsys):
        home = make_home(tmp_path)
        if make_home is picture_home:
            changes = picture_settings(home)
        else:
            changes = {**changes, "train_file": str(home / changes["train_file"])}
        path = write(home, settings(home, num_train_epochs=1, **changes, **HERE))
        run_here(path, script=SCRIPT.parent / name)
        results = json.loads((home / "out" / "results.json").read_text())
        assert f"recovered_{metric}" in results
        assert "recovered" in capsys.readouterr().out
        assert verify(home / "out" / "model") == []
        record = hfprune.load(home / "out" / "model").pruning_record
        assert record.command.startswith(f"python scripts/{name} ")

    def test_help_names_every_choice(self, run_here, capsys):
        with pytest.raises(SystemExit, match="^0$"):
            run_here("--help")
        shown = capsys.readouterr().out
        for name in ("--sparsity", "--logits_weight", "--train_file", "--dense_epochs", "--resume_from_checkpoint"):
            assert name in shown


class TestCommand:
    def cli(self, *arguments):
        return CliRunner().invoke(app, [str(a) for a in arguments])

    def test_prune_inspect_evaluate_verify(self, home):
        out = home / "small"
        options = ["--data", home / "data.csv", "--max-length", 16]
        done = self.cli("prune", home / "dense", out, "--sparsity", "0.4", "--calibration-samples", 32, *options)
        assert done.exit_code == 0, done.output
        assert "removed 4" in done.stdout
        assert verify(out) == []

        shown = self.cli("inspect", out, "--sequence-length", 16)
        assert "PrunedBertForSequenceClassification" in shown.stdout
        assert "encoder.layer.1.ffn" in shown.stdout
        data = json.loads(self.cli("inspect", out, "--json").stdout)
        assert (data["support"], data["not_pruned"]) == ("table", "")
        assert data["plan_digest"] == hfprune.load(out).pruning_plan.digest
        assert [b["kind"] for b in data["blocks"]] == ["attention", "ffn"] * 2
        assert "4 heads" in self.cli("inspect", home / "dense").stdout
        assert "supported by table" in self.cli("inspect", home / "dense").stdout

        found = self.cli("evaluate", out, *options, "--metrics", "accuracy", "--metrics", "f1", "--latency")
        assert found.exit_code == 0, found.output
        results = json.loads(found.stdout)
        assert 0 <= results["accuracy"] <= 1
        assert results["latency"]["sequence_length"] == 16
        assert results["samples"] == 80  # a file is evaluated whole
        assert json.loads(self.cli("evaluate", out, *options, "--split", "test").stdout)["samples"] == 8

        assert self.cli("verify", out).exit_code == 0
        (out / "model.safetensors").write_bytes(b"x")
        bad = self.cli("verify", out)
        assert bad.exit_code == 1
        assert "damaged or cut short" in bad.stderr

    @pytest.mark.parametrize(
        ("extra", "message"),
        [
            (["--sparsity", "50"], "sparsity must be in [0, 1), got 50. It is a fraction: write 0.5 for 50 %."),
            (["--scorer", "best"], "unknown scorer 'best'"),
            (["--calibration-samples", "5000"], "calibration needs 5000 samples, the data has 64"),
            (["--text-column", "sentence"], "has no column 'sentence'"),
        ],
    )
    def test_mistakes_are_one_line(self, home, extra, message):
        options = ["--data", home / "data.csv", "--max-length", 16, "--calibration-samples", 32]
        done = self.cli("prune", home / "dense", home / "small", *options, *extra)
        assert done.exit_code == 1
        assert message in done.stderr
        assert "Traceback" not in done.output
        assert not (home / "small").exists()

    def test_an_output_folder_that_exists(self, home):
        small = hfprune.prune(tiny_model("bert"), [tiny_batch()], PruningConfig(sparsity=0.3, sequence_length=8))
        hfprune.save(small, home / "small")
        done = self.cli("prune", home / "dense", home / "small", "--data", home / "data.csv")
        assert done.exit_code == 1
        assert "exists and is not empty" in done.stderr
        assert verify(home / "small") == []

    def test_help(self):
        assert "inspect" in self.cli("--help").stdout
        assert "--sparsity" in self.cli("prune", "--help").stdout
