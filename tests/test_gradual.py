"""Gradual pruning: schedules, gates while training, regrowth, surgery at the end, resuming after a kill."""

import copy
import os
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest
import torch
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed

import hfprune
from hfprune import GradualPruning, PruningConfig
from hfprune.errors import BudgetError
from hfprune.measuring.metrics import compute_metrics_for
from hfprune.planning import costs
from hfprune.planning.schedule import GRADUAL_SCHEDULES, sparsity_at
from hfprune.structure.anatomy import find_blocks
from hfprune.structure.gates import gate_gradients
from hfprune.structure.running import frozen
from tests.support import gradual_run
from tests.support.processes import run_python
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.training import arguments, trainer_of


def gradual(sparsity=0.6, **options):
    return GradualPruning(PruningConfig(sparsity=sparsity, sequence_length=8), **{"every": 2, **options})


def train(folder, pruning, *, epochs=4, callbacks=(), **options):
    dense = tiny_model("bert", num_labels=3)
    args = arguments(folder, num_train_epochs=epochs, seed=1, **options)
    trainer = trainer_of(copy.deepcopy(dense), dense, args, callbacks=[pruning, *callbacks])
    return trainer, dense


class Watch(TrainerCallback):
    """Keeps the sparsity after every step."""

    def __init__(self, pruning):
        self.pruning, self.seen = pruning, []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(self.pruning.sparsity)


class StopAt(TrainerCallback):
    """Ends training after a step."""

    def __init__(self, step, pruning=None):
        self.step, self.pruning, self.sums = step, pruning, {}

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step
        if self.pruning is not None:
            self.sums = {name: value.clone() for name, value in self.pruning._sums.items()}


class TestSchedules:
    @pytest.mark.parametrize("schedule", GRADUAL_SCHEDULES)
    def test_from_the_start_to_the_target_and_never_back(self, schedule):
        values = [sparsity_at(schedule, t / 100, start=0.2, target=0.7) for t in range(101)]
        assert values == sorted(values)
        assert all(0.2 <= value <= 0.7 for value in values)
        assert values[-1] == 0.7
        if schedule != "steps":
            assert values[0] == pytest.approx(0.2)

    def test_steps_are_at_most_half_as_much_again(self):
        values = sorted({sparsity_at("steps", t / 100, start=0.0, target=0.8) for t in range(101)})
        kept = [1.0, *(1 - value for value in values)]
        assert len(values) == 4
        assert all(before / after <= 1.5 + 1e-9 for before, after in pairwise(kept))

    def test_unknown(self):
        with pytest.raises(ValueError, match="unknown schedule 'one_shot'. While training: cubic, linear"):
            gradual(schedule="one_shot")


