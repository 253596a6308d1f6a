"""Plans, allocators, schedules: hand-written tables, brute force, and properties by hypothesis."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hfprune.errors import BudgetError, PlanMismatchError
from hfprune.planning import (
    BlockPlan,
    PruningPlan,
    allocate,
    allocation,
    known_allocators,
    register_allocator,
    sparsities,
    trade_off_curve,
)
from hfprune.planning import knapsack as knapsack_module
from hfprune.planning.candidates import candidates_of
from hfprune.scoring import Scores
from hfprune.structure.blocks import Block


def block(name, kind, units, *, params=1, portable=None, least=0):
    """A block whose units cost `params` parameters and as many multiply-adds a token."""
    return Block(
        name=name,
        layer=name.rpartition(".")[0],
        kind=kind,
        uses=1,
        mask="attention_mask",
        units=units,
        width=1,
        heads=int(kind == "attention"),
        head_dim=1,
        unit="neuron" if kind == "ffn" else "group",
        slices=(),
        sizes=(),
        head_inputs=(),
        residual_sum=None,
        least=least,
        bypass=None,
        config_fields=(),
        unit_params=params,
        unit_token_macs=params,
        unit_pair_macs=0,
        portable_units=range(1, units + 1) if portable is None else portable,
    )


def scores_of(values):
    return Scores(by_block={k: torch.tensor(v, dtype=torch.float32) for k, v in values.items()}, scorer="t", samples=1)


def run(blocks, values, limit, **options):
    plan = allocate(
        blocks,
        scores_of(values),
        limit=limit,
        budget="params",
        sequence_length=1,
        model_type="bert",
        **{"allocation": "global", **options},
    )
    return {name: list(kept) for name, kept in plan.kept.items()}


TWO = [block("a", "attention", 3, params=4), block("f", "ffn", 6)]
TABLE = {"a": [3.0, 9.0, 1.0], "f": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}


class TestGlobal:
    @pytest.mark.parametrize(
        ("limit", "kept"),
        [
            (18, {"a": [0, 1, 2], "f": [0, 1, 2, 3, 4, 5]}),  # everything fits
            (14, {"a": [0, 1], "f": [0, 1, 2, 3, 4, 5]}),  # the cheap head goes first
            (10, {"a": [1], "f": [0, 1, 2, 3, 4, 5]}),  # 9 + 21 beats 12 + 11
            (6, {"a": [1], "f": [4, 5]}),  # a head of 9 beats four neurons of 1 to 4
            (5, {"a": [1], "f": [5]}),  # at least one unit stays in every block
        ],
    )
    def test_scores_against_costs(self, limit, kept):
        assert run(TWO, TABLE, limit) == kept

    def test_ties_break_by_lower_index(self):
        assert run(TWO, {"a": [1.0] * 3, "f": [1.0] * 6}, 8) == {"a": [0], "f": [0, 1, 2, 3]}
        four = [block("x", "ffn", 2), block("y", "ffn", 2)]
        assert run(four, {"x": [1.0, 1.0], "y": [1.0, 1.0]}, 3) == {"x": [0, 1], "y": [0]}

    def test_blocks_compete(self):
        blocks = [block("x", "ffn", 4), block("y", "ffn", 4)]
        values = {"x": [9.0, 8.0, 7.0, 6.0], "y": [1.0, 5.0, 2.0, 3.0]}
        assert run(blocks, values, 5) == {"x": [0, 1, 2, 3], "y": [1]}

    def test_a_planted_dead_head_goes_first(self):
        assert run(TWO, {**TABLE, "a": [3.0, 0.0, 1.0]}, 14)["a"] == [0, 2]

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.floats(0, 10, width=32), min_size=2, max_size=4),
        st.lists(st.floats(0, 10, width=32), min_size=2, max_size=6),
        st.lists(st.floats(0, 10, width=32), min_size=1, max_size=4),
        st.integers(0, 30),
    )
    def test_no_other_choice_keeps_more(self, heads, neurons, more, extra):
        """Brute force over all subsets that leave one unit a block: two kinds, one cost each (Kwon et al. 2022)."""
        values = {"a": heads, "f": neurons, "g": more}
        blocks = [block("a", "attention", len(heads), params=5)]
        blocks += [block(n, "ffn", len(values[n]), params=2) for n in ("f", "g")]
        limit = 9 + extra
        kept = run(blocks, values, limit)
        cost = {b.name: b.unit_params for b in blocks}
        assert sum(cost[n] * len(units) for n, units in kept.items()) <= limit
        best = max(
            sum(sum(sorted(values[n], reverse=True)[:c]) for n, c in zip(values, counts, strict=True))
            for counts in itertools.product(*(range(1, b.units + 1) for b in blocks))
            if sum(b.unit_params * c for b, c in zip(blocks, counts, strict=True)) <= limit
        )
        assert sum(values[n][u] for n, units in kept.items() for u in units) == pytest.approx(best, rel=1e-5, abs=1e-5)


class TestOthers:
    def test_uniform_keeps_the_same_fraction(self):
        blocks = [block("a", "attention", 4, params=3), block("f", "ffn", 8)]
        values = {"a": [4.0, 1.0, 3.0, 2.0], "f": [1.0, 8.0, 2.0, 7.0, 3.0, 6.0, 4.0, 5.0]}
        assert run(blocks, values, 10, allocation="uniform") == {"a": [0, 2], "f": [1, 3, 5, 7]}

    def test_random_is_seeded_and_ignores_scores(self):
        values = {"a": [3.0, 9.0, 1.0], "f": [float(i) for i in range(6)]}
        runs = [run(TWO, values, 9, allocation="random", seed=seed) for seed in range(8)]
        assert runs[0] == run(TWO, {k: v[::-1] for k, v in values.items()}, 9, allocation="random", seed=0)
        assert len({str(r) for r in runs}) > 2

    def test_threshold_goes_by_score_whatever_units_cost(self):
        values = {"a": [5.0, 1.0, 3.0], "f": [4.0, 2.0, 6.0, 0.0, 0.5, 0.25]}
        assert run(TWO, values, 10, allocation="threshold") == {
            "a": [0, 2],
            "f": [0, 2],
        }  # 2.0 does not fit any more
        assert run(TWO, values, 11, allocation="threshold") == {"a": [0, 2], "f": [0, 1, 2]}

    @settings(max_examples=60, deadline=None)
    @given(data=st.data())
    def test_knapsack_is_brute_force_for_units_of_any_cost(self, data):
        blocks = [block(f"b{i}", "ffn", data.draw(st.integers(1, 4)), params=cost) for i, cost in enumerate((2, 3, 7))]
        numbers = st.floats(0, 1, width=32)
        values = {b.name: data.draw(st.lists(numbers, min_size=b.units, max_size=b.units)) for b in blocks}
        limit = data.draw(st.integers(12, 40))
        kept = run(blocks, values, limit, allocation="knapsack")
        assert sum(b.unit_params * len(kept[b.name]) for b in blocks) <= limit
        best = max(
            sum(sum(sorted(values[b.name], reverse=True)[:c]) for b, c in zip(blocks, counts, strict=True))
            for counts in itertools.product(*(range(1, b.units + 1) for b in blocks))
            if sum(b.unit_params * c for b, c in zip(blocks, counts, strict=True)) <= limit
        )
        assert sum(values[n][u] for n, units in kept.items() for u in units) == pytest.approx(best, rel=1e-5, abs=1e-5)

    @pytest.mark.parametrize("min_units", [0, 1])
    def test_the_trade_off_curve_is_what_plans_lose(self, min_units):
        blocks = [block("a", "attention", 3, params=4, least=1), block("f", "ffn", 6), block("g", "ffn", 2, params=3)]
        values = {"a": [3.0, 9.0, 1.0], "f": [1.0, 2.0, 0.5, 4.0, 0.25, 3.0], "g": [0.125, 0.25]}
        options = {"budget": "params", "sequence_length": 4, "min_units": min_units}
        curve = trade_off_curve(candidates_of(blocks, scores_of(values), **options), dense_cost=24)
        assert curve[0].lost == 0
        assert curve[-1].sparsity == pytest.approx(1 - (4 if min_units == 0 else 4 + 1 + 3) / 24)
        total = sum(map(sum, values.values()))
        for limit in range(8, 25):
            kept = run(blocks, values, limit, allocation="knapsack", min_units=min_units)
            lost = total - sum(values[n][u] for n, units in kept.items() for u in units)
            least = min(p.lost for p in curve if p.sparsity >= 1 - limit / 24 - 1e-9)
            assert lost == pytest.approx(least)

    def test_a_trade_off_with_negative_scores(self):
        blocks = [block("f", "ffn", 3)]
        candidates = candidates_of(
            blocks, scores_of({"f": [2.0, -1.0, 1.0]}), budget="params", sequence_length=4, min_units=0
        )
        assert [p.lost for p in trade_off_curve(candidates, dense_cost=3)] == [-1.0, 0.0, 2.0]

    def test_a_coarse_trade_off_begins_with_the_whole_model(self, monkeypatch):
        monkeypatch.setattr(knapsack_module, "BINS", 5)
        candidates = candidates_of(TWO, scores_of(TABLE), budget="params", sequence_length=4)
        first = trade_off_curve(candidates, dense_cost=18)[0]
        assert first == (0.0, 0.0)

    @pytest.mark.parametrize("name", ["global", "knapsack"])
    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_no_unit_goes_for_its_score_alone(self, name, data):
        """Scores of 0 and below are no reason to remove more than was asked."""
        numbers = st.floats(-1, 1, width=32)
        blocks = [block("a", "attention", 3, params=7), block("f", "ffn", 6, params=2), block("g", "ffn", 4, params=3)]
        values = {b.name: data.draw(st.lists(numbers, min_size=b.units, max_size=b.units)) for b in blocks}
        limit = data.draw(st.integers(12, 45))
        kept = run(blocks, values, limit, allocation=name)
        room = limit - sum(b.unit_params * len(kept[b.name]) for b in blocks)
        assert room >= 0
        assert all(len(kept[b.name]) == b.units or b.unit_params > room for b in blocks)

    def test_portable_widths_are_the_widest_whatever_the_scores(self):
        blocks = [block("a", "attention", 4, params=4), block("f", "ffn", 6)]
        values = {"a": [-1.0, -2.0, 1.0, 0.0], "f": [-1.0] * 6}
        kept = run(blocks, values, 20, stock_widths=True)
        assert (len(kept["a"]), len(kept["f"])) in [(4, 4), (3, 6)]
        assert run(blocks, values, 22, stock_widths=True) == {"a": [0, 1, 2, 3], "f": [0, 1, 2, 3, 4, 5]}

    def test_whole_blocks_go_only_if_asked_and_where_they_can(self):
        blocks = [block("a", "attention", 3, params=4, least=1), block("f", "ffn", 6), block("g", "ffn", 2)]
        values = {"a": [0.0, 0.0, 0.0], "f": [1.0] * 6, "g": [0.0, 0.0]}
        assert run(blocks, values, 10, min_units=0) == {"a": [0], "f": [0, 1, 2, 3, 4, 5], "g": []}
        assert run(blocks, values, 10)["g"] == [0]

    def test_a_coarse_knapsack_stays_within_the_limit(self, monkeypatch):
        monkeypatch.setattr(knapsack_module, "BINS", 5)
        values = {"a": [3.0, 9.0, 1.0], "f": [float(i) for i in range(6)]}
        for limit in range(5, 19):
            kept = run(TWO, values, limit, allocation="knapsack")
            assert 4 * len(kept["a"]) + len(kept["f"]) <= limit

    @pytest.mark.parametrize("name", ["uniform", "global", "layerwise", "random", "threshold", "knapsack"])
    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def test_every_allocator_keeps_within_limit_and_constraints(self, name, data):
        sizes = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
        blocks = [block(f"a{i}", "attention", n, params=7) for i, n in enumerate(sizes)]
        blocks += [block(f"f{i}", "ffn", 4 * n, params=2) for i, n in enumerate(sizes)]
        numbers = st.floats(0, 1, width=32)
        values = {b.name: data.draw(st.lists(numbers, min_size=b.units, max_size=b.units)) for b in blocks}
        min_units, round_to = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 5))
        full = sum(b.units * b.unit_params for b in blocks)
        limit = data.draw(st.integers(0, full))
        try:
            kept = run(blocks, values, limit, allocation=name, min_units=min_units, round_to=round_to)
        except BudgetError:
            floor = 0
            for b in blocks:
                lowest = min(min_units, b.units)
                lowest = -(-lowest // round_to) * round_to if b.kind == "ffn" else lowest
                floor += b.unit_params * min(lowest, b.units)
            assert floor > limit
            return
        assert sum(b.unit_params * len(kept[b.name]) for b in blocks) <= limit
        for b in blocks:
            count = len(kept[b.name])
            assert count >= min(min_units, b.units)
            assert b.kind == "attention" or count % round_to == 0 or count == b.units

    def test_exclude_keeps_blocks_whole(self):
        kept = run(TWO, TABLE, 13, exclude=["a"])
        assert kept["a"] == [0, 1, 2]
        assert len(kept["f"]) == 1

    def test_portable_gives_one_width_a_kind_that_the_config_can_say(self):
        blocks = [block(f"a{i}", "attention", 4, params=4, portable=(1, 2, 4)) for i in range(2)]
        blocks += [block(f"f{i}", "ffn", 6) for i in range(2)]
        values = {"a0": [9, 9, 9, 0], "a1": [9, 9, 9, 0], "f0": [5, 4, 3, 2, 1, 0], "f1": [0, 1, 2, 3, 4, 5]}
        kept = run(blocks, {k: [float(x) for x in v] for k, v in values.items()}, 30, stock_widths=True)
        assert {name: len(units) for name, units in kept.items()} == {"a0": 2, "a1": 2, "f0": 6, "f1": 6}

    def test_portable_says_when_no_width_is_small_enough(self):
        blocks = [block("a", "attention", 4, params=4, portable=(4,)), block("f", "ffn", 6)]
        values = {"a": [1.0] * 4, "f": [1.0] * 6}
        with pytest.raises(BudgetError, match=r"the smallest keeps 77.3% of the prunable cost.*drop portable=True"):
            run(blocks, values, 10, stock_widths=True)

    def test_a_budget_that_min_units_makes_unreachable(self):
        message = "leaves 27.8% of this model's prunable params, but min_units=2.*at least 55.6%"
        with pytest.raises(BudgetError, match=message):
            run(TWO, TABLE, 5, min_units=2)

    def test_unknown_names_list_the_known_ones(self):
        with pytest.raises(ValueError, match="unknown allocation 'best'. Known: global, knapsack, layerwise, random"):
            run(TWO, TABLE, 9, allocation="best")
        with pytest.raises(ValueError, match="pattern 'z.*' matches no block. Names look like 'a'"):
            run(TWO, TABLE, 9, exclude=["z.*"])
        with pytest.raises(ValueError, match=r"scores of block 'f' should be \(6,\), found \(2,\)"):
            run(TWO, {"a": [1.0] * 3, "f": [1.0, 2.0]}, 9)

    def test_users_register_their_own(self, monkeypatch):
        monkeypatch.setattr(allocation, "_ALLOCATORS", dict(allocation._ALLOCATORS))

        @register_allocator("least")
        def least(candidates, limit):
            return [candidate.levels[0] for candidate in candidates]

        assert "least" in known_allocators()
        assert run(TWO, TABLE, 18, allocation="least") == {"a": [1], "f": [5]}
        with pytest.raises(ValueError, match="'least' is registered already"):
            register_allocator("least")(lambda candidates, limit: [0])


def plan_of(units, kept):
    return PruningPlan.keep([block("f", "ffn", units)], {"f": kept}, model_type="bert", sequence_length=8)


kept_of_12 = st.lists(st.integers(0, 11), min_size=1, unique=True).map(sorted)


class TestPlan:
    @given(kept_of_12, st.data())
    def test_rounds_compose(self, first, data):
        second = sorted(data.draw(st.lists(st.integers(0, len(first) - 1), min_size=1, unique=True)))
        both = plan_of(12, first).then(plan_of(len(first), second))
        assert both.kept["f"] == tuple(first[i] for i in second)
        assert both.counts["f"] == (len(second), 12)

    @given(kept_of_12)
    def test_json_round_trip(self, kept):
        plan = plan_of(12, kept)
        again = PruningPlan.from_json(plan.to_json())
        assert again == plan
        assert again.digest == plan.digest
        assert again.to_json() == plan.to_json()

    def test_a_block_without_its_unit_is_told_by_kind_and_name(self):
        fields = {"units": 4, "kept": (0, 2), "unit_params": 1, "unit_macs": 1}
        blocks = {
            "layers.0.queries": BlockPlan(kind="attention", **fields),
            "layers.0.ffn": BlockPlan(kind="ffn", **fields),
        }
        plan = PruningPlan(model_type="llama", sequence_length=8, blocks=blocks)
        assert [block.unit for block in plan.blocks.values()] == ["query", "neuron"]
        assert plan.attention_unit == "query"
        assert PruningPlan.from_json(plan.to_json()) == plan

    def test_digest_is_of_what_stays(self):
        assert plan_of(12, [1, 2]).digest == plan_of(12, [1, 2]).digest
        assert len({plan_of(12, [1, 2]).digest, plan_of(12, [1, 3]).digest, plan_of(11, [1, 2]).digest}) == 3

    def test_sparsity_and_print(self):
        plan = PruningPlan.keep(TWO, {"a": [1], "f": [0, 1, 2]}, model_type="bert", sequence_length=2)
        assert plan.cost("params") == (7, 18)
        assert plan.sparsity("params") == pytest.approx(11 / 18)
        assert plan.sparsity("macs") == pytest.approx(11 / 18)
        assert "a      1 of 3      ███████░" in str(plan)
        assert "removed 61.1% of prunable MACs (sequences of 2 tokens)" in str(plan)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not a pruning plan: JSONDecodeError"),
            ("{}", "not a pruning plan: KeyError"),
            (plan_of(12, [1, 2]).to_json().replace("[1, 2]", "[1, 3]"), "the pruning plan was changed: its digest"),
            (plan_of(12, [1, 2]).to_json().replace('_version": 1', '_version": 9'), "has format_version 9"),
        ],
    )
    def test_a_bad_file_is_refused(self, text, message):
        with pytest.raises(ValueError, match=message):
            PruningPlan.from_json(text)

    @pytest.mark.parametrize("kept", [[2, 1], [1, 1], [0, 12], [-1, 3]])
    def test_indices_must_increase_within_the_block(self, kept):
        with pytest.raises(ValueError, match="must keep increasing indices from 0 to 11"):
            plan_of(12, kept)

    def test_a_plan_for_another_state_is_refused(self):
        with pytest.raises(PlanMismatchError, match="has 3 units in this model, but the plan was made for 12"):
            plan_of(12, [0, 1, 2]).then(plan_of(12, [0]))


class TestSchedule:
    @pytest.mark.parametrize("name", ["linear", "cubic"])
    @given(st.floats(0, 0.4), st.floats(0.5, 0.99), st.integers(1, 9))
    def test_grows_to_the_target(self, name, start, target, rounds):
        steps = sparsities(name, start=start, target=target, rounds=rounds)
        assert len(steps) == rounds
        assert steps[-1] == target
        assert all(a < b for a, b in itertools.pairwise([start, *steps]))

    def test_one_shot_and_unknown(self):
        assert sparsities("one_shot", start=0.1, target=0.5, rounds=1) == [0.5]
        with pytest.raises(ValueError, match="unknown schedule 'x'. Known: one_shot, linear, cubic, geometric"):
            sparsities("x", start=0, target=0.5, rounds=1)
