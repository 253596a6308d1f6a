"""`hfprune import`: what transformers 4 and TextPruner saved loads again, and computes what it did."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.errors import CheckpointError, UnsupportedArchitectureError
from hfprune.publishing.legacy import load_legacy
from hfprune.publishing.verification import verify
from tests.support.old_checkpoints import old_checkpoint, pickle_weights
from tests.support.tiny import tiny_batch


class Bomb:
    """What a pickle runs when it is read."""

    def __reduce__(self):
        return pytest.fail, ("it was run",)


@pytest.mark.parametrize("neurons", [40, 24])
def test_it_computes_what_it_did(neurons, tmp_path):
    before = old_checkpoint(tmp_path / "old", neurons=neurons, tokenizer=True)
    done = CliRunner().invoke(app, ["import", str(tmp_path / "old"), str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    assert verify(tmp_path / "new") == []
    again = hfprune.load(tmp_path / "new")
    batch = tiny_batch()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, before(**batch).logits)
    assert again.pruning_plan.kept["encoder.layer.0.attention"] == (0, 2)
    assert again.pruning_plan.counts["encoder.layer.1.attention"] == (3, 4)
    assert again.pruning_plan.counts["encoder.layer.1.ffn"] == (neurons, neurons)
    assert again.pruning_record.base_model == "google-bert/bert-base-uncased"
    assert (tmp_path / "new" / "tokenizer.json").is_file()


def test_equal_heads_in_every_layer_stay_of_the_pruned_class(tmp_path):
    """A stock BERT cannot say fewer heads of the same width."""
    before = old_checkpoint(tmp_path / "old", {0: [0, 1], 1: [2, 3]})
    model = load_legacy(tmp_path / "old")
    assert type(model).__name__ == "PrunedBertForSequenceClassification"
    with torch.no_grad():
        assert torch.equal(model(**tiny_batch()).logits, before(**tiny_batch()).logits)


class TestMistakes:
    def config(self, folder, **changes):
        path = folder / "config.json"
        data = json.loads(path.read_text())
        data.update(changes)
        path.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"pruned_heads": None}, "has no pruned_heads: nothing says which heads are gone"),
            ({"pruned_heads": {"0": ["x"]}}, "no mapping from layers to lists of heads"),
            ({"pruned_heads": {"7": [0]}}, r"names heads \[0\] of layer 7, but the model has 2 layers of 4 heads"),
            ({"pruned_heads": {"0": [9]}}, r"names heads \[9\] of layer 0"),
            ({"pruned_heads": {"0": [1]}}, "do not have the shapes that its pruned_heads"),
            ({"model_type": None}, "names no model_type"),
        ],
    )
    def test_a_config_that_does_not_fit(self, changes, message, tmp_path):
        old_checkpoint(tmp_path / "old")
        self.config(tmp_path / "old", **changes)
        with pytest.raises(CheckpointError, match=message):
            load_legacy(tmp_path / "old")

    def test_a_type_that_is_not_in_the_table(self, tmp_path):
        old_checkpoint(tmp_path / "old")
        self.config(tmp_path / "old", model_type="xlm", architectures=["XLMForSequenceClassification"])
        with pytest.raises(UnsupportedArchitectureError):
            load_legacy(tmp_path / "old")

    def test_weights_that_are_not_there(self, tmp_path):
        old_checkpoint(tmp_path / "old")
        path = tmp_path / "old" / "model.safetensors"
        tensors = load_file(path)
        del tensors["classifier.weight"]
        save_file(tensors, path, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="has no weights for classifier.weight: it is not whole"):
            load_legacy(tmp_path / "old")
        path.unlink()
        with pytest.raises(CheckpointError, match="has no model.safetensors. Pickled weights"):
            load_legacy(tmp_path / "old")

    def test_pickled_weights_are_read_only_if_that_is_asked_for(self, tmp_path):
        """As TextPruner saves them: `torch.save(model.state_dict())` and the config."""
        before = old_checkpoint(tmp_path / "old")
        pickle_weights(tmp_path / "old", before)
        command = ["import", str(tmp_path / "old"), str(tmp_path / "new")]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 1
        assert "Pickled weights (pytorch_model.bin) are read only if you say so: --pickled, or pickled=" in done.output
        assert not (tmp_path / "new").exists()
        assert CliRunner().invoke(app, [*command, "--pickled"]).exit_code == 0
        assert verify(tmp_path / "new") == []
        with torch.no_grad():
            assert torch.equal(hfprune.load(tmp_path / "new")(**tiny_batch()).logits, before(**tiny_batch()).logits)

    def test_an_adapter_that_leads_elsewhere(self, tmp_path):
        old_checkpoint(tmp_path / "old")
        (tmp_path / "old" / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/x"}')
        with pytest.raises(CheckpointError, match="adapter_config.json leads to weights elsewhere"):
            load_legacy(tmp_path / "old")

    def test_a_pickle_that_would_run_code(self, tmp_path):
        old_checkpoint(tmp_path / "old")
        with pytest.raises(CheckpointError, match=r"has no pytorch_model.bin\.$"):
            load_legacy(tmp_path / "old", pickled=True)
        torch.save({"a": Bomb()}, tmp_path / "old" / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match="pytorch_model.bin holds more than tensors and is not read"):
            load_legacy(tmp_path / "old", pickled=True)
