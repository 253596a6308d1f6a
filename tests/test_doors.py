"""Every registry is an open door: one registration, and the entry works wherever its like does."""

import json

import pytest
import torch

import hfprune
from hfprune import PruningConfig
from hfprune.planning import known_budgets, register_allocator, register_budget
from hfprune.planning.allocation import get_allocator
from hfprune.pruning.steps import sparsity_of
from hfprune.scoring import known_statistics, register_scorer, register_statistic, registry
from hfprune.structure import Architecture, architectures, find_blocks, known_architectures, register_architecture
from tests.support.registries import restored
from tests.support.tiny import tiny_batch, tiny_model

BATCHES = [tiny_batch(seed=seed) for seed in range(2)]


@pytest.fixture(autouse=True)
def _as_before():
    """What a test registers is gone afterwards."""
    with restored():
        yield


def test_a_statistic_and_a_scorer_of_it():
    @register_statistic("positions")
    def read_positions(run):
        for block in run.blocks:
            yield block.name, torch.arange(block.units)

    @register_scorer("last_first", reads="positions")
    def last_first(statistic):
        return statistic

    assert known_statistics()["positions"].needs == frozenset()
    model = tiny_model("bert")
    small = hfprune.prune(
        model, BATCHES, PruningConfig(scorer="last_first", allocation="uniform", schedule="one_shot", sequence_length=8)
    )
    assert small.pruning_plan.kept["encoder.layer.0.attention"] == (2, 3)
    with pytest.raises(ValueError, match="a statistic named 'positions' is registered already"):
        register_statistic("positions")(lambda run: [])


def test_a_scorer_names_its_one_shot_form():
    register_scorer("in_rounds", reads="weights", one_shot="l2")(lambda statistics: statistics.weights.sum(1))
    assert registry.get_scorer("in_rounds").one_shot == "l2"
    assert registry.get_scorer("l2").one_shot == "l2"
    assert registry.get_scorer("residual_kl_fisher").one_shot == "kl_fisher"


@pytest.mark.parametrize("recorded_as", ["", "unit_params"])
def test_a_budget(recorded_as):
    @register_budget("weight_bits", recorded_as=recorded_as)
    def weight_bits(block, sequence_length):
        return 4 * block.unit_params

    model = tiny_model("bert")
    fields = {"scorer": "l2", "schedule": "one_shot", "sequence_length": 8, "reconstruct": False}
    by_bits = hfprune.prune(model, BATCHES, PruningConfig(budget="weight_bits", **fields))
    by_params = hfprune.prune(model, BATCHES, PruningConfig(budget="params", **fields))
    assert by_bits.pruning_plan == by_params.pruning_plan
    assert sparsity_of(by_bits, PruningConfig(budget="weight_bits", **fields)) >= 0.5
    assert "weight_bits" in known_budgets()
    assert json.loads(by_bits.pruning_record.to_json())["config"]["budget"] == "weight_bits"
    if recorded_as:
        assert by_bits.pruning_plan.sparsity("weight_bits") == by_bits.pruning_plan.sparsity("params")
    else:
        with pytest.raises(ValueError, match="a plan does not record what a unit costs in the budget 'weight_bits'"):
            by_bits.pruning_plan.sparsity("weight_bits")
    with pytest.raises(ValueError, match="a budget named 'macs' is registered already"):
        register_budget("macs")(lambda block, sequence_length: 1)
    with pytest.raises(
        ValueError, match="budget must be one of macs, params, kv_cache, latency, weight_bits, got 'time'"
    ):
        PruningConfig(budget="time")


def test_an_allocator_that_goes_block_by_block(monkeypatch):
    @register_allocator("one_less", block_by_block=True)
    def one_less(candidates, limit):
        return [candidate.block.units - 1 for candidate in candidates]

    assert get_allocator("one_less").block_by_block
    small = hfprune.prune(
        tiny_model("bert"),
        BATCHES,
        PruningConfig(allocation="one_less", scorer="l2", schedule="one_shot", sequence_length=8, reconstruct=False),
    )
    assert all(kept < units for kept, units in small.pruning_plan.counts.values())
    with pytest.raises(ValueError, match="cuts one layer after the other"):
        PruningConfig(allocation="one_less", portable=True)


def test_an_allocator_that_ignores_scores():
    seen = []

    @register_allocator("watch", ignores_scores=True)
    def watch(candidates, limit):
        seen.extend(candidates)
        return [candidate.levels[0] for candidate in candidates]

    model = tiny_model("bert")
    scores = hfprune.score(model, BATCHES, scorer="l2")
    hfprune.plan(model, scores, PruningConfig(allocation="watch", sequence_length=8))
    assert all(((candidate.values >= 0) & (candidate.values < 1)).all() for candidate in seen)
    assert not torch.equal(seen[0].values, scores[seen[0].block.name].double().sort(descending=True).values)


def test_an_architecture():
    bert = known_architectures()["bert"].stacks["encoder.layer"]
    architectures._TABLE.pop("camembert")
    register_architecture("camembert", Architecture(stacks={"encoder.layer": {"ffn": bert["ffn"]}}))
    assert [block.unit for block in find_blocks(tiny_model("camembert"))] == ["neuron", "neuron"]
