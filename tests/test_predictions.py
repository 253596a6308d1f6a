"""What logits mean is decided in one place: for scores, recovery, the sweep and metrics alike."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AlbertConfig,
    AlbertForPreTraining,
    BertConfig,
    BertForNextSentencePrediction,
    BertForPreTraining,
    BertForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    EvalPrediction,
    GPT2Config,
    GPT2DoubleHeadsModel,
)

import hfprune
from hfprune.errors import CalibrationError
from hfprune.measuring.metrics import compute_metrics_for
from hfprune.recovery.loss import RecoveryLoss
from hfprune.scoring import score
from hfprune.scoring.objectives import labelled_loss, projected_loss, sampled_loss
from hfprune.structure.predictions import predictions_of
from hfprune.sweeping import correctness
from tests.support.tiny import tiny_batch, tiny_model

SIZES = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4}
LABEL_FREE = ["residual_logit_fisher", "logit_fisher", "kl_fisher", "residual_kl_fisher"]


def classifier(dtype=torch.float32, **settings):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES, num_labels=4, **settings))
    return model.to(dtype).eval()


def distilled(**settings):
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "num_labels": 4}
    return DistilBertForSequenceClassification(DistilBertConfig(**sizes, **settings)).eval()


def several_labels(dtype=torch.float32):
    torch.manual_seed(1)
    ids = torch.randint(3, 99, (16, 12))
    return [{"input_ids": ids, "labels": (torch.rand(16, 4) > 0.5).to(dtype)}]


def padded(batch, extra):
    """The same texts with more padding."""
    longer = dict(batch)
    longer["input_ids"] = F.pad(batch["input_ids"], (0, extra), value=1)
    longer["attention_mask"] = F.pad(batch["attention_mask"], (0, extra))
    return longer


def pretraining_batch(words=64):
    torch.manual_seed(2)
    batch = tiny_batch()
    labels = torch.where(torch.rand(4, 7) < 0.5, torch.randint(4, words, (4, 7)), -100)
    return {**batch, "labels": labels, "next_sentence_label": torch.tensor([0, 1, 1, 0])}


class TestSeveralLabels:
    def test_float_labels_and_the_config_give_the_same_plan(self):
        config = hfprune.PruningConfig(sequence_length=12, calibration_samples=16, sparsity=0.5)
        plans = []
        for problem in (None, "multi_label_classification"):
            small = hfprune.prune(classifier(problem_type=problem), several_labels(), config)
            plans.append(small.pruning_plan)
        assert plans[0] == plans[1]

    @pytest.mark.parametrize("scorer", LABEL_FREE)
    def test_the_same_scores(self, scorer):
        guessed = score(classifier(), several_labels(), scorer=scorer)
        said = score(classifier(problem_type="multi_label_classification"), several_labels(), scorer=scorer)
        for name, scores in said.items():
            torch.testing.assert_close(guessed[name], scores, rtol=1e-5, atol=0)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_in_other_dtypes(self, dtype):
        guessed = score(classifier(dtype), several_labels(dtype), scorer="logit_fisher")
        model = classifier(dtype, problem_type="multi_label_classification")
        said = score(model, several_labels(dtype), scorer="logit_fisher")
        for name, scores in said.items():
            torch.testing.assert_close(guessed[name], scores, rtol=1e-5, atol=0)

    def test_of_another_architecture(self):
        guessed = score(distilled(), several_labels(), scorer="kl_fisher")
        said = score(distilled(problem_type="multi_label_classification"), several_labels(), scorer="kl_fisher")
        for name, scores in said.items():
            torch.testing.assert_close(guessed[name], scores, rtol=1e-5, atol=0)

    def test_a_single_label_that_may_be_there_is_no_number(self):
        batch = tiny_batch()
        model = tiny_model(num_labels=1, problem_type="multi_label_classification")
        prediction = predictions_of(model, model(**batch), batch, taker="a test")[0]
        assert prediction.link == "sigmoid"
        model.config.problem_type = None
        assert predictions_of(model, model(**batch), batch, taker="a test")[0].link == "identity"

    def test_integers_are_one_class(self):
        ids = several_labels()[0]["input_ids"]
        one_class = [{"input_ids": ids, "labels": torch.arange(16) % 4}]
        guessed = score(classifier(), one_class, scorer="logit_fisher")
        said = score(classifier(problem_type="single_label_classification"), one_class, scorer="logit_fisher")
        for name, scores in said.items():
            torch.testing.assert_close(guessed[name], scores, rtol=1e-5, atol=0)

    def test_a_left_over_problem_type_says_nothing_of_words(self):
        batch = tiny_batch()
        plain = tiny_model("bert", "AutoModelForMaskedLM")
        left_over = tiny_model("bert", "AutoModelForMaskedLM", problem_type="regression")
        for loss in (projected_loss, sampled_loss):
            more = {"teacher": plain} if loss is sampled_loss else {}
            expected = loss(plain, batch, seed=0, **more)
            torch.testing.assert_close(loss(left_over, batch, seed=0, **more), expected)


class TestDetector:
    """ELECTRA's detector says of every token whether it was replaced."""

    @pytest.mark.parametrize("scorer", ["kl_fisher", "logit_fisher", "fisher"])
    @pytest.mark.parametrize("extra", [1, 9])
    def test_padding_moves_no_score(self, scorer, extra):
        model = tiny_model("electra", "AutoModelForPreTraining")
        batch = tiny_batch("electra")
        batch["labels"] = (torch.arange(28).reshape(4, 7) % 3 == 0).long()
        longer = padded(batch, extra)
        longer["labels"] = F.pad(batch["labels"], (0, extra))
        expected = score(model, [batch], scorer=scorer)
        for name, scores in score(model, [longer], scorer=scorer).items():
            torch.testing.assert_close(scores, expected[name], rtol=1e-3, atol=1e-5)

    def test_the_loss_is_a_sum_over_real_tokens(self):
        model = tiny_model("electra", "AutoModelForPreTraining")
        batch = tiny_batch("electra")
        batch["labels"] = (batch["input_ids"] % 2).long()
        real = batch["attention_mask"].bool()
        logits = model(**batch).logits
        expected = F.binary_cross_entropy_with_logits(logits[real], batch["labels"][real].float(), reduction="sum")
        torch.testing.assert_close(labelled_loss(model, batch), expected)

    def test_recovery_compares_token_by_token(self, tmp_path):
        student = tiny_model("electra", "AutoModelForPreTraining")
        teacher = tiny_model("electra", "AutoModelForPreTraining", seed=1)
        batch = tiny_batch("electra")
        terms = terms_of(tmp_path, student, teacher, batch)
        real = batch["attention_mask"].bool()
        z = student(**batch).logits[real] / 2
        p = (teacher(**batch).logits[real] / 2).sigmoid()
        cross = F.binary_cross_entropy_with_logits(z, p, reduction="none")
        expected = 4 * (cross - F.binary_cross_entropy(p, p, reduction="none")).mean()
        torch.testing.assert_close(terms["logits"][0].value, expected)
        longer = terms_of(tmp_path, student, teacher, padded(batch, 5))
        torch.testing.assert_close(longer["logits"][0].value, expected)


