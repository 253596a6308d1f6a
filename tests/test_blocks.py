"""find_blocks: units, costs, and every problem at once."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from hfprune.errors import StructureError, UnsupportedArchitectureError
from hfprune.structure import Architecture, BlockSpec, find_blocks, known_architectures, register_architecture, stock
from tests.support.tiny import tiny_model


def test_heads_and_neurons_of_bert():
    attention, ffn = find_blocks(tiny_model("bert"))[:2]
    assert (attention.name, attention.units, attention.width) == ("encoder.layer.0.attention", 4, 8)
    assert (ffn.name, ffn.units, ffn.width) == ("encoder.layer.0.ffn", 40, 1)
    # a head of width d_h in a model of width d, over s tokens:
    # 4·d·d_h weights and 3·d_h biases; 4·s·d·d_h + 2·s²·d_h multiply-adds
    assert attention.unit_params == 4 * 32 * 8 + 3 * 8
    assert attention.unit_macs(10) == 4 * 10 * 32 * 8 + 2 * 10 * 10 * 8
    assert ffn.unit_params == 2 * 32 + 1
    assert ffn.unit_macs(10) == 2 * 10 * 32


def test_key_value_groups_of_llama():
    attention, ffn = find_blocks(tiny_model("llama"))[:2]
    # 8 query and 4 key/value heads of 4: a unit is 2 query heads, one key and one value head
    assert (attention.units, attention.width, attention.heads, attention.producer_rows) == (4, 8, 2, ((8,), (4,), (4,)))
    assert attention.unit_params == (2 * 2 + 2) * 32 * 4
    assert attention.unit_macs(10) == (2 * 2 + 2) * 10 * 32 * 4 + 2 * 2 * 10 * 10 * 4
    assert ffn.unit_params == 3 * 32
    assert attention.portable_units == (1, 2, 4)  # 32 must be a multiple of the number of query heads


def test_unit_params_are_what_is_there():
    for model_type in known_architectures():
        model = tiny_model(model_type, "AutoModel")
        layers = 0
        for block in find_blocks(model):
            # with attention sinks, the module around the projections is one of them
            modules = [model.get_submodule(path) for path in block.modules]
            everything = sum(p.numel() for module in modules for p in module.parameters(recurse=False))
            bias = model.get_submodule(block.consumer).bias
            layers += everything - (0 if bias is None else bias.numel()) - block.units * block.unit_params
        assert layers == 0, model_type


def test_bert_can_say_no_other_head_count_and_every_neuron_count():
    attention, ffn = find_blocks(tiny_model("bert"))[:2]
    assert tuple(attention.portable_units) == (4,)
    assert tuple(ffn.portable_units) == tuple(range(1, 41))


def test_an_architecture_without_like_layers_is_refused():
    config = AutoConfig.for_model("mamba", num_hidden_layers=1, hidden_size=16, vocab_size=20, state_size=4)
    with pytest.raises(UnsupportedArchitectureError, match=r"(?s)no architecture entry for .*'mamba'.*Write the"):
        find_blocks(AutoModel.from_config(config))


def test_all_problems_are_listed_together():
    model = tiny_model("bert")
    layers = model.bert.encoder.layer
    layers[0].attention.self.query = nn.Identity()
    layers[0].intermediate.dense = nn.Linear(32, 39)
    layers[1].attention.self.num_attention_heads = 3
    layers[1].output.dense.weight = nn.Parameter(torch.zeros(32, 5))
    with pytest.raises(StructureError) as caught:
        find_blocks(model)
    message = str(caught.value)
    for part in (
        "encoder.layer.0.attention.self.query: expected a Linear or Conv1D, got Identity",
        "encoder.layer.0.output.dense: 40 features",
        "encoder.layer.1.attention.self.num_attention_heads is 3, expected 4",
        "encoder.layer.1.output.dense.weight is (32, 5), expected (32, 40)",
        "If modules were replaced",
    ):
        assert part in message


def test_a_wrapper_is_refused():
    model = tiny_model("bert")
    model.bert.encoder = nn.Identity()
    with pytest.raises(StructureError, match=r"has no layers at 'encoder.layer'"):
        find_blocks(model)


def test_an_entry_is_never_replaced():
    spec = BlockSpec(producers=("a",), consumer="b")
    with pytest.raises(ValueError, match="'bert' has an architecture entry already"):
        register_architecture("bert", Architecture(stacks={"layers": {"ffn": spec}}))


def test_register_architecture_makes_a_new_type_prunable(monkeypatch, tmp_path):
    """A model type that the table lacks, taught in ten lines, goes through surgery, saving and reloading."""
    import hfprune
    from hfprune.structure import architectures
    from tests.support.plans import uneven_plan
    from tests.support.tiny import SIZES, tiny_batch

    monkeypatch.setattr(architectures, "_TABLE", dict(architectures._TABLE))
    register_architecture("splinter", known_architectures()["bert"])
    monkeypatch.setitem(SIZES, "splinter", SIZES["bert"])
    model = tiny_model("splinter", "AutoModel")
    pruned = hfprune.apply_plan(model, uneven_plan(model))
    hfprune.save(pruned, tmp_path / "small")
    again = hfprune.load(tmp_path / "small")
    assert type(again).__name__ == "PrunedSplinterModel"
    batch = tiny_batch("splinter")
    assert torch.equal(pruned(**batch)[0], again(**batch)[0])


def test_a_stock_config_is_asked_once_for_every_size(monkeypatch):
    """Not once a layer: on a Llama of 32 heads and 16 layers that took more than a second."""
    asked, stock_config = [], stock.stock_config

    def counted(config, blocks, units):
        asked.extend(units)
        return stock_config(config, blocks, units)

    monkeypatch.setattr(stock, "stock_config", counted)
    blocks = find_blocks(tiny_model("llama", num_hidden_layers=5))
    assert asked == [1, 2, 3]
    assert {block.portable_units for block in blocks if block.kind == "attention"} == {(1, 2, 4)}
