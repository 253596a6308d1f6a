"""config.json says the sizes of every layer in the schema of transformers, for engines and whoever reads it."""

import importlib.util
import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig

import hfprune
from hfprune.errors import CheckpointError
from hfprune.publishing.verification import verify
from hfprune.structure import find_blocks, modeling_pruned
from hfprune.structure.architectures import base_model_type
from tests.support.by_proof import BY_PROOF
from tests.support.tiny import tiny_batch, tiny_model

#: What stays of a Llama with three layers, and what its config.json then says of them.
KEPT = {"layers.0.attention": [1], "layers.1.attention": [], "layers.1.ffn": range(5), "layers.2.ffn": []}
WRITTEN = {
    "0": {"num_attention_heads": 2, "num_key_value_heads": 1},
    "1": {"num_attention_heads": 1, "num_key_value_heads": 1, "intermediate_size": 5, "skip": ["attention"]},
    "2": {"intermediate_size": 0, "skip": ["mlp"]},
}


def cut(dense, kept):
    model_type = base_model_type(dense.config.model_type)
    return hfprune.apply_plan(
        dense, hfprune.PruningPlan.keep(find_blocks(dense), kept, model_type=model_type, sequence_length=8)
    )


def llama():
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return hfprune.save(cut(llama(), KEPT), tmp_path_factory.mktemp("pruned") / "small")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def edited(folder, to, **changes):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    (to / "config.json").write_text(json.dumps(config_of(folder) | changes))
    return to


def test_transformers_reads_what_is_written_as_the_pruned_config_says_it(folder):
    written = config_of(folder)
    assert written["per_layer_config"] == WRITTEN
    assert written["allow_global_per_layer_attribute_access"] is True
    stock = LlamaConfig(
        **{name: value for name, value in written.items() if name not in ("pruning_config", "model_type")}
    )
    pruned = AutoConfig.from_pretrained(folder)
    assert pruned.is_heterogeneous
    assert stock.is_heterogeneous
    for ours, theirs in zip(pruned.per_layer_config, stock.per_layer_config, strict=True):
        for name in ("num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "skip"):
            assert getattr(ours, name) == getattr(theirs, name)
    assert stock.per_layer_attributes < pruned.per_layer_attributes


def test_the_config_of_a_layer_is_that_of_a_model_whose_layers_are_alike(folder):
    layer = AutoConfig.from_pretrained(folder).per_layer_config[0]
    assert not layer.is_heterogeneous
    assert layer.per_layer_config[2].num_attention_heads == 2


def test_fields_of_the_config_are_the_dense_models_and_are_read_without_a_warning(folder, caplog):
    config = AutoConfig.from_pretrained(folder)
    assert (config.num_attention_heads, config.intermediate_size) == (4, 48)
    assert config.allow_global_per_layer_attribute_access
    assert set(config) >= {"num_attention_heads", "intermediate_size"}
    assert not caplog.records


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({**WRITTEN, "2": {"intermediate_size": 7}}, "layer 2 .*where pruning_config makes it {'intermediate_size': 0"),
        ({"0": WRITTEN["0"]}, "layer 1 None, where"),
        ({**WRITTEN, "9": {"hidden_size": 7}}, "layer 9 {'hidden_size': 7}, where pruning_config makes it None"),
        ([], r"per_layer_config gives .*\. The model is built by pruning_config"),
    ],
)
def test_what_does_not_agree_with_the_table_is_refused(folder, value, message, tmp_path):
    other = edited(folder, tmp_path / "other", per_layer_config=value)
    with pytest.raises(ValueError, match=message):
        AutoModelForCausalLM.from_pretrained(other)
    with pytest.raises(CheckpointError, match=message):
        hfprune.load(other, verify=False)
    assert any(re.search(message, problem) for problem in verify(other))


def test_checkpoints_of_earlier_versions_say_nothing_of_it(folder, tmp_path):
    config = config_of(folder)
    del config["per_layer_config"], config["allow_global_per_layer_attribute_access"]
    other = edited(folder, tmp_path / "old")
    (other / "config.json").write_text(json.dumps(config))
    assert hfprune.load(other, verify=False).config.to_dict()["per_layer_config"] == WRITTEN


