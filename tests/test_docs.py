"""The code in README and CONTRIBUTING runs as it stands, on a tiny model; figures come from scripts."""

import json
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


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "docs/decisions.md", "CHANGELOG.md"])
def test_no_placeholder_is_left(name):
    assert not re.search(r"TODO|TBD|XXX|[A-Z]+_TABLE", (ROOT / name).read_text())


def readme_accuracies():
    """From its section "Accuracy without training": `(shown, dataset, scorer, repair, MACs kept)`."""
    section = (ROOT / "README.md").read_text().split("## Accuracy without training")[1].split("\n## ")[0]
    dataset = ""
    for line in section.splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 9 and cells[0][:2].isdigit() and "%" not in cells[0]:
            dataset = "trec" if name.startswith("TREC") else "movie_reviews" if name.startswith("Movie") else dataset
            scorer = next((known for known in ("random", "fisher") if known in name), hfprune.PruningConfig().scorer)
            repair = "rounds" if "default" in name else "repair" if "repaired" in name else "none"
            yield from zip(
                cells, [dataset] * 8, [scorer] * 8, [repair] * 8, (80, 70, 60, 50, 40, 30, 20, 10), strict=False
            )
        elif len(cells) == 5 and name.startswith("`"):
            yield from ((cells[i], "trec", name.strip("`"), how, 50) for i, how in ((2, "none"), (3, "repair")))


def test_accuracies_in_the_readme_are_means_of_measured_rows():
    """Against docs/no_retraining.json, which benchmarks/no_retraining.py wrote."""
    rows = json.loads((ROOT / "docs" / "results" / "no_retraining.json").read_text())
    names = ("dataset", "scorer", "repair", "macs_kept")
    shown = [entry for entry in readme_accuracies() if entry[0]]
    assert len(shown) > 60
    for cell, *wanted in shown:
        values = [
            row["accuracy"] for row in rows if [row[name] for name in names] == wanted and row["allocation"] == "global"
        ]
        assert len(values) == 3, wanted
        assert float(cell) == pytest.approx(sum(values) / 3, abs=0.051), wanted


def test_recovered_accuracies_in_the_readme_are_means_of_measured_rows():
    """Against docs/recovery.json, which benchmarks/recovery.py wrote."""
    rows = json.loads((ROOT / "docs" / "results" / "recovery.json").read_text())
    cell = r" ([\d.]+) \|"
    shown = re.findall(rf"^\| `(\w+)`: .*? \|{6 * cell}", (ROOT / "README.md").read_text(), re.M)
    assert len(shown) == 7
    wanted = [(dataset, kept) for dataset in ("trec", "movie_reviews") for kept in (50, 30, 20)]
    for method, *cells in shown:
        for names, cell in zip(wanted, cells, strict=True):
            values = [
                row["accuracy"] for row in rows if (row["dataset"], row["macs_kept"], row["method"]) == (*names, method)
            ]
            assert len(values) == 3, (method, names)
            assert float(cell) == pytest.approx(sum(values) / 3, abs=0.051), (method, names)


def test_perplexities_of_language_models_are_measured_rows():
    """Of the page and the README against docs/language_models.json, which benchmarks/language_models.py wrote."""
    rows = json.loads((ROOT / "docs" / "results" / "language_models.json").read_text())
    measured = {(row["method"], row["repair"], row["steps"], row["kept"]): row["perplexity"] for row in rows}
    assert len({row["settings"]["seed"] for row in rows}) == 1
    shown = {}
    for line in (ROOT / "docs" / "how-to" / "prune-a-language-model.md").read_text().splitlines():
        cells = [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        if len(cells) == 8 and cells[2].isdigit():
            method, repair, steps = cells[0], cells[1], int(cells[2])
            for kept, cell in zip((80, 70, 50), cells[3:6], strict=True):
                if cell:
                    shown[method, repair, steps, kept] = float(cell.replace(",", ""))
    assert shown.keys() == measured.keys()
    for names, value in shown.items():
        assert value == pytest.approx(measured[names], abs=0.51 if value >= 1000 else 0.051), names
    lines = {
        "FLAP: ": ("fluctuation", "bias", 0),
        "`activation_norm`, ": ("activation_norm", "repair", 0),
        "`taylor`, ": ("taylor", "repair", 0),
        "the default ": ("residual_logit_fisher", "rounds", 0),
        '`scorer="kl_fisher"`': ("kl_fisher", "rounds", 0),
        "and 200 steps ": ("residual_logit_fisher", "rounds", 200),
        "and 200 such ": ("kl_fisher", "rounds", 200),
    }
    section = (ROOT / "README.md").read_text().split("## Causal language models")[1].split("\n## ")[0]
    for start, names in lines.items():
        (line,) = (line for line in section.splitlines() if line.startswith("| " + start))
        cells = [float(cell) for cell in line.strip("| ").split(" | ")[1:]]
        assert cells == pytest.approx([measured[*names, kept] for kept in (80, 70, 50)], abs=0.051), start
