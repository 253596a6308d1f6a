"""prune(): the whole job equals its steps, on models dense and pruned."""

import copy
import itertools
from itertools import pairwise

import pytest
import torch
from transformers import BertForSequenceClassification, DataCollatorWithPadding, LlamaForCausalLM
from transformers.models.bert import BertPreTrainedModel

import hfprune
from hfprune import PruningConfig
from hfprune.errors import BudgetError, PlanMismatchError, UnsupportedArchitectureError
from hfprune.measuring.size import measure_size
from hfprune.planning import sparsities
from hfprune.pruning import prune as pipeline
from hfprune.pruning.steps import no_scores, sparsity_of
from hfprune.scoring import calibration_batches
from hfprune.structure import find_blocks
from hfprune.structure.modeling_pruned import PrunedModel
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_batch, tiny_config, tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer

BATCHES = [tiny_batch(seed=i) for i in range(4)]


def config(**fields):
    return PruningConfig(**{"sequence_length": 8, **fields})


def same_weights(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("schedule", "rounds"), [("one_shot", 1), ("linear", 3), ("cubic", 3), ("geometric", None)])
def test_prune_is_its_steps(schedule, rounds):
    model = tiny_model("bert")
    settings = config(sparsity=0.6, schedule=schedule, rounds=rounds, calibration_samples=12, seed=3)
    collator = DataCollatorWithPadding(tiny_tokenizer())
    whole = hfprune.prune(model, tiny_tokenized(), settings, collator=collator)

    batches = calibration_batches(tiny_tokenized(), model, samples=12, batch_size=32, seed=3, collator=collator)
    small = model
    start = sparsity_of(model, settings)
    for number, sparsity in enumerate(sparsities(schedule, start=start, target=0.6, rounds=settings.rounds)):
        scores = hfprune.score(small, batches, scorer=settings.scorer, seed=settings.seed + number, teacher=model)
        small = hfprune.apply_plan(small, hfprune.plan(small, scores, settings, sparsity=sparsity))
        hfprune.reconstruct(small, model, batches)

    assert whole.pruning_plan == small.pruning_plan
    assert same_weights(whole, small)
    assert len(whole.pruning_record.rounds) == (rounds or 5)
    assert whole.pruning_record.plan_digest == whole.pruning_plan.digest


def test_the_dense_model_stays_and_the_small_one_stands_alone():
    model = tiny_model("bert")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    small = hfprune.prune(model, BATCHES, config(sparsity=0.5))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not hasattr(model, "pruning_plan")


@pytest.mark.parametrize("budget", ["macs", "params"])
@pytest.mark.parametrize("allocation", ["global", "uniform", "random"])
def test_the_budget_is_kept_and_measured_alike(budget, allocation):
    model = tiny_model("bert")
    settings = config(sparsity=0.5, budget=budget, allocation=allocation, sequence_length=16)
    small = hfprune.prune(model, BATCHES, settings)
    assert 0.5 <= small.pruning_plan.sparsity(budget) < 0.6
    before, after = (measure_size(m, sequence_length=16) for m in (model, small))
    assert before.params - after.params == before.prunable_params - after.prunable_params
    assert before.macs - after.macs == before.prunable_macs - after.prunable_macs  # counted by PyTorch, and by us
    kept, dense = small.pruning_plan.cost("macs")
    assert (kept, dense) == (after.prunable_macs, before.prunable_macs)


def test_equal_inputs_give_equal_plans():
    plans = [hfprune.prune(tiny_model("bert"), BATCHES, config(sparsity=0.4)).pruning_plan for _ in range(2)]
    assert plans[0].digest == plans[1].digest


def test_training_state_comes_along():
    model = tiny_model("bert").train()
    model.bert.embeddings.requires_grad_(False)
    small = hfprune.apply_plan(model, uneven_plan(model))
    assert small.training
    assert not small.bert.embeddings.word_embeddings.weight.requires_grad
    assert small.bert.encoder.layer[0].output.dense.weight.requires_grad
    assert model.training


@pytest.mark.parametrize("model_type", ["bert", "mpnet", "gpt2", "llama"])
def test_two_plans_equal_their_composition(model_type):
    model = tiny_model(model_type)
    first = uneven_plan(model, seed=1)
    once = hfprune.apply_plan(model, first)
    second = uneven_plan(once, seed=2)
    twice = hfprune.apply_plan(once, second)
    direct = hfprune.apply_plan(model, first.then(second))
    assert twice.pruning_plan == first.then(second)
    assert same_weights(twice, direct)
    assert twice.config.pruning_config == direct.config.pruning_config
    batch = tiny_batch(model_type)
    assert torch.equal(twice(**batch).logits, direct(**batch).logits)


