"""sweep(): many sizes from one scoring pass, and the file that an interrupted one goes on from."""

import copy
import itertools
from dataclasses import replace

import pytest
import torch

import hfprune
from hfprune import PruningConfig, Sweep
from hfprune.errors import BudgetError
from hfprune.measuring.size import measure_size
from hfprune.sweeping import run
from tests.support.plans import uneven_plan
from tests.support.sweeps import BATCHES, QUICK, SHORT, by_hand, output_sum, samples_seen
from tests.support.tiny import tiny_model


class TestSweep:
    @pytest.mark.parametrize("reconstruct", [True, False])
    def test_points_are_what_the_steps_give(self, reconstruct):
        model = tiny_model("bert")
        config = replace(SHORT, scorer="fisher", schedule="one_shot", reconstruct=reconstruct, budget="params")
        batches = [{**batch, "labels": torch.tensor([0, 1, 0, 1])} for batch in BATCHES]
        found = hfprune.sweep(
            model, batches, config, sparsities=[0.6, 0.3], evaluate=output_sum, latency_batch_size=2, latency_runs=2
        )
        assert [p.sparsity for p in found.points] == [0.0, 0.3, 0.6]
        assert found.dense.metric == output_sum(model)
        assert found.dense.size == measure_size(model, sequence_length=8)
        assert (found.dense.mac_sparsity, found.dense.plan_digest, found.dense.speedup) == (0.0, "", 1.0)
        scores = hfprune.score(model, batches, scorer="fisher", seed=0)
        for sparsity, measured in zip([0.3, 0.6], found.points[1:], strict=True):
            small = hfprune.apply_plan(model, hfprune.plan(model, scores, config, sparsity=sparsity))
            if reconstruct:
                hfprune.reconstruct(small, model, batches)
            assert measured.plan_digest == small.pruning_plan.digest
            assert measured.metric == output_sum(small)
            assert measured.size == measure_size(small, sequence_length=8)
            assert measured.params == sum(p.numel() for p in small.parameters())
            assert measured.mac_sparsity == small.pruning_plan.sparsity("macs")
            assert measured.param_sparsity == small.pruning_plan.sparsity("params") >= sparsity
            assert measured.speedup == found.dense.latency_ms / measured.latency_ms
            assert (measured.latency.batch_size, measured.latency.sequence_length, measured.latency.runs) == (2, 8, 2)
            once = hfprune.prune(model, batches, replace(config, sparsity=sparsity))
            assert once.pruning_plan == small.pruning_plan
            assert output_sum(once) == measured.metric

    def test_one_scoring_pass_nested_plans_and_all_models_timed_in_turn(self, monkeypatch):
        calls, plans, timed = [], [], []
        monkeypatch.setattr(run, "score", lambda *a, **k: calls.append(k["scorer"]) or hfprune.score(*a, **k))
        monkeypatch.setattr(run, "apply_plan", lambda m, p: plans.append(p) or hfprune.apply_plan(m, p))
        measure = run.measure_latencies
        monkeypatch.setattr(run, "measure_latencies", lambda models, **k: timed.append(models) or measure(models, **k))
        model = tiny_model("bert")
        hfprune.sweep(model, BATCHES, SHORT, sparsities=[0.2, 0.5, 0.8], evaluate=output_sum, latency_batch_size=1)
        assert calls == ["logit_fisher"]
        assert [len(models) for models in timed] == [4]
        assert timed[0][0] is model
        for larger, smaller in itertools.pairwise(plans[-3:]):
            assert all(set(smaller.kept[name]) <= set(units) for name, units in larger.kept.items())
            assert smaller.digest != larger.digest

    def test_models_are_recovered_and_measured_in_evaluation_mode_and_the_dense_one_stays(self):
        model = tiny_model("bert").train()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        seen = []

        def recover(small, dense):
            assert dense is model
            small.train()
            with torch.no_grad():
                small.classifier.bias.fill_(7 if small.pruning_plan.sparsity() < 0.5 else 8)
            if small.pruning_plan.sparsity() >= 0.5:
                other = copy.deepcopy(small)
                other.classifier.bias.data.fill_(9)
                return other
            return "what a Trainer returns"

        def evaluate(measured):
            seen.append(measured.training)
            return float(measured.classifier.bias[0])

        found = hfprune.sweep(model, BATCHES, SHORT, sparsities=[0.3, 0.6], evaluate=evaluate, recover=recover, **QUICK)
        assert [p.metric for p in found.points[1:]] == [7, 9]
        assert seen == [False] * 3
        assert model.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert found.dense.latency is None
        assert found.settings["recover"] is True

    def test_a_config_of_rounds_is_taken_in_one_shot(self):
        found = hfprune.sweep(tiny_model("bert"), BATCHES, SHORT, sparsities=[0.5], evaluate=output_sum, **QUICK)
        assert (found.settings["scorer"], found.settings["schedule"]) == ("logit_fisher", "one_shot")
        (small,) = by_hand(tiny_model("bert"), replace(SHORT, scorer="logit_fisher"), [0.5])
        assert found.points[1].plan_digest == small.pruning_plan.digest
        one_shot = replace(SHORT, schedule="one_shot")
        found = hfprune.sweep(tiny_model("bert"), BATCHES, one_shot, sparsities=[0.5], evaluate=output_sum, **QUICK)
        assert found.settings["scorer"] == "residual_logit_fisher"

    def test_fractions_are_of_sequences_as_long_as_the_config_says(self):
        once = hfprune.prune(tiny_model("bert"), BATCHES, PruningConfig(sparsity=0.3, sequence_length=8))
        config = PruningConfig(sequence_length=64)
        point = hfprune.sweep(
            once, BATCHES, config, sparsities=[0.6], evaluate=samples_seen, latency_batch_size=None
        ).points[1]
        dense = measure_size(tiny_model("bert"), sequence_length=64)
        assert point.mac_sparsity == pytest.approx(1 - point.size.prunable_macs / dense.prunable_macs)
        assert point.param_sparsity == pytest.approx(1 - point.size.prunable_params / dense.prunable_params)

    def test_portable_is_what_it_says(self):
        whole = PruningConfig(min_units=0, schedule="one_shot", sequence_length=8)
        uneven = hfprune.prune(tiny_model("bert"), BATCHES, whole, sparsity={"*.0.attention": 1.0})
        config = PruningConfig(portable=True, sequence_length=8)
        with pytest.raises(BudgetError, match="pruned unevenly before"):
            hfprune.sweep(uneven, BATCHES, config, sparsities=[0.6], evaluate=samples_seen, latency_batch_size=None)

    def test_a_model_that_was_pruned_before(self):
        once = hfprune.apply_plan(tiny_model("bert"), uneven_plan(tiny_model("bert")))
        start = once.pruning_plan.sparsity("macs")
        found = hfprune.sweep(once, BATCHES, SHORT, sparsities=[0.7], evaluate=output_sum, **QUICK)
        assert found.dense.mac_sparsity == start > 0
        assert found.dense.plan_digest == once.pruning_plan.digest
        (small,) = by_hand(once, replace(SHORT, scorer="logit_fisher"), [0.7])
        assert found.points[1].plan_digest == small.pruning_plan.digest
        assert found.points[1].mac_sparsity == small.pruning_plan.sparsity("macs") >= 0.7
        whole = measure_size(tiny_model("bert"), sequence_length=8)
        assert f"of its {whole.prunable_macs:,} prunable ones for a sequence of 8 tokens" in found.table()
        with pytest.raises(BudgetError, match="removed already, and sparsity=0.1 asks for no more"):
            hfprune.sweep(once, BATCHES, SHORT, sparsities=[0.1], evaluate=output_sum, **QUICK)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"sparsities": []}, r"sparsities is empty: give at least one"),
            ({"sparsities": [0.5, 50]}, r"sparsity must be in \[0, 1\), got 50"),
            ({"config": PruningConfig(allocation="layerwise", sequence_length=8)}, "a sweep has one scoring pass"),
            ({"config": PruningConfig(scorer="best", sequence_length=8)}, "unknown scorer 'best'"),
            ({"evaluate": lambda m: {"accuracy": 1}}, "number or bool a sample, got dict.*trainer.evaluate"),
            ({"evaluate": lambda m: [[1.0]]}, "number or bool a sample, got list"),
            ({"evaluate": lambda m: "high"}, "number or bool a sample, got str"),
            ({"evaluate": lambda m: None}, "number or bool a sample, got NoneType"),
            ({"evaluate": lambda m: []}, "evaluate returned no samples"),
            ({"evaluate": lambda m: torch.tensor([1.0, torch.nan])}, "evaluate returned nan: a metric must be finite"),
            (
                {"evaluate": lambda m: [1] * (3 if hasattr(m, "pruning_plan") else 2)},
                "evaluate gave 2 values of samples for the dense model, but 3 at sparsity 0.5",
            ),
        ],
    )
    def test_mistakes(self, arguments, message):
        given = {"config": SHORT, "sparsities": [0.5], "evaluate": output_sum, **QUICK, **arguments}
        with pytest.raises(ValueError, match=message):
            hfprune.sweep(tiny_model("bert"), BATCHES, **given)


