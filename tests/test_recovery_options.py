"""What RecoveryArguments add: attention outputs, penalties, what learns and how fast, LoRA."""

import copy

import pytest
import torch
from transformers import DataCollatorWithPadding, HfArgumentParser

import hfprune
from hfprune import RecoveryArguments, RecoveryTrainer, add_teacher_logits
from hfprune.recovery.arguments import recovery_settings
from hfprune.recovery.forward import outputs_of
from hfprune.recovery.learning import choose_trainable, stepwise
from hfprune.recovery.losses import Term, register_loss, register_penalty, registry
from hfprune.recovery.losses.attention_outputs import attention_outputs_loss
from hfprune.recovery.losses.penalties import unit_penalties
from hfprune.structure.anatomy import find_blocks
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer
from tests.support.training import arguments, pruned_pair, trainer_of

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def labelled():
    return {**tiny_batch(), "labels": torch.tensor([0, 1, 2, 0])}


class TestAttentionOutputs:
    def test_zero_where_equal_and_blind_to_padding(self):
        mask = torch.tensor([[1, 1, 0]])
        a, b = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
        c = b.clone()
        c[0, 2] += 100
        assert attention_outputs_loss([a], [a], mask=mask) == 0
        assert attention_outputs_loss([a], [b], mask=mask) == attention_outputs_loss([a], [c], mask=mask) > 0

    def test_it_compares_what_the_output_projections_say(self, tmp_path):
        small, dense = pruned_pair(num_labels=3, **NO_DROPOUT)
        args = arguments(
            tmp_path, task_weight=0.0, logits_weight=0.0, hidden_states_weight=0.0, attention_outputs_weight=2.0
        )
        batch = labelled()
        paths = [block.consumer for block in find_blocks(dense) if block.kind == "attention"]
        found = []
        for model in (small, dense):
            with torch.no_grad(), outputs_of(model.base_model, paths) as outputs:
                model(**batch)
            found.append([outputs[path] for path in paths])
        expected = attention_outputs_loss(*found, mask=batch["attention_mask"])
        loss = trainer_of(small, dense, args).compute_loss(small.train(), batch)
        assert loss.item() == pytest.approx(2 * expected.item(), rel=1e-5)
        assert all(not module._forward_hooks for module in small.modules())

    @pytest.mark.parametrize("model_type", ["gpt2", "llama", "opt"])
    def test_decoders(self, model_type, tmp_path):
        small, dense = pruned_pair(model_type, "AutoModelForCausalLM")
        batch = tiny_batch(model_type)
        batch["labels"] = batch["input_ids"].clone()
        none = {"task_weight": 0.0, "logits_weight": 0.0, "hidden_states_weight": 0.0}
        args = arguments(tmp_path, attention_outputs_weight=1.0, **none)
        loss = hfprune.RecoveryTrainer(small, args, teacher=dense).compute_loss(small.train(), batch)
        loss.backward()
        assert loss > 0

    def test_a_mismatch_says_what_to_do(self):
        with pytest.raises(ValueError, match="attention outputs do not match.*Set attention_outputs_weight=0"):
            attention_outputs_loss([torch.ones(2, 3, 4)], [])