def terms_of(folder, student, teacher, batch):
    args = hfprune.RecoveryArguments(folder, use_cpu=True, report_to="none", hidden_states_weight=0, task_weight=0)
    return RecoveryLoss(args, student, teacher).terms(student, student, dict(batch), nullcontext()).terms


class TestTwoPredictions:
    """Of a model that is pretrained: the words behind the mask, and whether two sentences belong together."""

    def model(self, seed=0):
        return tiny_model("bert", "AutoModelForPreTraining", seed=seed)

    def test_labels_of_both_are_summed(self):
        model = self.model()
        batch = pretraining_batch()
        output = model(**batch)
        words = F.cross_entropy(output.prediction_logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
        pairs = F.cross_entropy(output.seq_relationship_logits, batch["next_sentence_label"], reduction="sum")
        torch.testing.assert_close(labelled_loss(model, batch), words + pairs)

    def test_albert_orders_sentences(self):
        torch.manual_seed(0)
        model = AlbertForPreTraining(AlbertConfig(**{**SIZES, "num_hidden_layers": 1, "embedding_size": 16})).eval()
        batch = pretraining_batch()
        batch["sentence_order_label"] = batch.pop("next_sentence_label")
        output = model(**batch)
        words = F.cross_entropy(output.prediction_logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
        pairs = F.cross_entropy(output.sop_logits, batch["sentence_order_label"], reduction="sum")
        torch.testing.assert_close(labelled_loss(model, batch), words + pairs)

    @pytest.mark.parametrize("scorer", ["kl_fisher", "logit_fisher"])
    def test_scores_without_labels_know_no_padding(self, scorer):
        model = self.model()
        batch = tiny_batch()
        expected = score(model, [batch], scorer=scorer)
        for name, scores in score(model, [padded(batch, 6)], scorer=scorer).items():
            torch.testing.assert_close(scores, expected[name], rtol=1e-3, atol=1e-5)

    def test_recovery_follows_both(self, tmp_path):
        terms = terms_of(tmp_path, self.model(), self.model(seed=1), tiny_batch())
        assert len(terms["logits"]) == 2
        assert all(term.value.item() > 0 for term in terms["logits"])

    def test_next_sentence(self):
        torch.manual_seed(0)
        model = BertForNextSentencePrediction(BertConfig(**SIZES, problem_type="regression")).eval()
        batch = {**tiny_batch(), "labels": torch.tensor([0, 1, 1, 0])}
        prediction = predictions_of(model, model(**batch), batch, taker="a test")[0]
        assert (prediction.link, prediction.subject) == ("softmax", "sample")
        expected = F.cross_entropy(model(**tiny_batch()).logits, batch["labels"], reduction="sum")
        torch.testing.assert_close(labelled_loss(model, batch), expected)


class TestOtherHeads:
    def test_padding_moves_no_score_of_spans(self):
        model = tiny_model("bert", "AutoModelForQuestionAnswering")
        batch = tiny_batch()
        expected = score(model, [batch], scorer="kl_fisher")
        for name, scores in score(model, [padded(batch, 6)], scorer="kl_fisher").items():
            torch.testing.assert_close(scores, expected[name], rtol=1e-3, atol=1e-5)

    @pytest.mark.parametrize(
        ("head", "meaning"),
        [
            ("SequenceClassification", [("softmax", "sample", "classes")]),
            ("TokenClassification", [("softmax", "token", "classes")]),
            ("MaskedLM", [("softmax", "token", "classes")]),
            ("MultipleChoice", [("softmax", "sample", "choices")]),
            ("QuestionAnswering", [("softmax", "sample", "tokens")] * 2),
            ("NextSentencePrediction", [("softmax", "sample", "classes")]),
            ("PreTraining", [("softmax", "token", "classes"), ("softmax", "sample", "classes")]),
        ],
    )
    def test_what_each_head_predicts(self, head, meaning):
        model = tiny_model("bert", f"AutoModelFor{head}")
        batch = tiny_batch()
        if head == "MultipleChoice":
            batch = {name: value.reshape(2, 2, -1) for name, value in batch.items()}
        found = predictions_of(model, model(**batch), batch, taker="a test")
        assert [(each.link, each.subject, each.axis) for each in found] == meaning

    def test_a_class_of_the_users_own(self):
        class Mine(BertForPreTraining):
            pass

        model = Mine(BertConfig(**SIZES)).eval()
        assert len(predictions_of(model, model(**tiny_batch()), tiny_batch(), taker="a test")) == 2

    def test_a_second_head_of_unknown_meaning_is_refused(self):
        model = GPT2DoubleHeadsModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)).eval()
        ids = torch.randint(3, 64, (4, 2, 7))
        batch = {"input_ids": ids, "mc_token_ids": torch.full((4, 2), 6)}
        for scorer in ("kl_fisher", "logit_fisher"):
            with pytest.raises(CalibrationError, match=r"what '\w*logits' of shape .* of GPT2DoubleHeadsModel means"):
                score(model, [batch], scorer=scorer)

    def test_pixels_of_a_picture_are_no_classes(self):
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 40}
        decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
        config = ViTMAEConfig(**sizes, **decoder, decoder_intermediate_size=16, image_size=16, patch_size=4)
        model = ViTMAEForPreTraining(config).eval()
        batch = tiny_batch("vit")
        with pytest.raises(CalibrationError, match="what 'logits' of shape .* means is not known"):
            sampled_loss(model, batch, teacher=model, seed=0)

    def test_a_student_without_logits_is_not_passed_over_in_silence(self, tmp_path, caplog):
        student = tiny_model("roberta", "AutoModel")
        teacher = tiny_model("roberta", "AutoModel", seed=1)
        args = hfprune.RecoveryArguments(tmp_path, use_cpu=True, report_to="none")
        loss = RecoveryLoss(args, student, teacher)
        terms = loss.terms(student, student, tiny_batch("roberta"), nullcontext()).terms
        assert list(terms) == ["hidden_states"]
        assert "RobertaModel has no logits, so logits_weight=0.9 has no effect" in caplog.text


