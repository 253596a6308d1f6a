"""The code in CONTRIBUTING runs as it stands, on a tiny model; no page has a placeholder."""

import re
from pathlib import Path

import pytest

import hfprune
from hfprune.jobs.predicting import measure, sample_evaluation
from hfprune.jobs.tasks import ModelArguments
from hfprune.jobs.tasks import registry as task_registry
from hfprune.planning import allocation, costs
from hfprune.recovery.losses import registry as loss_registry
from hfprune.scoring import registry as scoring_registry
from hfprune.structure import architectures
from tests.support.registries import restored
from tests.support.runs import run_here, save
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_texts

ROOT = Path(__file__).parent.parent
PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))


def blocks_of(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


@pytest.fixture
def _registries_as_before():
    """What the examples register is gone after them."""
    with restored():
        yield


@pytest.mark.usefixtures("_registries_as_before")
def test_contributing():
    registries = {
        (scoring_registry, "_SCORERS"),
        (scoring_registry, "_STATISTICS"),
        (costs, "_BUDGETS"),
        (allocation, "_ALLOCATORS"),
        (loss_registry, "_LOSSES"),
        (task_registry, "_TASKS"),
        (architectures, "_TABLE"),
    }
    before = {(module, name): len(getattr(module, name)) for module, name in registries}
    for block in blocks_of("CONTRIBUTING.md"):
        exec(block, {"__name__": "contributing"})
    assert "variance" in scoring_registry.known_scorers()
    assert architectures.known_architectures()["splinter"].stacks.keys() == {"encoder.layer"}
    for (module, name), count in before.items():
        assert len(getattr(module, name)) > count, f"CONTRIBUTING has no worked example for {module.__name__}"
    scores = hfprune.score(tiny_model("bert"), [tiny_batch()], scorer="largest_weight")
    assert all(values.min() > 0 for values in scores.values())
    config = hfprune.PruningConfig(budget="weight_bits", allocation="as_few_as_possible", sequence_length=8)
    assert [kept for kept, _ in hfprune.plan(tiny_model("bert"), scores, config).counts.values()] == [1] * 4


@pytest.mark.usefixtures("_registries_as_before")
def test_the_task_of_contributing_does_the_whole_job(tmp_path):
    example = next(block for block in blocks_of("CONTRIBUTING.md") if "class RatingArguments" in block)
    exec(example, {"__name__": "contributing"})
    save(tiny_model("bert", num_labels=1, problem_type="regression"), tmp_path / "dense")
    rows = [f"{text},{number / 7}" for number, text in enumerate(tiny_texts(60)["text"])]
    (tmp_path / "data.csv").write_text("\n".join(["text,rating", *rows]) + "\n")
    task = task_registry.get_task("rating")
    outcome = run_here(task.load, task.arguments, tmp_path, num_train_epochs=1)
    assert {"dense_rmse", "pruned_rmse", "recovered_rmse"} <= set(outcome.results)
    model = hfprune.load(outcome.folder)
    measured = task.load(
        ModelArguments(str(outcome.folder)),
        task.arguments(train_file=str(tmp_path / "data.csv"), max_length=16),
        seed=0,
    )
    found = measure(measured, model, measured.data["test"])
    assert found["rmse"] == pytest.approx(found["loss"] ** 0.5, rel=1e-4)
    values = sample_evaluation(measured, "negative_squared_error", measured.data["test"])(model)
    assert -sum(values) / len(values) == pytest.approx(found["loss"], rel=1e-4)


@pytest.mark.parametrize("name", [*PAGES, "README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_no_placeholder_is_left(name):
    assert not re.search(r"TODO|TBD|XXX|[A-Z]+_TABLE", (ROOT / name).read_text())