def test_a_pruned_model_that_is_pruned_again_says_its_own_sizes(folder):
    again = cut(hfprune.load(folder), {"layers.0.ffn": range(3)})
    written = again.config.to_dict()["per_layer_config"]
    assert written == {**WRITTEN, "0": {**WRITTEN["0"], "intermediate_size": 3}}
    # heads of the first layer and neurons of the second only, until all layers are alike
    alike = cut(cut(llama(), {"layers.0.attention": [1]}), {f"layers.{layer}.attention": [0] for layer in (1, 2)})
    assert type(alike).__name__ == "LlamaForCausalLM"
    assert "per_layer_config" not in alike.config.to_dict()
    assert not alike.config.is_heterogeneous


def test_a_field_that_the_type_does_not_have_is_given_for_every_layer():
    dense = tiny_model("bert")
    attention = next(block for block in find_blocks(dense) if block.kind == "attention")
    small = cut(dense, {attention.name: [0]})
    written = small.config.to_dict()["per_layer_config"]
    width = dense.config.hidden_size // dense.config.num_attention_heads
    assert {layer["head_dim"] for layer in written.values()} == {width}
    assert len(written) == dense.config.num_hidden_layers
    # BERT has no such field, in any layer
    assert "num_key_value_heads" not in written["0"]


def test_two_stacks_of_layers_are_not_one(tmp_path):
    dense = tiny_model("t5", "AutoModelForSeq2SeqLM")
    block = next(block for block in find_blocks(dense) if block.name.startswith("decoder."))
    small = cut(dense, {block.name: [0]})
    assert not small.config.is_heterogeneous
    assert "per_layer_config" not in config_of(hfprune.save(small, tmp_path / "small"))


def test_a_dense_model_whose_layers_differ_says_so_itself(tmp_path):
    torch.manual_seed(0)
    layers = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "global_head_dim": 16}
    dense = AutoModel.from_config(AutoConfig.for_model("gemma4_text", **{**BY_PROOF["gemma4_text"], **layers})).eval()
    own = dense.config.to_dict()["per_layer_config"]
    block = next(block for block in find_blocks(dense) if block.kind == "ffn")
    small = cut(dense, {block.name: range(3)})
    folder = hfprune.save(small, tmp_path / "small")
    assert config_of(folder)["per_layer_config"] == own
    again = hfprune.load(folder)
    batch = {"input_ids": tiny_batch("llama")["input_ids"]}
    torch.testing.assert_close(again(**batch).last_hidden_state, small(**batch).last_hidden_state)
    assert again.config.per_layer_config[0].intermediate_size == 3
    assert again.config.per_layer_config[1].head_dim == 16


def test_what_is_left_of_a_removed_block_is_no_copy_of_a_whole_one():
    """The engine vLLM rewrites modules that have the class, and the names of children, of one that it has rewritten."""
    layers = cut(llama(), KEPT).model.layers
    names = [[name for name, _ in layer.mlp.named_children()] for layer in layers]
    assert names[0] == names[1] != names[2]
    names = [[name for name, _ in layer.self_attn.named_children()] for layer in layers]
    assert names[0] == names[2] != names[1]


def test_a_class_that_came_by_value_has_the_same_stock_class(folder):
    """Engines send a config to their processes with its class, which then is not the one of the loader there."""
    loaders = []
    for name in ("loader_one", "loader_two"):
        spec = importlib.util.spec_from_file_location(name, folder / "modeling_pruned.py")
        loader = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loader)
        loaders.append(loader)
    one, two = loaders
    assert two.base_class(one.PrunedLlamaConfig) is LlamaConfig
    assert two.base_class(modeling_pruned.PrunedLlamaConfig) is LlamaConfig
    assert one.auto_map(LlamaConfig) == two.auto_map(LlamaConfig)


@pytest.mark.slow
def test_transformers_serve_finds_the_class_that_the_config_names(folder):
    lines = [
        "from transformers.cli.serving.model_manager import ModelManager",
        "manager = ModelManager(device='cpu', dtype='float32', trust_remote_code=True)",
        f"print(type(manager._load_model({str(folder)!r} + '@main')).__name__)",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "PrunedLlamaForCausalLM"