class TestRecoveryOfSeveralLabels:
    def test_float_labels_and_the_config_give_the_same_loss(self, tmp_path):
        batch = {**tiny_batch(), "labels": torch.rand(4, 3).round()}
        values = []
        for problem in (None, "multi_label_classification"):
            student = tiny_model(num_labels=3, problem_type=problem)
            teacher = tiny_model(num_labels=3, problem_type=problem, seed=1)
            values.append(terms_of(tmp_path, student, teacher, batch)["logits"][0].value)
        torch.testing.assert_close(values[0], values[1])

    def test_one_label_that_may_be_there(self, tmp_path):
        student = tiny_model(num_labels=1, problem_type="multi_label_classification")
        teacher = tiny_model(num_labels=1, problem_type="multi_label_classification", seed=1)
        value = terms_of(tmp_path, student, teacher, tiny_batch())["logits"][0].value
        p = (teacher(**tiny_batch()).logits / 2).sigmoid()
        z = student(**tiny_batch()).logits / 2
        cross = F.binary_cross_entropy_with_logits(z, p, reduction="none")
        torch.testing.assert_close(value, 4 * (cross - F.binary_cross_entropy(p, p, reduction="none")).mean())

    def test_a_detector_is_no_classifier_whose_logits_could_be_kept(self):
        from datasets import Dataset

        data = Dataset.from_dict({"input_ids": [[5, 6, 7]] * 4})
        with pytest.raises(ValueError, match="gives logits of shape .*only `\\(samples, classes\\)` is kept"):
            hfprune.add_teacher_logits(data, tiny_model("electra", "AutoModelForPreTraining"))
        with pytest.raises(ValueError, match="gives prediction_logits and seq_relationship_logits"):
            hfprune.add_teacher_logits(data, tiny_model("bert", "AutoModelForPreTraining"))


