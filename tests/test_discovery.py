"""Blocks of model types that the table lacks: proposed from the structure of a layer, and proven."""

import json
import logging
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import hfprune
from hfprune.errors import UnsupportedArchitectureError
from hfprune.structure import anatomy_of, architectures, find_blocks, gated, known_architectures, support_of
from hfprune.structure.discovery import discover as discovery
from hfprune.structure.examples import example_inputs
from hfprune.structure.modeling_pruned import PrunedModel
from tests.support import own_model
from tests.support.by_proof import BY_PROOF, untabled_model
from tests.support.plans import as_gates, uneven_plan
from tests.support.tiny import SIZES, tiny_model

#: What structure alone does not tell: biases that belong to heads, and a norm over all heads.
REFUSED = {
    "bloom": "self_attention.query_key_value -> self_attention.dense",
    "falcon": "self_attention.query_key_value -> self_attention.dense",
    "mpt": "attn.Wqkv -> attn.out_proj",
    "mpnet": "attention.attn.q, attention.attn.k, attention.attn.v -> attention.attn.o",
    "mt5": "layer.0.SelfAttention.q, layer.0.SelfAttention.k, layer.0.SelfAttention.v -> layer.0.SelfAttention.o",
    "olmo2": "self_attn.q_proj, self_attn.k_proj, self_attn.v_proj -> self_attn.o_proj",
    "olmo3": "self_attn.q_proj, self_attn.k_proj, self_attn.v_proj -> self_attn.o_proj",
    "t5": "layer.0.SelfAttention.q, layer.0.SelfAttention.k, layer.0.SelfAttention.v -> layer.0.SelfAttention.o",
}
#: Attention that reads its number of heads from the config of the whole model: only the rest is found.
FFN_ONLY = {"phi3"}
#: Not discovered, at no risk: whole attentions stay; fields and places that structure says more of, or less.
_APART = {"bypass", "least", "config_fields", "portable_units", "residual_sum"}


def some(types, by_default):
    """All of them as parameters, those not in `by_default` marked slow."""
    return [name if name in by_default else pytest.param(name, marks=pytest.mark.slow) for name in sorted(types)]


@pytest.fixture
def without(monkeypatch):
    """Forget the table's entry of a model type, and what was proven before."""
    monkeypatch.setattr(architectures, "_TABLE", dict(architectures._TABLE))
    monkeypatch.setattr(discovery, "_PROVEN", {})
    return architectures._TABLE.pop


def parts(block):
    sizes = {size for size in block.sizes if size[2].each}  # those that pruning changes
    return {name: value for name, value in {**vars(block), "sizes": sizes}.items() if name not in _APART}


@pytest.mark.parametrize(
    "model_type",
    some(
        set(SIZES) - set(REFUSED),
        {
            "albert",
            "bert",
            "bart",
            "deberta-v2",
            "gpt2",
            "gpt_neox",
            "llama",
            "modernbert",
            "opt",
            "phi3",
            "qwen3",
            "vit",
        },
    ),
)
def test_discovery_alone_finds_the_blocks_of_the_table(model_type, without):
    model = tiny_model(model_type, "AutoModel")
    table = [block for block in find_blocks(model) if block.kind == "ffn" or model_type not in FFN_ONLY]
    assert support_of(model).by == "table"
    without(model_type)
    found = find_blocks(model)
    assert ("qkv_proj" in support_of(model).entry.note) == (model_type in FFN_ONLY)
    assert support_of(model).by == "proof"
    assert [parts(block) for block in found] == [parts(block) for block in table]
    places = {block.name: block.residual_sum for block in table}
    for block in found:  # or of the module around it, or where the table takes no risk
        place = places[block.name]
        assert block.residual_sum is None or place is None or f"{place}.".startswith(f"{block.residual_sum}.")


@pytest.mark.parametrize("model_type", some(REFUSED, {"bloom", "olmo2", "t5"}))
def test_what_structure_does_not_tell_is_left_out_with_the_entry_to_write(model_type, without, caplog):
    model = tiny_model(model_type, "AutoModel")
    table = find_blocks(model)
    without(model_type)
    with caplog.at_level(logging.WARNING):
        found = anatomy_of(model)
    reason = re.escape(f"attention ({REFUSED[model_type]}): without some units it does not run")
    assert re.search(reason, found.left_out)
    assert "not proven, so not pruned: attention" in found.support.entry.note
    message = next(record.getMessage() for record in caplog.records if "from hfprune" in record.getMessage())
    assert message.startswith(f"model_type '{model_type}' is not in the table")
    assert re.search(reason, message)
    ffns = [block for block in table if block.kind == "ffn"]
    assert [parts(block) for block in found.blocks] == [parts(block) for block in ffns]
    exec(message[message.index("from hfprune") :], {})  # what is proven can be pruned
    assert support_of(model).by == "table"
    assert [parts(block) for block in find_blocks(model)] == [parts(block) for block in ffns]


