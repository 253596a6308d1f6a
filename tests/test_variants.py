"""Variants of model types that the table has, and types that can be pruned in part."""

import logging

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    GPT2Config,
)

import hfprune
from hfprune.errors import StructureError, UnsupportedArchitectureError
from hfprune.measuring.size import kv_cache_bytes, measure_size
from hfprune.scoring import Scores
from hfprune.structure import anatomy, anatomy_of, gated, support_of
from hfprune.structure.reading import read_blocks
from hfprune.structure.specs import changed
from tests.support.by_proof import BY_PROOF
from tests.support.plans import as_gates, removed_plan, uneven_plan
from tests.support.tiny import SIZES, tiny_batch, tiny_config, tiny_model

_NEW_FALCON = {"new_decoder_architecture": True, "num_attention_heads": 8, "num_kv_heads": 2, "bias": False}
#: Constructor arguments of variants that are pruned whole: model type, changes, and units and heads of one attention.
WHOLE = {
    "falcon 7b": ("falcon", {"multi_query": True, "alibi": False, "bias": False}, (1, 4)),
    "falcon 7b with alibi": ("falcon", {"multi_query": True, "parallel_attn": False}, (1, 4)),
    "falcon 40b": ("falcon", {**_NEW_FALCON, "alibi": False}, (2, 4)),
    "falcon 40b with alibi": ("falcon", {**_NEW_FALCON, "alibi": True, "bias": True}, (2, 4)),
    "falcon 11b": ("falcon", {**_NEW_FALCON, "alibi": False, "num_ln_in_parallel_attn": 1}, (2, 4)),
    "falcon with a key for every head": ("falcon", {"alibi": False, "parallel_attn": False}, (4, 1)),
    "deberta": ("deberta-v2", {"share_att_key": False}, (4, 1)),
    "deberta, contents to positions": ("deberta-v2", {"share_att_key": False, "pos_att_type": ["c2p"]}, (4, 1)),
    "deberta, positions to contents": ("deberta-v2", {"share_att_key": False, "pos_att_type": ["p2c"]}, (4, 1)),
    "mpt": ("mpt", {}, (4, 1)),
    "gpt-oss": ("gpt_oss", {}, (4, 2)),
}
#: Those with a norm for every head, and the module that says so.
IN_PART = {
    "cohere": ({"use_qk_norm": True}, "self_attn.q_norm"),
    "stablelm": ({"qk_layernorm": True}, "self_attn.q_layernorm"),
}


def head_of(model_type):
    return "AutoModelForSequenceClassification" if model_type == "deberta-v2" else "AutoModelForCausalLM"


def two_models(decoder="bert"):
    """An encoder and a decoder that are models of their own."""
    decoders = {"bert": BertConfig(**SIZES["bert"]), "gpt2": GPT2Config(**SIZES["gpt2"])}
    config = EncoderDecoderConfig.from_encoder_decoder_configs(BertConfig(**SIZES["bert"]), decoders[decoder])
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 1, 3
    torch.manual_seed(0)
    model = EncoderDecoderModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model


def check_contract(model, batch, folder, plan=None):
    """Gated equals pruned equals reloaded, and what went is what was counted."""
    before = anatomy_of(model)
    plan = plan or uneven_plan(model)
    with torch.no_grad():
        dense = model(**batch).logits
        with gated(model, before.blocks, as_gates(model, plan.kept)):
            with_gates = model(**batch).logits
        small = hfprune.apply_plan(model, plan)
        pruned = small(**batch).logits
        hfprune.save(small, folder / "small")
        again = hfprune.load(folder / "small")(**batch).logits
    assert (dense - with_gates).abs().max() > 1e-2
    assert (with_gates - pruned).abs().max() <= 1e-5
    assert torch.equal(pruned, again)
    sizes = [measure_size(each, sequence_length=12) for each in (model, small)]
    assert sizes[0].params - sizes[1].params == sizes[0].prunable_params - sizes[1].prunable_params
    return small, sizes


