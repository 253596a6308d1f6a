"""Saving and loading: three ways in, and what happens when something is missing, damaged or killed."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, pipeline

import hfprune
from hfprune import PruningConfig
from hfprune.errors import CheckpointError
from hfprune.publishing.verification import verify
from hfprune.structure import modeling_pruned
from hfprune.structure.modeling_pruned import PrunedModel
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenizer

IDS = torch.arange(4, 14).reshape(2, 5)


def pruned_model(model_type="bert", head="AutoModelForSequenceClassification"):
    model = tiny_model(model_type, head)
    return hfprune.prune(model, [tiny_batch(model_type)], PruningConfig(sparsity=0.5, sequence_length=8))


@pytest.fixture
def folder(tmp_path):
    return hfprune.save(pruned_model(), tmp_path / "small", tokenizer=tiny_tokenizer())


@pytest.fixture
def standalone(client):
    """Load a checkpoint where hfprune cannot be imported, and save it again; its class and what it computes."""
    code = """
import torch, transformers
model = transformers.{auto}.from_pretrained({folder!r}, trust_remote_code={trust})
if {again!r}:
    model.save_pretrained({again!r})
with torch.no_grad():
    result = model(input_ids=torch.arange(4, 14).reshape(2, 5))
first = result["logits"] if "logits" in result else result["last_hidden_state"]
say(name=type(model).__name__, output=first.tolist())
"""

    def load(folder, auto, *, trust=True, again="", **options):
        filled = code.format(folder=str(folder), auto=auto, trust=trust or None, again=str(again))
        return client(filled, with_hfprune=False, **options)

    return load


class TestThreeWaysIn:
    def test_save_writes_everything(self, folder):
        names = {path.name for path in folder.iterdir()}
        assert names >= {
            "config.json",
            "model.safetensors",
            "modeling_pruned.py",
            "pruning_plan.json",
            "pruning_record.json",
            "README.md",
            "tokenizer.json",
            "tokenizer_config.json",
        }
        assert not [path for path in folder.parent.iterdir() if path != folder], "a draft was left behind"
        assert verify(folder) == []

    def test_auto_classes_after_import(self, folder):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert type(model).__name__ == "PrunedBertForSequenceClassification"
        assert model.pruning_plan == hfprune.load(folder).pruning_plan
        assert model.pruning_record.plan_digest == model.pruning_plan.digest
        base = AutoModel.from_pretrained(folder)
        assert type(base).__name__ == "PrunedBertModel"
        assert torch.equal(base(IDS).last_hidden_state, model.bert(IDS).last_hidden_state)

    def test_pipeline(self, folder):
        answer = pipeline("text-classification", model=str(folder))("who is the dog")
        tokenizer, model = AutoTokenizer.from_pretrained(folder), hfprune.load(folder)
        logits = model(**tokenizer("who is the dog", return_tensors="pt")).logits
        assert answer[0]["score"] == pytest.approx(logits.softmax(-1).max().item(), abs=1e-5)

    @pytest.mark.parametrize(
        ("model_type", "head"),
        [
            ("bert", "AutoModelForSequenceClassification"),
            ("mpnet", "AutoModelForSequenceClassification"),
            ("gpt2", "AutoModelForCausalLM"),
            ("gemma", "AutoModelForSequenceClassification"),
        ],
    )
    def test_remote_code_without_hfprune(self, model_type, head, standalone, tmp_path):
        """And what that process saves again still loads, here and there."""
        model = hfprune.apply_plan(tiny_model(model_type, head), uneven_plan(tiny_model(model_type, head)))
        folder = hfprune.save(model, tmp_path / "small")
        said = standalone(folder, head, again=tmp_path / "again")
        assert said["name"] == type(model).__name__
        with torch.no_grad():
            assert torch.equal(torch.tensor(said["output"]), model(input_ids=IDS).logits)
            assert torch.equal(hfprune.load(tmp_path / "again")(input_ids=IDS).logits, model(input_ids=IDS).logits)
        assert hfprune.load(tmp_path / "again").pruning_plan == model.pruning_plan
        assert standalone(tmp_path / "again", "AutoModel")["name"].startswith("Pruned")

    def test_weights_of_ones_own_ask_no_hub(self, folder, monkeypatch):
        model = hfprune.load(folder)
        monkeypatch.setattr(modeling_pruned, "read_attachments", None)  # would look for a repository
        again = type(model).from_pretrained(None, config=model.config, state_dict=model.state_dict())
        assert torch.equal(again(input_ids=IDS).logits, model(input_ids=IDS).logits)

    def test_without_hfprune_and_without_trust_it_says_what_to_do(self, folder, standalone):
        said = standalone(folder, "AutoModelForSequenceClassification", trust=False, fails=True)
        assert "trust_remote_code=True" in said["_error"]

    def test_a_stock_checkpoint_needs_nothing(self, standalone, tmp_path):
        model = tiny_model("llama", "AutoModelForCausalLM")
        config = PruningConfig(sparsity=0.4, portable=True, sequence_length=8)
        small = hfprune.prune(model, [tiny_batch("llama")], config)
        folder = hfprune.save(small, tmp_path / "small")
        assert not (folder / "modeling_pruned.py").exists()
        assert "auto_map" not in json.loads((folder / "config.json").read_text())
        said = standalone(folder, "AutoModelForCausalLM", trust=False)
        assert said["name"] == "LlamaForCausalLM"
        with torch.no_grad():
            assert torch.equal(torch.tensor(said["output"]), small(input_ids=IDS).logits)
        again, about = hfprune.load(folder, output_loading_info=True)
        assert not about["missing_keys"]
        assert again.pruning_plan == small.pruning_plan
        assert not isinstance(again, PrunedModel)
        assert verify(folder) == []

    def test_save_pretrained_alone_keeps_plan_and_record(self, tmp_path):
        model = pruned_model()
        model.save_pretrained(tmp_path / "plain")
        assert hfprune.load(tmp_path / "plain").pruning_record == model.pruning_record

    def test_a_loaded_model_saves_the_same_again(self, folder, tmp_path):
        hfprune.save(hfprune.load(folder), tmp_path / "again")
        assert verify(tmp_path / "again") == []
        for name in ("model.safetensors", "pruning_plan.json", "config.json"):
            assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
        assert hfprune.load(folder).pruning_record == hfprune.load(tmp_path / "again").pruning_record

    def test_where_everything_fits_ignoring_mismatches_changes_nothing(self, folder):
        model = AutoModelForSequenceClassification.from_pretrained(folder, ignore_mismatched_sizes=True)
        assert torch.equal(model(IDS).logits, hfprune.load(folder)(IDS).logits)

    @pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5", "vit"])
    def test_a_stock_class_never_loads_it_with_random_weights(self, model_type, client, tmp_path):
        """Not even by name and with ignore_mismatched_sizes, for which transformers needs no trust in any code."""
        model = tiny_model(model_type)
        hfprune.save(hfprune.apply_plan(model, uneven_plan(model)), tmp_path / "small")
        code = f"""
