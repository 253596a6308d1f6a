"""RecoveryTrainer: losses, gradient accumulation, teacher, best checkpoint, resuming."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments, set_seed

import hfprune
from hfprune import RecoveryTrainer
from hfprune.measuring.metrics import compute_metrics_for
from hfprune.recovery.losses.hidden_states import hidden_states_loss
from hfprune.recovery.losses.logits import logits_loss
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.training import arguments, pruned_pair, trainer_of


class TestLosses:
    def test_kl_by_hand(self):
        teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
        p = torch.tensor([[1.0, 0.0]]).softmax(-1)[0]  # logits / T with T = 2
        expected = 4 * (p * (p.log() - torch.tensor(0.5).log())).sum()
        loss = logits_loss(student, teacher, temperature=2.0, problem="single_label_classification")
        assert loss == pytest.approx(expected.item(), rel=1e-5)

    @pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
    def test_zero_where_equal_and_positive_elsewhere(self, problem):
        a, b = torch.randn(5, 3), torch.randn(5, 3)
        assert logits_loss(a, a, temperature=3.0, problem=problem) == pytest.approx(0, abs=1e-6)
        assert logits_loss(a, b, temperature=3.0, problem=problem) > 0

    def test_padding_does_not_count(self):
        mask = torch.tensor([[1, 1, 0]])
        a, b = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
        c = b.clone()
        c[0, 2] += 100
        options = {"temperature": 1.0, "problem": "single_label_classification", "mask": mask}
        assert logits_loss(a, b, **options) == logits_loss(a, c, **options)
        assert hidden_states_loss([a], [b], mask=mask) == hidden_states_loss([a], [c], mask=mask)
        expected = ((a - b)[:, :2] ** 2).mean()
        torch.testing.assert_close(hidden_states_loss([a, a], [b, b], mask=mask), expected)

    @pytest.mark.parametrize("temperature", [0.5, 1.0])
    def test_what_is_never_chosen_costs_nothing(self, temperature):
        student, teacher = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5)
        low = torch.tensor([[0.0, 0.0, 0.0, -torch.inf, torch.finfo(torch.float32).min]])
        options = {"temperature": temperature, "problem": "single_label_classification"}
        loss = logits_loss(student + low, teacher + low, **options)
        assert loss.item() == pytest.approx(logits_loss(student[:, :3], teacher[:, :3], **options).item(), rel=1e-5)
        loss.backward()
        assert torch.isfinite(student.grad).all()

    def test_small_gradients_in_float16(self):
        """They are multiplied by the scale of the loss before they are rounded."""
        torch.manual_seed(0)
        student, teacher, found = torch.randn(64, 5000), torch.randn(64, 5000), []
        for dtype in (torch.float32, torch.float16):
            logits = student.to(torch.float16).to(dtype).requires_grad_()
            loss = logits_loss(logits, teacher, temperature=2.0, problem="single_label_classification")
            (32768 * loss).backward()
            found.append(logits.grad.float())
        assert (found[0] - found[1]).norm() < 1e-3 * found[0].norm()

    def test_mismatches_say_what_to_do(self):
        with pytest.raises(ValueError, match=r"student logits are \(2, 3\), teacher logits \(2, 4\)"):
            logits_loss(torch.ones(2, 3), torch.ones(2, 4), temperature=1.0, problem="regression")
        with pytest.raises(ValueError, match="Set hidden_states_weight=0"):
            hidden_states_loss([torch.ones(2, 3, 4)], [torch.ones(2, 3, 5)])


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"task_weight": -1}, "task_weight must not be negative"),
            ({"temperature": 0}, "temperature must be positive, got 0"),
            ({"task_weight": 0, "logits_weight": 0, "hidden_states_weight": 0}, "are all 0: there is nothing to train"),
        ],
    )
    def test_bad_values(self, options, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            arguments(tmp_path, **options)

    def test_plain_training_arguments_are_refused(self, tmp_path):
        with pytest.raises(TypeError, match="args must be RecoveryArguments, got TrainingArguments"):
            RecoveryTrainer(tiny_model("bert"), TrainingArguments(output_dir=str(tmp_path)))

    def test_the_teacher_is_another_model(self, tmp_path):
        model = tiny_model("bert")
        with pytest.raises(ValueError, match="the teacher is the model itself"):
            RecoveryTrainer(model, arguments(tmp_path), teacher=model)


class TestTraining:
    def test_the_loss_is_the_weighted_sum_of_its_parts(self, tmp_path):
        small, dense = pruned_pair(num_labels=3)
        trainer = trainer_of(
            small, dense, arguments(tmp_path, task_weight=0.3, logits_weight=0.6, hidden_states_weight=2, temperature=3)
        )
        batch = {**tiny_batch(), "labels": torch.tensor([0, 1, 2, 0])}
        trainer.current_gradient_accumulation_steps = 1
        with torch.no_grad():
            mine, theirs = (m(**batch, output_hidden_states=True) for m in (small.eval(), dense))
        assert not dense.training
        kl = logits_loss(mine.logits, theirs.logits, temperature=3, problem="single_label_classification")
        mse = hidden_states_loss(mine.hidden_states[1:], theirs.hidden_states[1:], mask=batch["attention_mask"])
        # dropout is on in the trainer's pass, so make it a no-op to compare
        for module in small.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for layer in small.bert.encoder.layer:
            layer.attention.self.dropout.p = 0.0
        loss = trainer.compute_loss(small.train(), batch)
        assert loss.item() == pytest.approx((0.3 * mine.loss + 0.6 * kl + 2 * mse).item(), rel=1e-4)

    def test_a_task_loss_without_weight_is_not_computed(self, tmp_path, monkeypatch):
        small, dense = pruned_pair("llama", "AutoModelForCausalLM")
        seen = []
        monkeypatch.setattr(type(small), "loss_function", lambda *_, **__: seen.append(1) or torch.tensor(0.0))
        batch = tiny_batch("llama")
        batch["labels"] = batch["input_ids"]
        for weight in (0.0, 0.5):
            trainer = trainer_of(small, dense, arguments(tmp_path, task_weight=weight))
            trainer.current_gradient_accumulation_steps = 1
            trainer.compute_loss(small.train(), batch)
            assert len(seen) == (weight > 0)

    def test_evaluation_sees_the_task_loss_only(self, tmp_path):
        small, dense = pruned_pair(num_labels=3)
        batch = {**tiny_batch(), "labels": torch.tensor([0, 1, 2, 0])}
        trainer = trainer_of(small, dense, arguments(tmp_path))
        assert trainer.compute_loss(small.eval(), batch) == small(**batch).loss

    def test_labels_are_counted_as_the_model_counts_them(self, tmp_path):
        """A GPT-2, whose loss shifts them without telling Trainer: the first step is that of its own loss."""
        model = tiny_model("gpt2", "AutoModelForCausalLM", attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0)
        batch = tiny_batch("gpt2", samples=4, length=7)
        data = Dataset.from_dict({**{k: v.tolist() for k, v in batch.items()}, "labels": batch["input_ids"].tolist()})
        own = copy.deepcopy(model)
        own(**batch, labels=batch["input_ids"]).loss.backward()
        args = arguments(
            tmp_path, max_steps=1, optim="sgd", learning_rate=0.1, lr_scheduler_type="constant", max_grad_norm=0.0
        )
        RecoveryTrainer(model, args, train_dataset=data).train()
        for (name, parameter), before in zip(model.named_parameters(), own.parameters(), strict=True):
            torch.testing.assert_close(parameter, before - 0.1 * before.grad, rtol=1e-4, atol=1e-5, msg=name)

    @pytest.mark.parametrize("head", ["SequenceClassification", "TokenClassification", "CausalLM"])
    def test_gradient_accumulation_is_the_whole_batch(self, head, tmp_path):
        """The first update with 1 × 8 samples and with 4 × 2: the same weights, unequal label counts included."""
        model_type = "llama" if head == "CausalLM" else "bert"
        options = {"attention_dropout": 0.0} if head == "CausalLM" else {"hidden_dropout_prob": 0.0}
        if model_type == "bert":
            options["attention_probs_dropout_prob"] = 0.0
        small, dense = pruned_pair(model_type, f"AutoModelFor{head}", **options)
        batch = tiny_batch(model_type, samples=8, length=9)
        labels = torch.arange(8) % 2
        if head != "SequenceClassification":
            labels = batch["input_ids"] % 2 if head == "TokenClassification" else batch["input_ids"].clone()
            for row in range(8):
                labels[row, row:] = -100
        columns = {**{k: v.tolist() for k, v in batch.items()}, "labels": labels.tolist()}
        after = []
        for size, steps in ((8, 1), (2, 4)):
            model = copy.deepcopy(small)
            args = arguments(
                tmp_path,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
                max_steps=1,
                optim="sgd",
                learning_rate=0.1,
                lr_scheduler_type="constant",
                hidden_states_weight=1.0,
                attention_outputs_weight=1.0,
                max_grad_norm=0.0,
                train_sampling_strategy="sequential",
            )
            trainer = RecoveryTrainer(model, args, teacher=dense, train_dataset=Dataset.from_dict(columns))
            trainer.train()
            after.append(model.state_dict())
        moved = [(after[0][n] - t).abs().max().item() for n, t in small.state_dict().items() if t.is_floating_point()]
        apart = [(after[0][n] - after[1][n]).abs().max().item() for n in after[0]]
        assert max(moved) > 1e-3
        assert max(apart) < 1e-3 * max(moved)

    def test_the_teacher_is_left_alone_and_never_saved(self, tmp_path):
        small, dense = pruned_pair(num_labels=3)
        before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
        trainer = trainer_of(small, dense.train(), arguments(tmp_path))
        trainer.train()
        trainer.save_model()
        assert not dense.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in dense.state_dict().items())
        assert all(parameter.grad is None for parameter in dense.parameters())
        again = hfprune.load(tmp_path)
        assert set(again.state_dict()) == set(small.state_dict())

    def test_recovery_lowers_the_distance_to_the_teacher(self, tmp_path):
        set_seed(0)
        small, dense = pruned_pair(num_labels=3)
        rows = [tiny_batch(seed=i, samples=1) for i in range(64)]
        columns = {key: [row[key][0].tolist() for row in rows] for key in ("input_ids", "attention_mask")}
        data = Dataset.from_dict({**columns, "labels": [0] * 64})
        batch = {key: torch.tensor(columns[key][:32]) for key in columns}

        def distance():
            with torch.no_grad():
                return (small.eval()(**batch).logits - dense(**batch).logits).pow(2).mean().item()

        before = distance()
        args = arguments(tmp_path, num_train_epochs=20, learning_rate=3e-3, task_weight=0.0, logits_weight=1.0)
        trainer_of(small, dense, args, data).train()
        assert distance() < 0.3 * before

    def test_parts_of_the_loss_are_logged(self, tmp_path):
        small, dense = pruned_pair(num_labels=3)
        trainer = trainer_of(small, dense, arguments(tmp_path, logging_strategy="steps", logging_steps=1))
        trainer.train()
        first = trainer.state.log_history[0]
        total = 0.1 * first["loss_task"] + 0.9 * first["loss_logits"] + 0.5 * first["loss_hidden_states"]
        assert first["loss"] == pytest.approx(total, rel=1e-3)

    def test_without_a_teacher_it_is_plain_fine_tuning(self, tmp_path):
        small, _ = pruned_pair(num_labels=3)
        trainer = trainer_of(small, None, arguments(tmp_path, logging_strategy="steps", logging_steps=1))
        trainer.train()
        first = trainer.state.log_history[0]
        assert first["loss"] == pytest.approx(first["loss_task"], rel=1e-3)
        assert "loss_logits" not in first

    def test_frozen_embeddings(self, tmp_path):
        small, dense = pruned_pair(num_labels=3)
        before = small.bert.embeddings.word_embeddings.weight.clone()
        trainer_of(small, dense, arguments(tmp_path, freeze_embeddings=True)).train()
        assert torch.equal(small.bert.embeddings.word_embeddings.weight, before)

    @pytest.mark.parametrize("head", ["QuestionAnswering", "MaskedLM", "TokenClassification"])
    def test_other_heads(self, head, tmp_path):
        small, dense = pruned_pair("bert", f"AutoModelFor{head}")
        batch = tiny_batch()
        if head == "QuestionAnswering":
            batch |= {"start_positions": torch.zeros(4).long(), "end_positions": torch.ones(4).long()}
        else:
            batch["labels"] = batch["input_ids"] % 2
        trainer = RecoveryTrainer(small, arguments(tmp_path), teacher=dense)
        loss = trainer.compute_loss(small.train(), batch)
        loss.backward()
        assert loss > 0

    def test_a_micro_batch_without_labels_teaches_nothing(self, tmp_path):
        small, dense = pruned_pair("bert", "AutoModelForTokenClassification")
        batch = {**tiny_batch(), "labels": torch.full((4, 7), -100)}
        trainer = RecoveryTrainer(small, arguments(tmp_path, hidden_states_weight=0.0), teacher=dense)
        trainer.current_gradient_accumulation_steps = 2
        loss = trainer.compute_loss(small.train(), batch, num_items_in_batch=torch.tensor(5))
        loss.backward()
        assert loss == 0
        assert all(p.grad is None or not p.grad.any() for p in small.parameters())

    def test_regression(self, tmp_path):
        small, dense = pruned_pair(num_labels=1, problem_type="regression")
        batch = {**tiny_batch(), "labels": torch.rand(4)}
        assert RecoveryTrainer(small, arguments(tmp_path), teacher=dense).compute_loss(small.train(), batch) > 0


class TestCheckpoints:
    def settings(self, folder, **options):
        return arguments(
            folder,
            num_train_epochs=3,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
            **options,
        )

    def test_the_best_checkpoint_comes_back_with_its_plan(self, tmp_path):
        small, dense = pruned_pair(num_labels=3)
        trainer = trainer_of(small, dense, self.settings(tmp_path), compute_metrics=compute_metrics_for(["accuracy"]))
        trainer.train()
        best = hfprune.load(trainer.state.best_model_checkpoint)
        assert best.pruning_plan == small.pruning_plan
        with torch.no_grad():
            assert torch.equal(best(**tiny_batch()).logits, small.eval()(**tiny_batch()).logits)
        assert not (tmp_path / "README.md").exists()

    @pytest.mark.parametrize("stock", [False, True])
    def test_resuming_ends_where_an_uncut_run_ends(self, stock, tmp_path):
        def start():
            set_seed(0)
            dense = tiny_model("bert", num_labels=3)
            if not stock:
                return hfprune.apply_plan(dense, uneven_plan(dense)), dense
            config = hfprune.PruningConfig(sparsity=0.3, portable=True, sequence_length=8)
            return hfprune.prune(dense, [tiny_batch()], config), dense

        ends = []
        for stop in (None, 3):
            small, dense = start()
            args = arguments(tmp_path / str(stop), num_train_epochs=2, save_strategy="steps", save_steps=3, seed=1)
            trainer = trainer_of(small, dense, args)
            if stop:

                class Stop(TrainerCallback):
                    def on_save(self, args, state, control, **kwargs):
                        control.should_training_stop = True

                trainer.add_callback(Stop())
                trainer.train()
                checkpoint = tmp_path / str(stop) / "checkpoint-3"
                small = hfprune.load(checkpoint)
                trainer = trainer_of(small, dense, args)
                trainer.train(resume_from_checkpoint=str(checkpoint))
            else:
                trainer.train()
            assert trainer.state.global_step == 6
            ends.append(small.state_dict())
        for name, tensor in ends[0].items():
            torch.testing.assert_close(ends[1][name], tensor, rtol=1e-4, atol=1e-5)