@pytest.mark.parametrize("name", WHOLE)
def test_gated_equals_pruned_equals_reloaded(name, tmp_path):
    model_type, changes, (units, heads) = WHOLE[name]
    model = tiny_model(model_type, head_of(model_type), **changes)
    first = anatomy_of(model).blocks[0]
    assert (first.kind, first.units, first.heads) == ("attention", units, heads)
    assert anatomy_of(model).left_out == ""
    small, sizes = check_contract(model, tiny_batch(model_type), tmp_path)
    if model_type != "deberta-v2":  # whose products with positions are no unit's
        assert sizes[0].macs - sizes[1].macs == sizes[0].prunable_macs - sizes[1].prunable_macs
    for each in (model, small):
        cached = sum(block.units * block.unit_cache_bytes for block in anatomy_of(each).blocks)
        assert cached == kv_cache_bytes(each)


@pytest.mark.parametrize("name", [name for name in WHOLE if "deberta" not in name])
def test_whole_blocks_can_go_and_texts_are_generated(name, tmp_path):
    model_type, changes, (_, heads) = WHOLE[name]
    model = tiny_model(model_type, "AutoModelForCausalLM", **changes)
    small, _ = check_contract(model, tiny_batch(model_type), tmp_path, removed_plan(model))
    gone = [block for block in anatomy_of(small).blocks if block.kind == "attention" and not block.units]
    assert gone
    for block in gone:
        assert block.heads == heads
        assert block.unit_params == anatomy_of(model).blocks[0].unit_params
    ids = tiny_batch(model_type)["input_ids"][:, :4]
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    cached = small.generate(ids, use_cache=True, **options)
    assert torch.equal(cached, small.generate(ids, use_cache=False, **options))


def test_a_head_of_deberta_owns_its_rows_in_the_projections_of_positions():
    shared, own = [anatomy_of(tiny_model("deberta-v2", share_att_key=share)).blocks[0] for share in (True, False)]
    rows = 8 * 32 + 8
    assert own.unit_params - shared.unit_params == 2 * rows
    assert own.unit_macs(12) == shared.unit_macs(12)
    assert own.producers[-2:] == tuple(
        f"encoder.layer.0.attention.self.{name}" for name in ("pos_key_proj", "pos_query_proj")
    )


@pytest.mark.parametrize("model_type", IN_PART)
def test_a_norm_for_every_head_leaves_the_feed_forward(model_type, tmp_path, caplog):
    changes, module = IN_PART[model_type]
    model = tiny_model(model_type, "AutoModelForCausalLM", **changes)
    reason = f"attention of 2 layers is left out: hfprune cannot cut {module}."
    # warnings are logged once in a process
    anatomy._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        found = anatomy_of(model)
        anatomy_of(model)
    assert [block.kind for block in found.blocks] == ["ffn", "ffn"]
    assert found.left_out == reason
    assert caplog.text.count(reason) == 1
    check_contract(model, tiny_batch(model_type), tmp_path)
    batches = [tiny_batch(model_type)]
    config = hfprune.PruningConfig(sparsity=0.5, sequence_length=8, scorer="l2", reconstruct=False)
    assert hfprune.prune(model, batches, config).pruning_plan.sparsity("macs") >= 0.5
    strict = hfprune.PruningConfig(sparsity=0.5, sequence_length=8, scorer="l2", all_blocks=True)
    with pytest.raises(UnsupportedArchitectureError, match=f"(?s)all_blocks=True was asked for.*cannot cut {module}"):
        hfprune.prune(model, batches, strict)
    # nothing is missing without that norm
    hfprune.plan(tiny_model(model_type), hfprune.score(tiny_model(model_type), batches, scorer="l2"), strict)


