"""The command starts at once, however it is called: help, version, completion, and the defaults that it shows."""

import importlib.metadata
import inspect
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.cli.options import BudgetChoice, UnitChoice
from hfprune.cli.prune import prune
from hfprune.cli.sweep import sweep
from hfprune.config import PruningConfig
from hfprune.planning.costs import known_budgets
from hfprune.planning.kernel_widths import TARGET_NAMES
from hfprune.sweeping.run import one_shot_of
from tests.support.runs import text_home

ENTRY = "import sys; sys.argv[0] = 'hfprune'; import hfprune_command; hfprune_command.main()"


def started(*arguments, code=ENTRY, **environment):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


class TestTheEntry:
    @pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["prune", "--help"], ["evaluate", "--help"], []])
    def test_help_and_version_import_nothing_that_takes_time(self, arguments):
        code = (
            "import atexit, sys, time\n"
            "heavy = ('torch', 'transformers', 'datasets', 'numpy', 'hfprune.structure')\n"
            "atexit.register(lambda: print('HEAVY', [m for m in heavy if m in sys.modules], time.process_time()))\n"
        )
        done = started(*arguments, code=code + ENTRY)
        last = done.stdout.splitlines()[-1]
        assert last.startswith("HEAVY [] "), done.stdout[-500:] + done.stderr
        # half a second is the aim; a busy machine takes longer
        assert float(last.split()[-1]) < 2
        assert done.returncode == (0 if arguments else 2)

    def test_completion(self):
        done = started(_HFPRUNE_COMPLETE="complete_bash", COMP_WORDS="hfprune ev", COMP_CWORD="1")
        assert done.stdout.split() == ["evaluate"]
        options = started(_HFPRUNE_COMPLETE="complete_bash", COMP_WORDS="hfprune prune --label", COMP_CWORD="2")
        assert options.stdout.split() == ["--label-column", "--label-map"]
        assert "--install-completion" in CliRunner().invoke(app, ["--help"]).stdout

    @pytest.mark.script
    def test_a_command_runs_the_package_first(self, tmp_path):
        home = text_home(tmp_path)
        done = started("inspect", home / "dense", "--json")
        assert done.returncode == 0, done.stderr
        assert '"support": "table"' in done.stdout

    @pytest.mark.script
    @pytest.mark.slow
    def test_as_a_module(self):
        done = subprocess.run(
            [sys.executable, "-m", "hfprune", "--version"], capture_output=True, text=True, check=False
        )
        assert done.stdout.strip() == hfprune.__version__


def test_one_version():
    assert importlib.metadata.version("hfprune") == hfprune.__version__
    done = CliRunner().invoke(app, ["--version"])
    assert done.stdout.strip() == hfprune.__version__


def test_choices_are_those_of_the_registry():
    assert {choice.value for choice in BudgetChoice} == set(known_budgets())
    for choice in UnitChoice:
        PruningConfig(attention_unit=choice.value)


@pytest.mark.parametrize(("command", "config"), [(prune, PruningConfig()), (sweep, one_shot_of(PruningConfig()))])
def test_defaults_are_those_of_the_api(command, config):
    shared = 0
    for name, parameter in inspect.signature(command).parameters.items():
        if hasattr(config, name) and name not in ("sparsity", "exclude", "budget"):
            default = getattr(parameter.default, "value", parameter.default)
            assert default == getattr(config, name), name
            shared += 1
    assert shared >= 4


def test_the_target_of_a_pruning(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "hfprune.cli.pruning.prune_and_save", lambda request, config, output, overwrite: seen.append(config) or ()
    )
    monkeypatch.setattr("hfprune.cli.task_data.task_data", lambda context, model, name: name)
    arguments = ["prune", "model", str(tmp_path / "out"), "--data", "trec"]
    assert CliRunner().invoke(app, [*arguments, "--target", "gguf-q8_0"]).exit_code == 0
    assert (seen[0].target, seen[0].round_to) == ("gguf-q8_0", None)
    refused = CliRunner().invoke(app, [*arguments, "--target", "gguf-q3"])
    assert refused.exit_code == 1
    assert f"target must be one of {', '.join(TARGET_NAMES)}" in refused.output
    # the help names them all
    told = inspect.signature(prune).parameters["target"].annotation.__metadata__[0].help
    assert all(name in told for name in TARGET_NAMES)
