"""Query heads as units of grouped attention: as many of every group, keys and values stay."""

import copy
from dataclasses import replace

import pytest
import torch

import hfprune
from hfprune.errors import PlanMismatchError
from hfprune.measuring.size import count_macs, measure_size
from hfprune.planning import PruningPlan, known_allocators
from hfprune.planning.candidates import candidates_of
from hfprune.publishing.verification import verify
from hfprune.structure import anatomy_of, find_blocks, gated, keep_units, known_architectures
from hfprune.structure.anatomy import dense_units
from hfprune.structure.modeling_pruned import PrunedModel
from hfprune.structure.specs import specs_of
from tests.support.cells import every_type, quick
from tests.support.plans import as_gates, uneven_plan
from tests.support.tiny import DECODERS, tiny_batch, tiny_model
from tests.support.training import arguments, trainer_of
from tests.test_contract import output
from tests.test_planning import block, run

GROUPED = sorted(
    name
    for name, entry in known_architectures().items()
    if any(spec.grouped for layer in entry.stacks.values() for specs in specs_of(layer).values() for spec in specs)
)
QUERY = hfprune.PruningConfig(attention_unit="query", sequence_length=12, reconstruct=False, scorer="l2")


def test_every_type_with_shared_keys_and_values():
    shared = {
        name
        for name in known_architectures()
        if any(b.heads > 1 for b in find_blocks(tiny_model(name, "AutoModel")) if b.kind == "attention")
    }
    assert set(GROUPED) == shared - {"phi3"}  # whose queries, keys and values are one projection
    assert len(GROUPED) == 17


def test_units_and_costs():
    groups, _ = find_blocks(tiny_model("llama"))[:2]
    queries, ffn = find_blocks(tiny_model("llama"), "query")[:2]
    assert (queries.name, queries.kind, ffn.name) == ("layers.0.queries", "attention", "layers.0.ffn")
    assert (queries.units, queries.groups, queries.least, queries.width, queries.heads) == (8, 4, 4, 4, 1)
    assert (queries.producers, queries.producer_rows) == (("layers.0.self_attn.q_proj",), ((4,),))
    assert queries.unit_params == 4 * 32 * 2  # rows of the queries and columns of the consumer, no biases
    assert groups.unit_params == 2 * queries.unit_params + 2 * 4 * 32
    assert queries.unit_pair_macs * 2 == groups.unit_pair_macs
    assert queries.portable_units == (4, 8)


def test_heads_that_share_nothing_stay_as_they_are():
    for model in (tiny_model("bert"), tiny_model("llama", num_key_value_heads=8), tiny_model("gpt2")):
        assert find_blocks(model, "query") == find_blocks(model)