@pytest.mark.parametrize(
    "model_type", some({"deit", "esm", "glm4", "hubert", "m2m_100", "nemotron", "splinter"}, {"deit", "glm4", "hubert"})
)
def test_gated_equals_pruned_equals_reloaded_and_is_repaired(model_type, tmp_path, monkeypatch):
    assert model_type not in known_architectures()
    model = untabled_model(model_type)
    ids = torch.randint(4, 60, (2, 16, 12), generator=torch.Generator().manual_seed(0))
    batches = [example_inputs(model, one) for one in ids]
    plan = uneven_plan(model)
    assert support_of(model).by == "proof"
    with torch.no_grad():
        dense = model(**batches[0])[0]
        with gated(model, find_blocks(model), as_gates(model, plan.kept)):
            with_gates = model(**batches[0])[0]
        pruned = hfprune.apply_plan(model, plan)
        assert isinstance(pruned, PrunedModel)
        hfprune.save(pruned, tmp_path / "small")
        monkeypatch.setattr(discovery, "_PROVEN", {})  # as in a fresh process
        again = hfprune.load(tmp_path / "small")
        assert (dense - with_gates).abs().max() > 1e-2
        assert (with_gates - pruned(**batches[0])[0]).abs().max() <= 1e-5
        assert torch.equal(pruned(**batches[0])[0], again(**batches[0])[0])
    assert {b.name: b.units for b in find_blocks(again)} == {name: kept for name, (kept, _) in plan.counts.items()}
    repairs = hfprune.reconstruct(again, model, batches)
    assert all(repair.error_after <= repair.error_before * (1 + 1e-5) for repair in repairs)
    assert any(repair.error_after < 0.9 * repair.error_before for repair in repairs)


def test_all_heads_are_found_in_one_proof_for_a_class_and_config(monkeypatch):
    proofs = []
    real = discovery._discover
    monkeypatch.setattr(discovery, "_PROVEN", {})
    monkeypatch.setattr(discovery, "_discover", lambda *args: proofs.append(args) or real(*args))
    make = own_model.OwnForSequenceClassification
    pruned = hfprune.apply_plan(make(own_model.OwnConfig()), uneven_plan(make(own_model.OwnConfig())))
    find_blocks(pruned)
    assert len(proofs) == 1
    find_blocks(make(own_model.OwnConfig(wide=48)))
    assert len(proofs) == 2


def test_the_proof_takes_two_layers_of_many_and_copes_with_layers_that_differ():
    model = own_model.OwnModel(own_model.OwnConfig(depth=7))
    from hfprune.structure.discovery.twin import make_twin

    assert len(make_twin(model)[0].pile) == 2
    assert len(find_blocks(model)) == 14


class NormOverAllHeads(own_model.Mixer):
    """Removing a head changes what the others see: its gate does not."""

    def forward(self, x, mask):
        query = self.Wq.forward
        self.Wq.forward = lambda x: nn.functional.normalize(query(x), dim=-1)
        try:
            return super().forward(x, mask)
        finally:
            del self.Wq.forward


class NormedLayer(own_model.Layer):
    def __init__(self, config):
        super().__init__(config)
        self.mixer = NormOverAllHeads(config)


class NoHeads(own_model.Layer):
    def __init__(self, config):
        super().__init__(config)
        self.mixer.per_lane = None


def test_a_unit_whose_removal_is_not_its_gate_is_left_out(monkeypatch, caplog):
    monkeypatch.setattr(own_model.OwnModel, "layer_class", NormedLayer)
    with caplog.at_level(logging.WARNING):
        found = anatomy_of(own_model.OwnModel(own_model.OwnConfig(norm="all heads")))
    assert {block.kind for block in found.blocks} == {"ffn"}
    assert "removing units is not gating them: outputs differ by" in found.left_out
    message = caplog.text
    assert "# \"attention\": BlockSpec(producers=('mixer.Wq', 'mixer.Wkeys', 'mixer.to_values')" in message
    assert "\"ffn\": BlockSpec(producers=('open', 'signal'), consumer='close'" in message


def test_a_model_that_cannot_run_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(own_model.OwnModel, "layer_class", NoHeads)
    with pytest.raises(
        UnsupportedArchitectureError,
        match=r"(?s)a random model .* cannot be run: TypeError.*path.of.the.list",
    ):
        find_blocks(own_model.OwnModel(own_model.OwnConfig(heads="none")))


def test_a_class_that_loading_would_not_find_is_refused():
    class Mine(own_model.OwnModel):
        pass

    with pytest.raises(UnsupportedArchitectureError, match="Mine is not a class of transformers, nor registered with"):
        find_blocks(Mine(own_model.OwnConfig()))


def test_the_page_counts_what_was_measured():
    measured = json.loads((Path(__file__).parent.parent / "docs" / "reference" / "by_proof.json").read_text())
    assert set(measured) == set(BY_PROOF)
    found = {name: value for name, value in measured.items() if not value["refused"]}
    assert len(found) > 50
    # relative, as MobileBERT's outputs are around 5e4
    assert all(value["difference"] <= 1e-5 * value["effect"] and value["effect"] > 1e-2 for value in found.values())