class TestPenalties:
    def test_by_hand(self):
        model = tiny_model("bert", num_labels=3)
        blocks = find_blocks(model)
        found = unit_penalties(model, blocks)
        l1 = l2 = lasso = 0.0
        for layer in model.bert.encoder.layer:
            attention, up, down = layer.attention, layer.intermediate.dense, layer.output.dense
            rows = [attention.self.query, attention.self.key, attention.self.value]
            for head in range(4):
                part = slice(8 * head, 8 * head + 8)
                w = [m.weight[part].flatten() for m in rows] + [m.bias[part] for m in rows]
                w = torch.cat([*w, attention.output.dense.weight[:, part].flatten()])
                l1, l2, lasso = l1 + w.abs().sum(), l2 + w.square().sum(), lasso + len(w) ** 0.5 * w.norm()
            for neuron in range(40):
                w = torch.cat([up.weight[neuron], up.bias[neuron, None], down.weight[:, neuron]])
                l1, l2, lasso = l1 + w.abs().sum(), l2 + w.square().sum(), lasso + len(w) ** 0.5 * w.norm()
        for name, expected in (("unit_l1", l1), ("unit_l2", l2), ("unit_group_lasso", lasso)):
            torch.testing.assert_close(found[name], expected / 88)

    def test_group_lasso_draws_units_that_nobody_needs_to_zero(self, tmp_path):
        model = tiny_model("bert", num_labels=3)
        before = unit_penalties(model, find_blocks(model))["unit_group_lasso"].item()
        args = arguments(tmp_path, num_train_epochs=5, unit_group_lasso=1.0, logging_strategy="steps", logging_steps=1)
        trainer = trainer_of(model, None, args)
        trainer.train()
        assert trainer.state.log_history[0]["loss_unit_group_lasso"] == pytest.approx(before, rel=1e-3)
        assert unit_penalties(model, find_blocks(model))["unit_group_lasso"].item() < 0.8 * before

    def test_accumulation_does_not_multiply_it(self, tmp_path):
        after = []
        for size, steps in ((8, 1), (2, 4)):
            model = tiny_model("bert", num_labels=3, **NO_DROPOUT)
            args = arguments(
                tmp_path,
                max_steps=1,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
                unit_l2=0.1,
                optim="sgd",
                lr_scheduler_type="constant",
                max_grad_norm=0.0,
                train_sampling_strategy="sequential",
            )
            trainer_of(model, None, args).train()
            after.append(model.state_dict())
        for name, tensor in after[0].items():
            torch.testing.assert_close(after[1][name], tensor, rtol=1e-4, atol=1e-6)

    def test_a_removed_unit_has_a_gradient_of_zero(self):
        model = tiny_model("bert", num_labels=3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        sum(unit_penalties(model, find_blocks(model)).values()).backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


class TestRegisteredLosses:
    """Losses and penalties of others, weighed by `loss_weights`; the registries are as before afterwards."""

    @pytest.fixture(autouse=True)
    def _own_registries(self, monkeypatch):
        monkeypatch.setattr(registry, "_LOSSES", dict(registry._LOSSES))
        monkeypatch.setattr(registry, "_PENALTIES", dict(registry._PENALTIES))

    def test_a_loss_of_ones_own_is_asked_weighed_logged_and_learned_from(self, tmp_path):
        seen = []

        @register_loss("agreement", needs=["teacher", "attention_outputs"])
        def agreement(inputs):
            seen.append(inputs)
            distance = (inputs.outputs.logits - inputs.teacher_outputs.logits).abs()
            return [Term(distance.mean(), mean_over="labels"), Term(2 * distance.mean(), mean_over="labels")]

        ends = {}
        for weight in (0.0, 0.5):
            small, dense = pruned_pair(num_labels=3, **NO_DROPOUT)
            none = {"task_weight": 1e-9, "logits_weight": 0.0, "hidden_states_weight": 0.0}
            args = arguments(
                tmp_path,
                max_steps=1,
                logging_strategy="steps",
                logging_steps=1,
                loss_weights={"agreement": weight},
                **none,
            )
            trainer = trainer_of(small, dense, args)
            trainer.train()
            ends[weight] = trainer.state.log_history[0], small.state_dict()
        inputs = seen[0]
        distance = (inputs.outputs.logits - inputs.teacher_outputs.logits).abs().mean().item()
        assert len(seen) == 1
        assert set(inputs.attention_outputs) == set(inputs.teacher_attention_outputs) == set(inputs.attention_masks)
        assert len(inputs.attention_masks) == 2
        first, _ = ends[0.5]
        assert first["loss_agreement"] == pytest.approx(1.5 * distance, rel=1e-5)
        assert first["loss"] == pytest.approx(0.5 * 1.5 * distance, rel=1e-5)
        assert "loss_agreement" not in ends[0.0][0]
        assert not torch.equal(ends[0.0][1]["classifier.weight"], ends[0.5][1]["classifier.weight"])

    def test_without_a_teacher_only_what_needs_none_is_asked(self, tmp_path):
        register_loss("needs_one", needs=["teacher"])(lambda _: 1 / 0)
        register_loss("needs_none")(lambda inputs: [Term(inputs.outputs.logits.square().mean(), mean_over="labels")])
        args = arguments(tmp_path, loss_weights={"needs_one": 1.0, "needs_none": 2.0})
        small, _ = pruned_pair(num_labels=3, **NO_DROPOUT)
        trainer = trainer_of(small, None, args)
        outputs = small(**labelled())
        expected = outputs.loss + 2 * outputs.logits.square().mean()
        assert trainer.compute_loss(small.train(), labelled()).item() == pytest.approx(expected.item(), rel=1e-5)

    def test_a_penalty_of_ones_own(self, tmp_path):
        register_penalty("largest")(lambda weights: weights.squares.max())
        args = arguments(tmp_path, loss_weights={"largest": 3.0})
        small, _ = pruned_pair(num_labels=3, **NO_DROPOUT)
        expected = small(**labelled()).loss + 3 * unit_penalties(small, find_blocks(small))["largest"]
        loss = trainer_of(small, None, args).compute_loss(small.train(), labelled())
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)

    def test_weights_from_a_command_line(self, tmp_path):
        register_loss("agreement")(lambda _: [])
        command = ["--output_dir", str(tmp_path), "--report_to", "none", "--use_cpu"]
        parser = HfArgumentParser(RecoveryArguments)
        (args,) = parser.parse_args_into_dataclasses([*command, "--loss_weights", '{"agreement": 0.25}'])
        assert args.loss_weights == {"agreement": 0.25}
        assert recovery_settings(args, steps=1, seconds=1.0)["loss_weights"] == {"agreement": 0.25}
        (args,) = parser.parse_args_into_dataclasses(command)
        assert args.loss_weights == {}
        assert "loss_weights" not in recovery_settings(args, steps=1, seconds=1.0)

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ({"agrement": 1.0}, "unknown loss 'agrement'. Registered: task, logits, .*unit_group_lasso, agreement"),
            ({"logits": 1.0}, "'logits' is built in. Set logits_weight=1.0 instead"),
            ({"agreement": -1}, r"loss_weights\['agreement'\] must not be negative, got -1"),
            ("{agreement: 1}", "loss_weights is no JSON"),
            ([1.0], "gives weights by name, such as .*, got \\[1.0\\]"),
        ],
    )
    def test_weights_that_are_refused(self, weights, message, tmp_path):
        register_penalty("agreement")(lambda weights: weights.squares.sum())
        with pytest.raises(ValueError, match=message):
            arguments(tmp_path, loss_weights=weights)

    def test_names_are_taken_once(self):
        with pytest.raises(ValueError, match="named 'unit_l1' is registered already"):
            register_loss("unit_l1")(lambda inputs: [])
        with pytest.raises(ValueError, match="named 'logits' is registered already"):
            register_loss("logits")(lambda inputs: [])
        with pytest.raises(ValueError, match="letters, digits and underscores, got 'my loss'"):
            register_penalty("my loss")

    def test_the_likeliest_tokens_do_not_do_for_a_loss_that_needs_the_teacher(self, tmp_path):
        register_loss("agreement", needs=["teacher"])(lambda _: [])
        with pytest.raises(ValueError, match=r"loss_weights\['agreement'\]=0.5 needs it to run in every step"):
            arguments(tmp_path, teacher_top_k=4, hidden_states_weight=0.0, loss_weights={"agreement": 0.5})