@pytest.mark.contract
@pytest.mark.parametrize(
    ("model_type", "attention"),
    [
        quick(t, attention, is_quick=attention == "sdpa" or t in ("eurobert", "gemma2", "llama"))
        for t in GROUPED
        for attention in ("sdpa", "eager")
    ],
)
def test_gated_equals_pruned_equals_reloaded(model_type, attention, tmp_path):
    head = "AutoModelForCausalLM" if model_type in DECODERS else "AutoModelForMaskedLM"
    model = tiny_model(model_type, head, attn_implementation=attention, num_attention_heads=12, hidden_size=48)
    batch = tiny_batch(model_type)
    plan = uneven_plan(model, attention_unit="query")
    dense = output(model, batch)
    with gated(model, find_blocks(model, "query"), as_gates(model, plan.kept)):
        with_gates = output(model, batch)
    pruned = hfprune.apply_plan(model, plan)
    hfprune.save(pruned, tmp_path / "small")
    assert verify(tmp_path / "small") == []
    again = hfprune.load(tmp_path / "small", attn_implementation=model.config._attn_implementation)
    assert (dense - with_gates).abs().max() > 1e-2, "the plan changes nothing, so the test would prove nothing"
    assert (with_gates - output(pruned, batch)).abs().max() <= 1e-5
    assert torch.equal(output(pruned, batch), output(again, batch))
    units = {b.name: b.units for b in find_blocks(again)}
    assert units == {name: len(kept) for name, kept in plan.kept.items()}
    ratios = [layer.self_attn.num_key_value_groups for layer in again.base_model.layers]
    assert ratios == [2, 1]  # of 3
    if model_type in DECODERS:
        options = {**tiny_batch(model_type, length=5), "max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
        expected = pruned.generate(**options, use_cache=False)
        assert torch.equal(expected, again.generate(**options, use_cache=False))
        for cache in ({}, {"cache_implementation": "static"}):
            assert torch.equal(expected, pruned.generate(**options, **cache))
            assert torch.equal(expected, again.generate(**options, **cache))


@pytest.mark.parametrize("model_type", every_type(GROUPED))
def test_scored_planned_pruned_and_repaired(model_type):
    head = "AutoModelForCausalLM" if model_type in DECODERS else "AutoModelForMaskedLM"
    model = tiny_model(model_type, head)
    batches = [tiny_batch(model_type, samples=8, length=12, seed=seed) for seed in range(3)]
    config = replace(QUERY, scorer="residual_logit_fisher", sparsity=0.4, schedule="one_shot", allocation="uniform")
    small = hfprune.prune(model, batches, config)
    assert small.pruning_plan.sparsity("macs") >= 0.4
    assert any(name.endswith("queries") and kept < units for name, (kept, units) in small.pruning_plan.counts.items())
    before, after = (measure_size(m, sequence_length=12, attention_unit="query") for m in (model, small))
    counted = count_macs(model, sequence_length=12) - count_macs(small, sequence_length=12)
    assert before.prunable_macs - after.prunable_macs == counted
    assert before.prunable_params - after.prunable_params == before.params - after.params
    assert small.pruning_record.sizes["dense"] == vars(before)
    repairs = hfprune.reconstruct(small, model, batches)
    assert [repair.block for repair in repairs] == [b.name for b in find_blocks(small)]
    assert all(repair.error_after <= repair.error_before * (1 + 1e-5) for repair in repairs)
    assert any(repair.error_after < 0.9 * repair.error_before for repair in repairs)


class TestPlanning:
    def test_the_best_of_every_group_come_first(self):
        # two groups of three; ties by lower index
        groups = [replace(block("q", "attention", 6, least=2), groups=2)]
        scores = {"q": torch.tensor([1.0, 7.0, 7.0, 2.0, 0.0, 3.0])}
        (found,) = candidates_of(groups, scores, budget="params", sequence_length=1)
        assert found.order == (1, 5, 2, 3, 0, 4)
        assert found.levels == (2, 4, 6)
        assert [(step.cost, step.value) for step in found.steps()] == [(2, 9.0), (2, 1.0)]
        assert [found.keep(level) for level in found.levels] == [(1, 5), (1, 2, 3, 5), (0, 1, 2, 3, 4, 5)]

    @pytest.mark.parametrize(
        ("options", "levels"),
        [
            ({"min_units": 0}, (2, 4, 6)),
            ({"min_units": 3}, (4, 6)),
            ({"at_most": {"q": 5}}, (2, 4)),
            ({"at_most": {"q": 1}}, (2,)),
            ({"round_to": 4}, (2, 4, 6)),
            ({"exclude": ["q"]}, (6,)),
        ],
    )
    def test_levels_are_multiples_of_the_groups(self, options, levels):
        groups = [replace(block("q", "attention", 6, least=2), groups=2)]
        (found,) = candidates_of(groups, {"q": torch.ones(6)}, budget="params", sequence_length=1, **options)
        assert found.levels == levels

    @pytest.mark.parametrize("allocation", sorted(known_allocators()))
    @pytest.mark.parametrize("limit", [5, 7, 9, 12])
    def test_every_allocator_keeps_as_many_of_every_group(self, allocation, limit):
        blocks = [replace(block("q", "attention", 6, least=2), groups=2), block("f", "ffn", 6)]
        values = {"q": [5.0, 1.0, 1.0, 1.0, 4.0, 1.0], "f": [2.0] * 6}
        plan = run(blocks, values, limit, allocation=allocation)
        kept = plan["q"]
        assert sum(unit < 3 for unit in kept) * 2 == len(kept)
        assert sum(map(len, plan.values())) <= limit
        if allocation in ("global", "knapsack", "threshold") and limit == 7:
            assert kept == [0, 4]  # the pair is worth 9, the next pairs 2: less than a neuron each
            assert len(plan["f"]) == 5


class TestOneKindOfUnit:
    @pytest.fixture(scope="class")
    @staticmethod
    def models():
        dense = tiny_model("llama", "AutoModelForCausalLM")
        by_group, by_query = (uneven_plan(dense, attention_unit=unit) for unit in ("group", "query"))
        return dense, hfprune.apply_plan(dense, by_group), hfprune.apply_plan(dense, by_query)

    def test_a_plan_of_the_other_kind_is_refused(self, models):
        _, by_group, by_query = models
        for model, other in ((by_group, by_query), (by_query, by_group)):
            a, b = model.pruning_plan, other.pruning_plan
            message = (
                r"the plan has attention_unit='(group|query)', but .* attention_unit='(group|query)'.*never by both"
            )
            with pytest.raises(PlanMismatchError, match=message):
                hfprune.apply_plan(model, b)
            with pytest.raises(PlanMismatchError, match=message):
                a.then(b)
            with pytest.raises(PlanMismatchError, match=message):
                hfprune.prune(model, [tiny_batch("llama")], replace(QUERY, attention_unit=_of(other), sparsity=0.6))
            with pytest.raises(PlanMismatchError, match=message):
                dense_units(model, _of(other))

    def test_scores_of_the_other_kind_are_refused(self, models):
        scores = hfprune.score(models[0], [tiny_batch("llama")], scorer="l2")
        with pytest.raises(ValueError, match=r"'layers.0.queries' should be \(8,\), found none.*same attention_unit"):
            hfprune.plan(models[0], scores, QUERY)

    def test_a_pruned_model_knows_its_units(self, models):
        small, batches = models[2], [tiny_batch("llama", samples=8, length=12)]
        assert [b.name for b in find_blocks(small)][::2] == ["layers.0.queries", "layers.1.queries"]
        assert list(hfprune.score(small, batches, scorer="l2"))[::2] == ["layers.0.queries", "layers.1.queries"]
        again = hfprune.prune(small, batches, replace(QUERY, sparsity=0.7, schedule="one_shot"))
        for name, plan in again.pruning_plan.blocks.items():
            first = small.pruning_plan.blocks[name]
            assert plan.units == first.units
            assert set(plan.kept) <= set(first.kept)

    def test_unequal_groups_are_refused(self, models):
        message = r"layers.0.queries must keep as many query heads of every one of its 4 groups, got \[2, 2, 2, 1\]"
        with pytest.raises(ValueError, match=message):
            keep_units(models[0], {"layers.0.queries": range(7)}, blocks=find_blocks(models[0], "query"))

    def test_setting(self):
        with pytest.raises(ValueError, match="attention_unit must be 'group' or 'query', got 'head'"):
            hfprune.PruningConfig(attention_unit="head")


def _of(model):
    return "query" if "layers.0.queries" in model.pruning_plan.blocks else "group"


@pytest.mark.parametrize("model_type", ["llama", "qwen3"])
def test_stock_config_says_it_where_all_layers_are_alike(model_type, tmp_path):
    """Down to one query head for each key/value head, where nothing but the plan tells that heads were shared."""
    model = tiny_model(model_type, "AutoModelForCausalLM")
    blocks = find_blocks(model, "query")
    kept = {b.name: range(0, 8, 2) for b in blocks if b.groups > 1}
    small = hfprune.apply_plan(model, PruningPlan.keep(blocks, kept, model_type=model_type, sequence_length=8))
    assert not isinstance(small, PrunedModel)
    assert (small.config.num_attention_heads, small.config.num_key_value_heads, small.config.head_dim) == (4, 4, 4)
    hfprune.save(small, tmp_path / "small")
    assert verify(tmp_path / "small") == []
    again = hfprune.load(tmp_path / "small")
    assert [(b.name, b.units) for b in find_blocks(again)] == [(b.name, b.units) for b in find_blocks(small)]
    plain = type(model).from_pretrained(tmp_path / "small")
    with gated(model, blocks, as_gates(model, small.pruning_plan.kept)):
        with_gates = output(model, tiny_batch(model_type))
    for found in (small, again, plain):
        assert (with_gates - output(found, tiny_batch(model_type))).abs().max() <= 1e-5


def test_bfloat16(tmp_path):
    model = tiny_model("llama", "AutoModelForCausalLM").to(torch.bfloat16)
    pruned = hfprune.apply_plan(model, uneven_plan(model, attention_unit="query"))
    hfprune.save(pruned, tmp_path / "small")
    again = hfprune.load(tmp_path / "small", dtype="auto")
    assert again.dtype == torch.bfloat16
    assert torch.equal(output(pruned, tiny_batch("llama")), output(again, tiny_batch("llama")))


@pytest.mark.parametrize("scorer", ["obs", "taylor", "hybrid(l2, apoz, rank)"])
def test_rounds_block_by_block_and_a_record(scorer, tmp_path):
    model, batches = tiny_model("llama", "AutoModelForCausalLM"), [tiny_batch("llama", samples=8, length=12)]
    batches[0]["labels"] = batches[0]["input_ids"]
    config = replace(QUERY, scorer=scorer, allocation="layerwise", sparsity=0.4, schedule="linear", rounds=2)
    small = hfprune.prune(model, batches, config)
    hfprune.save(small, tmp_path / "small")
    assert verify(tmp_path / "small") == []
    assert hfprune.load(tmp_path / "small").pruning_record.config["attention_unit"] == "query"
    assert small.pruning_plan.sparsity("macs") >= 0.4


def test_gradual_pruning(tmp_path):
    """What the gates keep when training ends is as many of every group, and is cut."""
    model = tiny_model("llama", "AutoModelForSequenceClassification", num_labels=3)
    config = hfprune.PruningConfig(sparsity=0.4, attention_unit="query", allocation="uniform", sequence_length=16)
    trainer = trainer_of(
        model, copy.deepcopy(model), arguments(tmp_path), callbacks=[hfprune.GradualPruning(config, every=1)]
    )
    trainer.train()
    plan = trainer.model.pruning_plan
    assert plan.sparsity("macs") >= 0.4
    assert plan.counts["layers.0.queries"] == (4, 8)


def test_portable_plans():
    model, batches = tiny_model("llama", "AutoModelForCausalLM"), [tiny_batch("llama", samples=8, length=12)]
    small = hfprune.prune(model, batches, replace(QUERY, portable=True, sparsity=0.5, schedule="one_shot"))
    assert not isinstance(small, PrunedModel)
    assert {len(kept) for name, kept in small.pruning_plan.kept.items() if name.endswith("queries")} <= {(4), (8)}


@pytest.mark.parametrize(
    ("model_type", "changes", "module"),
    [
        ("cohere", {"use_qk_norm": True}, "layers.0.self_attn.q_norm"),
        ("stablelm", {"qk_layernorm": True}, "layers.0.self_attn.q_layernorm"),
    ],
)
def test_attention_with_norms_for_every_head_is_left_out(model_type, changes, module):
    found = anatomy_of(tiny_model(model_type, **changes))
    assert {block.kind for block in found.blocks} == {"ffn"}
    assert f"hfprune cannot cut {module.removeprefix('layers.0.')}" in found.left_out


def test_each_layer_of_phi3_has_its_own_heads_and_the_config_of_all():
    model = tiny_model("phi3", "AutoModelForCausalLM")
    small = hfprune.apply_plan(model, uneven_plan(model))
    small.set_attn_implementation("eager")
    views = [layer.self_attn.config for layer in small.model.layers]
    assert [view.num_attention_heads for view in views] == [6, 4]
    assert {view._attn_implementation for view in views} == {"eager"}
    assert small.config.num_attention_heads == 8