class TestByTableOrProof:
    def test_olmo3_stands_in_the_table(self, tmp_path):
        model = tiny_model("olmo3", "AutoModelForCausalLM")
        assert support_of(model).by == "table"
        check_contract(model, tiny_batch("olmo3"), tmp_path)

    @pytest.mark.parametrize("shared", [0, 2])
    def test_gemma4_is_pruned_where_its_layers_can_be(self, shared, caplog):
        """Attention is left out where layers take keys and values of earlier ones."""
        layers = {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
        sizes = {**BY_PROOF["gemma4_text"], **layers, "num_kv_shared_layers": shared}
        config = AutoConfig.for_model("gemma4_text", **sizes)
        with caplog.at_level(logging.WARNING):
            found = anatomy_of(AutoModel.from_config(config))
        assert found.support.by == "proof"
        assert {block.kind for block in found.blocks} == ({"ffn"} if shared else {"attention", "ffn"})
        assert "layers: ffn_2 (per_layer_input_gate -> per_layer_projection)" in found.left_out
        assert ("layers: attention" in found.left_out) == bool(shared)
        assert "not proven, so not pruned" in found.support.entry.note
        assert 'register_architecture("gemma4_text"' in caplog.text
        strict = hfprune.PruningConfig(all_blocks=True, sequence_length=8)
        with pytest.raises(UnsupportedArchitectureError, match="all_blocks=True was asked for"):
            hfprune.plan(found, Scores(by_block=found.zeros(), scorer="l2", samples=0), strict)

    def test_jamba_is_pruned_in_the_layers_that_have_the_blocks(self, tmp_path):
        """Of its layers some have attention and others none, some a feed-forward and others experts."""
        torch.manual_seed(0)
        config = AutoConfig.for_model("jamba", **BY_PROOF["jamba"])
        model = AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
        found = anatomy_of(model)
        assert found.support.by == "proof"
        names = [block.name for block in found.blocks]
        assert names == ["layers.0.ffn", "layers.1.attention", "layers.2.ffn", "layers.3.attention", "layers.3.ffn"]
        for part in ("feed_forward.experts.gate_up_proj", "mamba.in_proj"):
            assert part in found.support.entry.note
        small, sizes = check_contract(model, tiny_batch("llama"), tmp_path)
        assert sizes[0].macs - sizes[1].macs == sizes[0].prunable_macs - sizes[1].prunable_macs
        ids = tiny_batch("llama")["input_ids"]
        options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
        with_cache = small.generate(ids, use_cache=True, **options)
        assert torch.equal(with_cache, small.generate(ids, use_cache=False, **options))

    @pytest.mark.parametrize(
        ("projections", "problem"),
        [
            ({"producers": ("mlp.up",), "consumer": "mlp.down"}, ""),
            ({"producers": ("mlp.up",)}, r"layers\.0\.mlp\.up: no such module"),
            ({"consumer": "mlp.down"}, r"layers\.0\.mlp\.down: no such module"),
        ],
    )
    def test_a_layer_may_lack_a_block_but_not_a_part_of_it(self, projections, problem):
        entry = hfprune.structure.known_architectures()["llama"]
        model = tiny_model("llama", "AutoModel")
        optional = changed(entry, ffn={**projections, "sizes": {}, "optional": True})
        if problem:
            with pytest.raises(StructureError, match=problem):
                read_blocks(model, optional)
        else:
            assert [block.kind for block in read_blocks(model, optional)] == ["attention", "attention"]
        with pytest.raises(StructureError, match="no such module"):
            read_blocks(model, changed(entry, ffn={**projections, "sizes": {}}))

    @pytest.mark.parametrize(("decoder", "blocks"), [("bert", 2 * 2 + 2 * 3), ("gpt2", 2 * 2 + 2 * 2)])
    def test_two_models_in_one(self, decoder, blocks, tmp_path):
        model = two_models(decoder)
        found = anatomy_of(model)
        assert found.support.by == "proof"
        assert len(found.blocks) == blocks
        small, sizes = check_contract(model, tiny_batch("bart"), tmp_path)
        assert sizes[0].macs - sizes[1].macs == sizes[0].prunable_macs - sizes[1].prunable_macs
        ids = tiny_batch("bart")["input_ids"]
        assert small.generate(ids, max_new_tokens=4, min_new_tokens=4).shape == (4, 5)
        with pytest.raises(ValueError, match="sequence_length=200 is more than the model's 160 positions"):
            measure_size(model, sequence_length=200)


def test_a_model_without_any_block_is_refused():
    config = tiny_config("cohere", use_qk_norm=True)
    model = AutoModel.from_config(config)
    only_attention = hfprune.structure.known_architectures()["cohere"].stacks["layers"]["attention"]
    entry = hfprune.structure.Architecture(stacks={"layers": {"attention": only_attention}})
    refusal = "CohereModel has no block that hfprune can cut. attention of 2"
    with pytest.raises(UnsupportedArchitectureError, match=refusal):
        read_blocks(model, entry)
