"""`hfprune run`, the whole job from one file, and `hfprune init`, which writes such a file."""

import re

import pytest
import yaml
from typer.testing import CliRunner

from hfprune.cli.app import app
from hfprune.jobs import script
from hfprune.jobs.script import task_in
from hfprune.jobs.settings import parse
from hfprune.jobs.tasks import get_task, known_tasks
from hfprune.jobs.template import template_of


def cli(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


class TestInit:
    @pytest.mark.parametrize("name", sorted(known_tasks()))
    def test_the_file_is_one_that_run_takes(self, name, tmp_path):
        text = template_of(get_task(name))
        assert yaml.safe_load(text)["task"] == name
        # with all settings that are comments at their defaults
        everything = re.sub(r"^#(?=\w+:)", "", text, flags=re.MULTILINE)
        parsed = []
        for version in (text, everything):
            path = tmp_path / "task.yaml"
            path.write_text(version)
            found, words = task_in([str(path)])
            assert found == name
            parsed.append(parse(get_task(name).arguments, None, words))
        few, all_of_them = parsed
        assert few[1:] == all_of_them[1:]
        assert few.training.to_dict() == all_of_them.training.to_dict()
        assert few.pruning.sparsity == 0.5

    def test_every_setting_has_its_help_above_it(self):
        lines = template_of(get_task("text_classification")).splitlines()
        for number, line in enumerate(lines):
            if re.match(r"#?\w+:", line) and not line.startswith("task:"):
                assert lines[number - 1].startswith("# "), line

    def test_a_file_is_not_replaced(self, tmp_path):
        path = tmp_path / "task.yaml"
        assert f"hfprune run {path}" in cli("init", "text_classification", "--output", path).output
        assert path.read_text() == cli("init", "text_classification").output
        refused = cli("init", "text_classification", "--output", path)
        assert refused.exit_code == 1
        assert "is there already" in refused.output
        assert "unknown task 'nix'" in cli("init", "nix").output


class TestRun:
    @pytest.fixture
    def seen(self, monkeypatch):
        """The jobs that would be run."""
        jobs = []

        def run(load, arguments, *, program):
            jobs.append((load, arguments, program))
            return "done"

        monkeypatch.setattr(script, "run", run)
        return jobs

    def test_a_file_and_a_change(self, seen, tmp_path):
        path = tmp_path / "job.yaml"
        path.write_text("task: text_classification\nmodel_name_or_path: bert\noutput_dir: out\nsparsity: 0.3\n")
        done = cli("run", path, "--sparsity", "0.6", "--use_cpu", "true")
        assert done.exit_code == 0, done.output
        assert done.output.endswith("done\n")
        [(load, arguments, program)] = seen
        assert load is get_task("text_classification").load
        assert arguments.pruning.sparsity == 0.6
        assert program == "hfprune"

    def test_options_alone(self, seen):
        options = ["--model_name_or_path", "bert", "--output_dir", "out", "--use_cpu", "true"]
        assert cli("run", "--task=token_classification", *options).exit_code == 0
        assert seen[0][0] is get_task("token_classification").load

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--task", "nix"], "unknown task 'nix'"),
            (["--task"], f"--task needs the name of a task: {', '.join(sorted(known_tasks()))}."),
            (["--sparsity", "0.5"], "no task is named"),
            (["missing.yaml"], "No such file"),
            (["--task", "text_classification", "--model_name_or_path", "x", "--sparsty", "1"], "Did you mean --spars"),
        ],
    )
    def test_mistakes(self, seen, arguments, message):
        done = cli("run", *arguments)
        assert done.exit_code == 1
        assert message in done.output
        assert len(done.output.splitlines()) == 1
        assert seen == []

    def test_a_script_takes_the_file_of_its_task(self, seen, tmp_path, monkeypatch):
        path = tmp_path / "job.yaml"
        path.write_text("task: text_classification\nmodel_name_or_path: bert\noutput_dir: out\nuse_cpu: true\n")
        monkeypatch.setattr("sys.argv", ["run_x.py", str(path)])
        script.main("text_classification", None, script="scripts/run_x.py")
        assert seen[0][2] == "python scripts/run_x.py"
        with pytest.raises(SystemExit, match="is for the task token_classification, and text_classification was named"):
            script.main("token_classification", None, script="scripts/run_x.py")

    def test_help(self):
        assert f"Tasks: {', '.join(sorted(known_tasks()))}" in cli("run", "--help").output
        assert cli("run").exit_code == 0
        of_a_task = cli("run", "--task", "token_classification", "--help")
        assert of_a_task.exit_code == 0
        assert "--tag_column" in of_a_task.output
