"""Parameters with one number for every query head, as the attention sinks of GPT-OSS: each goes with its head."""

import json

import pytest
import torch
from torch import nn

import hfprune
from hfprune.errors import CheckpointError, StructureError
from hfprune.planning import PruningPlan
from hfprune.structure import find_blocks, gated, known_architectures, proven_entry, support_of
from hfprune.structure.reading import read_blocks
from hfprune.structure.specs import changed
from hfprune.structure.stock import stock_config
from tests.support.by_proof import untabled_model
from tests.support.plans import as_gates, uneven_plan
from tests.support.tiny import tiny_batch, tiny_model

CAUSAL = "AutoModelForCausalLM"


def sinks_of(model):
    return [layer.self_attn.sinks for layer in model.base_model.layers]


def owned(block):
    """What the units of a block own, by path."""
    return {piece.path: (piece.dimension, piece.rows, piece.role) for piece in block.slices}


@pytest.mark.parametrize(("unit", "heads"), [("group", 2), ("query", 1)])
def test_a_sink_goes_with_its_head(unit, heads, tmp_path):
    model = tiny_model("gpt_oss", CAUSAL)
    plan = uneven_plan(model, attention_unit=unit)
    small = hfprune.apply_plan(model, plan)
    hfprune.save(small, tmp_path / "small")
    again = hfprune.load(tmp_path / "small")
    for block, dense, pruned, loaded in zip(
        find_blocks(model, unit), sinks_of(model), sinks_of(small), sinks_of(again), strict=True
    ):
        assert owned(block)[f"{block.layer}.self_attn.sinks"] == (0, (heads,), "other")
        stay = [heads * kept + head for kept in plan.kept[block.name] for head in range(heads)]
        assert 0 < len(stay) < 8
        assert torch.equal(pruned, dense[stay])
        assert torch.equal(loaded, pruned)


def test_heads_that_stay_with_the_sinks_of_others_give_other_outputs():
    """The contract tests would pass on sinks that are all alike."""
    model = tiny_model("gpt_oss", CAUSAL)
    plan = uneven_plan(model)
    small = hfprune.apply_plan(model, plan)
    batch = tiny_batch("gpt_oss")
    with torch.no_grad(), gated(model, find_blocks(model), as_gates(model, plan.kept)):
        expected = model(**batch).logits
    with torch.no_grad():
        assert (small(**batch).logits - expected).abs().max() <= 1e-5
        for sinks in sinks_of(small):
            sinks.copy_(sinks.flip(0))
        assert (small(**batch).logits - expected).abs().max() > 1e-2


def test_what_one_head_owns_is_what_goes():
    model = tiny_model("gpt_oss", CAUSAL)
    for unit in ("group", "query"):
        plan = uneven_plan(model, attention_unit=unit)
        gone = 0
        for block in find_blocks(model, unit):
            gone += (block.units - len(plan.kept[block.name])) * block.unit_params
        small = hfprune.apply_plan(model, plan)
        assert model.num_parameters() - small.num_parameters() == gone


def test_layers_of_one_width_are_said_by_the_stock_config():
    model = tiny_model("gpt_oss", CAUSAL)
    blocks = find_blocks(model)
    plan = PruningPlan.keep(blocks, {block.name: [0, 2] for block in blocks}, model_type="gpt_oss", sequence_length=8)
    small = hfprune.apply_plan(model, plan)
    assert type(small) is type(model)
    assert stock_config(model.config, blocks, [2, 2]).num_attention_heads == 4
    for dense, pruned in zip(sinks_of(model), sinks_of(small), strict=True):
        assert torch.equal(pruned, dense[[0, 1, 4, 5]])


def test_a_block_that_is_removed_whole_leaves_no_parameter_without_numbers(tmp_path):
    model = tiny_model("gpt_oss", CAUSAL)
    name = "layers.1.attention"
    blocks = find_blocks(model)
    plan = PruningPlan.keep(blocks, {name: []}, model_type="gpt_oss", sequence_length=8)
    small = hfprune.apply_plan(model, plan)
    hfprune.save(small, tmp_path / "small")
    again = hfprune.load(tmp_path / "small")
    batch = tiny_batch("gpt_oss")
    with torch.no_grad():
        with gated(model, blocks, {name: torch.zeros(4)}):
            expected = model(**batch).logits
        assert (small(**batch).logits - expected).abs().max() <= 1e-5
        assert torch.equal(again(**batch).logits, small(**batch).logits)
    assert sinks_of(again)[1] is None
    removed = find_blocks(again)[1]
    assert (removed.units, removed.unit_params) == (0, blocks[1].unit_params)
    # a removed block can be pruned, saved and read once more
    plan = PruningPlan.keep(find_blocks(again), {"layers.0.attention": [1]}, model_type="gpt_oss", sequence_length=8)
    assert torch.equal(sinks_of(hfprune.apply_plan(again, plan))[0], sinks_of(model)[0][2:4])


