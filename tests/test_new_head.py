"""A new head on a pruned body: shapes may differ outside of the pruned modules, and only there."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.models.auto import modeling_auto

import hfprune
from hfprune.publishing.verification import verify
from hfprune.structure.modeling_pruned import PrunedModel
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_batch, tiny_model

NEW_HEAD = {"num_labels": 5, "ignore_mismatched_sizes": True}


def checkpoint(folder, model_type="bert", head="AutoModelForSequenceClassification", dtype=torch.float32):
    model = tiny_model(model_type, head).to(dtype)
    return hfprune.save(hfprune.apply_plan(model, uneven_plan(model)), folder)


def hidden_states(model, model_type):
    with torch.no_grad():
        return model(**tiny_batch(model_type), output_hidden_states=True).hidden_states[-1]


def same_body(model, folder, model_type):
    dense = hfprune.load(folder)
    return torch.equal(hidden_states(model, model_type), hidden_states(dense, model_type))


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "roberta", "llama"])
@pytest.mark.parametrize("way", ["auto", "load", "class"])
def test_another_number_of_labels(way, model_type, tmp_path):
    folder = checkpoint(tmp_path / "small", model_type)
    ways = {
        "auto": AutoModelForSequenceClassification.from_pretrained,
        "load": hfprune.load,
        "class": type(hfprune.load(folder)).from_pretrained,
    }
    model = ways[way](folder, **NEW_HEAD).eval()
    assert isinstance(model, PrunedModel)
    assert model.config.num_labels == 5
    assert model(**tiny_batch(model_type)).logits.shape == (4, 5)
    assert same_body(model, folder, model_type)
    assert model.pruning_plan == hfprune.load(folder).pruning_plan
    again = hfprune.save(model, tmp_path / "again")
    assert verify(again) == []


def test_without_hfprune(client, tmp_path):
    folder = checkpoint(tmp_path / "small")
    code = """
from transformers import AutoModelForSequenceClassification
model = AutoModelForSequenceClassification.from_pretrained(
    "small", num_labels=5, ignore_mismatched_sizes=True, trust_remote_code=True
)
width = model.bert.encoder.layer[0].output.dense.in_features
say(name=type(model).__name__, labels=model.classifier.out_features, width=width)
"""
    said = client(code, with_hfprune=False)
    small = hfprune.load(folder)
    assert said["name"] == "PrunedBertForSequenceClassification"
    assert said["labels"] == 5
    assert said["width"] == small.bert.encoder.layer[0].output.dense.in_features


def test_the_report_comes_where_it_is_asked_for(tmp_path):
    folder = checkpoint(tmp_path / "small")
    for load in (hfprune.load, AutoModelForSequenceClassification.from_pretrained):
        model, report = load(folder, output_loading_info=True, **NEW_HEAD)
        assert sorted(name for name, *_ in report["mismatched_keys"]) == ["classifier.bias", "classifier.weight"]
        assert model.config.num_labels == 5
    assert isinstance(AutoModelForSequenceClassification.from_pretrained(folder), PrunedModel)


@pytest.mark.parametrize("model_type", ["bert", "llama", "vit"])
def test_a_base_model_gets_a_head(model_type, tmp_path):
    """What has no head in the checkpoint is new, with and without the argument."""
    head = "AutoModelForImageClassification" if model_type == "vit" else "AutoModelForSequenceClassification"
    folder = checkpoint(tmp_path / "small", model_type, "AutoModel")
    for options in (NEW_HEAD, {"num_labels": 5}):
        model = getattr(modeling_auto, head).from_pretrained(folder, **options).eval()
        assert model(**tiny_batch(model_type)).logits.shape[-1] == 5
        body = model.base_model(**tiny_batch(model_type)).last_hidden_state
        assert torch.equal(body, hfprune.load(folder)(**tiny_batch(model_type)).last_hidden_state)


def test_in_half_precision_and_from_another_head(tmp_path):
    folder = checkpoint(tmp_path / "small", "llama", "AutoModelForCausalLM", torch.bfloat16)
    model = AutoModelForSequenceClassification.from_pretrained(folder, **NEW_HEAD).eval()
    assert model.dtype == torch.bfloat16
    assert same_body(model, folder, "llama")


def test_embeddings_are_no_pruned_module(tmp_path):
    folder = checkpoint(tmp_path / "small", "llama", "AutoModelForCausalLM")
    model = AutoModelForCausalLM.from_pretrained(folder, vocab_size=150, ignore_mismatched_sizes=True)
    assert model.lm_head.out_features == 150


class TestPrunedModules:
    MATCH = r"encoder.layer.*dense.* in the weights, and \(.*\) in the model: a pruned module would be random"

    @pytest.mark.parametrize("way", ["auto", "load"])
    def test_a_changed_table_is_refused(self, way, tmp_path):
        folder = checkpoint(tmp_path / "small")
        path = folder / "config.json"
        config = json.loads(path.read_text())
        shapes = config["pruning_config"]["shapes"]
        shapes["encoder.layer.1.intermediate.dense"]["out_features"] -= 1
        shapes["encoder.layer.1.output.dense"]["in_features"] -= 1
        path.write_text(json.dumps(config))
        load = hfprune.load if way == "load" else AutoModelForSequenceClassification.from_pretrained
        match = "where its blocks have" if way == "load" else self.MATCH
        with pytest.raises((OSError, ValueError), match=match):
            load(folder, **NEW_HEAD)

    @pytest.mark.parametrize("model_type", ["bert", "llama"])
    def test_a_config_of_ones_own_is_refused(self, model_type, tmp_path):
        """The width of the stream is that of heads too, but pruned modules have it as well."""
        folder = checkpoint(tmp_path / "small", model_type)
        config = AutoConfig.from_pretrained(folder)
        config.pruning_config["shapes"] = {
            path: {**shape, "in_features": min(shape["in_features"], 31)}
            for path, shape in config.pruning_config["shapes"].items()
        }
        with pytest.raises(ValueError, match="leave out what changes the size of other modules"):
            hfprune.load(folder, config=config, ignore_mismatched_sizes=True)

    def test_a_base_checkpoint_in_a_head_class_is_refused(self, tmp_path):
        folder = checkpoint(tmp_path / "small", "bert", "AutoModel")
        config = AutoConfig.from_pretrained(folder, num_labels=5)
        config.pruning_config["shapes"]["encoder.layer.0.intermediate.dense"]["out_features"] -= 1
        with pytest.raises(ValueError, match=self.MATCH):
            AutoModelForSequenceClassification.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)
