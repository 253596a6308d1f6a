"""What a card says of a run: its title, the pipeline among the ways to load; what was saved here was checked here."""

import logging
import re

import pytest
import torch
from PIL import Image
from transformers import AutoModelForSequenceClassification, ViTImageProcessor
from transformers.pipelines import SUPPORTED_TASKS

import hfprune
from hfprune import PruningConfig
from hfprune.publishing import card, verification
from tests.support.plans import QUICK
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenizer


def pruned(model_type="bert", head="AutoModelForSequenceClassification", **options):
    return hfprune.prune(tiny_model(model_type, head), [tiny_batch(model_type)], PruningConfig(**QUICK | options))


def pipelines(folder):
    blocks = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    return [block for block in blocks if "pipeline" in block]


class TestTitle:
    @pytest.mark.parametrize("name", ["model", "pruned", "3", "checkpoint-20", 'my "model"'])
    def test_a_folder_that_says_nothing(self, name, tmp_path):
        small = pruned()
        small.pruning_record = small.pruning_record.with_(base_model="google-bert/bert-base-uncased")
        text = (hfprune.save(small, tmp_path / "out" / name) / "README.md").read_text()
        assert "\n# bert-base-uncased, pruned\n" in text
        assert f'from_pretrained("{"PATH" if " " in name else name}")' in text

    def test_without_a_known_base_model(self, tmp_path):
        text = (hfprune.save(pruned(), tmp_path / "model") / "README.md").read_text()
        assert "\n# BertForSequenceClassification, pruned\n" in text

    def test_a_name_that_says_something(self, tmp_path):
        assert "\n# small-bert, pruned\n" in (hfprune.save(pruned(), tmp_path / "small-bert") / "README.md").read_text()


class TestPipeline:
    @pytest.mark.parametrize("portable", [False, True])
    def test_it_runs_as_it_stands(self, portable, tmp_path, monkeypatch):
        folder = hfprune.save(pruned(sparsity=0.3, portable=portable), tmp_path / "small", tokenizer=tiny_tokenizer())
        answer = self._run(folder, monkeypatch)("who is the dog")[0]
        ids = tiny_tokenizer()("who is the dog", return_tensors="pt")
        with torch.no_grad():
            expected = hfprune.load(folder)(**ids).logits.softmax(-1).max().item()
        assert answer["score"] == pytest.approx(expected, abs=1e-5)
        assert ("import hfprune" in pipelines(folder)[0]) == (not portable)

    def _run(self, folder, monkeypatch):
        """The pipeline that the card makes, from the folder around the checkpoint."""
        [block] = pipelines(folder)
        made = {}
        monkeypatch.chdir(folder.parent)
        exec(block, made)
        return made["predict"]

    def test_of_pictures(self, tmp_path, monkeypatch):
        small = pruned("vit", "AutoModelForImageClassification")
        folder = hfprune.save(small, tmp_path / "small", tokenizer=ViTImageProcessor(size={"height": 16, "width": 16}))
        assert len(self._run(folder, monkeypatch)(Image.new("RGB", (16, 16)))) == 2

    def test_none_without_a_tokenizer_or_without_a_task(self, tmp_path):
        assert pipelines(hfprune.save(pruned(), tmp_path / "bare")) == []
        base = pruned(head="AutoModel")
        assert pipelines(hfprune.save(base, tmp_path / "base", tokenizer=tiny_tokenizer())) == []
        questions = pruned(head="AutoModelForQuestionAnswering")
        assert pipelines(hfprune.save(questions, tmp_path / "qa", tokenizer=tiny_tokenizer())) == []

    @pytest.mark.parametrize(
        ("model_type", "head", "task"),
        [
            ("llama", "AutoModelForCausalLM", "text-generation"),
            ("bert", "AutoModelForMaskedLM", "fill-mask"),
            ("distilbert", "AutoModelForTokenClassification", "token-classification"),
        ],
    )
    def test_it_names_the_task(self, model_type, head, task, tmp_path):
        folder = hfprune.save(pruned(model_type, head), tmp_path / "small", tokenizer=tiny_tokenizer())
        assert f'pipeline("{task}", model="small")' in pipelines(folder)[0]

    def test_transformers_has_these_pipelines(self):
        assert set(SUPPORTED_TASKS) >= card._PIPELINES
        assert {task for task, _, _ in card._TASKS} >= card._PIPELINES


class TestCheckedHere:
    @pytest.mark.parametrize("way", ["load", "auto"])
    @pytest.mark.parametrize("model_type", ["bert", "gpt2"])
    def test_what_was_just_saved(self, way, model_type, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(verification, "HF_HOME", str(tmp_path / "home"))
        monkeypatch.setattr(verification, "_warned", set())
        folder = hfprune.save(pruned(model_type), tmp_path / "small")
        load = hfprune.load if way == "load" else AutoModelForSequenceClassification.from_pretrained
        with caplog.at_level(logging.WARNING, logger="hfprune"):
            load(folder)
        assert "never checked" not in caplog.text
        monkeypatch.setattr(verification, "HF_HOME", str(tmp_path / "another machine"))
        with caplog.at_level(logging.WARNING, logger="hfprune"):
            load(folder)
        assert "never checked" in caplog.text

    def test_a_home_that_cannot_be_written_costs_nothing(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setattr(verification, "HF_HOME", str(tmp_path / "file"))
        assert hfprune.save(pruned(), tmp_path / "small").is_dir()


class TestSeconds:
    @pytest.mark.parametrize("schedule", ["one_shot", "geometric"])
    def test_of_a_run_by_the_library(self, schedule, tmp_path):
        record = pruned(schedule=schedule).pruning_record
        in_rounds = sum(round_["scoring_seconds"] + round_["surgery_seconds"] for round_ in record.rounds)
        assert record.seconds >= round(in_rounds, 2) - 0.01
        assert record.seconds > 0

    def test_they_are_saved(self, tmp_path):
        small = pruned("gpt2")
        again = hfprune.load(hfprune.save(small, tmp_path / "small"))
        assert again.pruning_record.seconds == small.pruning_record.seconds > 0