class TestFile:
    def sweep(self, path, sparsities=(0.3, 0.6), evaluate=samples_seen, **changes):
        given = {"config": SHORT, "latency_batch_size": 1, "latency_runs": 1, "metric": "accuracy", **changes}
        return hfprune.sweep(
            tiny_model("bert"), BATCHES, sparsities=sparsities, evaluate=evaluate, save_to=path, **given
        )

    def test_round_trip(self, tmp_path):
        found = self.sweep(tmp_path / "deep" / "sweep.json")
        text = (tmp_path / "deep" / "sweep.json").read_text()
        assert Sweep.from_json(text) == found
        assert found.save(tmp_path / "again.json").read_text() == text
        assert found.dense.per_sample == tuple(samples_seen(tiny_model("bert")).float().tolist())
        assert found.dense.samples == 6
        assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["sweep.json"]

    def test_an_interrupted_sweep_goes_on(self, tmp_path, monkeypatch):
        path, seen = tmp_path / "sweep.json", []

        def evaluate(model):
            seen.append(round(measure_size(model, sequence_length=8).prunable_macs))
            if len(seen) == 3:
                raise KeyboardInterrupt
            return samples_seen(model)

        with pytest.raises(KeyboardInterrupt):
            self.sweep(path, evaluate=evaluate)
        assert [p.sparsity for p in Sweep.from_json(path.read_text()).points] == [0.0, 0.3]
        resumed = self.sweep(path, evaluate=evaluate)
        assert len(seen) == 4, "only the point that was missing"
        assert seen[2] == seen[3]
        straight = self.sweep(tmp_path / "other.json")
        for a, b in zip(resumed.points, straight.points, strict=True):
            assert (a.sparsity, a.per_sample, a.plan_digest) == (b.sparsity, b.per_sample, b.plan_digest)
        assert Sweep.from_json(path.read_text()) == resumed

        for name in ("score", "measure_latencies"):
            monkeypatch.setattr(run, name, lambda *a, **k: pytest.fail("measured again"))
        assert self.sweep(path, evaluate=lambda m: pytest.fail("measured again")) == resumed
        assert self.sweep(path, [0.3], evaluate=lambda m: pytest.fail("measured again")) == resumed

    def test_points_are_added(self, tmp_path):
        path, seen = tmp_path / "sweep.json", []
        first = self.sweep(path)
        added = self.sweep(path, [0.8], evaluate=lambda m: seen.append(m) or samples_seen(m))
        assert [p.sparsity for p in added.points] == [0.0, 0.3, 0.6, 0.8]
        assert len(seen) == 1
        assert [p.seconds for p in added.points[:3]] == [p.seconds for p in first.points]
        assert all(p.speedup == added.dense.latency_ms / p.latency_ms for p in added.points), "timed with each other"

    def test_a_point_of_another_plan_is_measured_again(self, tmp_path):
        path, seen = tmp_path / "sweep.json", []
        found = self.sweep(path)
        stale = replace(found.points[2], plan_digest="0" * 64)
        replace(found, points=(found.dense, stale)).save(path)
        again = self.sweep(path, evaluate=lambda m: seen.append(m) or samples_seen(m))
        assert len(seen) == 2
        assert [p.plan_digest for p in again.points] == [p.plan_digest for p in found.points]

    def test_other_settings_are_refused_and_the_file_stays(self, tmp_path):
        path = tmp_path / "sweep.json"
        self.sweep(path)
        before = path.read_bytes()
        for changes, message in [
            ({"config": replace(SHORT, scorer="l2")}, r"scorer \('logit_fisher', now 'l2'\)"),
            ({"latency_batch_size": 2}, r"other settings: latency_batch_size \(1, now 2\)"),
            ({"recover": lambda small, dense: None}, r"recover \(False, now True\)"),
            ({"metric": "f1"}, r"metric \('accuracy', now 'f1'\)"),
        ]:
            with pytest.raises(ValueError, match=message):
                self.sweep(path, **changes)
        with pytest.raises(ValueError, match=r"weights \('[0-9a-f]{64}', now"):
            hfprune.sweep(
                tiny_model("bert", seed=1),
                BATCHES,
                SHORT,
                sparsities=[0.3],
                evaluate=samples_seen,
                latency_batch_size=1,
                latency_runs=1,
                metric="accuracy",
                save_to=path,
            )
        with pytest.raises(ValueError, match=r"calibration \('[0-9a-f]{64}', now"):
            hfprune.sweep(
                tiny_model("bert"),
                BATCHES[:2],
                SHORT,
                sparsities=[0.3],
                evaluate=samples_seen,
                latency_batch_size=1,
                latency_runs=1,
                metric="accuracy",
                save_to=path,
            )
        assert path.read_bytes() == before

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not a sweep: JSONDecodeError"),
            ("[]", "not a sweep: TypeError"),
            ('{"format_version": 1, "points": []}', "not a sweep: KeyError: 'settings'"),
            ('{"format_version": 9}', "the sweep has format_version 9, this hfprune reads 1: upgrade it"),
            ('{"format_version": 1, "points": [], "settings": {}, "scoring_seconds": 1}', "has at least one point"),
        ],
    )
    def test_files_that_are_no_sweep(self, text, message):
        with pytest.raises(ValueError, match=message):
            Sweep.from_json(text)
