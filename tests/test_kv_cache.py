"""The key/value cache: what a unit keeps in it, a budget of it, and the cache of a real model."""

import dataclasses
from collections import defaultdict

import pytest
import torch

import hfprune
from hfprune import PruningConfig, PruningPlan, apply_plan, plan, prune, trade_off
from hfprune.errors import BudgetError
from hfprune.measuring.size import kv_cache_bytes
from hfprune.planning import known_allocators
from hfprune.pruning.steps import no_scores
from hfprune.scoring import Scores
from hfprune.structure.anatomy import find_blocks
from tests.support.tiny import DECODERS, ENCODER_DECODERS, FFN_ONLY, SIZES, tiny_batch, tiny_model


def model_of(kind="llama", **changes):
    return tiny_model(kind, "AutoModelForCausalLM", **changes)


def random_scores(model):
    generator = torch.Generator().manual_seed(0)
    values = {block.name: torch.rand(block.units, generator=generator) for block in find_blocks(model)}
    return Scores(by_block=values, scorer="t", samples=1)


@pytest.mark.parametrize("kind", sorted({*DECODERS, *ENCODER_DECODERS} - set(FFN_ONLY)))
def test_a_real_cache_is_smaller_by_what_the_plan_says(kind):
    model = tiny_model(kind, "AutoModel")
    blocks = {block.name: block for block in find_blocks(model)}
    dense = kv_cache_bytes(model)
    assert dense == sum(block.units * block.unit_cache_bytes for block in blocks.values()) > 0
    keep = defaultdict(dict)
    for name, block in blocks.items():
        if block.kind == "attention":
            keep[name] = tuple(range(0, block.units, 2))
    chosen = PruningPlan.keep(list(blocks.values()), keep, model_type=kind, sequence_length=8)
    after, before = chosen.cost("kv_cache")
    assert before == dense
    assert kv_cache_bytes(apply_plan(model, chosen)) == after < before


def test_the_cache_of_a_long_text_by_hand():
    config = PruningConfig(sparsity=0.5, budget="kv_cache", scorer="l2", schedule="one_shot", reconstruct=False)
    dense = model_of(dtype=torch.float32)
    small = prune(dense, [tiny_batch("llama")], dataclasses.replace(config, calibration_samples=4))
    ids = torch.arange(4, 24).repeat(3, 1)
    sizes = []
    for model in (dense, small):
        with torch.no_grad():
            cache = model(ids, use_cache=True).past_key_values
        sizes.append(sum(t.numel() * 4 for layer in cache.layers for t in (layer.keys, layer.values)))
    after, before = small.pruning_plan.cost("kv_cache")
    assert sizes == [60 * before, 60 * after]
    assert before == 2 * 4 * 2 * 4 * 4  # layers, groups, key and value, features, bytes
    assert after <= before / 2
    assert all(len(b.kept) == b.units for b in small.pruning_plan.blocks.values() if b.kind == "ffn")
    assert "50.0% of its key/value cache" in str(small.pruning_plan)
    assert PruningPlan.from_json(small.pruning_plan.to_json()) == small.pruning_plan
    half = model_of().bfloat16()
    assert kv_cache_bytes(half) == before / 2 == plan(half, no_scores(half, config), config).cost("kv_cache")[1]


def test_the_record_says_the_budget(tmp_path):
    config = PruningConfig(
        sparsity=0.4, budget="kv_cache", scorer="l2", calibration_samples=4, schedule="one_shot", sequence_length=8
    )
    small = prune(model_of(), [tiny_batch("llama")], config)
    hfprune.save(small, tmp_path / "small")
    again = hfprune.load(tmp_path / "small")
    assert again.pruning_record.config["budget"] == "kv_cache"
    assert again.pruning_plan.sparsity("kv_cache") >= 0.4


@pytest.mark.parametrize("allocation", sorted(known_allocators()))
def test_neurons_are_not_removed_for_nothing(allocation):
    """Also not where they score nothing."""
    model = model_of("qwen3")
    scores = random_scores(model)
    zeros = {n: torch.zeros_like(v) if n.endswith("ffn") else v for n, v in scores.items()}
    config = PruningConfig(sparsity=0.5, budget="kv_cache", allocation=allocation, round_to=8)
    for values in (scores, Scores(by_block=zeros, scorer="t", samples=1)):
        chosen = plan(model, values, config)
        assert chosen.sparsity("kv_cache") >= 0.5
        assert all(len(b.kept) == b.units for b in chosen.blocks.values() if b.kind == "ffn")


def test_portable_lists_and_patterns():
    model = model_of("qwen3")
    scores, config = random_scores(model), PruningConfig(budget="kv_cache", portable=True)
    counts = {kept for name, (kept, _) in plan(model, scores, config).counts.items() if name.endswith("attention")}
    assert counts == {2}
    config = PruningConfig(budget="kv_cache")
    first, second = plan(model, scores, config, sparsity=[0.25, 0.5])
    assert second.cost("kv_cache")[0] < first.cost("kv_cache")[0]
    by_pattern = plan(model, scores, config, sparsity={"*.ffn": 0.5, "*.0.attention": 0.25})
    assert [kept for kept, _ in by_pattern.counts.values()] == [3, 20, 4, 20]
    curve = trade_off(model, scores, config)
    assert [point.sparsity for point in curve] == sorted(point.sparsity for point in curve)
    assert curve[0].sparsity == 0


@pytest.mark.parametrize("kind", sorted(set(SIZES) - {*DECODERS, *ENCODER_DECODERS}))
def test_encoders_have_none(kind):
    model = tiny_model(kind, "AutoModel")
    assert not any(block.unit_cache_bytes for block in find_blocks(model))
    assert kv_cache_bytes(model) == 0


def test_encoders_as_decoders_have_one():
    model = tiny_model("bert", "AutoModelForCausalLM", is_decoder=True)
    assert kv_cache_bytes(model) == sum(b.units * b.unit_cache_bytes for b in find_blocks(model)) == 2 * 2 * 32 * 4


def test_a_budget_of_nothing_is_refused():
    for model in (tiny_model("bert"), model_of("olmo2")):
        with pytest.raises(BudgetError, match="has no prunable kv_cache: .* Choose budget='macs' or 'params'"):
            plan(model, random_scores(model), PruningConfig(budget="kv_cache"))
    assert kv_cache_bytes(model) > 0  # it has a cache, of heads that stay