def test_pruning_a_pruned_model_keeps_dense_numbering_and_history():
    model = tiny_model("bert")
    once = hfprune.prune(model, BATCHES, config(sparsity=0.3))
    twice = hfprune.prune(once, BATCHES, config(sparsity=0.6))
    assert twice.pruning_plan.counts["encoder.layer.0.ffn"][1] == 40
    assert twice.pruning_plan.sparsity("macs") >= 0.6
    for name, block in twice.pruning_plan.blocks.items():
        assert set(block.kept) <= set(once.pruning_plan.blocks[name].kept)
    shapes = {name: tensor.shape for name, tensor in hfprune.apply_plan(model, twice.pruning_plan).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in twice.state_dict().items()}
    assert [r["config"]["sparsity"] for r in twice.pruning_record.earlier] == [0.3]
    assert twice.pruning_record.sizes["dense"] == once.pruning_record.sizes["dense"]
    with pytest.raises(BudgetError, match=r"has 60.\d% of its dense macs removed already.*ask for a higher one"):
        hfprune.prune(twice, BATCHES, config(sparsity=0.5))


class TestPortable:
    def test_llama_heads_and_neurons_in_a_stock_config(self):
        model = tiny_model("llama", "AutoModelForCausalLM")
        small = hfprune.prune(model, [tiny_batch("llama")], config(sparsity=0.5, portable=True))
        assert type(small) is LlamaForCausalLM
        assert small.config.num_attention_heads == 2 * small.config.num_key_value_heads
        assert small.config.head_dim == 4
        assert 0.5 <= small.pruning_plan.sparsity("macs") < 0.75

    def test_bert_neurons_only(self):
        small = hfprune.prune(tiny_model("bert"), BATCHES, config(sparsity=0.3, portable=True))
        assert type(small) is BertForSequenceClassification
        assert len({small.pruning_plan.counts[f"encoder.layer.{i}.ffn"] for i in range(2)}) == 1
        assert all(small.pruning_plan.counts[f"encoder.layer.{i}.attention"] == (4, 4) for i in range(2))
        with pytest.raises(BudgetError, match="no uniform widths that the stock config can say"):
            hfprune.prune(tiny_model("bert"), BATCHES, config(sparsity=0.7, portable=True))

    def test_uniform_widths_are_stock_without_being_asked(self):
        settings = config(sparsity=0.2, allocation="uniform", exclude=["*.attention"])
        assert not isinstance(hfprune.prune(tiny_model("bert"), BATCHES, settings), PrunedModel)

    def test_an_unevenly_pruned_model_cannot_become_portable(self):
        once = hfprune.apply_plan(tiny_model("bert"), uneven_plan(tiny_model("bert")))
        with pytest.raises(BudgetError, match=r"stock config cannot say|no uniform widths"):
            hfprune.prune(once, BATCHES, config(sparsity=0.7, portable=True))


def test_a_plan_for_another_model_or_state_is_refused():
    model = tiny_model("bert")
    plan = uneven_plan(model)
    once = hfprune.apply_plan(model, plan)
    with pytest.raises(PlanMismatchError, match=r"has 3 units.*made for 4. The model is already pruned \(3 of 4\)"):
        hfprune.apply_plan(once, plan)
    with pytest.raises(PlanMismatchError, match=r"for a bert model with 4 blocks, this model has 2"):
        hfprune.apply_plan(tiny_model("bert", num_hidden_layers=1), plan)
    with pytest.raises(PlanMismatchError, match=r"the plan is for a bert model, this is a roberta model"):
        hfprune.apply_plan(tiny_model("roberta"), plan)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scorer": "best"}, "unknown scorer 'best'"),
        ({"allocation": "best"}, "unknown allocation 'best'"),
        ({"schedule": "slow"}, "unknown schedule 'slow'. Known: one_shot, linear, cubic, geometric"),
    ],
)
def test_a_wrong_name_fails_before_any_work(fields, message):
    with pytest.raises(ValueError, match=message):
        hfprune.prune(tiny_model("bert"), None, PruningConfig(**fields))


def test_a_class_of_the_users_own_is_refused():
    class Mine(BertForSequenceClassification, BertPreTrainedModel):
        pass

    model = Mine(tiny_config("bert")).eval()
    with pytest.raises(UnsupportedArchitectureError, match="Mine is not a class of transformers"):
        hfprune.apply_plan(model, uneven_plan(model))