class TestTraining:
    def test_the_small_model_is_what_was_evaluated_with_gates(self, tmp_path):
        pruning = gradual()
        trainer, dense = train(tmp_path, pruning)
        seen = {}

        class Look(TrainerCallback):
            def on_train_end(self, args, state, control, model, **kwargs):
                with torch.no_grad():
                    seen["logits"] = model.eval()(**tiny_batch()).logits
                seen["params"] = sum(p.numel() for p in model.parameters())

        trainer.add_callback(Look())
        trainer.train()
        small = trainer.model
        with torch.no_grad():
            torch.testing.assert_close(small.eval()(**tiny_batch()).logits, seen["logits"], rtol=1e-5, atol=1e-6)
        assert sum(p.numel() for p in small.parameters()) < seen["params"]
        assert small.pruning_plan.sparsity("macs") >= 0.6
        assert small.pruning_record.config["scorer"] == "gradual"
        assert small.pruning_record.plan_digest == small.pruning_plan.digest
        assert seen["params"] == sum(p.numel() for p in dense.parameters())
        hfprune.save(small, tmp_path / "small")
        assert hfprune.load(tmp_path / "small").pruning_plan == small.pruning_plan
        assert trainer.evaluate()["eval_loss"] > 0

    @pytest.mark.parametrize("model_type", ["distilbert", "gpt2", "llama", "opt"])
    def test_other_architectures(self, model_type):
        """Gates that were set from real gradients cut to a model with the same logits."""
        pruning = gradual(sparsity=0.5)
        model = tiny_model(model_type, num_labels=3)
        batch = tiny_batch(model_type)
        pruning.attach(model)
        model.train()(**batch, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        assert all(sums[1].any() for sums in pruning._sums.values())
        pruning._choose(1.0)
        with torch.no_grad():
            gated = model.eval()(**batch).logits
            small = pruning.cut(model)
            torch.testing.assert_close(small(**batch).logits, gated, rtol=1e-5, atol=1e-6)
        assert small.pruning_plan.sparsity("macs") >= 0.5

    def test_a_budget_that_plans_do_not_record(self, monkeypatch):
        """Twice the parameters are as many in all: the same units go, and the sparsity is the same."""
        monkeypatch.setattr(costs, "_BUDGETS", dict(costs._BUDGETS))
        costs.register_budget("twice_params")(lambda block, _: 2 * block.unit_params)
        ends = []
        for budget in ("params", "twice_params"):
            pruning = GradualPruning(PruningConfig(sparsity=0.5, sequence_length=8, budget=budget))
            model = tiny_model("bert", num_labels=3).eval()
            pruning.attach(model)
            model(**tiny_batch(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
            pruning._choose(1.0)
            reached = pruning.logs()["sparsity"]
            ends.append((reached, pruning.cut(model).pruning_plan.digest))
        assert ends[0] == ends[1]
        assert ends[0][0] >= 0.5

    def test_it_follows_the_schedule(self, tmp_path):
        pruning = gradual(schedule="linear", start=0.25, end=0.75, every=1)
        watch = Watch(pruning)
        trainer, _ = train(tmp_path, pruning, callbacks=[watch])  # 12 steps
        trainer.train()
        expected = [max(0.0, min(0.6, 0.6 * (step - 3) / 6)) for step in range(1, 13)]
        assert watch.seen == pytest.approx(expected)

    def test_the_sparsity_is_logged(self, tmp_path):
        trainer, _ = train(tmp_path, gradual(), logging_strategy="steps", logging_steps=1)
        trainer.train()
        values = [entry["sparsity"] for entry in trainer.state.log_history if "loss" in entry]
        assert values == sorted(values)
        assert values[-1] == pytest.approx(trainer.model.pruning_plan.sparsity("macs"))
        assert all("regrown_units" in entry for entry in trainer.state.log_history if "loss" in entry)

    @pytest.mark.parametrize(("size", "accumulation", "batches_seen"), [(4, 2, 2), (4, 4, 6)])
    def test_gradients_of_the_training_batches_are_the_gate_gradients(self, size, accumulation, batches_seen, tmp_path):
        """Σγ and Σγ² are those of scoring passes on the same batches, also in a short last step of an epoch."""
        pruning = gradual(start=0.9, end=1.0)
        options = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        dense = tiny_model("bert", num_labels=3, **options)
        model = copy.deepcopy(dense)
        args = arguments(
            tmp_path,
            num_train_epochs=2,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            learning_rate=0.0,
        )
        stop = StopAt(-(-batches_seen // accumulation), pruning)
        trainer = trainer_of(model, None, args, callbacks=[pruning, stop])
        batches = []
        original = trainer.compute_loss
        trainer.compute_loss = lambda model, inputs, **kw: batches.append(dict(inputs)) or original(model, inputs, **kw)
        trainer.train()
        assert len(batches) == batches_seen
        blocks = find_blocks(dense)
        with frozen(dense):
            found = [gate_gradients(dense, blocks, b, lambda m, b: size * m(**b).loss) for b in batches]
        for block in blocks:
            gamma = torch.cat([f[block.name] for f in found]).double()
            count, total, square = stop.sums[block.name]
            assert count.tolist() == [size * batches_seen] * block.units
            torch.testing.assert_close(total, gamma.sum(0), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(square, gamma.square().sum(0), rtol=1e-3, atol=1e-5)

    def test_a_layer_that_is_used_many_times_is_one_gate(self):
        model = tiny_model("albert", num_labels=3, num_hidden_layers=3).eval()
        batch, pruning = {**tiny_batch("albert"), "labels": torch.tensor([0, 1, 2, 0])}, gradual()
        blocks = find_blocks(model)
        with frozen(model):
            gammas = gate_gradients(model, blocks, batch, lambda m, b: 4 * m(**b).loss)
        pruning.attach(model)
        model(**batch).loss.backward()
        for block in blocks:
            count, total, square = pruning._sums[block.name].float()
            assert count.tolist() == [4] * block.units
            torch.testing.assert_close(total, gammas[block.name].sum(0), rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(square, gammas[block.name].square().sum(0), rtol=1e-3, atol=1e-5)

    def test_what_is_below_the_trainable_parameters_is_scored_too(self, tmp_path):
        pruning = gradual(start=0.5)
        stop = StopAt(2, pruning)
        trainer, _ = train(tmp_path, pruning, callbacks=[stop], trainable=["*.layer.1.*", "classifier.*"])
        trainer.train()
        assert all(sums[2].all() for sums in stop.sums.values())

    def test_from_a_model_with_a_removed_block(self, tmp_path):
        dense = tiny_model("bert", num_labels=3)
        config = PruningConfig(min_units=0, sequence_length=8)
        small = hfprune.prune(dense, [tiny_batch()], config, sparsity={"encoder.layer.0.attention": 1.0})
        pruning = GradualPruning(PruningConfig(sparsity=0.7, sequence_length=8, min_units=0), every=2)
        trainer = trainer_of(small, dense, arguments(tmp_path, num_train_epochs=4), callbacks=[pruning])
        trainer.train()
        assert trainer.model.pruning_plan.sparsity("macs") >= 0.7
        assert trainer.model.pruning_plan.counts["encoder.layer.0.attention"] == (0, 4)

    def test_a_callback_that_is_used_again_starts_anew(self, tmp_path):
        """Gates of a run that stopped early are off its model, and the next model gets its own."""
        pruning = gradual(end=1.0)
        trainer, _ = train(tmp_path, pruning, callbacks=[StopAt(4)])
        trainer.train()
        first = trainer.model
        assert not any(module._forward_pre_hooks for module in first.modules())
        trainer, _ = train(tmp_path, pruning)
        trainer.train()
        assert trainer.model.pruning_plan.sparsity("macs") >= 0.6
        assert not any(module._forward_pre_hooks for module in trainer.model.modules())
        trainer.train()  # of the small one, which is pruned no further
        assert len(trainer.model.pruning_record.earlier) == 0

    def test_an_error_takes_the_gates_off(self, tmp_path):
        class Fail(TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                raise RuntimeError("out of luck")

        trainer, _ = train(tmp_path, gradual(), callbacks=[Fail()])
        with pytest.raises(RuntimeError, match="out of luck"):
            trainer.train()
        assert not any(module._forward_pre_hooks for module in trainer.model.modules())

    def test_a_model_that_is_pruned_so_far_already(self, tmp_path):
        dense = tiny_model("bert", num_labels=3)
        small = hfprune.prune(dense, [tiny_batch()], PruningConfig(sparsity=0.6, sequence_length=8))
        trainer = trainer_of(small, dense, arguments(tmp_path), callbacks=[gradual(0.5)])
        with pytest.raises(BudgetError, match="removed already, and sparsity=0.5 asks for no more than that"):
            trainer.train()

    def test_a_removed_unit_that_would_help_comes_back(self):
        """The same gradients say `keep out` where they point up, `come back` where they surely point down."""
        pruning = gradual(sparsity=0.5)
        model = tiny_model("bert", num_labels=3)
        pruning.attach(model)
        name = "encoder.layer.0.ffn"
        for block in pruning._blocks:
            square = 1.0 if block.kind == "attention" else 1e-4
            pruning._sums[block.name][:] = torch.tensor([[1000.0], [0.0], [1000 * square]])
        pruning._gates[name][:3] = 0
        # unit 0: the loss falls with it; unit 1: rises; unit 2: falls, but within the noise
        for unit, mean in enumerate((-0.5, 0.5, -0.01)):
            pruning._sums[name][:, unit] = torch.tensor([1000.0, 1000 * mean, 1000 * (mean**2 + 0.04)])
        pruning.sparsity = 0.1
        kept = pruning._plan().kept[name]
        assert 0 in kept
        assert 1 not in kept
        assert 2 not in kept

    def test_dead_units_go_first_and_stay_gone(self, tmp_path):
        pruning = gradual(sparsity=0.3, every=1)
        trainer, _ = train(tmp_path, pruning)
        dead = range(0, 40, 4)
        with torch.no_grad():
            for layer in trainer.model.bert.encoder.layer:
                layer.output.dense.weight[:, list(dead)] = 0
                layer.intermediate.dense.weight[list(dead)] = 0
                layer.intermediate.dense.bias[list(dead)] = 0
        trainer.train()
        for index in range(2):
            kept = trainer.model.pruning_plan.blocks[f"encoder.layer.{index}.ffn"].kept
            assert not set(kept) & set(dead)


class TestBestAndEarlyStopping:
    def test_evaluations_before_the_target_do_not_count(self, tmp_path):
        pruning = gradual(end=0.5)
        trainer, _ = train(
            tmp_path,
            pruning,
            callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
            eval_strategy="steps",
            save_strategy="steps",
            eval_steps=1,
            save_steps=1,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            learning_rate=0.0,
        )
        trainer.compute_metrics = compute_metrics_for(["accuracy"])
        trainer.train()
        # the accuracy never moves: the first evaluation at the target is the best, and one more ends it
        assert trainer.state.best_global_step == 6
        assert trainer.state.global_step == 7
        assert trainer.model.pruning_plan.sparsity("macs") >= 0.6

    def test_a_run_that_stops_too_early_is_not_cut(self, tmp_path, caplog):
        trainer, dense = train(tmp_path, gradual(end=1.0), callbacks=[StopAt(3)])
        trainer.train()
        assert type(trainer.model) is type(dense)
        assert "training ended at step 3, before gradual pruning reached its target" in caplog.text


@pytest.mark.usefixtures("one_thread")
class TestResuming:
    def plan_of(self, folder, resume=None):
        gradual_run.run(folder, resume=resume and str(resume))
        return hfprune.load(folder / "small").pruning_plan

    def test_a_killed_run_ends_with_the_plan_of_an_unbroken_one(self, tmp_path):
        """A process is killed in the middle of pruning; this one resumes from its last checkpoint."""
        command = [sys.executable, "-m", "tests.support.gradual_run", str(tmp_path / "cut"), "--slow"]
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        deadline = time.monotonic() + 120
        checkpoint = tmp_path / "cut" / "checkpoint-8"
        while not (checkpoint / "trainer_state.json").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "cut" / "small").exists()
        plan = self.plan_of(tmp_path / "cut", checkpoint)
        assert plan.digest == self.plan_of(tmp_path / "whole").digest
        assert plan.sparsity("macs") >= 0.6

    @pytest.mark.distributed
    @pytest.mark.slow
    def test_two_processes_end_with_the_plan_of_one_and_resume_to_it(self, tmp_path):
        """Equal global batches; and one process goes on from a checkpoint of two."""
        run_python("-m", "tests.support.gradual_run", tmp_path / "two", processes=2)
        resumed = self.plan_of(tmp_path / "resumed", tmp_path / "two" / "checkpoint-8")
        two = hfprune.load(tmp_path / "two" / "small").pruning_plan
        assert two.digest == resumed.digest == self.plan_of(tmp_path / "alone").digest

    def test_a_checkpoint_of_another_run(self, tmp_path):
        set_seed(0)
        trainer = trainer_of(tiny_model("bert", num_labels=3), None, arguments(tmp_path, save_strategy="epoch"))
        trainer.train()
        trainer, _ = train(tmp_path, gradual())
        with pytest.raises(ValueError, match="has no gradual_pruning.safetensors: it was not written by a trainer"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))

    def test_another_target(self, tmp_path):
        trainer, _ = train(tmp_path, gradual(), save_strategy="epoch")
        trainer.train()
        trainer, _ = train(tmp_path, gradual(0.7))
        with pytest.raises(ValueError, match="is of a gradual pruning to .*'sparsity': 0.6.*goes to .*0.7"):
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


class TestMistakes:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"start": 0.5, "end": 0.5}, "0 <= start < end <= 1, got 0.5 and 0.5"),
            ({"end": 50}, "0 <= start < end <= 1, got 0.0 and 50"),
            ({"every": 0}, "every must be at least 1 step, got 0"),
        ],
    )
    def test_bad_values(self, options, message):
        with pytest.raises(ValueError, match=message):
            gradual(**options)

    def test_two_schedules(self, tmp_path):
        with pytest.raises(ValueError, match="2 callbacks are GradualPruning"):
            train(tmp_path, gradual(), callbacks=[gradual()])

    def test_adapters(self, tmp_path):
        with pytest.raises(ValueError, match="lora_rank and GradualPruning do not go together"):
            train(tmp_path, gradual(), lora_rank=4)
