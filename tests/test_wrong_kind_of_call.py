"""Models of texts that are written, called with labels of classes; pruned classes, called with other checkpoints."""

import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import hfprune
from hfprune.errors import CalibrationError
from hfprune.measuring.size import measure_size
from hfprune.structure.surgery import pruned_class_for
from tests.support.plans import uneven_plan
from tests.support.tiny import ENCODER_DECODERS, tiny_batch, tiny_model
from tests.support.training import arguments, trainer_of


def model_of(model_type):
    head = "AutoModelForSpeechSeq2Seq" if model_type == "whisper" else "AutoModelForSeq2SeqLM"
    return tiny_model(model_type, head)


def classes_for(model_type):
    """A batch as a csv with a column of labels gives it."""
    batch = tiny_batch(model_type)
    del batch["decoder_input_ids"]
    return {**batch, "labels": torch.tensor([0, 1, 0, 1])}


def config(**fields):
    return hfprune.PruningConfig(sequence_length=7, calibration_samples=4, **fields)


class TestClassesForAModelThatWritesTexts:
    REFUSAL = r"ForConditionalGeneration writes texts, and labels in a batch has shape \(4,\): one class a sample"

    @pytest.mark.parametrize("model_type", sorted(set(ENCODER_DECODERS) - {"marian"}))
    def test_prune_says_what_labels_are_expected(self, model_type):
        with pytest.raises(CalibrationError, match=rf"{self.REFUSAL}. Give the target texts as token ids"):
            hfprune.prune(model_of(model_type), [classes_for(model_type)], config())

    @pytest.mark.parametrize("scorer", ["fisher", "kl_fisher", "l2"])
    def test_so_does_every_scorer(self, scorer):
        with pytest.raises(CalibrationError, match=self.REFUSAL):
            hfprune.score(model_of("t5"), [classes_for("t5")], scorer=scorer)

    def test_and_repair_and_recovery(self, tmp_path):
        dense = model_of("bart")
        small = hfprune.apply_plan(dense, uneven_plan(dense))
        with pytest.raises(CalibrationError, match=self.REFUSAL):
            hfprune.reconstruct(small, dense, [classes_for("bart")])
        trainer = trainer_of(small, copy.deepcopy(dense), arguments(tmp_path))
        with pytest.raises(CalibrationError, match=self.REFUSAL):
            trainer.compute_loss(small.train(), classes_for("bart"))

    @pytest.mark.parametrize("model_type", ["t5", "bart"])
    def test_classifiers_take_classes(self, model_type):
        batch = classes_for(model_type)
        small = hfprune.prune(tiny_model(model_type, num_labels=3), [batch], config(scorer="fisher", rounds=1))
        assert small.pruning_plan.sparsity("macs") >= 0.5


class TestPruneClassesOfOneType:
    def test_a_checkpoint_of_another_type(self, tmp_path):
        dense = tiny_model("bert")
        hfprune.save(hfprune.apply_plan(dense, uneven_plan(dense)), tmp_path / "small")
        llama = pruned_class_for(tiny_model("llama", "AutoModelForCausalLM"))
        with pytest.raises(
            ValueError, match=r"^this is a checkpoint of another model type than LlamaModel.*Auto class"
        ):
            llama.from_pretrained(tmp_path / "small")

    @pytest.mark.parametrize("load", [AutoModelForSequenceClassification.from_pretrained, hfprune.load])
    def test_another_number_of_layers(self, load, tmp_path):
        dense = tiny_model("bert")
        hfprune.save(hfprune.apply_plan(dense, uneven_plan(dense)), tmp_path / "small")
        fewer = (
            r"^pruning_config has the shape of 'encoder.layer.1.*no such module. Leave out what changes the number of l"
        )
        with pytest.raises(ValueError, match=fewer):
            load(tmp_path / "small", num_hidden_layers=1)
        with pytest.raises(
            ValueError, match=r"layer.2.* is not in the weights.*Leave out what changes the number of l"
        ):
            load(tmp_path / "small", num_hidden_layers=3)

    def test_a_dense_checkpoint(self, tmp_path):
        dense = tiny_model("bert")
        dense.save_pretrained(tmp_path / "dense")
        with pytest.raises(ValueError, match=r"^this is no pruned checkpoint: .*Load it by an Auto class"):
            pruned_class_for(dense).from_pretrained(tmp_path / "dense")


@pytest.mark.parametrize("positions", [32, 16])
def test_whisper_with_few_positions_says_how_many(positions):
    model = tiny_model("whisper", "AutoModelForSpeechSeq2Seq", max_target_positions=positions)
    with pytest.raises(ValueError, match=f"sequence_length=128 is more than the model's {positions} positions"):
        measure_size(model, sequence_length=128)
    assert measure_size(model, sequence_length=positions).sequence_length == positions
    with pytest.raises(ValueError, match="positions"):
        hfprune.prune(model, [tiny_batch("whisper")], hfprune.PruningConfig(scorer="l2"))