class TestWhatLearns:
    def changed(self, tmp_path, **options):
        model = tiny_model("bert", num_labels=3, num_hidden_layers=4)
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        trainer_of(model, None, arguments(tmp_path, **options)).train()
        return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}

    def test_input_output(self, tmp_path):
        found = self.changed(tmp_path, trainable=["input_output"])
        layers = {name.split(".")[3] for name in found if "encoder.layer" in name}
        assert layers == {"0", "3"}
        assert "classifier.weight" in found
        assert "bert.embeddings.word_embeddings.weight" in found
        frozen = self.changed(tmp_path, trainable="input_output", freeze_embeddings=True)
        assert "bert.embeddings.word_embeddings.weight" not in frozen

    def test_patterns(self, tmp_path):
        found = self.changed(tmp_path, trainable=["*.layer.1.*", "classifier.*"])
        assert {name.split(".")[3] for name in found if "encoder.layer" in name} == {"1"}
        assert {name for name in found if "encoder" not in name} == {"classifier.weight", "classifier.bias"}

    def test_the_model_is_as_trainable_as_before_afterwards(self, tmp_path):
        model = tiny_model("bert", num_labels=3)
        model.classifier.bias.requires_grad_(False)
        trainer_of(model, None, arguments(tmp_path, trainable=["*.layer.1.*"], freeze_embeddings=True)).train()
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        assert frozen == ["classifier.bias"]

    def test_a_pattern_that_matches_nothing(self):
        with pytest.raises(ValueError, match=r"no parameter matches '\*.layer.9.\*'"):
            choose_trainable(tiny_model("bert"), ["*.layer.9.*"])

    def test_nothing_is_frozen_where_there_are_no_embeddings_to_freeze(self, tmp_path):
        small = tiny_model("wav2vec2")
        options = {"trainable": ["*.layers.0.*"], "freeze_embeddings": True}
        with pytest.raises(ValueError, match="has no embeddings. Leave it out"):
            trainer_of(small, None, arguments(tmp_path, **options))
        assert all(parameter.requires_grad for parameter in small.parameters())