@pytest.mark.parametrize("scorer", ["l2", "weight_sensitivity", "movement"])
def test_scorers_of_weights_read_them(scorer):
    model = tiny_model("gpt_oss", CAUSAL)
    batch = tiny_batch("gpt_oss")
    batch["labels"] = batch["input_ids"]
    before = hfprune.score(model, [batch], scorer=scorer)
    with torch.no_grad():
        sinks_of(model)[0][5] += 3
    after = hfprune.score(model, [batch], scorer=scorer)
    name = "layers.0.attention"
    # head 5 is of the group 2
    assert before.by_block[name][2] != after.by_block[name][2]
    assert not any(parameter.grad is not None for parameter in model.parameters())


class TestReading:
    @pytest.mark.parametrize(("shape", "dimension"), [((8,), 0), ((8, 1, 1), 0), ((1, 8, 1, 1), 1)])
    def test_the_heads_may_lie_along_any_dimension(self, shape, dimension):
        model = tiny_model("gpt_oss", "AutoModel")
        for layer in model.layers:
            layer.self_attn.sinks = nn.Parameter(layer.self_attn.sinks.detach().reshape(shape))
        block = find_blocks(model)[0]
        assert owned(block)["layers.0.self_attn.sinks"] == (dimension, (2,), "other")

    @pytest.mark.parametrize("shape", [(7,), (8, 2), (2, 4)])
    def test_other_numbers_are_a_problem(self, shape):
        model = tiny_model("gpt_oss", "AutoModel")
        model.layers[1].self_attn.sinks = nn.Parameter(torch.zeros(shape))
        with pytest.raises(
            StructureError, match=r"layers\.1\.self_attn\.sinks is \(.*expected one number for each of 8"
        ):
            find_blocks(model)

    def test_a_parameter_that_is_not_there_is_a_problem(self):
        entry = changed(known_architectures()["gpt_oss"], attention={"head_parameters": ("self_attn.biases",)})
        with pytest.raises(StructureError, match=r"layers\.0\.self_attn\.biases: no such parameter"):
            read_blocks(tiny_model("gpt_oss", "AutoModel"), entry)


class TestByProof:
    def test_what_is_proven_is_what_the_table_says(self):
        model = tiny_model("gpt_oss", "AutoModel")
        entry = proven_entry(model, "gpt_oss")
        assert "mlp.experts.gate_up_proj" in entry.note
        for by_proof, by_table in zip(read_blocks(model, entry), find_blocks(model), strict=True):
            assert owned(by_proof) == owned(by_table)
            assert by_proof.unit_params == by_table.unit_params

    def test_a_parameter_that_has_as_many_numbers_by_chance_is_left_alone(self):
        """The norms of Qwen3's heads have as many numbers as a head is wide: here, as there are heads."""
        model = tiny_model("qwen3", "AutoModel", head_dim=8)
        entry = proven_entry(model, "qwen3")
        for block in read_blocks(model, entry):
            assert not any("norm" in path for path in owned(block))

    @pytest.mark.parametrize("model_type", ["granitemoe", "phimoe"])
    def test_experts_that_are_not_pruned_are_named(self, model_type):
        model = untabled_model(model_type)
        assert "experts.gate_up_proj" in support_of(model).entry.note


class TestTables:
    def change(self, folder, parameters):
        path = folder / "config.json"
        config = json.loads(path.read_text())
        config["pruning_config"]["parameters"] = parameters
        path.write_text(json.dumps(config))

    def test_another_parameter_than_that_of_the_entry_is_refused(self, tmp_path):
        model = tiny_model("gpt_oss", CAUSAL)
        hfprune.save(hfprune.apply_plan(model, uneven_plan(model)), tmp_path / "small")
        sizes = json.loads((tmp_path / "small" / "config.json").read_text())["pruning_config"]["parameters"]
        assert sizes == {"layers.0.self_attn.sinks": [6], "layers.1.self_attn.sinks": [4]}
        self.change(tmp_path / "small", {**sizes, "norm.weight": [32]})
        with pytest.raises(CheckpointError, match=r"pruning_config changes 'norm\.weight' \(parameters\)"):
            hfprune.load(tmp_path / "small")

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ([9], "pruning only makes them smaller"),
            ([-1], "pruning only makes them smaller"),
            ([2.0], "sizes are whole numbers"),
            ([3, 1], "of 1 dimensions"),
            (6, "of 1 dimensions"),
        ],
    )
    def test_shapes_that_no_pruning_gives_are_refused(self, shape, message, tmp_path):
        model = tiny_model("gpt_oss", CAUSAL)
        hfprune.save(hfprune.apply_plan(model, uneven_plan(model)), tmp_path / "small")
        self.change(tmp_path / "small", {"layers.0.self_attn.sinks": shape})
        with pytest.raises(CheckpointError, match=message):
            hfprune.load(tmp_path / "small")

    def test_types_without_such_parameters_have_the_table_of_earlier_versions(self):
        model = tiny_model("llama", CAUSAL)
        small = hfprune.apply_plan(model, uneven_plan(model))
        assert "parameters" not in small.config.pruning_config
