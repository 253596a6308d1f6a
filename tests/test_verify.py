"""`hfprune verify`: one bit anywhere is found and named; nothing hostile is executed, drawn or allocated."""

import hashlib
import json
import logging

import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import hfprune
from hfprune import PruningConfig, PruningRecord
from hfprune.cli.app import app
from hfprune.publishing import verification
from hfprune.publishing.probe import Probe
from hfprune.publishing.verification import verify
from hfprune.structure import modeling_pruned
from tests.support.plans import QUICK, quick_checkpoint
from tests.support.tiny import tiny_batch, tiny_model


@pytest.fixture
def folder(tmp_path):
    return quick_checkpoint(tmp_path / "small")


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


class TestOneBit:
    """Every single bit of the files that matter, in a sample; and `verify` names the file."""

    @pytest.mark.parametrize(
        "name", ["model.safetensors", "pruning_plan.json", "pruning_record.json", "config.json", "pruning_probe.json"]
    )
    def test_a_flipped_bit_is_found(self, name, folder):
        path = folder / name
        good = path.read_bytes()
        generator = torch.Generator().manual_seed(0)
        for position in torch.randint(0, len(good), (25,), generator=generator).tolist():
            bad = bytearray(good)
            bad[position] ^= 1 << int(torch.randint(0, 8, (), generator=generator))
            path.write_bytes(bad)
            problems = verify(folder)
            assert problems, f"byte {position}"
            assert problems[0].startswith(name), problems
        path.write_bytes(good)
        assert verify(folder) == []

    def test_another_way_to_write_the_same_number(self, folder):
        path = folder / "pruning_record.json"
        text = path.read_text()
        assert '"sparsity": 0.5,' in text
        path.write_text(text.replace('"sparsity": 0.5,', '"sparsity": 5E-1,', 1))
        assert verify(folder)[0] == "pruning_record.json is not as hfprune writes it: it was changed"

    @pytest.mark.parametrize("name", ["tokenizer.json", "modeling_pruned.py"])
    def test_tokenizer_and_loader_too(self, name, folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-2] + b" \n")
        assert verify(folder)[0].startswith(name)

    def test_the_shape_table(self, folder):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["pruning_config"]["shapes"]["encoder.layer.0.output.dense"]["in_features"] -= 1
        path.write_text(json.dumps(config))
        assert verify(folder)[0] == "config.json is not the file that was saved: its SHA-256 differs"

    def test_the_command_exits_with_1_and_the_reason(self, folder):
        assert run("verify", folder).exit_code == 0
        (folder / "tokenizer.json").unlink()
        done = run("verify", folder)
        assert done.exit_code == 1
        assert "tokenizer.json is missing. Download or save the checkpoint again" in done.output
        done = run("verify", folder / "nowhere")
        assert done.exit_code == 1
        assert "there is no folder" in done.output

    def test_cards_may_be_edited(self, folder):
        (folder / "README.md").write_text("my own")
        assert verify(folder) == []