def test_sparsity_zero_is_a_copy():
    model = tiny_model("bert")
    copy = hfprune.prune(model, BATCHES, config(sparsity=0.0))
    assert type(copy) is type(model)
    assert same_weights(model, copy)
    assert [b.units for b in find_blocks(copy)] == [4, 40, 4, 40]


def test_layerwise_scores_anew_from_the_deepest_block(monkeypatch):
    scored = []

    def watch(model, *args, **kwargs):
        scored.append([block.units for block in find_blocks(model)])
        return hfprune.score(model, *args, **kwargs)

    monkeypatch.setattr(pipeline, "score", watch)
    config = hfprune.PruningConfig(sparsity=0.5, allocation="layerwise", schedule="one_shot")
    small = hfprune.prune(tiny_model("bert"), [tiny_batch()], config)
    assert scored == [[4, 40, 4, 40], [4, 40, 4, 20], [4, 40, 2, 20], [4, 20, 2, 20]]
    assert [kept for kept, _ in small.pruning_plan.counts.values()] == [2, 20, 2, 20]
    assert small.pruning_record.rounds[0]["samples"] == 4


class TestPlans:
    def test_a_mapping_says_it_block_by_block(self):
        dense = tiny_model("bert")
        scores = hfprune.score(dense, [tiny_batch()])
        made = hfprune.plan(dense, scores, sparsity={"*.0.attention": 0, "*.attention": 0.5, "*.1.ffn": 0.25})
        assert [kept for kept, _ in made.counts.values()] == [4, 40, 2, 30]
        small = hfprune.apply_plan(dense, made)
        again = hfprune.plan(small, hfprune.score(small, [tiny_batch()]), sparsity={"*.1.ffn": 0.5})
        assert [kept for kept, _ in again.counts.values()] == [4, 40, 2, 20]

    @pytest.mark.parametrize("allocation", ["global", "knapsack", "threshold", "uniform"])
    def test_a_list_gives_nested_plans(self, allocation):
        dense = tiny_model("bert")
        scores = hfprune.score(dense, [tiny_batch()])
        wanted = [0.0, 0.3, 0.5, 0.7]
        plans = hfprune.plan(dense, scores, hfprune.PruningConfig(allocation=allocation), sparsity=wanted)
        for sparsity, made in zip(wanted, plans, strict=True):
            assert made.sparsity("macs") >= sparsity - 1e-9
        for larger, smaller in itertools.pairwise(plans):
            assert all(set(smaller.kept[name]) <= set(units) for name, units in larger.kept.items())

    @pytest.mark.parametrize(
        ("sparsity", "message"),
        [
            ([0.5, 0.3], "must increase, got"),
            ({"*.9.ffn": 0.5}, "pattern '\\*.9.ffn' matches no block"),
            ({"*.ffn": 50}, "must be in"),
        ],
    )
    def test_bad_sparsities_are_refused(self, sparsity, message):
        dense = tiny_model("bert")
        with pytest.raises(ValueError, match=message):
            hfprune.plan(dense, hfprune.score(dense, [tiny_batch()]), sparsity=sparsity)


def test_the_trade_off_curve_of_a_model():
    model = tiny_model("bert")
    settings = config(scorer="l2", allocation="knapsack", min_units=0)
    scores = hfprune.score(model, BATCHES, scorer="l2")
    curve = hfprune.trade_off(model, scores, settings)
    assert (curve[0].lost, curve[-1].sparsity) == (0, 1)
    plans = hfprune.plan(model, scores, settings, sparsity=[0.3, 0.6])
    for made in plans:
        removed = sum(float(v.sum()) for v in scores.values()) - sum(
            float(scores[name][list(kept)].sum()) for name, kept in made.kept.items()
        )
        least = min(p.lost for p in curve if p.sparsity >= made.sparsity("macs") - 1e-9)
        assert removed == pytest.approx(least, rel=1e-4)


def test_prune_in_rounds_by_pattern():
    model = tiny_model("bert")
    wanted = {"*.1.ffn": 0.75, "*.attention": 0.5}
    small = hfprune.prune(model, BATCHES, config(), sparsity=wanted)
    assert [kept for kept, _ in small.pruning_plan.counts.values()] == [2, 40, 2, 10]
    steps = [entry["sparsity"] for entry in small.pruning_record.rounds]
    assert len(steps) == 7, "a round keeps four fifths of what it finds"
    assert steps[-1] == wanted
    assert all(a["*.1.ffn"] < b["*.1.ffn"] for a, b in pairwise(steps))
    assert small.pruning_record.config["sparsity"] == wanted
    with pytest.raises(ValueError, match="pattern 'z' matches no block"):
        hfprune.prune(model, BATCHES, config(), sparsity={"z": 0.5})
    for wrong in (0.5, [0.5], {}):
        with pytest.raises(
            ValueError, match=r"sparsity of prune is a mapping .*, got .*One number for the whole model"
        ):
            hfprune.prune(model, BATCHES, config(), sparsity=wrong)
    with pytest.raises(ValueError, match="portable=True wants the same widths in every layer"):
        hfprune.prune(model, BATCHES, config(portable=True), sparsity=wanted)


