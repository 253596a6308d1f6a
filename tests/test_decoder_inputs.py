"""What decoders read while they learn from a teacher: the labels, shifted as the model itself shifts them."""

import copy

import pytest
import torch
from datasets import Dataset
from transformers import (
    BertConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    Speech2TextConfig,
    Speech2TextForConditionalGeneration,
    default_data_collator,
)

import hfprune
from hfprune import RecoveryTrainer
from hfprune.recovery.forward import with_decoder_inputs
from tests.support.plans import uneven_plan
from tests.support.tiny import ENCODER_DECODERS, VOCABULARY, tiny_batch, tiny_model
from tests.support.training import arguments


def model_of(model_type):
    head = "AutoModelForSpeechSeq2Seq" if model_type == "whisper" else "AutoModelForSeq2SeqLM"
    return tiny_model(model_type, head)


def labelled(model_type, *, padded=True):
    """Inputs of the encoder, and labels of another length than these; Whisper gets sounds."""
    batch = tiny_batch(model_type, target=5)
    batch["labels"] = batch.pop("decoder_input_ids")
    if padded:
        batch["labels"][0, -2:] = -100
    return batch


def decoder_reads(model, run):
    """The ids that the decoder gets in a run."""
    read = []
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda _, __, given: read.append(given["input_ids"]), with_kwargs=True)
    with torch.no_grad():
        run()
    hook.remove()
    return read


def distance(trainer, student, batch):
    """Between the logits of student and teacher."""
    found, _, _ = trainer._loss.terms(student, student, batch, trainer.accelerator.autocast())
    return float(torch.stack([value.detach() for value, _ in found["logits"]]).mean())


def speech():
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    ffn = {"encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "input_feat_per_channel": 8, "conv_channels": 16}
    config = Speech2TextConfig(vocab_size=VOCABULARY, d_model=16, **sizes, **ffn, decoder_start_token_id=2)
    features = {"input_features": torch.randn(4, 32, 8), "attention_mask": torch.ones(4, 32).long()}
    return Speech2TextForConditionalGeneration(config).eval(), features


def two_berts():
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    bert = BertConfig(vocab_size=VOCABULARY, **sizes)
    config = EncoderDecoderConfig.from_encoder_decoder_configs(bert, copy.deepcopy(bert))
    config.decoder_start_token_id = 2
    config.pad_token_id = 1
    batch = {name: value for name, value in tiny_batch("bert").items() if name in ("input_ids", "attention_mask")}
    return EncoderDecoderModel(config).eval(), batch


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_student_and_teacher_read_what_the_model_makes_of_the_labels(model_type, tmp_path):
    teacher = model_of(model_type)
    student = hfprune.apply_plan(teacher, uneven_plan(teacher))
    batch = labelled(model_type)
    (own,) = decoder_reads(teacher, lambda: teacher(**batch))
    assert own.shape == batch["labels"].shape
    args = arguments(tmp_path, task_weight=0.0, logits_weight=1.0, hidden_states_weight=0.0)
    trainer = RecoveryTrainer(student, args, teacher=teacher)
    for model in (student, teacher):
        *_, read = decoder_reads(model, lambda: distance(trainer, student, batch))
        assert torch.equal(read, own)


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_equal_models_have_no_distance_and_others_learn(model_type, tmp_path):
    teacher = model_of(model_type)
    batch = labelled(model_type)
    options = {"task_weight": 0.0, "logits_weight": 1.0, "hidden_states_weight": 0.0, "learning_rate": 1e-3}
    trainer = RecoveryTrainer(copy.deepcopy(teacher), arguments(tmp_path, **options), teacher=teacher)
    assert distance(trainer, trainer.model.eval(), batch) < 1e-6
    student = hfprune.apply_plan(teacher, uneven_plan(teacher))
    rows = Dataset.from_dict({name: value.tolist() for name, value in batch.items()})
    args = arguments(tmp_path, **options, max_steps=12, disable_dropout=True)
    trainer = RecoveryTrainer(student, args, teacher=teacher, train_dataset=rows, data_collator=default_data_collator)
    before = distance(trainer, student, batch)
    trainer.train()
    assert distance(trainer, student.eval(), batch) < 0.9 * before


@pytest.mark.parametrize("model_type", ENCODER_DECODERS)
def test_what_a_teacher_says_once_is_of_the_same_tokens(model_type):
    teacher = model_of(model_type)
    batch = labelled(model_type, padded=False)
    rows = Dataset.from_dict({name: value.tolist() for name, value in batch.items()})
    found = hfprune.add_teacher_logits(rows, teacher, top_k=3)
    with torch.no_grad():
        logits = teacher(**batch).logits
    top = logits.log_softmax(-1).topk(3)
    assert torch.equal(torch.tensor(found["teacher_top_ids"]), top.indices.int())
    kept = torch.tensor(found["teacher_top_log_probabilities"])[..., :3]
    assert torch.allclose(kept, top.values, atol=1e-4)


@pytest.mark.filterwarnings("ignore:Version v4.12.0")
@pytest.mark.parametrize("make", [speech, two_berts], ids=["speech to text", "two BERTs"])
def test_models_outside_of_the_table(make):
    """With a helper of another name, or one of the right name that takes sounds."""
    model, batch = make()
    batch["labels"] = torch.randint(4, VOCABULARY, (4, 5))
    batch["labels"][1, -1] = -100
    (own,) = decoder_reads(model, lambda: model(**batch))
    helper = type(model).__dict__.get("prepare_decoder_input_ids_from_labels")
    if helper is not None:
        delattr(type(model), "prepare_decoder_input_ids_from_labels")
    try:
        found = with_decoder_inputs(model, batch)
    finally:
        if helper is not None:
            type(model).prepare_decoder_input_ids_from_labels = helper
    assert torch.equal(found["decoder_input_ids"], own)
    assert not model.get_decoder()._forward_pre_hooks


def test_labels_of_samples_are_no_tokens():
    model = tiny_model("bart", num_labels=3)
    batch = {**tiny_batch("bart"), "labels": torch.tensor([0, 1, 2, 0])}
    del batch["decoder_input_ids"]
    assert with_decoder_inputs(model, batch).keys() == batch.keys()
    multi_label = {**batch, "labels": torch.ones(4, 3)}
    assert with_decoder_inputs(model, multi_label).keys() == batch.keys()
