"""`hfprune verify`: one bit anywhere is found and named; nothing hostile is executed, drawn or allocated."""

import json
import logging

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import hfprune
from hfprune import PruningConfig, PruningPlan, PruningRecord
from hfprune.cli import app
from hfprune.errors import CheckpointError
from hfprune.publishing import verification
from hfprune.publishing.card import draw_card
from hfprune.publishing.probe import Probe
from hfprune.publishing.verification import verify
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenizer

QUICK = {"sparsity": 0.5, "sequence_length": 8, "scorer": "l2", "reconstruct": False, "schedule": "one_shot"}


@pytest.fixture
def folder(tmp_path):
    small = hfprune.prune(tiny_model("bert", num_labels=3), [tiny_batch()], PruningConfig(**QUICK))
    return hfprune.save(small, tmp_path / "small", tokenizer=tiny_tokenizer())


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
            bad[position] ^= 1 << int(torch.randint(0, 7, (), generator=generator))
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
        hfprune.load(folder)
        assert "never checked" in caplog.text, "these weights were not"

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


class TestHostile:
    """What a stranger might put into a checkpoint: refused with a clear error, nothing executed or allocated."""

    def rewrite(self, folder, change):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    def test_a_shape_table_that_asks_for_a_terabyte(self, folder):
        def change(config):
            config["pruning_config"]["shapes"]["encoder.layer.0.intermediate.dense"]["out_features"] = 10**12

        self.rewrite(folder, change)
        with pytest.raises(CheckpointError, match="asks for a weight of shape .* where the dense model has"):
            hfprune.load(folder)
        with pytest.raises(ValueError, match="pruning only makes them smaller"):
            AutoModelForSequenceClassification.from_pretrained(folder)

    @pytest.mark.parametrize("value", [10**12, "import os", -1, None, {"a": 1}])
    def test_attributes_are_small_numbers(self, value, folder):
        def change(config):
            name = next(name for name in config["pruning_config"]["attributes"])
            config["pruning_config"]["attributes"][name] = value

        self.rewrite(folder, change)
        with pytest.raises(CheckpointError, match="where the dense model has"):
            hfprune.load(folder)

    @pytest.mark.parametrize("path", ["encoder.layer.0.forward", "encoder.__class__", "encoder.layer.0.attention.new"])
    def test_only_sizes_are_set(self, path, folder):
        self.rewrite(folder, lambda config: config["pruning_config"]["attributes"].update({path: 1}))
        with pytest.raises(CheckpointError, match=f"pruning_config sets {path} to 1"):
            hfprune.load(folder)

    def test_another_loader(self, folder, caplog):
        (folder / "modeling_pruned.py").write_text("raise SystemExit('executed')")
        hfprune.load(folder, trust_remote_code=True)  # with our own
        AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
        assert (
            "modeling_pruned.py is not the loader of this hfprune or of an earlier one; it was not run" in caplog.text
        )
        assert any("is not the loader of this hfprune" in problem for problem in verify(folder))

    def test_an_index_that_leads_elsewhere(self, folder):
        """Of a name with `..`, of a pickle, and of a file that is not there."""
        path = folder / "model.safetensors"
        names = list(load_file(path))
        path.rename(folder.parent / "evil.safetensors")
        for target in ("../evil.safetensors", "../evil.bin", "evil.bin", "missing.safetensors"):
            index = {"metadata": {}, "weight_map": dict.fromkeys(names, target)}
            (folder / "model.safetensors.index.json").write_text(json.dumps(index))
            with pytest.raises(CheckpointError, match="which is no weight file of this folder"):
                hfprune.load(folder)

    def test_tensors_in_a_file_that_nothing_reads(self, folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        save_file({"classifier.weight": tensors.pop("classifier.weight")}, folder / "extra.safetensors")
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="classifier.weight is missing from the weights"):
            hfprune.load(folder)

    @pytest.mark.parametrize("name", ["Trainer", "pipeline", "AutoModel", "BertConfig", 3, "PrunedBertConfig"])
    def test_architectures_that_are_no_models(self, name, folder):
        self.rewrite(folder, lambda config: config.update(architectures=[name]))
        with pytest.raises(CheckpointError, match="which is no model of transformers"):
            hfprune.load(folder)

    @pytest.mark.parametrize(
        "changes",
        [{"num_attention_heads": 0}, {"hidden_size": -1}, {"num_hidden_layers": 10**9}, {"vocab_size": "x"}],
    )
    def test_configs_that_make_no_model(self, changes, folder):
        self.rewrite(folder, lambda config: config.update(changes))
        with pytest.raises(CheckpointError):
            hfprune.load(folder)
        assert verify(folder)[0] == "config.json is not the file that was saved: its SHA-256 differs"

    def test_a_tokenizer_that_brings_code(self, folder):
        path = folder / "tokenizer_config.json"
        path.write_text(
            json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoTokenizer": ["evil/x--t.T", None]}})
        )
        with pytest.raises(CheckpointError, match="auto_map in tokenizer_config.json names code"):
            hfprune.load(folder)

    @pytest.mark.parametrize("name", ["pruning_plan.json", "pruning_record.json", "pruning_probe.json", "config.json"])
    def test_json_that_is_too_deep(self, name, folder):
        (folder / name).write_text("[" * 100_000)
        assert verify(folder)

    def test_more_code(self, folder):
        (folder / "helper.py").write_text("raise SystemExit('executed')")
        with pytest.raises(CheckpointError, match="helper.py is code that hfprune does not write; it was not run"):
            hfprune.load(folder)

    @pytest.mark.parametrize(
        "target", ["helper.Pruned", "evil/repo--modeling_pruned.PrunedX", "modeling_pruned.Pruned--x", "os.system"]
    )
    def test_an_auto_map_that_leads_elsewhere(self, target, folder):
        self.rewrite(folder, lambda config: config["auto_map"].update(AutoModel=target))
        with pytest.raises(CheckpointError, match="auto_map in config.json names code that hfprune does not write"):
            hfprune.load(folder)

    def test_pickles_are_named_and_not_read(self, folder):
        (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
        assert verify(folder) == ["pytorch_model.bin is not part of what was saved. Remove it"]
        hfprune.load(folder)  # reads the safetensors

    @pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", ".."])
    def test_a_record_that_names_files_elsewhere(self, name, folder):
        path = folder / "pruning_record.json"
        data = json.loads(path.read_text())
        data["files"][name] = "0" * 64
        del data["digest"]
        path.write_text(json.dumps(data))
        assert verify(folder)[0].startswith("pruning_record.json cannot be read: not a valid pruning record: at files")

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("base_model", "<script>alert(1)</script>"),
            ("base_model", "a/b\n---\nlicense: evil"),
            ("datasets", ["x]\n- y: {z"]),
            ("metrics", {"dense": {"<img src=x>": 1.0}}),
            ("command", "a\n```\n<script>"),
            ("sizes", {"dense": {"params": -1}}),
            ("calibration", {"samples": "many"}),
            ("surprise", 1),
        ],
    )
    def test_records_with_markup_are_refused(self, field, value, folder):
        data = json.loads((folder / "pruning_record.json").read_text())
        del data["digest"]
        data[field] = value
        with pytest.raises(ValueError, match="not a valid pruning record: at "):
            PruningRecord.from_json(json.dumps(data))

    def test_odd_values_of_ones_own_cost_no_run(self, folder):
        """NumPy's numbers, metrics that are no numbers, and names as metrics of the Hub have them."""
        model = hfprune.load(folder)
        found = {"f1/macro": np.float32(0.5), "pr\u00e9cision": float("nan"), "f1(micro)": 1}
        model.pruning_record = model.pruning_record.with_(metrics={"dense": found, "pruned": found})
        hfprune.save(model, folder, overwrite=True)
        again = hfprune.load(folder).pruning_record
        assert again.metrics["dense"] == {"f1/macro": 0.5, "pr\u00e9cision": None, "f1(micro)": 1}
        assert "f1/macro" in (folder / "README.md").read_text()

    def test_whatever_a_record_says_is_quoted_in_its_card(self, folder):
        """Even if it was made in memory, where nothing is validated."""
        evil = "</td><script>alert(1)</script>`|\n---\n# x: {y"
        record = PruningRecord.from_json((folder / "pruning_record.json").read_text())
        plan = PruningPlan.from_json((folder / "pruning_plan.json").read_text())
        record = record.with_(
            base_model=evil + "/x",
            datasets=[evil],
            recovery={evil: evil},
            command="```\n<b>",
            config={"scorer": evil},
            versions={"hfprune": evil},
            metrics={"dense": {evil: 1.0}, "pruned": {evil: 0.5}},
        )
        for location in (evil, '"); import os; ("', "small"):
            card = draw_card(record, plan, portable=False, location=location, pictures="")
            head, body = ModelCard(card, ignore_metadata_errors=False).data, ModelCard(card).text
            assert head.base_model == evil + "/x", "YAML quotes it"
            assert head.to_dict()["datasets"] == [evil]
            assert "<script>" not in body
            assert body.count("```") % 2 == 0
            assert "import os;" not in body

    def test_a_newer_record_says_what_to_do(self, folder):
        path = folder / "pruning_record.json"
        path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
        assert "format_version 2, this hfprune reads 1: upgrade it (pip install -U hfprune)" in verify(folder)[0]


def test_cards_round_trip_through_model_card_data(folder):
    card = ModelCard.load(folder / "README.md")
    again = ModelCardData(**card.data.to_dict())
    assert again.to_dict() == card.data.to_dict()
    assert again.to_yaml() == card.data.to_yaml()