def test_a_block_removed_whole_by_pattern_goes_step_by_step():
    model = tiny_model("bert")
    small = hfprune.prune(model, BATCHES, config(min_units=0, rounds=4), sparsity={"*.1.ffn": 1.0, "*.0.ffn": 0.5})
    assert [kept for kept, _ in small.pruning_plan.counts.values()] == [4, 20, 4, 0]
    steps = [entry["sparsity"]["*.1.ffn"] for entry in small.pruning_record.rounds]
    assert steps == pytest.approx([1 - 0.01 ** (1 / 4), 0.9, 1 - 0.01 ** (3 / 4), 1.0])


def test_nothing_left():
    model = tiny_model("bert")
    nothing = hfprune.prune(model, BATCHES, config(min_units=0), sparsity={"*": 1.0})
    assert not any(kept for kept, _ in nothing.pruning_plan.counts.values())
    assert torch.isfinite(nothing(**tiny_batch("bert")).logits).all()
    scores = hfprune.score(nothing, BATCHES)
    assert hfprune.trade_off(nothing, scores, config()) == []
    assert "0 of 0" in str(hfprune.plan(nothing, scores, config(), sparsity={}))
    with pytest.raises(BudgetError, match=r"has 100.0% of its dense macs removed already"):
        hfprune.prune(nothing, BATCHES, config(sparsity=0.5))


class TestRoundsWithRecovery:
    def test_every_round_trains_and_the_next_one_scores_what_was_trained(self):
        dense = tiny_model("bert", num_labels=3)
        seen = []

        def recover(small, teacher):
            assert teacher is dense
            seen.append((small.pruning_plan.sparsity("macs"), small.classifier.weight.clone()))
            with torch.no_grad():
                small.classifier.weight += 1.0
            return "what Trainer.train returns does not count"

        small = pipeline.prune(dense, [tiny_batch()], PruningConfig(sparsity=0.7, sequence_length=8), recover=recover)
        kept = [1.0, *(1 - sparsity for sparsity, _ in seen)]
        assert len(seen) == 3  # 1.5³ = 3.4 > 1 / 0.3
        assert all(before / after < 1.7 for before, after in pairwise(kept))  # whole heads
        for number, (_, weight) in enumerate(seen):
            torch.testing.assert_close(weight, dense.classifier.weight + number)
        assert all(round_["recovery_seconds"] >= 0 for round_ in small.pruning_record.rounds)

    def test_the_model_that_it_returns_goes_on(self):
        dense = tiny_model("bert", num_labels=3)
        made = []

        def recover(small, _):
            made.append(copy.deepcopy(small))
            return made[-1]

        small = pipeline.prune(dense, [tiny_batch()], PruningConfig(sparsity=0.5, sequence_length=8), recover=recover)
        assert small is made[-1]
        with pytest.raises(ValueError, match="without the pruned model's plan"):
            pipeline.prune(
                dense, [tiny_batch()], PruningConfig(sequence_length=8), recover=lambda *_: tiny_model("bert")
            )


@pytest.mark.parametrize("sparsity", [0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
def test_a_width_that_fits_exactly_is_taken_however_large_the_cost(sparsity):
    """1 − 0.8 is a little less than 0.2 in binary: of a cost above 2e10 that would be a whole unit of it."""
    model = tiny_model("llama", hidden_size=40, num_attention_heads=10, num_key_value_heads=10)
    config = PruningConfig(sparsity=sparsity, allocation="uniform", sequence_length=131_072)
    chosen = hfprune.plan(model, no_scores(model, config), config)
    widths = {name.rpartition(".")[2]: len(block.kept) for name, block in chosen.blocks.items()}
    assert widths == {"attention": round(10 * (1 - sparsity)), "ffn": round(40 * (1 - sparsity))}


def test_patterns_are_compared_as_json_gives_them_back():
    assert PruningConfig(exclude=("*.0.*",)) == PruningConfig(exclude=["*.0.*"])