class TestLearningRates:
    def test_stepwise(self):
        parameter = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([parameter], lr=1.0)
        scheduler = stepwise(optimizer, warmup_steps=2, steps=10, drops=[0.5, 0.8], factor=0.1)
        rates = []
        for _ in range(10):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert rates == pytest.approx([0, 0.5, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])

    def test_the_trainer_uses_it(self, tmp_path):
        args = arguments(tmp_path, num_train_epochs=4, lr_steps=[0.5], logging_strategy="steps", logging_steps=1)
        trainer = trainer_of(tiny_model("bert", num_labels=3), None, args)
        trainer.train()
        rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
        assert rates == pytest.approx([1e-2] * 6 + [1e-3] * 6)

    def test_the_base_model_learns_more_slowly_than_the_head(self, tmp_path):
        model = tiny_model("bert", num_labels=3)
        trainer = trainer_of(model, None, arguments(tmp_path, base_model_lr_factor=0.1, max_steps=1))
        trainer.create_optimizer()
        rates = {id(p): group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}
        assert len(rates) == len(list(model.parameters()))
        for name, parameter in model.named_parameters():
            assert rates[id(parameter)] == pytest.approx(1e-3 if name.startswith("bert.") else 1e-2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr_steps": [0.8, 0.5]}, "lr_steps are increasing fractions"),
            ({"lr_steps": [500]}, "lr_steps are increasing fractions"),
            ({"lr_step_factor": 0}, "lr_step_factor must be positive"),
            ({"token_dropout": 15}, r"token_dropout must be in \[0, 1\), got 15. It is a fraction"),
            ({"unit_l1": -1}, "unit_l1 must not be negative"),
            ({"lora_rank": -1}, "lora_rank must not be negative"),
            ({"lora_rank": 4, "unit_l1": 0.1}, "trains adapters only, so unit_l1 would have no effect"),
            ({"lora_rank": 4, "trainable": ["*.0.*"]}, "so trainable would have no effect"),
        ],
    )
    def test_bad_values(self, options, message, tmp_path):
        with pytest.raises(ValueError, match=message):
            arguments(tmp_path, **options)


