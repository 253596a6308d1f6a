"""NaN and infinity are refused by name before a training begins, and in its loss."""

import json
from contextlib import nullcontext

import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, BertModel

import hfprune
from hfprune.recovery.loss import RecoveryLoss
from tests.support.tiny import tiny_batch, tiny_model

SIZES = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4}
NUMBERS = ["temperature", "task_weight", "logits_weight", "hidden_states_weight", "unit_l1", "lr_step_factor"]
NUMBERS += ["base_model_lr_factor", "learning_rate", "weight_decay", "adam_epsilon"]
NAN = float("nan")
INFINITE = float("inf")


def arguments(folder, **settings):
    return hfprune.RecoveryArguments(folder, use_cpu=True, report_to="none", max_steps=1, **settings)


def classifier(seed=0):
    torch.manual_seed(seed)
    return BertForSequenceClassification(BertConfig(**SIZES)).eval()


def rows(**columns):
    return Dataset.from_dict({"input_ids": [[5, 6, 7, 8]] * 4, "labels": [0, 1, 0, 1], **columns})


class TestArguments:
    @pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE])
    @pytest.mark.parametrize("name", NUMBERS)
    def test_are_finite(self, tmp_path, name, value):
        with pytest.raises(ValueError, match=f"{name} must be a finite number, got {value}"):
            arguments(tmp_path, **{name: value})

    def test_weights_of_own_losses_too(self, tmp_path):
        from hfprune.recovery.losses import registry

        registry.register_loss("never_asked")(lambda _: [])
        try:
            with pytest.raises(ValueError, match=r"loss_weights\['never_asked'\] must be a finite number, got nan"):
                arguments(tmp_path, loss_weights={"never_asked": NAN})
            with pytest.raises(ValueError, match="must be a finite number, got inf"):
                arguments(tmp_path, loss_weights=json.dumps({"never_asked": INFINITE}))
        finally:
            del registry._LOSSES["never_asked"]

    def test_gradients_may_stay_unclipped(self, tmp_path):
        assert arguments(tmp_path, max_grad_norm=INFINITE).max_grad_norm == INFINITE
        with pytest.raises(ValueError, match="max_grad_norm must be a finite number"):
            arguments(tmp_path, max_grad_norm=NAN)

    def test_the_temperature_of_kept_logits(self):
        for temperature in (NAN, INFINITE, 0.0):
            with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
                hfprune.add_teacher_logits(rows(), classifier(), temperature=temperature)


class TestAtTheDoor:
    @pytest.mark.parametrize("value", [NAN, INFINITE])
    def test_a_teacher_with_such_weights(self, tmp_path, value):
        teacher = classifier(1)
        teacher.bert.pooler.dense.weight.data[0, 0] = value
        with pytest.raises(ValueError, match=r"the teacher, BertFor\w+, has 1 of 1024 weights of 'bert.p"):
            hfprune.RecoveryTrainer(classifier(), arguments(tmp_path), teacher=teacher, train_dataset=rows())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_model_with_such_weights(self, tmp_path, dtype):
        model = tiny_model("llama", "AutoModelForCausalLM").to(dtype)
        model.lm_head.weight.data[:2] = NAN
        with pytest.raises(ValueError, match="the model, LlamaForCausalLM, has 64 of 2048 weights of"):
            hfprune.RecoveryTrainer(model, arguments(tmp_path), train_dataset=rows())

    def test_a_teacher_without_a_head(self, tmp_path):
        for teacher in (BertModel(BertConfig(**SIZES)), tiny_model("distilbert", "AutoModel")):
            with pytest.raises(ValueError, match="has no head, so it gives no logits to learn from"):
                hfprune.RecoveryTrainer(classifier(), arguments(tmp_path), teacher=teacher, train_dataset=rows())

    def test_whose_hidden_states_may_still_be_followed(self, tmp_path):
        teacher = BertModel(BertConfig(**SIZES))
        settings = arguments(tmp_path, logits_weight=0.0, disable_tqdm=True)
        trainer = hfprune.RecoveryTrainer(classifier(), settings, teacher=teacher, train_dataset=rows())
        assert trainer.train().training_loss > 0


def terms_of(folder, student, teacher, batch, **settings):
    loss = RecoveryLoss(arguments(folder, **settings), student, teacher)
    return loss.terms(student, student, dict(batch), nullcontext())


class TestInTheLoss:
    """Weights can become NaN during a training, and inputs can hold it."""

    @pytest.mark.parametrize("head", ["SequenceClassification", "MaskedLM", "QuestionAnswering", "TokenClassification"])
    def test_what_a_teacher_says(self, tmp_path, head):
        student = tiny_model("bert", f"AutoModelFor{head}")
        teacher = tiny_model("bert", f"AutoModelFor{head}", seed=1)
        next(reversed(list(teacher.parameters()))).data.fill_(NAN)
        with pytest.raises(
            ValueError, match=r"the teacher's \w*logits \(of BertFor\w+\) have \d+ of \d+ values that are NaN"
        ):
            terms_of(tmp_path, student, teacher, tiny_batch(), hidden_states_weight=0)

    def test_its_hidden_states(self, tmp_path):
        teacher = tiny_model("bert", "AutoModel", seed=1)
        teacher.encoder.layer[0].output.dense.bias.data[0] = INFINITE
        with pytest.raises(ValueError, match=r"the teacher's \w*hidden_states? \(of BertModel\)"):
            terms_of(tmp_path, tiny_model("bert", "AutoModel"), teacher, tiny_batch())

    def test_columns_of_the_data(self, tmp_path):
        batch = {**tiny_batch(), "teacher_logits": torch.tensor([[0.0, NAN]] * 4)}
        with pytest.raises(ValueError, match=r"the teacher's teacher_logits \(of the data\) have 4 of 8 values"):
            terms_of(tmp_path, tiny_model(), None, batch)

    def test_labels(self, tmp_path):
        batch = {**tiny_batch(), "labels": torch.tensor([0.0, NAN, 1.0, 2.0])}
        with pytest.raises(ValueError, match="the loss of a batch is not a finite number: task is nan"):
            terms_of(tmp_path, tiny_model(num_labels=1), None, batch)

    def test_words_that_never_come_are_no_fault(self, tmp_path):
        student = tiny_model("bert", "AutoModelForMaskedLM")
        teacher = tiny_model("bert", "AutoModelForMaskedLM", seed=1)
        teacher.cls.predictions.bias.data[5:9] = -INFINITE
        terms = terms_of(tmp_path, student, teacher, tiny_batch(), hidden_states_weight=0).terms
        assert torch.isfinite(terms["logits"][0].value)

    def test_logits_that_are_kept(self):
        teacher = classifier()
        teacher.classifier.bias.data[1] = NAN
        with pytest.raises(ValueError, match=r"the teacher's logits \(of BertForSequenceClassification\) have 4 of 8"):
            hfprune.add_teacher_logits(rows(), teacher)

    def test_a_teacher_without_logits(self, tmp_path):
        with pytest.raises(ValueError, match="the teacher has no 'logits': BertModel returned last_hidden_state"):
            terms_of(tmp_path, tiny_model(), tiny_model("bert", "AutoModel"), tiny_batch(), hidden_states_weight=0)
        student = tiny_model("bert", "AutoModelForQuestionAnswering")
        with pytest.raises(ValueError, match="the teacher has no 'start_logits'"):
            terms_of(tmp_path, student, tiny_model(), tiny_batch(), hidden_states_weight=0)