class TestProbe:
    def test_weights_that_compute_something_else(self, folder):
        """With digests that fit: only the probe can tell."""
        tensors = load_file(folder / "model.safetensors")
        tensors["classifier.bias"] += 0.1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        record = PruningRecord.from_json((folder / "pruning_record.json").read_text())
        digest = verification.sha256(folder / "model.safetensors")
        (folder / "pruning_record.json").write_text(record.with_(files={"model.safetensors": digest}).to_json())
        [problem] = verify(folder)
        assert problem.startswith("the model does not compute what its author saw: outputs for the probe differ by 0.")

    @pytest.mark.parametrize(
        ("model_type", "head"),
        [
            ("gpt2", "AutoModelForCausalLM"),
            ("bert", "AutoModelForMaskedLM"),
            ("bert", "AutoModel"),
            ("bert", "AutoModelForMultipleChoice"),
        ],
    )
    def test_every_head_has_one(self, model_type, head):
        model = tiny_model(model_type, head).train()
        probe = Probe.of(model)
        assert model.training
        assert len(probe.output) <= 512
        assert Probe.from_json(probe.to_json()) == probe
        assert probe.problem_of(model) is None
        other = tiny_model(model_type, head, seed=1)
        assert "differ" in probe.problem_of(other)
        assert "of shape" in Probe(**{**vars(probe), "shape": [1, 2]}).problem_of(model)

    def test_a_model_that_does_not_run_on_it_is_saved_without(self, folder, tmp_path, monkeypatch, caplog):
        monkeypatch.setattr(Probe, "of", lambda model: 1 / 0)
        hfprune.save(hfprune.load(folder), tmp_path / "again")
        assert "No probe is saved, as the model did not run on it: ZeroDivisionError" in caplog.text
        assert verify(tmp_path / "again") == []

    def test_a_classifier_without_a_padding_token(self, tmp_path):
        model = tiny_model("gpt2")
        model.config.pad_token_id = None
        small = hfprune.prune(model, [tiny_batch("gpt2", samples=1)], PruningConfig(**QUICK))
        folder = hfprune.save(small, tmp_path / "small")
        assert (folder / "pruning_probe.json").is_file()
        assert verify(folder) == []

    def test_a_home_that_cannot_be_written_to(self, folder, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setattr(verification, "HF_HOME", str(tmp_path / "file"))
        assert verify(folder) == []

    def test_bfloat16(self, tmp_path):
        small = hfprune.prune(tiny_model("bert").bfloat16(), [tiny_batch()], PruningConfig(**QUICK))
        assert verify(hfprune.save(small, tmp_path / "half")) == []

    def test_loading_warns_until_it_was_checked(self, folder, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(verification, "HF_HOME", str(tmp_path))
        monkey = verification._warned
        monkey.clear()
        with caplog.at_level(logging.WARNING, logger="hfprune"):
            hfprune.load(folder)
            AutoModelForSequenceClassification.from_pretrained(folder)
        assert [r.getMessage() for r in caplog.records].count(
            f"It was never checked on this machine that the checkpoint in {folder} computes what its author saw. "
            "`hfprune verify` does that."
        ) == 1, "once a process"
        monkey.clear()
        caplog.clear()
        assert verify(folder) == []
        hfprune.load(folder)
        assert "never checked" not in caplog.text
        tensors = load_file(folder / "model.safetensors")
        tensors["classifier.bias"] += 1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        AutoModelForSequenceClassification.from_pretrained(folder)
        assert "never checked" in caplog.text, "these weights were not"

    @pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "modeling_pruned.py"])
    def test_the_proof_covers_settings_and_code(self, name, folder, tmp_path, caplog, monkeypatch):
        monkeypatch.setattr(verification, "HF_HOME", str(tmp_path))
        verification._warned.clear()
        assert verify(folder) == []
        with (folder / name).open("a") as file:
            file.write("\n")
        with caplog.at_level(logging.WARNING, logger="hfprune"):
            AutoModelForSequenceClassification.from_pretrained(folder)
        assert "never checked" in caplog.text

    def test_training_takes_the_proof_away(self, folder):
        """save_pretrained over a checkpoint leaves no probe of other weights behind."""
        model = hfprune.load(folder)
        with torch.no_grad():
            model.classifier.bias += 1
        model.save_pretrained(folder)
        assert not (folder / "pruning_probe.json").exists()
        assert verify(folder) == []
        assert "outputs were not saved to compare with" in run("verify", folder).output

    def test_nonsense_is_no_probe(self, folder):
        good = json.loads((folder / "pruning_probe.json").read_text())
        for changes in ({"output": [float("nan")] * 6}, {"output": []}, {"shape": [9, 9]}, {"dtype": "int8"}):
            with pytest.raises(ValueError, match="pruning_probe.json is not a probe"):
                Probe.from_json(json.dumps({**good, **changes}))
        for text in ("[]", "{}", '{"format_version": 2}', '{"format_version": 1, "input_ids": []}'):
            with pytest.raises(ValueError, match="pruning_probe.json is not a probe"):
                Probe.from_json(text)


def test_cards_round_trip_through_model_card_data(folder):
    card = ModelCard.load(folder / "README.md")
    again = ModelCardData(**card.data.to_dict())
    assert again.to_dict() == card.data.to_dict()
    assert again.to_yaml() == card.data.to_yaml()


class TestLoaders:
    #: SHA-256 of every `modeling_pruned.py` that checkpoints may carry, the present one last. Whoever changes the
    #: loader appends its digest, and puts the digest before into `EARLIER_LOADERS`: else old checkpoints are refused.
    DIGESTS = (
        "9b5cd39facadf7ce37a509e1226dcb7259505e4fab09ad55b49872e0aac30325",
        "2b68cf1bf119400d94ff573c77dca6308aef03b82f6bd6732801b642e4bcca90",
        "c72c7ee0c19cea6ada81a652d30caa79e5163513bcd151f85cc87e79e8a4b205",
        "44f63ff74e8b6a4bdb6fadbeaf8cdb097c9e7ca7117e6e92df6d6c4b0d41ef2e",
    )

    def test_a_loader_that_changed_left_its_digest(self):
        present = hashlib.sha256(modeling_pruned.loader_text().encode()).hexdigest()
        assert present == self.DIGESTS[-1]
        assert set(self.DIGESTS[:-1]) == verification.EARLIER_LOADERS

    def test_the_loader_of_an_earlier_release_is_accepted(self, folder, monkeypatch):
        loader = folder / "modeling_pruned.py"
        loader.write_text(loader.read_text() + "# as it was\n")
        assert any("is not the loader of this hfprune" in problem for problem in verify(folder))
        earlier = hashlib.sha256(loader.read_bytes()).hexdigest()
        monkeypatch.setattr(verification, "EARLIER_LOADERS", frozenset({earlier}))
        assert not any("is not the loader of this hfprune" in problem for problem in verify(folder))
