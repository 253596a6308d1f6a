"""Budgets in milliseconds: latency tables made up by hand, the plans that follow from them, and what is refused."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import hfprune
from hfprune import PruningConfig, PruningRecord
from hfprune.cli.app import app
from hfprune.data.packages import resolve_model
from hfprune.errors import BudgetError, PlanMismatchError
from hfprune.jobs.tasks import TextArguments, parse
from hfprune.measuring import block_times
from hfprune.measuring.backends import known_backends, register_backend
from hfprune.measuring.block_times import measure_latency_table, monotone, steadied
from hfprune.measuring.latency_table import LatencyTable, SublayerTimes
from hfprune.planning import BlockPlan, PruningPlan, allocate
from hfprune.planning.candidates import candidates_of
from hfprune.pruning.steps import no_scores, sparsity_of
from hfprune.publishing.card import draw_card
from hfprune.publishing.report import comparison_table
from hfprune.scoring import Scores
from tests.support.runs import text_home
from tests.support.tiny import tiny_model
from tests.test_planning import block, scores_of

#: A head costs 1 ms beside a fixed cost of 4 ms; neurons cost in steps of four, beside a fixed cost of 2 ms.
ATTENTION = {"widths": (0, 1, 2, 3), "milliseconds": (0.0, 5.0, 6.0, 7.0)}
FEED_FORWARD = {"widths": (0, 4, 8), "milliseconds": (0.0, 4.0, 6.0), "step": 4, "off_step": 1.5}


def table_of(blocks, **options):
    """A table in which all blocks of a kind take as long."""
    heads = tuple(found.name for found in blocks if found.kind == "attention")
    neurons = tuple(found.name for found in blocks if found.kind == "ffn")
    sublayers = (
        SublayerTimes(blocks=heads, unit="group", units=3, **ATTENTION),
        SublayerTimes(blocks=neurons, unit="neuron", units=8, **FEED_FORWARD),
    )
    return LatencyTable(
        **{
            "model_type": "bert",
            "sublayers": sublayers,
            "rest_ms": 2.0,
            "batch_size": 1,
            "sequence_length": 8,
            **options,
        }
    )


FOUR = [block("0.a", "attention", 3), block("0.f", "ffn", 8), block("1.a", "attention", 3), block("1.f", "ffn", 8)]
VALUES = {
    "0.a": [9.0, 8.0, 7.0],
    "0.f": [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0],
    "1.a": [0.5, 0.4, 0.3],
    "1.f": [5.0, 0.1, 4.0, 0.2, 3.0, 0.3, 2.0, 0.4],
}


def planned(limit_ms, allocation, **options):
    """The plan of the four blocks that may take so many milliseconds beside the rest."""
    return allocate(
        FOUR,
        scores_of(VALUES),
        limit=round(limit_ms * 1_000_000),
        budget="latency",
        sequence_length=8,
        model_type="bert",
        allocation=allocation,
        latency_table=table_of(FOUR),
        **{"min_units": 0, **options},
    )


def best_by_brute_force(limit_ms):
    """The largest score of all choices of levels within a limit."""
    times = table_of(FOUR).by_block
    best = 0.0
    for counts in itertools.product(*(range(found.units + 1) for found in FOUR)):
        cost = sum(times[found.name].at(count) for found, count in zip(FOUR, counts, strict=True))
        if cost <= limit_ms + 1e-9:
            best = max(best, score_of(dict(zip(VALUES, counts, strict=True))))
    return best


def score_of(counts):
    total = 0.0
    for name, count in counts.items():
        total += sum(sorted(VALUES[name], reverse=True)[:count])
    return total


class TestTable:
    def test_widths_between_measured_ones_are_interpolated(self):
        times = SublayerTimes(blocks=("f",), unit="neuron", units=64, widths=(0, 16, 64), milliseconds=(0.0, 1.0, 2.5))
        assert [times.at(units) for units in (0, 1, 15, 16, 40, 64, 99)] == [0, 1, 1, 1, 1.75, 2.5, 2.5]

    def test_widths_off_the_step_take_longer(self):
        times = table_of(FOUR).by_block["0.f"]
        assert [times.at(units) for units in (3, 4, 6, 8)] == [6.0, 4.0, 7.5, 6.0]

    def test_the_dense_width_is_as_measured_though_it_is_off_the_step(self):
        times = SublayerTimes(
            blocks=("f",), unit="neuron", units=9, widths=(0, 4, 9), milliseconds=(0.0, 1.0, 2.0), step=4, off_step=2.0
        )
        assert times.at(9) == 2.0

    def test_noise_is_made_monotone(self):
        found = monotone([0, 8, 16, 24, 32], [0.2, 3.0, 1.0, 4.0, 3.9])
        assert found == sorted(found)
        assert found[0] == 0.0

    def test_noise_is_drawn_towards_a_line_and_steps_are_not(self):
        widths = [0, 8, 16, 24, 32]
        stairs = [0.0, 2.0, 2.0, 4.0, 4.0]
        assert steadied(widths, stairs, [0.001] * 5) == pytest.approx(stairs, abs=1e-4)
        line = [0.0, 1.8, 2.6, 3.4, 4.2]
        half = steadied(widths, stairs, [0.3] * 5)
        for low, found, high in zip(line, half, stairs, strict=True):
            assert min(low, high) <= found <= max(low, high)
        assert steadied(widths, stairs, [2.0] * 5) == pytest.approx(line)
        assert steadied([0, 1, 2], [0.0, 3.0, 1.0], [9.0] * 3) == [0.0, 3.0, 1.0]

    def test_the_sum_of_its_parts(self):
        table = table_of(FOUR)
        assert table.prunable_ms == 2 * (7.0 + 6.0)
        assert table.dense_ms == 28.0
        assert table.milliseconds({"0.a": 3, "0.f": 8, "1.a": 0, "1.f": 4}) == 2.0 + 7.0 + 6.0 + 4.0

    def test_it_prints_every_width_and_how_it_was_measured(self):
        text = str(table_of(FOUR))
        assert "a, group" in text
        assert "dense 28.000 ms: 26.000 ms of units, 2.000 ms of the rest" in text
        assert "f: widths off a multiple of 4 take 1.50 times as long" in text
        assert "eager, cpu, float32, 1 threads, batch 1, 8 tokens" in text
        assert "<table>" in table_of(FOUR)._repr_html_()

    def test_it_is_saved_and_loaded(self, tmp_path):
        table = table_of(FOUR, fingerprint={"threads": 1})
        assert LatencyTable.load(table.save(tmp_path / "tables" / "one.json")) == table

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"widths": (0, 2, 1, 3)}, "increasing widths"),
            ({"milliseconds": (0.0, 2.0, 1.0, 3.0)}, "never fall"),
            ({"widths": (0, 1, 2, 4)}, "end at all 3 units"),
            ({"milliseconds": (1.0, 2.0, 3.0, 4.0)}, "begin at 0 ms"),
            ({"off_step": 0.5}, "off_step be at least 1"),
            ({"widths": (0, 1, 2.5, 3)}, "units and widths of a latency table must be a whole number"),
            ({"milliseconds": (0.0, 1.0, 2.0, float("inf"))}, "milliseconds of a latency table must be a finite"),
        ],
    )
    def test_times_that_cannot_be_are_refused(self, change, message):
        fields = {"blocks": ("a",), "unit": "group", "units": 3, **ATTENTION, **change}
        with pytest.raises(ValueError, match=message):
            SublayerTimes(**fields)

    @pytest.mark.parametrize("text", ["[]", "{", '{"format_version": 1}', '{"format_version": 1, "sublayers": 3}'])
    def test_other_files_are_refused(self, text, tmp_path):
        path = tmp_path / "table.json"
        path.write_text(text)
        with pytest.raises(ValueError, match="not a latency table"):
            LatencyTable.load(path)

    def test_texts_in_the_place_of_numbers_are_refused(self):
        data = json.loads(table_of(FOUR).to_json())
        data["rest_ms"] = "much"
        with pytest.raises(ValueError, match="not a latency table"):
            LatencyTable.from_json(json.dumps(data))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"rest_ms": -1.0}, "rest_ms of a latency table must be a finite number of at least 0, got -1"),
            ({"threads": 1.5}, "threads of a latency table must be a whole number of at least 1, got 1.5"),
            ({"batch_size": 0}, "batch_size of a latency table"),
            ({"sequence_length": "8"}, "sequence_length of a latency table"),
            ({"runs": -1}, "runs of a latency table"),
        ],
    )
    def test_numbers_that_cannot_be_are_refused_with_the_path(self, change, message, tmp_path):
        path = tmp_path / "table.json"
        path.write_text(json.dumps({**json.loads(table_of(FOUR).to_json()), **change}))
        with pytest.raises(ValueError, match=f"table.json: not a latency table: ValueError: {message}"):
            LatencyTable.load(path)

    def test_a_newer_format_is_refused(self):
        data = {**json.loads(table_of(FOUR).to_json()), "format_version": 2}
        with pytest.raises(ValueError, match="format_version 2, this hfprune reads 1"):
            LatencyTable.from_json(json.dumps(data))

    def test_a_file_that_is_not_there_is_refused(self):
        with pytest.raises(ValueError, match="there is no file 'none.json'. `hfprune latency-table"):
            LatencyTable.load("none.json")


class TestAllocators:
    @pytest.mark.parametrize("limit_ms", range(27))
    def test_the_knapsack_is_as_good_as_brute_force(self, limit_ms):
        plan = planned(limit_ms, "knapsack")
        assert table_of(FOUR).milliseconds(plan.units_after) <= limit_ms + 2.0
        assert score_of(plan.units_after) == pytest.approx(best_by_brute_force(limit_ms))

    @pytest.mark.parametrize("allocation", ["global", "knapsack", "threshold", "uniform", "layerwise", "random"])
    @pytest.mark.parametrize("limit_ms", [0, 3, 9, 14, 20.5, 26])
    def test_every_allocator_keeps_within_the_milliseconds(self, allocation, limit_ms):
        plan = planned(limit_ms, allocation)
        assert plan.predicted.pruned_ms == table_of(FOUR).milliseconds(plan.units_after)
        assert plan.predicted.pruned_ms <= limit_ms + 2.0
        for name, kept in plan.units_after.items():
            assert kept in ((0, 4, 8) if name.endswith("f") else (0, 1, 2, 3))
        if limit_ms in (0, 26):
            assert list(plan.units_after.values()) == ([0, 0, 0, 0] if limit_ms == 0 else [3, 8, 3, 8])

    @pytest.mark.parametrize("allocation", ["global", "knapsack"])
    def test_the_fixed_cost_of_a_sublayer_lets_it_go_whole(self, allocation):
        # single heads of 1.a would save 1 ms each, the whole block saves 7
        plan = planned(26.0 - 7.0, allocation)
        assert plan.units_after == {"0.a": 3, "0.f": 8, "1.a": 0, "1.f": 8}

    def test_without_the_fixed_cost_no_block_goes_whole(self):
        with_fixed = planned(19.0, "global", min_units=1)
        assert min(with_fixed.units_after.values()) >= 1

    def test_only_multiples_of_the_step_are_kept(self):
        for limit_ms in range(27):
            plan = planned(limit_ms, "global")
            assert plan.units_after["0.f"] in (0, 4, 8)

    def test_a_better_bargain_above_is_joined_with_what_is_below(self):
        candidates = candidates_of(
            FOUR,
            scores_of(VALUES),
            budget="latency",
            sequence_length=8,
            min_units=0,
            latency_table=table_of(FOUR),
        )
        assert [(step.cost, step.level, step.units) for step in candidates[0].ranked_steps()] == [(7_000_000, 3, 3)]
        assert [step.level for step in candidates[0].steps()] == [1, 2, 3]
        densities = [step.value / step.cost for step in candidates[1].ranked_steps()]
        assert densities == sorted(densities, reverse=True)

    def test_milliseconds_have_no_cost_of_one_unit(self):
        options = {"budget": "latency", "sequence_length": 8, "latency_table": table_of(FOUR)}
        with pytest.raises(ValueError, match="block '0.a' has no cost of one unit"):
            _ = candidates_of(FOUR, scores_of(VALUES), **options)[0].unit_cost

    def test_a_budget_of_units_has_the_steps_that_it_had(self):
        candidates = candidates_of(FOUR, scores_of(VALUES), budget="params", sequence_length=8)
        assert [found.unit_cost for found in candidates] == [found.unit_params for found in FOUR]
        for candidate in candidates:
            assert candidate.ranked_steps() == candidate.steps()

    def test_least_cost_is_reported_where_nothing_may_go(self):
        with pytest.raises(BudgetError, match="prunable latency, but min_units=3.*min_units=0 lets whole sublayers go"):
            planned(10.0, "global", min_units=3, exclude=["*.f"])

    def test_widths_of_the_stock_config(self):
        plan = planned(20.0, "global", stock_widths=True, min_units=1)
        assert plan.units_after["0.f"] == plan.units_after["1.f"]
        assert plan.predicted.pruned_ms <= 22.0


def tiny():
    return tiny_model("bert", "AutoModelForSequenceClassification", num_labels=2)


def table_of_tiny(**options):
    """A table of the tiny BERT of two layers, four heads and forty neurons."""
    names = [f"encoder.layer.{layer}" for layer in range(2)]
    attention = SublayerTimes(
        blocks=tuple(f"{name}.attention" for name in names),
        unit="group",
        units=4,
        widths=(0, 2, 4),
        milliseconds=(0.0, 3.0, 4.0),
    )
    neurons = SublayerTimes(
        blocks=tuple(f"{name}.ffn" for name in names),
        unit="neuron",
        units=40,
        widths=(0, 8, 40),
        milliseconds=(0.0, 2.0, 6.0),
    )
    return LatencyTable(
        **{
            "model_type": "bert",
            "sublayers": (attention, neurons),
            "rest_ms": 4.0,
            "batch_size": 2,
            "sequence_length": 8,
            **options,
        }
    )


def latency_config(**options):
    fields = {"budget": "latency", "latency_table": table_of_tiny(), "sequence_length": 8, "min_units": 0, **options}
    return PruningConfig(scorer="l2", reconstruct=False, calibration_samples=4, **fields)


BATCHES = [{"input_ids": torch.arange(4, 20).reshape(2, 8), "attention_mask": torch.ones(2, 8, dtype=torch.long)}]


@pytest.fixture
def made_up_times(monkeypatch):
    """Times by how many parameters a model has, in the place of a clock."""

    def times_in_turn(models, *, runs, **_):
        return [[1e-4 * sum(p.numel() for p in model.parameters())] * runs for model in models]

    monkeypatch.setattr(block_times, "times_in_turn", times_in_turn)


class TestConfig:
    def test_a_speedup_is_a_sparsity_of_the_prunable_milliseconds(self):
        assert latency_config(speedup=2.0).sparsity == 12.0 / 20.0
        assert latency_config(milliseconds=14.0).sparsity == 10.0 / 20.0
        assert latency_config().sparsity == 0.5

    def test_a_copy_keeps_its_goal(self):
        config = replace(latency_config(speedup=2.0), seed=3)
        assert (config.sparsity, config.speedup, config.seed) == (0.6, 2.0, 3)
        assert config.with_sparsity(0.25).speedup is None
        assert config.with_sparsity(0.25).sparsity == 0.25

    def test_a_copy_can_be_given_another_goal(self):
        assert replace(latency_config(), speedup=2.0).sparsity == 0.6
        assert replace(latency_config(speedup=2.0), speedup=None, milliseconds=14.0).sparsity == 0.5
        assert replace(latency_config(speedup=2.0), speedup=1.5).sparsity == pytest.approx(8.0 / 20.0)
        assert type(latency_config(speedup=2.0).to_dict()["sparsity"]) is float
        with pytest.raises(ValueError, match="are two goals"):
            replace(latency_config(sparsity=0.5), speedup=2.0)

    def test_the_table_is_read_from_its_file(self, tmp_path):
        path = table_of_tiny().save(tmp_path / "table.json")
        assert latency_config(latency_table=path).table == table_of_tiny()
        assert latency_config(latency_table=str(path)).table == table_of_tiny()

    def test_plain_values_say_how_the_table_was_measured(self):
        values = latency_config(speedup=2.0).to_dict()
        assert values["latency_table"]["dense_ms"] == 24.0
        assert values["speedup"] == 2.0
        assert values["budget"] == "latency"
        json.dumps(values)
        assert not {"latency_table", "speedup", "milliseconds"} & set(PruningConfig().to_dict())

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"sparsity": 0.5, "speedup": 2.0}, "sparsity=0.5 and a goal in time .* are two goals: give one"),
            ({"sparsity": 0.3, "milliseconds": 12.0}, "sparsity=0.3 and a goal in time"),
            ({"speedup": 2.0, "milliseconds": 12.0}, "speedup=2 and milliseconds=12 are two goals"),
            ({"milliseconds": 3.0}, "embeddings, norms and head alone take 4.000 ms"),
            ({"speedup": 7.0}, "speedup=7 cannot be reached: 3.429 ms .* at most 6.00 times as fast"),
            ({"milliseconds": 24.0}, "milliseconds=24 asks for nothing: the dense model takes 24.000 ms"),
            ({"speedup": 1.0}, "speedup must be above 1, got 1"),
            ({"latency_table": None}, "budget='latency' needs latency_table"),
            ({"latency_table": 3}, "latency_table must be a LatencyTable or the path of its file, got 3"),
            ({"latency_table": "none.json"}, "there is no file 'none.json'"),
            ({"budget": "macs"}, "latency_table go with budget='latency', and budget='macs' has no milliseconds"),
            ({"budget": "macs", "latency_table": None, "speedup": 2.0}, "speedup go with budget='latency'"),
        ],
    )
    def test_contradictions_are_refused(self, fields, message):
        with pytest.raises(ValueError, match=message):
            latency_config(**fields)


class TestPruning:
    def test_a_model_is_pruned_to_the_milliseconds(self):
        model = tiny()
        scores = hfprune.score(model, BATCHES, scorer="l2")
        plan = hfprune.plan(model, scores, latency_config(milliseconds=14.0))
        assert plan.predicted.pruned_ms <= 14.0
        assert plan.predicted.dense_ms == 24.0
        assert "14.00 ms predicted, dense 24.00 ms: 1.71× faster" in str(plan)

    def test_the_result_is_measured_beside_what_was_predicted(self):
        small = hfprune.prune(tiny(), BATCHES, latency_config(speedup=2.0))
        record = small.pruning_record
        latencies = record.latencies
        assert latencies["dense"]["predicted_ms"] == 24.0
        assert latencies["pruned"]["predicted_ms"] == small.pruning_plan.predicted.pruned_ms <= 12.0
        assert (latencies["pruned"]["batch_size"], latencies["pruned"]["sequence_length"]) == (2, 8)
        assert latencies["pruned"]["threads"] == 1
        faster = 24.0 / small.pruning_plan.predicted.pruned_ms
        assert (
            f"predicted latency: 24.0 ms → {latencies['pruned']['predicted_ms']:.1f} ms ({faster:.2f}× faster)"
            in str(record)
        )
        assert "  predicted" in comparison_table(record)
        card = draw_card(record, small.pruning_plan, portable=False, location="small")
        assert "latency predicted by the latency table | 24.0 ms" in card
        assert PruningRecord.from_json(record.to_json()).latencies == latencies

    def test_what_cannot_be_timed_as_the_table_was_is_predicted_only(self, caplog):
        config = latency_config(latency_table=table_of_tiny(dtype="float16"))
        small = hfprune.prune(tiny(), BATCHES, config)
        assert small.pruning_record.latencies == {}
        assert "the table is of float16, and the model is float32. It was predicted only." in caplog.text

    def test_a_result_that_cannot_be_timed_is_kept(self, caplog):
        @register_backend("failing")
        def failing(model, batch):
            raise RuntimeError("no room")

        small = hfprune.prune(tiny(), BATCHES, latency_config(latency_table=table_of_tiny(backend="failing")))
        assert small.pruning_record.latencies == {}
        assert "could not be measured, and was predicted only: RuntimeError: no room" in caplog.text

    def test_a_table_of_longer_sequences_than_the_model_takes_is_refused_before_the_work(self, monkeypatch):
        monkeypatch.setattr("hfprune.pruning.prune.score", None)
        config = latency_config(latency_table=table_of_tiny(sequence_length=4096))
        with pytest.raises(ValueError, match="sequence_length of the latency table=4096 is more than the model's"):
            hfprune.prune(tiny(), BATCHES, config)

    def test_a_plan_keeps_its_prediction_in_a_file(self):
        model = tiny()
        plan = hfprune.plan(model, no_scores(model, latency_config()), latency_config())
        again = PruningPlan.from_json(plan.to_json())
        assert again.predicted == plan.predicted
        assert again == plan

    @pytest.mark.parametrize("predicted", [{"pruned_ms": "x", "dense_ms": 1.0}, {"pruned_ms": 1.0}, 3])
    def test_a_prediction_that_is_none_is_refused(self, predicted):
        fields = {"units": 4, "kept": (0,), "unit_params": 1, "unit_macs": 1}
        plan = PruningPlan(model_type="bert", sequence_length=8, blocks={"l.0.ffn": BlockPlan(kind="ffn", **fields)})
        text = json.dumps({**json.loads(plan.to_json()), "predicted": predicted})
        with pytest.raises(ValueError, match=r"not a pruning plan|pruned_ms must be a finite number"):
            PruningPlan.from_json(text)

    def test_rounds_count_in_milliseconds(self):
        config = latency_config(speedup=2.0, schedule="linear", rounds=3)
        small = hfprune.prune(tiny(), BATCHES, config)
        assert table_of_tiny().milliseconds(small.pruning_plan.units_after) <= 12.0
        rounds = [entry["sparsity"] for entry in small.pruning_record.rounds]
        assert rounds == pytest.approx([0.2, 0.4, 0.6])

    def test_a_model_that_is_fast_enough_already_is_refused(self):
        small = hfprune.prune(tiny(), BATCHES, latency_config(speedup=2.0, schedule="one_shot"))
        with pytest.raises(BudgetError, match="of its dense latency removed already"):
            hfprune.prune(small, BATCHES, latency_config(speedup=1.5))
        assert sparsity_of(small, latency_config()) >= 0.6

    def test_fractions_by_pattern_say_what_they_take(self):
        model = tiny()
        plan = hfprune.plan(model, no_scores(model, latency_config()), latency_config(), sparsity={"*.ffn": 1.0})
        assert plan.predicted.pruned_ms == 12.0

    def test_fractions_by_pattern_go_without_a_goal_in_time(self):
        config = latency_config(speedup=2.0)
        with pytest.raises(ValueError, match="speedup=2 says how long .* a mapping of sparsities says"):
            hfprune.prune(tiny(), BATCHES, config, sparsity={"*.ffn": 0.5})
        with pytest.raises(ValueError, match="speedup=2 says how long .* a mapping of sparsities says"):
            hfprune.plan(tiny(), no_scores(tiny(), config), config, sparsity={"*.ffn": 0.5})
        # a number overrides it
        plan = hfprune.plan(tiny(), no_scores(tiny(), config), config, sparsity=0.3)
        assert 12.0 < plan.predicted.pruned_ms <= 18.0

    def test_a_table_of_another_processor_or_length_is_told(self, caplog):
        table = table_of_tiny(fingerprint={"device": "cpu: abacus"}, sequence_length=6)
        hfprune.prune(tiny(), BATCHES, latency_config(latency_table=table))
        assert caplog.text.count("the latency table was measured on 'cpu: abacus', and this is 'cpu: ") == 1
        assert "the latency table is of 6 tokens, and sequence_length=8" in caplog.text

    def test_fractions_by_pattern_remove_nothing_that_no_pattern_names(self):
        attention, neurons = table_of_tiny().sublayers
        # 38 neurons take longer than all 40
        table = table_of_tiny(sublayers=(attention, replace(neurons, step=8, off_step=2.0)))
        for allocation in ("global", "knapsack", "uniform", "threshold", "random"):
            config = latency_config(latency_table=table, allocation=allocation)
            plan = hfprune.plan(tiny(), no_scores(tiny(), config), config, sparsity={"*.ffn": 0.05})
            assert list(plan.units_after.values()) == [4, 38, 4, 38]

    @pytest.mark.parametrize(
        ("fingerprint", "message"),
        [
            (
                {"class": "BertForMaskedLM"},
                "its class is BertForMaskedLM, and here it is BertForSequenceClass.*Measure",
            ),
            ({"hidden size": 64}, "its hidden size is 64, and here it is 32"),
        ],
    )
    def test_a_table_of_another_head_is_refused(self, fingerprint, message):
        config = latency_config(latency_table=table_of_tiny(fingerprint=fingerprint))
        with pytest.raises(PlanMismatchError, match=message):
            hfprune.prune(tiny(), BATCHES, config)

    def test_the_table_of_the_dense_model_holds_for_pruned_ones(self, made_up_times):
        table = measure_latency_table(tiny(), batch_size=2, sequence_length=8, runs=1)
        config = latency_config(latency_table=table, schedule="one_shot")
        small = hfprune.prune(tiny(), BATCHES, config.with_sparsity(0.3))
        assert type(small).__name__.startswith("Pruned")
        smaller = hfprune.prune(small, BATCHES, config.with_sparsity(0.5))
        assert smaller.pruning_plan.predicted.pruned_ms < small.pruning_plan.predicted.pruned_ms

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"model_type": "roberta"}, "of a roberta model, this is a bert model"),
            ({"sublayers": table_of_tiny().sublayers[:1]}, "it has no block 'encoder.layer.0.ffn'"),
            (
                {
                    "sublayers": (
                        *table_of_tiny().sublayers,
                        SublayerTimes(blocks=("x",), unit="group", units=3, **ATTENTION),
                    )
                },
                "its block 'x' is not in this model",
            ),
        ],
    )
    def test_a_table_of_another_model_is_refused(self, change, message):
        with pytest.raises(PlanMismatchError, match=message):
            hfprune.prune(tiny(), BATCHES, latency_config(latency_table=table_of_tiny(**change)))

    def test_a_table_of_a_wider_model_is_refused(self):
        model = tiny_model("bert", "AutoModelForSequenceClassification", num_labels=2, intermediate_size=48)
        with pytest.raises(
            PlanMismatchError, match="'encoder.layer.0.ffn' has 40 units in it and 48 in the dense model"
        ):
            hfprune.prune(model, BATCHES, latency_config())

    def test_the_trade_off_curve_counts_milliseconds(self):
        model = tiny()
        scores = Scores(by_block=hfprune.score(model, BATCHES, scorer="l2").by_block, scorer="l2", samples=0)
        curve = hfprune.trade_off(model, scores, latency_config())
        assert curve[0].lost == pytest.approx(0.0)
        assert curve[-1].sparsity == pytest.approx(1.0)


def test_gradual_pruning_goes_on_with_the_same_table_only(tmp_path):
    gradual = hfprune.GradualPruning(latency_config())
    gradual.attach(tiny())
    gradual.save(tmp_path)
    other = hfprune.GradualPruning(latency_config(latency_table=table_of_tiny(rest_ms=5.0)))
    with pytest.raises(ValueError, match="is of a gradual pruning to .*'latency_table'"):
        other.load(tmp_path, tiny())
    again = hfprune.GradualPruning(latency_config())
    again.load(tmp_path, tiny())
    assert again.attached


class TestSweeping:
    def test_points_say_what_the_table_predicts(self, tmp_path):
        found = hfprune.sweep(
            tiny(),
            BATCHES,
            latency_config(),
            sparsities=[0.3, 0.6],
            evaluate=lambda model: [True] * 9 + [model.num_parameters() > 30_000],
            latency_runs=1,
            save_to=tmp_path / "sweep.json",
        )
        assert [point.predicted_ms <= 24.0 - 20.0 * point.sparsity + 1e-9 for point in found.points] == [True] * 3
        assert (found.dense.latency.batch_size, found.dense.latency.threads) == (2, 1)
        assert "predicted, ms" in found.table()
        assert found.to_pandas()["predicted_ms"].tolist() == [point.predicted_ms for point in found.points]
        assert found.settings["latency_table"]["dense_ms"] == 24.0
        assert "speedup" not in found.settings
        assert hfprune.Sweep.from_json((tmp_path / "sweep.json").read_text()).points == found.points

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"milliseconds": 14.0}, r"milliseconds=14 would be ignored. .* sparsities=\[0.5000\]"),
            ({"latency_table": table_of_tiny(backend="unheard")}, "backend must be one of eager"),
        ],
    )
    def test_mistakes_are_found_before_scoring(self, fields, message, monkeypatch):
        monkeypatch.setattr("hfprune.sweeping.run.score", None)
        with pytest.raises(ValueError, match=message):
            hfprune.sweep(tiny(), BATCHES, latency_config(**fields), sparsities=[0.3], evaluate=lambda model: 0.5)

    def test_models_of_another_dtype_than_the_table_are_not_timed(self, caplog):
        config = latency_config(latency_table=table_of_tiny(dtype="float16"))
        found = hfprune.sweep(tiny(), BATCHES, config, sparsities=[0.3], evaluate=lambda model: 0.5)
        assert [point.latency for point in found.points] == [None, None]
        assert found.points[1].predicted_ms <= 18.0
        assert "latencies are not measured: the table is of float16, and the model is float32" in caplog.text

    def test_the_best_point_that_is_fast_enough(self):
        found = hfprune.sweep(
            tiny(), BATCHES, latency_config(), sparsities=[0.3, 0.6], evaluate=lambda model: 0.5, latency_runs=1
        )
        times = [5.0, 3.0, 2.0]
        points = []
        for point, milliseconds, metric in zip(found.points, times, [0.9, 0.9, 0.8], strict=True):
            points.append(replace(point, latency=replace(point.latency, median_ms=milliseconds), metric=metric))
        curve = replace(found, points=tuple(points))
        assert curve.within_ms(1.0) is None
        assert curve.within_ms(2.5).metric == 0.8
        assert curve.within_ms(9.0).latency_ms == 3.0

    def test_a_sweep_without_latencies_has_none_within(self):
        found = hfprune.sweep(
            tiny(),
            BATCHES,
            latency_config(),
            sparsities=[0.3],
            evaluate=lambda model: 0.5,
            latency_batch_size=None,
        )
        with pytest.raises(ValueError, match="measured no latency"):
            found.within_ms(3.0)

    def test_a_search_goes_no_lower_than_the_goal(self):
        config = latency_config(speedup=2.0, schedule="one_shot")
        small, search = hfprune.prune_within(
            tiny(), BATCHES, config, max_drop=0.5, evaluate=lambda model: [True] * 40, step=0.25
        )
        tried = [point.sparsity for point in search.points[1:]]
        assert min(tried) >= 0.6
        assert small.pruning_plan.predicted.pruned_ms <= 12.0
        assert search.points[-1].predicted_ms == small.pruning_plan.predicted.pruned_ms

    def test_a_goal_that_drops_too_much_is_refused(self):
        def evaluate(model):
            return [getattr(model, "pruning_plan", None) is None] * 40

        with pytest.raises(BudgetError, match="even sparsity 0.6 lets metric drop by 1.0000"):
            hfprune.prune_within(
                tiny(), BATCHES, latency_config(speedup=2.0), max_drop=0.5, evaluate=evaluate, step=0.25
            )


class TestMeasuring:
    def test_sublayers_of_one_shape_share_their_times(self, made_up_times):
        table = measure_latency_table(tiny(), batch_size=2, sequence_length=8, runs=2, threads=1)
        attention, neurons = table.sublayers
        assert attention.blocks == ("encoder.layer.0.attention", "encoder.layer.1.attention")
        assert attention.widths == (0, 1, 2, 3, 4)
        assert neurons.widths[0] == 0
        assert neurons.widths[-1] == 40
        # as a head has the parameters of a head, of the query, key and value and of the output
        assert attention.milliseconds[1] == pytest.approx(1e-4 * (4 * 32 * 8 + 3 * 8), rel=1e-3)
        total = 1e-4 * sum(p.numel() for p in tiny().parameters())
        assert table.dense_ms == pytest.approx(total, rel=1e-3)
        assert (table.threads, table.batch_size, table.sequence_length, table.runs) == (1, 2, 8, 2)

    def test_the_parts_together_take_what_the_dense_model_takes(self, monkeypatch):
        def times_in_turn(models, *, runs, **_):
            # what is saved is saved twice, so the sublayers that are cut alone do not save all
            sizes = [sum(p.numel() for p in model.bert.encoder.parameters()) for model in models]
            return [[5.0 + (size / sizes[0]) ** 2 * 10.0] * runs for size in sizes]

        monkeypatch.setattr(block_times, "times_in_turn", times_in_turn)
        table = measure_latency_table(tiny(), batch_size=1, sequence_length=8, runs=2)
        assert table.dense_ms == pytest.approx(15.0, rel=1e-4)
        assert table.rest_ms == pytest.approx(5.0, rel=0.02)

    def test_slow_widths_between_multiples_of_eight_are_seen(self, monkeypatch):
        def times_in_turn(models, *, runs, **_):
            found = []
            for model in models:
                widths = [layer.intermediate.dense for layer in model.bert.encoder.layer]
                neurons = sum(
                    getattr(dense, "out_features", 0) * (1.25 if getattr(dense, "out_features", 0) % 8 else 1)
                    for dense in widths
                )
                found.append([1.0 + neurons] * runs)
            return found

        monkeypatch.setattr(block_times, "times_in_turn", times_in_turn)
        model = tiny_model("bert", "AutoModelForSequenceClassification", num_labels=2, intermediate_size=160)
        neurons = measure_latency_table(model, batch_size=1, sequence_length=8, runs=2).sublayers[1]
        assert (neurons.step, neurons.off_step) == (8, 1.25)
        assert neurons.at(64) == pytest.approx(64.0)
        assert neurons.at(63) > neurons.at(64)

    def test_the_fingerprint_says_what_the_times_depend_on(self, made_up_times):
        first = measure_latency_table(tiny(), batch_size=2, sequence_length=8, runs=2, threads=1).fingerprint
        assert {"device", "dtype", "threads", "backend", "versions", "model"} <= set(first)
        other = measure_latency_table(tiny(), batch_size=2, sequence_length=8, runs=2, threads=2).fingerprint
        assert first["threads"] != other["threads"]
        wider = tiny_model("bert", "AutoModelForSequenceClassification", num_labels=2, intermediate_size=48)
        assert measure_latency_table(wider, batch_size=2, sequence_length=8).fingerprint["model"] != first["model"]
        half = measure_latency_table(tiny(), batch_size=2, sequence_length=8, dtype=torch.bfloat16)
        assert half.dtype == half.fingerprint["dtype"] == "bfloat16"

    def test_a_table_is_measured_once(self, made_up_times, tmp_path, monkeypatch):
        settings = {"batch_size": 2, "sequence_length": 8, "runs": 2, "cache": tmp_path}
        table = measure_latency_table(tiny(), **settings)
        assert len(list(tmp_path.glob("*.json"))) == 1
        monkeypatch.setattr(block_times, "times_in_turn", None)
        assert measure_latency_table(tiny(), **settings) == table
        with pytest.raises(TypeError):
            measure_latency_table(tiny(), **settings, again=True)

    @pytest.mark.parametrize("change", [{"num_attention_heads": 2}, {"hidden_act": "relu"}])
    def test_the_cache_knows_models_of_the_same_shapes_apart(self, change, made_up_times, tmp_path):
        settings = {"batch_size": 2, "sequence_length": 8, "runs": 2, "cache": tmp_path}
        measure_latency_table(tiny(), **settings)
        other = tiny_model("bert", "AutoModelForSequenceClassification", num_labels=2, **change)
        table = measure_latency_table(other, **settings)
        assert len(list(tmp_path.glob("*.json"))) == 2
        assert table.sublayers[0].units == other.config.num_attention_heads
        other.config.id2label = {0: "no", 1: "yes"}
        other.config._name_or_path = "elsewhere"
        measure_latency_table(other, **settings)
        assert len(list(tmp_path.glob("*.json"))) == 2

    def test_a_table_without_times_of_units_is_not_saved(self, tmp_path, monkeypatch):
        monkeypatch.setattr(block_times, "times_in_turn", lambda models, *, runs, **_: [[2.0] * runs for _ in models])
        with pytest.raises(BudgetError, match="no unit takes any time, measured with eager, cpu, float32"):
            measure_latency_table(tiny(), batch_size=1, sequence_length=8, runs=2, cache=tmp_path)
        assert not list(tmp_path.iterdir())

    def test_a_pruned_model_is_refused(self):
        small = hfprune.prune(tiny(), BATCHES, latency_config(speedup=2.0))
        with pytest.raises(PlanMismatchError, match="measured on the dense model, and this model was pruned already"):
            measure_latency_table(small, batch_size=1, sequence_length=8)

    def test_an_unknown_backend_is_refused(self):
        with pytest.raises(ValueError, match="backend must be one of eager, compile"):
            measure_latency_table(tiny(), batch_size=1, sequence_length=8, backend="fast")

    def test_query_heads_go_from_every_group(self, made_up_times):
        model = tiny_model("llama", "AutoModelForCausalLM")
        table = measure_latency_table(model, batch_size=1, sequence_length=8, runs=1, attention_unit="query")
        assert table.sublayers[0].unit == "query"
        assert table.sublayers[0].widths == (4, 8)
        config = PruningConfig(
            budget="latency", latency_table=table, sparsity=0.4, attention_unit="query", sequence_length=8
        )
        plan = hfprune.plan(model, no_scores(model, config), config)
        assert plan.predicted.pruned_ms < table.dense_ms

    def test_a_backend_of_ones_own(self):
        calls = []

        @register_backend("counting")
        def counting(model, batch):
            return lambda batch: calls.append(model(**batch))

        assert "counting" in known_backends()
        measure_latency_table(tiny(), batch_size=1, sequence_length=4, runs=1, warmup=0, backend="counting")
        # widths of heads and of neurons, and all of them cut
        assert len(calls) == 2 * (4 + 5 + 1)


@pytest.mark.slow
class TestRealTimes:
    def test_torch_compile(self):
        table = measure_latency_table(tiny(), batch_size=1, sequence_length=8, runs=2, warmup=1, backend="compile")
        assert table.backend == "compile"
        assert table.dense_ms > 0

    def test_minilm(self):
        source = resolve_model("minilm-l6")
        model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=6)
        table = measure_latency_table(model, batch_size=8, sequence_length=64, threads=1, runs=5, warmup=1)
        attention, neurons = table.sublayers
        assert attention.widths == tuple(range(13))
        assert len(attention.blocks) == len(neurons.blocks) == 6
        # most of the time of a batch of texts goes into units
        assert table.prunable_ms > 0.5 * table.dense_ms
        config = PruningConfig(
            budget="latency", latency_table=table, speedup=1.5, scorer="l2", reconstruct=False, schedule="one_shot"
        )
        small = hfprune.prune(model, tiny_batches_of(model), config)
        latencies = small.pruning_record.latencies
        assert latencies["pruned"]["median_ms"] < latencies["dense"]["median_ms"]


def tiny_batches_of(model):
    ids = torch.arange(1000, 1032).reshape(2, 16)
    return [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = text_home(tmp_path_factory.mktemp("latency"))
    table_of_tiny().save(folder / "table.json")
    return folder


def cli(*arguments):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert "Traceback" not in done.output
    return done


def pruned(home, *options):
    quick = ["--data", home / "data.csv", "--max-length", 16, "--calibration-samples", 16, "--schedule", "one_shot"]
    return cli("prune", home / "dense", home / "small", *quick, "--scorer", "l2", "--overwrite", *options)


class TestCommands:
    def test_a_table_is_measured_printed_and_saved(self, home, tmp_path, made_up_times, monkeypatch):
        monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
        options = ["--batch", 2, "--length", 8, "--threads", 1, "--runs", 2]
        done = cli("latency-table", home / "dense", *options, "--output", tmp_path / "table.json")
        assert done.exit_code == 0, done.output
        assert "attention, group" in done.stdout
        assert "eager, cpu, float32, 1 threads, batch 2, 8 tokens; 2 passes for every width" in done.stdout
        assert LatencyTable.load(tmp_path / "table.json").batch_size == 2

        def times_in_turn(models, **_):
            raise ValueError("measured anew")

        monkeypatch.setattr(block_times, "times_in_turn", times_in_turn)
        assert cli("latency-table", home / "dense", *options).exit_code == 0
        assert "measured anew" in cli("latency-table", home / "dense", *options, "--again").stderr

    def test_mistakes(self, home, tmp_path):
        assert "backend must be one of eager" in cli("latency-table", home / "dense", "--backend", "fast").stderr
        if not torch.cuda.is_available():
            assert "PyTorch sees no GPU here" in cli("latency-table", home / "dense", "--device", "cuda").stderr
        assert "got the folder" in cli("latency-table", home / "dense", "--output", tmp_path).stderr
        assert "no file" in pruned(home, "--latency-table", tmp_path / "none.json").stderr
        assert "needs latency_table" in pruned(home, "--budget", "latency").stderr
        assert "speedup go with budget='latency'" in pruned(home, "--speedup", 2).stderr
        table = ["--latency-table", home / "table.json"]
        assert "are two goals" in pruned(home, *table, "--speedup", 2, "--sparsity", 0.3).stderr
        assert "are two goals" in pruned(home, *table, "--speedup", 2, "--within-ms", 12).stderr
        assert "cannot be reached" in pruned(home, *table, "--within-ms", 1).stderr
        for budget in ("params", "macs"):
            refused = f"latency_table go with budget='latency', and budget={budget!r}"
            assert refused in pruned(home, *table, "--budget", budget).stderr
        table_of_tiny(dtype="float16").save(tmp_path / "half.json")
        for options, message in [
            (["--within-ms", 0], "--within-ms must be a finite number above 0, got 0"),
            (["--within-ms", -3], "--within-ms must be a finite number above 0, got -3"),
            (["--within-ms", 3, "--latency-table", tmp_path / "half.json"], "cannot be timed as the latency table was"),
            (["--allocation", "best"], "unknown allocation 'best'"),
            (["--min-units", -1], "min_units must be a whole number of at least 0"),
        ]:
            assert message in cli("sweep", home / "dense", "--data", home / "data.csv", *options).stderr

    def test_prune_says_what_was_predicted_and_measured(self, home):
        done = pruned(home, "--latency-table", home / "table.json", "--within-ms", 12, "--min-units", 0)
        assert done.exit_code == 0, done.output
        assert "ms predicted, dense 24.00 ms" in done.stdout
        assert "latency, ms" in done.stdout
        assert "  predicted" in done.stdout
        assert "latency predicted by the latency table" in (home / "small" / "README.md").read_text()

    def test_sweep_names_the_best_point_in_time(self, home):
        options = ["--max-length", 16, "--calibration-samples", 16, "--scorer", "l2", "--sparsity", 0.4]
        table = ["--latency-table", home / "table.json", "--output", home / "sweep.json"]
        command = ["sweep", home / "dense", "--data", home / "data.csv", *options, *table, "--within-ms"]
        done = cli(*command, 1e6)
        assert done.exit_code == 0, done.output
        assert "predicted, ms" in done.stdout
        points = hfprune.Sweep.from_json((home / "sweep.json").read_text()).points
        best = max(reversed(points), key=lambda point: point.metric)
        assert f"best within 1e+06 ms: sparsity {best.sparsity:g}, accuracy {best.metric:.4f}, " in done.stdout
        assert "best within 1e-06 ms: no point is as fast" in cli(*command, 1e-6).stdout


def test_scripts_take_a_table(tmp_path):
    path = table_of_tiny().save(tmp_path / "table.json")
    words = ["--model_name_or_path", "minilm-l6", "--budget", "latency", "--latency_table", str(path), "--speedup", "2"]
    config = parse(TextArguments, None, [*words, "--output_dir", str(tmp_path)]).pruning
    assert config.table == table_of_tiny()
    assert config.sparsity == 0.6
    with pytest.raises(ValueError, match="are two goals"):
        parse(TextArguments, None, [*words, "--output_dir", str(tmp_path), "--sparsity", "0.5"])
