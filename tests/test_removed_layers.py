"""Decoders without the attention of some layers, or without whole layers: the same texts with every cache."""

import warnings

import pytest
import torch
from transformers import DynamicCache, StaticCache

import hfprune
from hfprune.measuring.size import count_macs, measure_size
from hfprune.planning import PruningPlan
from hfprune.publishing.verification import verify
from hfprune.structure import find_blocks, gated
from tests.support.cells import ALIKE, quick
from tests.support.plans import as_gates
from tests.support.tiny import DECODERS, FFN_ONLY, KEEPS_ATTENTION, tiny_batch, tiny_model
from tests.test_contract import output

pytestmark = pytest.mark.contract
CAN = sorted(set(DECODERS) - {*KEEPS_ATTENTION, *FFN_ONLY})
#: Layers whose attention goes, and layers that go whole.
CASES = {"first": ((0,), ()), "last": ((1,), (1,)), "all attention": ((0, 1), ()), "first layer": ((0,), (0,))}


def without(model, attentions, ffns=()):
    """The plan that removes the attention and the feed-forward block of some layers, where they can go."""
    blocks = find_blocks(model)
    by_kind = {kind: [b.name for b in blocks if b.kind == kind] for kind in ("attention", "ffn")}
    gone = [by_kind["attention"][i] for i in attentions] + [by_kind["ffn"][i] for i in ffns if by_kind["ffn"]]
    return PruningPlan.keep(blocks, dict.fromkeys(gone, ()), model_type=model.config.model_type, sequence_length=8)


def cases():
    """Every type without its first layer, and three without other parts."""
    found = []
    for t in CAN:
        for case in CASES:
            if case == "first layer" or t in ("llama", "gemma2", "gpt_neox"):
                found.append(quick(t, case, is_quick=t not in ALIKE))
    return found


OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def greedy_texts(model, model_type, length=5):
    """What a model writes with every kind of cache; static ones do not fit Falcon's position biases."""
    batch = tiny_batch(model_type, length=length)
    found = {
        "none": model.generate(**batch, **OPTIONS, use_cache=False),
        "dynamic": model.generate(**batch, **OPTIONS),
    }
    if model_type != "falcon":
        found["static"] = model.generate(**batch, **OPTIONS, cache_implementation="static")
    return found


def texts(model, model_type, length=5):
    """What a model writes, by the way it is asked."""
    batch = tiny_batch(model_type, length=length)
    one = {name: value[:1] for name, value in batch.items()}
    return {
        **greedy_texts(model, model_type, length),
        "beams without": model.generate(**batch, **OPTIONS, num_beams=2, use_cache=False),
        "beams": model.generate(**batch, **OPTIONS, num_beams=2),
        "assisted": model.generate(**one, **OPTIONS, prompt_lookup_num_tokens=3),
    }


def check_texts(found):
    for name in {"dynamic", "static"} & set(found):
        assert torch.equal(found[name], found["none"]), name
    assert torch.equal(found["beams"], found["beams without"])
    assert torch.equal(found["assisted"], found["none"][:1])


@pytest.mark.parametrize(("model_type", "case"), cases())
def test_gated_equals_pruned_equals_reloaded_and_writes_the_same(model_type, case, tmp_path):
    model = tiny_model(model_type, "AutoModelForCausalLM")
    batch, plan = tiny_batch(model_type), without(model, *CASES[case])
    with gated(model, find_blocks(model), as_gates(model, plan.kept)):
        with_gates = output(model, batch)
    pruned = hfprune.apply_plan(model, plan)
    hfprune.save(pruned, tmp_path / "small")
    assert verify(tmp_path / "small") == []
    again = hfprune.load(tmp_path / "small", attn_implementation=model.config._attn_implementation)
    assert (with_gates - output(model, batch)).abs().max() > 1e-2
    assert (with_gates - output(pruned, batch)).abs().max() <= 1e-5
    assert torch.equal(output(pruned, batch), output(again, batch))
    found = texts(pruned, model_type)
    check_texts(found)
    for name, tokens in greedy_texts(again, model_type).items():
        assert torch.equal(tokens, found[name]), name
    gone = {m: measure_size(m, sequence_length=8).prunable_macs for m in (model, pruned)}
    counted = count_macs(model, sequence_length=8) - count_macs(pruned, sequence_length=8)
    assert gone[model] - gone[pruned] == counted