from transformers import {type(model).__name__} as Stock
for options in ({{}}, {{"ignore_mismatched_sizes": True, "dtype": "auto"}}):
    try:
        Stock.from_pretrained("small", **options)
    except ValueError as error:
        say(**{{str(len(options)): str(error)}})
"""
        for with_hfprune in (True, False):
            said = client(code, with_hfprune=with_hfprune)
            for number in ("0", "2"):
                assert "load it with an Auto class after `import hfprune`, or with an Auto class and" in said[number]

    def test_a_newer_table_is_refused(self, folder):
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
        with pytest.raises(ValueError, match="format_version 2, this code understands 1. Upgrade hfprune"):
            AutoModelForSequenceClassification.from_pretrained(folder)


class TestDamage:
    def test_the_folder_exists(self, folder):
        before = (folder / "model.safetensors").read_bytes()
        with pytest.raises(CheckpointError, match="exists and is not empty. Choose another folder, or pass overwrite"):
            hfprune.save(pruned_model(), folder)
        assert (folder / "model.safetensors").read_bytes() == before

    def test_overwrite_replaces_it_whole(self, folder):
        (folder / "stale.txt").write_text("old")
        hfprune.save(pruned_model("distilbert"), folder, overwrite=True)
        assert not (folder / "stale.txt").exists()
        assert type(hfprune.load(folder)).__name__ == "PrunedDistilBertForSequenceClassification"
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    def test_a_failed_save_leaves_the_old_one(self, folder, monkeypatch):
        monkeypatch.setattr("hfprune.publishing.checkpoint.write_card", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            hfprune.save(pruned_model("distilbert"), folder, overwrite=True)
        assert verify(folder) == []
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    def test_without_an_atomic_exchange(self, folder, monkeypatch):
        monkeypatch.setattr("hfprune.publishing.replacement._exchange", lambda *_: False)
        hfprune.save(pruned_model("distilbert"), folder, overwrite=True)
        assert type(hfprune.load(folder)).__name__ == "PrunedDistilBertForSequenceClassification"
        assert [path.name for path in folder.parent.iterdir()] == [folder.name]

    def test_a_dense_model_has_no_plan_to_save(self, tmp_path):
        with pytest.raises(CheckpointError, match="the model has no pruning plan: it was not pruned by hfprune"):
            hfprune.save(tiny_model("bert"), tmp_path / "x")

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / "x").write_text("")
        with pytest.raises(CheckpointError, match="is a file; a checkpoint is a folder"):
            hfprune.save(pruned_model(), tmp_path / "x")

    def test_no_plan(self, folder):
        (folder / "pruning_plan.json").unlink()
        with pytest.raises(CheckpointError, match="there is no pruning_plan.json, so this is not a checkpoint of hfpr"):
            hfprune.load(folder)

    def test_a_truncated_weight_file(self, folder):
        path = folder / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-1000])
        with pytest.raises(CheckpointError, match=r"model.safetensors is damaged or cut short \(\d+ bytes\)"):
            hfprune.load(folder)

    def test_no_weights(self, folder):
        (folder / "model.safetensors").unlink()
        with pytest.raises(CheckpointError, match="there are no .safetensors files"):
            hfprune.load(folder)

    def test_a_shape_table_that_disagrees_with_the_weights(self, folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for name, side in (("intermediate.dense", "out_features"), ("output.dense", "in_features")):
            config["pruning_config"]["shapes"][f"encoder.layer.0.{name}"][side] += 1
        path.write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="gives layer 0 the sizes .* where its blocks have"):
            hfprune.load(folder)
        assert any("where its blocks have" in problem for problem in verify(folder))
        with pytest.raises(RuntimeError, match="mismatch"):  # transformers alone refuses too
            AutoModelForSequenceClassification.from_pretrained(folder)

    def test_a_missing_and_an_unknown_tensor(self, folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        tensors["surprise"] = tensors.pop("classifier.bias")
        save_file(tensors, path, metadata={"format": "pt"})
        problems = verify(folder)
        assert any("classifier.bias is missing from the weights" in p for p in problems)
        assert any("surprise is in the weights, but the model has no such tensor" in p for p in problems)

    def test_verify_finds_one_flipped_byte(self, folder):
        path = folder / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match="model.safetensors is not the file that was saved"):
            hfprune.load(folder)
        hfprune.load(folder, verify=False)  # the shapes are right
        assert verify(folder) == ["model.safetensors is not the file that was saved: its SHA-256 differs"]

    def test_verify_finds_another_plan_or_record(self, folder):
        (folder / "pruning_record.json").unlink()
        assert verify(folder)[0].startswith("pruning_record.json cannot be read")
        assert verify(folder / "nowhere") == ["there is no such folder"]

    def test_a_config_that_names_no_class(self, folder):
        path = folder / "config.json"
        path.write_text(path.read_text().replace("PrunedBertForSequenceClassification", "PrunedNothing"))
        assert "names architecture 'PrunedNothing'" in verify(folder)[1]
        path.unlink()
        assert "has no config.json" in verify(folder)[1]


SAVER = """
import json, os, signal, sys, threading, time
sys.path.insert(0, sys.argv[2])
import torch
from tqdm import tqdm
torch.set_num_threads(1)
tqdm.set_lock(threading.RLock())  # its own lock is shared by forks: a child killed inside would lock the parent out
import hfprune
from hfprune.publishing.verification import verify
from tests.support.tiny import tiny_model
from tests.support.plans import uneven_plan
model = tiny_model("bert", hidden_size=256, intermediate_size=2048, num_attention_heads=4)
small = hfprune.apply_plan(model, uneven_plan(model))
found = []
hfprune.save(small, sys.argv[1] + "-before")
began = time.perf_counter()
hfprune.save(small, sys.argv[1] + "-before", overwrite=True)  # without the imports
duration = time.perf_counter() - began
moments = int(sys.argv[3])
for attempt in range(moments):
    parent, child = os.getpid(), os.fork()
    if child == 0:
        while os.getppid() == parent:
            hfprune.save(small, sys.argv[1], overwrite=True)
        os._exit(1)
    time.sleep(duration * 3 * (attempt + 1) / moments)  # up to the third save
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    size = os.path.getsize(os.path.join(sys.argv[1], "model.safetensors"))
    drafts = len(os.listdir(os.path.dirname(sys.argv[1]))) - 2
    found.append((verify(sys.argv[1]), size, drafts))
print(json.dumps(found))
"""


@pytest.mark.parametrize("moments", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_in_the_middle_of_saving(moments, folder):
    """Kill -9 at several moments: what is there always verifies, whether it is the old checkpoint or the new one."""
    old = (folder / "model.safetensors").stat().st_size
    command = [sys.executable, "-c", SAVER, str(folder), str(Path(__file__).parent.parent), str(moments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as saver:
        try:
            output, errors = saver.communicate(timeout=120)
        finally:
            with suppress(ProcessLookupError):  # a child that outlived it would hold the pipes open, for ever
                os.killpg(saver.pid, signal.SIGKILL)
    assert saver.returncode == 0, errors
    found = json.loads(output.splitlines()[-1])
    assert [problems for problems, _, _ in found] == [[]] * moments
    assert any(drafts for _, _, drafts in found), "no kill fell into the middle of a save"
    assert any(size != old for _, size, _ in found), "no save was ever finished"
    hfprune.save(pruned_model(), folder, overwrite=True)
    names = {path.name for path in folder.parent.iterdir()}
    assert names == {folder.name, f"{folder.name}-before"}, "a killed run's draft is cleared"
