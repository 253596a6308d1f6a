"""The code in README and CONTRIBUTING runs as it stands, on a tiny model; figures come from scripts."""

import re
from pathlib import Path

import pytest
import torch
from transformers import DataCollatorWithPadding

import hfprune
from hfprune.scoring import registry
from hfprune.structure import architectures
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer

ROOT = Path(__file__).parent.parent


def blocks_of(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(), flags=re.DOTALL)


def test_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    tiny_model("bert", num_labels=3).save_pretrained("dense")
    tokenizer = tiny_tokenizer()
    names = {"tokenized_dataset": tiny_tokenized(520), "tokenizer": tokenizer}
    names["collator"] = DataCollatorWithPadding(tokenizer)
    main, steps = blocks_of("README.md")
    assert len(main.strip().splitlines()) <= 12
    main = main.replace("me/bert-base-sst2", "dense").replace("num_train_epochs=3", "max_steps=1, use_cpu=True")
    exec(main, names)
    assert type(names["again"]).__name__ == "PrunedBertForSequenceClassification"
    ids = torch.arange(4, 9)[None]
    assert torch.equal(names["again"](ids).logits, hfprune.load("small")(ids).logits)
    exec(steps, names)
    assert names["small"].pruning_plan == names["again"].pruning_plan


def test_contributing(monkeypatch):
    monkeypatch.setattr(registry, "_SCORERS", dict(registry._SCORERS))
    monkeypatch.setattr(architectures, "_TABLE", dict(architectures._TABLE))
    for block in blocks_of("CONTRIBUTING.md"):
        exec(block, {})
    assert "variance" in registry.known_scorers()
    assert architectures.known_architectures()["ernie"].layers == "encoder.layer"


def test_readme_lists_every_architecture():
    text = (ROOT / "README.md").read_text()
    for model_type in architectures.known_architectures():
        assert model_type in text


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/decisions.md", "CHANGELOG.md"])
def test_no_placeholder_is_left(name):
    assert not re.search(r"TODO|TBD|XXX|[A-Z]+_TABLE", (ROOT / name).read_text())
