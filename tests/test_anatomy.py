"""Anatomy: the structure of a model is read once and handed on; slices say what units own of each parameter."""

import copy
import gc
import weakref
from collections import Counter
from dataclasses import replace

import pytest
import torch

import hfprune
from hfprune import PruningConfig
from hfprune.errors import PlanMismatchError, StructureError
from hfprune.structure import Anatomy, Block, anatomy, anatomy_of, find_blocks, keep_units, surgery
from hfprune.structure.blocks import Slice
from hfprune.structure.surgery import skeleton
from tests.support.plans import uneven_kept, uneven_plan
from tests.support.tiny import tiny_batch, tiny_model

BATCHES = [tiny_batch(seed=seed) for seed in range(2)]


@pytest.fixture
def readings(monkeypatch):
    """How often each model was read."""
    counts: Counter[int] = Counter()
    models = []  # all of them stay alive, so that no two have the same id
    real = anatomy.read_blocks

    def counted(model, *args, **kwargs):
        models.append(model)
        counts[id(model)] += 1
        return real(model, *args, **kwargs)

    monkeypatch.setattr(anatomy, "read_blocks", counted)
    return counts


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"schedule": "one_shot"},
        {"schedule": "one_shot", "allocation": "layerwise", "scorer": "fisher"},
        {"scorer": "hybrid(l2, apoz, rank)", "budget": "params", "rounds": 2},
    ],
    ids=["rounds", "one shot", "block by block", "a hybrid"],
)
def test_prune_reads_every_model_once(readings, fields):
    batches = [{**batch, "labels": torch.tensor([0, 1, 0, 1])} for batch in BATCHES]
    hfprune.prune(tiny_model("bert"), batches, PruningConfig(sequence_length=8, **fields))
    assert len(readings) >= 2
    assert set(readings.values()) == {1}


def test_prune_reads_the_model_that_recover_returns_once(readings):
    def recover(small, dense):
        return copy.deepcopy(small)

    hfprune.prune(tiny_model("bert"), BATCHES, PruningConfig(sequence_length=8, sparsity=0.7), recover=recover)
    assert len(readings) >= 5
    assert set(readings.values()) == {1}


def test_a_model_whose_modules_recover_replaced_is_refused():
    def recover(small, dense):
        output = small.bert.encoder.layer[0].output
        output.dense = torch.nn.Sequential(output.dense)

    config = PruningConfig(sequence_length=8, schedule="one_shot")
    with pytest.raises(StructureError, match="merge or undo that first"):
        hfprune.prune(tiny_model("bert"), BATCHES, config, recover=recover)


def test_no_earlier_model_of_the_rounds_stays_in_memory():
    earlier = []
    alive = []

    def recover(small, dense):
        gc.collect()
        alive.append(sum(reference() is not None for reference in earlier))
        earlier.append(weakref.ref(small))

    hfprune.prune(tiny_model("bert"), BATCHES, PruningConfig(sequence_length=8, sparsity=0.7), recover=recover)
    assert alive == [0] * len(alive)
    assert len(alive) >= 3


def test_the_steps_take_an_anatomy_in_the_place_of_the_model(readings):
    model = tiny_model("bert")
    dense = anatomy_of(model)
    assert anatomy_of(dense) is dense
    assert find_blocks(dense) == list(dense.blocks)
    config = PruningConfig(sequence_length=8)
    scores = hfprune.score(dense, BATCHES)
    plan = hfprune.plan(dense, scores, config)
    small = hfprune.apply_plan(dense, plan)
    hfprune.reconstruct(small, dense, BATCHES)
    assert readings[id(model)] == 1
    same = hfprune.apply_plan(model, hfprune.plan(model, hfprune.score(model, BATCHES), config))
    hfprune.reconstruct(same, model, BATCHES)
    assert same.pruning_plan == small.pruning_plan
    assert all(torch.equal(a, b) for a, b in zip(same.parameters(), small.parameters(), strict=True))


def test_costs_count_from_the_dense_model():
    model = tiny_model("bert")
    small = anatomy_of(hfprune.apply_plan(model, uneven_plan(model)))
    dense = anatomy_of(model)

    def parameters(block: Block) -> int:
        return block.unit_params

    assert small.dense_units == dense.units
    assert small.dense_cost(parameters) == dense.cost(parameters) == dense.dense_cost(parameters)
    assert small.cost(parameters) == sum(block.units * block.unit_params for block in small.blocks)
    assert small.sparsity(parameters) == 1 - small.cost(parameters) / dense.cost(parameters)
    assert (dense.sparsity(parameters), dense.sparsity(lambda block: 0)) == (0, 0)
    assert {name: len(zeros) for name, zeros in small.zeros().items()} == small.units
    assert (small.model_type, small.support.by, small.attention_unit) == ("bert", "table", "group")


def test_a_model_that_was_pruned_by_other_units_is_told_when_its_costs_are_asked_for():
    model = tiny_model("llama", "AutoModelForCausalLM")
    small = hfprune.apply_plan(model, uneven_plan(model, attention_unit="query"))
    by_groups = anatomy_of(small, "group")
    assert isinstance(by_groups, Anatomy)
    with pytest.raises(PlanMismatchError, match="attention_unit='query'"):
        _ = by_groups.dense_units


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "phi3", "bloom", "modernbert"])
def test_every_slice_is_cut_along_its_dimension(model_type):
    model = tiny_model(model_type, "AutoModel")
    kept = uneven_kept(model)
    blocks = find_blocks(model)
    small, _ = skeleton(model, kept, blocks=blocks)
    cut = set()
    for block in blocks:
        for part in block.slices:
            before = model.get_parameter(part.path).shape
            after = small.get_parameter(part.path).shape
            assert before[part.dimension] == block.units * sum(part.rows)
            assert after[part.dimension] == len(kept[block.name]) * sum(part.rows)
            cut.add(part.path)
    for name, parameter in model.named_parameters():
        if name not in cut:
            assert small.get_parameter(name).shape == parameter.shape


def test_a_parameter_that_two_blocks_own_is_cut_by_both():
    """The one way in which hidden width differs from heads and neurons: one parameter, cut along two dimensions."""
    model = tiny_model("bert", "AutoModel")
    neurons = next(block for block in find_blocks(model) if block.unit == "neuron")
    module = neurons.producers[0]
    channels = Slice(module=module, parameter="weight", dimension=1, rows=(8,), role="consumer")
    width = replace(neurons, name="width", units=4, slices=(channels,))
    indices = {neurons.name: torch.tensor([0, 3]), "width": torch.tensor([1])}
    weight = model.get_parameter(f"{module}.weight")
    for blocks in ([neurons, width], [width, neurons]):
        state = surgery._sliced_state(model, blocks, indices)
        assert torch.equal(state[f"{module}.weight"], weight[[0, 3], 8:16])
        shape = surgery._shapes(model, blocks, indices)[module]
        assert shape == {"in_features": 8, "out_features": 2}


def test_surgery_takes_the_blocks_it_shall_cut():
    model = tiny_model("bert")
    with pytest.raises(TypeError, match="blocks"):
        keep_units(model, {})
