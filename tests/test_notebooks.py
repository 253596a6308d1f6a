"""The notebooks of the site run on tiny models, and the repository has them with the output of a real run."""

import copy
import re
import runpy
import shutil
from types import SimpleNamespace

import pytest

from tests.support.pages import ROOT, furnish

FOLDER = ROOT / "docs" / "notebooks"
execute = SimpleNamespace(**runpy.run_path(str(FOLDER / "execute.py")))
NOTEBOOKS = {path.stem: execute.read(path) for path in sorted(FOLDER.glob("*.ipynb"))}
#: The parameters that make each notebook small. The folders are those of `home`.
SMALL = {
    "classifier": {
        "model": "me/finetuned",
        "dataset": "questions",
        "epochs": 1,
        "sparsities": [0.2, 0.4, 0.6],
        "calibration_samples": 64,
        "tokens": 8,
    },
    "gradual_pruning": {
        "model": "me/finetuned",
        "dataset": "questions",
        "epochs": 1,
        "every": 2,
        "calibration_samples": 64,
        "tokens": 8,
    },
    "language_model": {
        "model": "me/chat",
        "text": "novel",
        "first_year": None,
        "calibration_samples": 8,
        "tokens": 16,
        "test_windows": 4,
        "prompt": "what is the name of",
    },
    "publish_and_load": {
        "model": "me/finetuned",
        "dataset": "questions",
        "sparsity": 0.2,
        "calibration_samples": 64,
        "tokens": 8,
    },
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with tiny models and texts, for a kernel that reads and writes nothing elsewhere."""
    furnish(tmp_path)
    (tmp_path / "questions").mkdir()
    shutil.copy(tmp_path / "train.csv", tmp_path / "questions" / "train.csv")
    (tmp_path / "novel").mkdir()
    shutil.copy(tmp_path / "text.txt", tmp_path / "novel" / "train.txt")
    shutil.copy(tmp_path / "other.txt", tmp_path / "novel" / "test.txt")
    for variable in ("HF_HOME", "HF_DATASETS_CACHE", "IPYTHONDIR"):
        cache = tmp_path / "caches" / variable
        cache.mkdir(parents=True)
        monkeypatch.setenv(variable, str(cache))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return tmp_path


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def outputs_of(notebook):
    return [output for cell in code_cells(notebook) for output in cell.outputs]


def texts_of(notebook):
    """Everything that a reader of the outputs sees, apart from pictures."""
    for output in outputs_of(notebook):
        yield output.get("text", "")
        for kind, content in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield content


def test_all_notebooks_are_known():
    assert set(NOTEBOOKS) == set(execute.NAMES) == set(SMALL)


def notebooks_to_run():
    """The names; three notebooks make only calls that the code of how-tos makes too, which test_pages.py runs."""
    second = {
        "classifier": "quick-start.md and how-to/prune-a-classifier.md",
        "gradual_pruning": "how-to/prune-while-training.md",
        "publish_and_load": "how-to/publish-to-the-hub.md and how-to/load-without-hfprune.md",
    }
    return [pytest.param(name, marks=[pytest.mark.slow] if name in second else []) for name in SMALL]


@pytest.mark.script
@pytest.mark.parametrize("name", notebooks_to_run())
def test_a_notebook_runs(name, home):
    done = execute.executed(execute.with_parameters(NOTEBOOKS[name], SMALL[name]), home)
    assert not [output for output in outputs_of(done) if output.output_type == "error"]
    assert all(cell.execution_count for cell in code_cells(done))


@pytest.mark.parametrize("name", NOTEBOOKS)
class TestAsCommitted:
    def test_every_cell_was_executed_in_order(self, name):
        counts = [cell.execution_count for cell in code_cells(NOTEBOOKS[name])]
        assert counts == list(range(1, len(counts) + 1))

    def test_no_cell_failed_or_complained(self, name):
        for output in outputs_of(NOTEBOOKS[name]):
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.text

    def test_outputs_say_nothing_of_the_machine_and_have_no_progress_bars(self, name):
        for text in texts_of(NOTEBOOKS[name]):
            assert not re.search(r"(^|[\s'\"(=:])/(home|root|work|tmp|usr|opt|Users|private|mnt|data)/", text), text
            assert not re.search(r"\r|it/s\]", text), text

    def test_it_is_tidy_and_small(self, name):
        assert execute.tidied(copy.deepcopy(NOTEBOOKS[name])) == NOTEBOOKS[name]
        assert (FOLDER / f"{name}.ipynb").stat().st_size < 600_000

    def test_it_begins_with_its_title(self, name):
        first = NOTEBOOKS[name].cells[0]
        assert first.cell_type == "markdown"
        assert first.source.startswith("# ")


def test_only_parameters_of_the_cell_can_be_set():
    notebook = NOTEBOOKS["classifier"]
    changed = execute.with_parameters(notebook, {"epochs": 0})
    assert "\nepochs = 0" in changed.cells[1].source
    assert "\nepochs = 0" not in notebook.cells[1].source
    with pytest.raises(ValueError, match="no parameter 'epoch'; its parameters are model, dataset, epochs"):
        execute.with_parameters(notebook, {"epoch": 1})
    changed.cells[1].metadata = {}
    with pytest.raises(ValueError, match="one cell with the tag 'parameters', got 0"):
        execute.with_parameters(changed, {})