class TestMeasures:
    @pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
    def test_the_sweep_counts_no_class_where_there_is_none(self, problem):
        batch = {**tiny_batch(), "labels": torch.tensor([0, 1, 0, 1])}
        evaluate = correctness([batch])
        assert len(evaluate(tiny_model(num_labels=3))) == 4
        with pytest.raises(ValueError, match=f"with problem_type='{problem}' predicts logits with a"):
            evaluate(tiny_model(num_labels=3, problem_type=problem))

    def test_nor_of_a_single_number(self):
        batch = {**tiny_batch(), "labels": torch.tensor([0, 1, 0, 1])}
        with pytest.raises(ValueError, match="predicts logits with a identity for every sample"):
            correctness([batch])(tiny_model(num_labels=1))

    def test_nor_of_two_predictions(self):
        batch = {**tiny_batch(), "labels": torch.tensor([0, 1, 0, 1])}
        with pytest.raises(ValueError, match="predicts prediction_logits and seq_relationship_logits"):
            correctness([batch])(tiny_model("bert", "AutoModelForPreTraining"))

    @pytest.mark.parametrize(
        ("logits", "labels"),
        [
            (np.zeros((4, 7, 3)), np.zeros((4, 7))),
            (np.zeros((4, 3)), np.zeros((4, 3))),
            ((np.zeros((4, 7, 9)), np.zeros((4, 2))), np.zeros(4)),
            (np.zeros((4, 1)), np.zeros(4)),
        ],
    )
    def test_metrics_refuse_what_is_not_one_class_a_sample(self, logits, labels):
        compute = compute_metrics_for(["accuracy"])
        with pytest.raises(ValueError, match="these metrics take logits"):
            compute(EvalPrediction(predictions=logits, label_ids=labels))

    def test_a_regression_needs_one_number_a_sample(self):
        compute = compute_metrics_for(["pearson"], regression=True)
        assert compute(EvalPrediction(predictions=np.arange(4.0)[:, None], label_ids=np.arange(4.0)))["pearson"] > 0.99
        with pytest.raises(ValueError, match="one number"):
            compute(EvalPrediction(predictions=np.zeros((4, 3)), label_ids=np.zeros(4)))