@pytest.mark.parametrize("attentions", [(0, 2), (1, 3)])
@pytest.mark.parametrize("model_type", ["mistral", "qwen2", "gemma2", "gemma3_text"])
def test_texts_longer_than_the_window(model_type, attentions):
    """Sliding layers, all or every other one, count and cut what they have seen by themselves."""
    mixed = ["sliding_attention", "full_attention"] * 2
    sizes = {} if model_type == "mistral" else {"layer_types": mixed}
    if model_type == "qwen2":
        sizes |= {"use_sliding_window": True}
    model = tiny_model(model_type, "AutoModelForCausalLM", num_hidden_layers=4, sliding_window=4, **sizes)
    pruned = hfprune.apply_plan(model, without(model, attentions))
    assert any(DynamicCache(config=pruned.config).is_sliding)
    check_texts(texts(pruned, model_type, length=9))


def test_as_the_draft_of_its_dense_model():
    dense = tiny_model("llama", "AutoModelForCausalLM")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    batch = {name: value[:1] for name, value in tiny_batch("llama", length=5).items()}
    alone = dense.generate(**batch, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, about the options it hands to the draft
        drafted = dense.generate(
            **batch, **options, assistant_model=hfprune.apply_plan(dense, without(dense, (0,), (0,)))
        )
    assert torch.equal(drafted, alone)


def test_left_padding():
    model = tiny_model("llama", "AutoModelForCausalLM")
    pruned = hfprune.apply_plan(model, without(model, (0,)))
    batch = tiny_batch("llama", length=6)
    batch["attention_mask"][0, :3] = 0
    options = {**batch, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    expected = pruned.generate(**options, use_cache=False)
    assert torch.equal(pruned.generate(**options), expected)
    assert torch.equal(pruned.generate(**options, cache_implementation="static"), expected)


def test_a_removed_attention_leaves_a_key_and_a_value_of_one_number_a_token_in_the_cache():
    model = tiny_model("llama", "AutoModelForCausalLM")
    pruned = hfprune.apply_plan(model, without(model, (0,)))
    ids = tiny_batch("llama")["input_ids"]
    dynamic, static = DynamicCache(config=pruned.config), StaticCache(config=pruned.config, max_cache_len=10)
    for cache, length in ((dynamic, 7), (static, 10)):
        pruned(ids, past_key_values=cache)
        assert int(cache.get_seq_length()) == 7
        shapes = [(tuple(layer.keys.shape), tuple(layer.values.shape)) for layer in cache.layers]
        assert shapes == [((4, 1, length, 1), (4, 1, length, 1)), ((4, 4, length, 4), (4, 4, length, 4))]


def test_pruning_to_almost_nothing_and_repair():
    model = tiny_model("llama", "AutoModelForCausalLM", num_hidden_layers=3)
    data = [tiny_batch("llama", samples=8, length=12, seed=i) for i in range(3)]
    config = hfprune.PruningConfig(sparsity=0.9, min_units=0, sequence_length=12)
    small = hfprune.prune(model, data, config)
    counts = small.pruning_plan.counts
    assert any(kept == 0 for name, (kept, _) in counts.items() if name.endswith("attention"))
    assert small.pruning_plan.sparsity("macs") >= 0.9
    assert not [name for name, p in small.named_parameters() if p.requires_grad and not p.numel()]
    assert torch.isfinite(output(small, data[0])).all()


def test_query_heads_never_leave_a_group_empty():
    model = tiny_model("llama", "AutoModelForCausalLM")
    data = [tiny_batch("llama", samples=8, length=12)]
    config = hfprune.PruningConfig(
        sparsity=0.75, min_units=0, attention_unit="query", scorer="l2", schedule="one_shot", sequence_length=12
    )
    counts = hfprune.prune(model, data, config).pruning_plan.counts
    assert all(kept >= 4 for name, (kept, _) in counts.items() if name.endswith("queries"))