class TestLora:
    @pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
    def test_adapters_learn_and_are_merged(self, model_type, tmp_path):
        small, dense = pruned_pair(model_type, num_labels=3)
        before = copy.deepcopy(small)
        trainer = trainer_of(small, dense, arguments(tmp_path, lora_rank=2, num_train_epochs=2))
        names = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
        assert names
        assert all("lora_" in name or "modules_to_save" in name for name in names)
        trainer.train()
        assert trainer.model is small
        assert set(small.state_dict()) == set(before.state_dict())
        assert all(parameter.requires_grad for parameter in small.parameters())
        moved = {n for n, t in small.state_dict().items() if not torch.equal(t, before.state_dict()[n])}
        block = find_blocks(small)[1]
        prefix = small.base_model_prefix
        for path in (*block.producers, block.consumer):
            assert f"{prefix}.{path}.weight" in moved
        assert not any("embed" in name or "wte" in name for name in moved)
        hfprune.save(small, tmp_path / "small")
        again = hfprune.load(tmp_path / "small")
        batch = tiny_batch(model_type)
        with torch.no_grad():
            torch.testing.assert_close(again(**batch).logits, small.eval()(**batch).logits)

    def test_the_trainer_works_on_after_the_merge(self, tmp_path):
        small, dense = pruned_pair(num_labels=3)
        args = arguments(
            tmp_path, lora_rank=2, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True
        )
        trainer = trainer_of(small, dense, args)
        trainer.train()
        assert trainer.evaluate()["eval_loss"] == pytest.approx(trainer.state.best_metric, rel=1e-3)
        trainer.save_model(str(tmp_path / "saved"))
        assert hfprune.load(tmp_path / "saved").pruning_plan == small.pruning_plan
        with pytest.raises(RuntimeError, match="Make a new RecoveryTrainer to train again"):
            trainer.train()

    def test_an_error_takes_the_adapters_off(self, tmp_path):
        small, dense = pruned_pair(num_labels=3)
        before = set(small.state_dict())
        trainer = trainer_of(small, dense, arguments(tmp_path, lora_rank=2))
        trainer.compute_loss = lambda *_, **__: 1 / 0
        with pytest.raises(ZeroDivisionError):
            trainer.train()
        assert set(small.state_dict()) == before
        assert all(parameter.requires_grad for parameter in small.parameters())

    def test_arguments_that_trainer_refuses_leave_no_adapters(self, tmp_path):
        small, dense = pruned_pair(num_labels=3)
        before = set(small.state_dict())
        args = arguments(tmp_path, lora_rank=2, eval_strategy="steps")
        with pytest.raises(ValueError, match="eval_dataset"):
            RecoveryTrainer(small, args, teacher=dense, train_dataset=tiny_tokenized())
        assert set(small.state_dict()) == before
        assert all(parameter.requires_grad for parameter in small.parameters())

    def test_a_cut_run_goes_on(self, tmp_path):
        ends = []
        for resume in (None, "checkpoint-3"):
            torch.manual_seed(0)
            small, dense = pruned_pair(num_labels=3, **NO_DROPOUT)
            args = arguments(
                tmp_path,
                lora_rank=2,
                num_train_epochs=2,
                save_strategy="epoch",
                seed=1,
                train_sampling_strategy="sequential",
            )
            trainer = trainer_of(small, dense, args)
            trainer.train(resume_from_checkpoint=resume and str(tmp_path / resume))
            ends.append(trainer.model.state_dict())
        for name, tensor in ends[0].items():
            torch.testing.assert_close(ends[1][name], tensor, rtol=1e-4, atol=1e-5)


class TestCachedTeacherLogits:
    def with_logits(self, dense):
        return add_teacher_logits(
            tiny_tokenized(), dense, collator=DataCollatorWithPadding(tiny_tokenizer()), batch_size=8
        )

    def test_the_same_training_as_with_the_teacher(self, tmp_path):
        after = []
        for cached in (False, True):
            small, dense = pruned_pair(num_labels=3, **NO_DROPOUT)
            data = self.with_logits(dense) if cached else None
            # Adam would make steps of the rounding errors that are the gradients of key biases
            args = arguments(tmp_path, hidden_states_weight=0.0, seed=3, optim="sgd", learning_rate=0.1)
            trainer = trainer_of(small, None if cached else dense, args, data)
            trainer.train()
            assert trainer.evaluate()["eval_loss"] > 0
            after.append(small.state_dict())
        for name, tensor in after[0].items():
            torch.testing.assert_close(after[1][name], tensor, rtol=1e-4, atol=1e-5)

    def test_the_teacher_rests_while_it_is_not_needed(self, tmp_path):
        small, dense = pruned_pair(num_labels=3)
        data = self.with_logits(dense)
        calls = []
        dense.register_forward_pre_hook(lambda *_: calls.append(1))
        trainer_of(small, dense, arguments(tmp_path, hidden_states_weight=0.0), data).train()
        assert not calls
        trainer_of(small, dense, arguments(tmp_path, hidden_states_weight=0.5), data).train()
        assert calls

    def test_other_weights_make_another_fingerprint(self):
        a, b = (self.with_logits(tiny_model("bert", num_labels=3, seed=seed)) for seed in (0, 1))
        again = self.with_logits(tiny_model("bert", num_labels=3, seed=0))
        assert a._fingerprint == again._fingerprint != b._fingerprint
        assert a["teacher_logits"] != b["teacher_logits"]

    def test_token_dropout_needs_the_teacher(self, tmp_path):
        small, dense = pruned_pair(num_labels=3)
        trainer = trainer_of(small, None, arguments(tmp_path, token_dropout=0.1), self.with_logits(dense))
        with pytest.raises(ValueError, match="teacher_logits are of whole texts"):
            trainer.train()

    def test_logits_of_every_token_are_not_kept(self):
        with pytest.raises(ValueError, match="only `\\(samples, classes\\)` is kept beside the data"):
            self.with_logits(tiny_model("bert", "AutoModelForTokenClassification"))
