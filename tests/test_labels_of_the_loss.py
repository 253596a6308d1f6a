"""Labels as people have them, where a loss needs them: converted without a change of value, or refused by a message."""

import numpy as np
import pytest
import torch

import hfprune
from hfprune.errors import CalibrationError
from hfprune.recovery.loss import RecoveryLoss, mean_of
from tests.support.tiny import tiny_batch, tiny_model

HOT = torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 0], [0, 1, 0]])
CLASSES = torch.tensor([0, 1, 2, 0])
KINDS = {
    "integers": HOT,
    "bools": HOT.bool(),
    "bytes": HOT.to(torch.uint8),
    "doubles": HOT.double(),
    "arrays": HOT.numpy(),
    "arrays of bools": HOT.bool().numpy(),
}


def bert(problem=None, **changes):
    return tiny_model("bert", **{"num_labels": 3, "problem_type": problem, **changes})


def several():
    return bert("multi_label_classification")


def labelled(labels):
    return {**tiny_batch(), "labels": labels}


def same_scores(a, b):
    assert all(torch.allclose(a[name], b[name], rtol=1e-6, atol=0) for name in b)


@pytest.mark.parametrize("scorer", ["taylor", "movement"])
@pytest.mark.parametrize("kind", KINDS)
def test_several_labels_of_any_number_type(kind, scorer):
    expected = hfprune.score(several(), [labelled(HOT.float())], scorer=scorer)
    assert any(values.any() for values in expected.values())
    same_scores(hfprune.score(several(), [labelled(KINDS[kind])], scorer=scorer), expected)


def test_several_labels_as_whole_numbers_are_pruned_by():
    config = hfprune.PruningConfig(sequence_length=7, scorer="taylor", rounds=1)
    expected = hfprune.prune(several(), [labelled(HOT.float())], config)
    assert hfprune.prune(several(), [labelled(HOT)], config).pruning_plan == expected.pruning_plan


def test_truth_values_need_no_problem_type():
    expected = hfprune.score(several(), [labelled(HOT.float())], scorer="taylor")
    model = bert()
    same_scores(hfprune.score(model, [labelled(HOT.bool())], scorer="taylor"), expected)
    assert model.config.problem_type is None
    # labels that a model draws are several a sample as well
    drawn = hfprune.score(several(), [tiny_batch()], scorer="kl_fisher")
    same_scores(hfprune.score(bert(), [labelled(HOT.bool())], scorer="kl_fisher"), drawn)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_narrow_numbers_of_classes(dtype):
    expected = hfprune.score(bert(), [labelled(CLASSES)], scorer="taylor")
    same_scores(hfprune.score(bert(), [labelled(CLASSES.to(dtype))], scorer="taylor"), expected)


def test_tags_as_32_bit_arrays():
    model = tiny_model("bert", "AutoModelForTokenClassification", num_labels=3)
    tags = torch.arange(28).reshape(4, 7) % 3
    expected = hfprune.score(model, [labelled(tags)], scorer="taylor")
    same_scores(hfprune.score(model, [labelled(tags.numpy().astype(np.int32))], scorer="taylor"), expected)


REFUSED = {
    "integers without a problem": (None, HOT, r"shape \(4, 3\).*problem_type = 'multi_label_classification'; else"),
    "floats for classes": (None, CLASSES.float(), "dtype torch.float32.*labels.long"),
    "one class of several": ("multi_label_classification", CLASSES, r"shape \(4,\).*Give labels of shape \(samples, 3"),
    "too few": ("multi_label_classification", HOT[:, :2], r"shape \(4, 2\).*Give labels of shape \(samples, 3"),
    "counts": ("multi_label_classification", HOT * 2, "hold 2, and .* are from 0 to 1"),
    "not a number": ("multi_label_classification", HOT * float("nan"), "hold nan, and .* are from 0 to 1"),
    "several of one class": ("single_label_classification", HOT.float(), "predicts one of 3 classes for a sample"),
    "numbers": ("regression", CLASSES.float(), r"shape \(4,\), and .* 3 numbers a sample"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_labels_of_another_kind_than_the_model_predicts(case):
    problem, labels, message = REFUSED[case]
    with pytest.raises(CalibrationError, match=message):
        hfprune.score(bert(problem), [labelled(labels)], scorer="taylor")


class TestRecovery:
    def task_loss(self, model, labels, folder):
        args = hfprune.RecoveryArguments(str(folder), use_cpu=True, report_to="none")
        loss = RecoveryLoss(args, model, None)
        terms = loss.terms(model, model, labelled(labels), torch.autocast("cpu", enabled=False))
        return mean_of(terms.terms["task"]).item()

    @pytest.mark.parametrize("kind", ["integers", "bools", "bytes"])
    def test_several_labels(self, kind, tmp_path):
        expected = self.task_loss(several(), HOT.float(), tmp_path)
        assert self.task_loss(several(), KINDS[kind], tmp_path) == expected

    def test_what_the_model_does_not_predict(self, tmp_path):
        with pytest.raises(CalibrationError, match="problem_type = 'multi_label_classification'; else"):
            self.task_loss(bert(), HOT, tmp_path)

    def test_a_training_and_an_evaluation(self, tmp_path):
        rows = []
        for row in range(4):
            rows.append({"input_ids": tiny_batch()["input_ids"][row], "labels": HOT[row]})
        args = hfprune.RecoveryArguments(
            str(tmp_path), max_steps=1, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
        )
        trainer = hfprune.RecoveryTrainer(several(), args, train_dataset=rows, eval_dataset=rows)
        assert trainer.train().global_step == 1
        assert trainer.evaluate()["eval_loss"] > 0
