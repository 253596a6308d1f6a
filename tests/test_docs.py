"""The code in README and CONTRIBUTING runs as it stands, on a tiny model."""

import re
from pathlib import Path

import pytest
import torch
from transformers import DataCollatorWithPadding

import hfprune
from hfprune.jobs.tasks import registry as task_registry
from hfprune.planning import allocation, costs
from hfprune.recovery.losses import registry as loss_registry
from hfprune.scoring import registry as scoring_registry
from hfprune.structure import architectures
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer

ROOT = Path(__file__).parent.parent
PAGES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))


def blocks_of(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def test_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    tiny_model("bert", num_labels=3).save_pretrained("dense")
    tokenizer = tiny_tokenizer()
    names = {"tokenized_dataset": tiny_tokenized(520), "tokenizer": tokenizer}
    names["collator"] = DataCollatorWithPadding(tokenizer)
    main, how_much, steps, gradual, rounds = blocks_of("README.md")
    assert len(main.strip().splitlines()) <= 12
    main = main.replace("me/bert-base-sst2", "dense").replace("num_train_epochs=3", "max_steps=1, use_cpu=True")
    exec(main, names)
    assert type(names["again"]).__name__ == "PrunedBertForSequenceClassification"
    ids = torch.arange(4, 9)[None]
    assert torch.equal(names["again"](ids).logits, hfprune.load("small")(ids).logits)
    names["validation_dataset"] = tiny_tokenized(60)
    exec(how_much.replace("max_drop=0.01", "max_drop=2, step=0.3"), names)
    assert [point.sparsity for point in names["measured"].points] == [0, 0.3, 0.5, 0.7]
    assert (tmp_path / "sweep.png").is_file()
    assert names["small"].pruning_record.config["sparsity"] == 0.6
    exec(steps, names)
    assert names["small"].pruning_plan == names["again"].pruning_plan
    exec(gradual, names)
    assert hfprune.load("smaller").pruning_plan.sparsity("macs") >= 0.7
    exec(rounds, names)
    assert len(names["small"].pruning_record.rounds) == 4


def test_contributing(monkeypatch):
    registries = {
        (scoring_registry, "_SCORERS"),
        (scoring_registry, "_STATISTICS"),
        (costs, "_BUDGETS"),
        (allocation, "_ALLOCATORS"),
        (loss_registry, "_LOSSES"),
        (task_registry, "_TASKS"),
        (architectures, "_TABLE"),
    }
    for module, name in registries:
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
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


def test_readme_lists_every_architecture():
    text = (ROOT / "README.md").read_text()
    for model_type in architectures.known_architectures():
        assert model_type in text


@pytest.mark.parametrize("name", [*PAGES, "README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_no_placeholder_is_left(name):
    assert not re.search(r"TODO|TBD|XXX|[A-Z]+_TABLE", (ROOT / name).read_text())
