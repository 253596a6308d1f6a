"""The code in CONTRIBUTING runs as it stands, on a tiny model; no page has a placeholder."""

import re
from pathlib import Path

import pytest

import hfprune
from hfprune.jobs.tasks import registry as task_registry
from hfprune.planning import allocation, costs
from hfprune.recovery.losses import registry as loss_registry
from hfprune.scoring import registry as scoring_registry
from hfprune.structure import architectures
from tests.support.registries import restored
from tests.support.tiny import tiny_batch, tiny_model

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


@pytest.mark.parametrize("name", [*PAGES, "README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_no_placeholder_is_left(name):
    assert not re.search(r"TODO|TBD|XXX|[A-Z]+_TABLE", (ROOT / name).read_text())
