"""Labels that nobody needs, and shapes that nobody checked: each works, or is refused by its name."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding

import hfprune
from hfprune.errors import CalibrationError, StructureError
from hfprune.scoring import calibration_batches
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer

#: Labels that no collator can make a tensor of.
USELESS = {
    "texts": lambda row: f"class {row}",
    "none": lambda _: None,
    "some none": lambda row: row % 3 if row % 2 else None,
    "ragged": lambda row: [1] * (1 + row % 3),
}


def bert(**changes):
    return tiny_model("bert", **{"num_labels": 3, **changes})


def data_with(labels, column):
    rows = tiny_tokenized().remove_columns(["labels", "label"]).to_list()
    for number, row in enumerate(rows):
        row[column] = labels(number)
    return rows


def same_scores(a, b):
    assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.parametrize("column", ["labels", "label"])
@pytest.mark.parametrize("kind", USELESS)
def test_labels_that_nobody_needs(kind, column):
    rows = data_with(USELESS[kind], column)
    model = bert()
    config = hfprune.PruningConfig(sequence_length=8, calibration_samples=16)
    options = {"collator": DataCollatorWithPadding(tiny_tokenizer())}
    plain = tiny_tokenized().remove_columns(["labels", "label"])
    expected = hfprune.prune(model, plain, config, **options)
    for data in (Dataset.from_list(rows), rows):
        assert hfprune.prune(model, data, config, **options).pruning_plan == expected.pruning_plan


def test_labels_as_texts_of_a_kernel(caplog):
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    model = BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=4)).eval()
    ids = torch.randint(3, 99, (16, 12))
    data = Dataset.from_dict({"input_ids": ids.tolist(), "label": ["good", "poor"] * 8})
    config = hfprune.PruningConfig(sequence_length=12, calibration_samples=16)
    hfprune.prune(model, data, config)
    assert "label left out, as no label is needed" in caplog.text


WRONG = {
    "texts": "with label: of a sample, it is the text 'class .*', where a number is needed.*config.label2id",
    "none": "with label: of a sample, it is None, where a number is needed.*leave out samples without a label",
    "some none": "with label: of a sample, it is None, where a number is needed.*leave out samples without a label",
    "ragged": "label are of 1 to 3 entries a sample.*DataCollatorForTokenClassification",
}


@pytest.mark.parametrize("collator", [DataCollatorWithPadding(tiny_tokenizer()), None], ids=["padding", "default"])
@pytest.mark.parametrize("kind", WRONG)
def test_labels_that_the_scorer_needs(kind, collator):
    config = hfprune.PruningConfig(sequence_length=8, calibration_samples=16, scorer="taylor")
    rows = data_with(USELESS[kind], "label")
    for row in rows:
        # of one length, so that nothing but the labels is in the way of a batch
        row |= {"input_ids": row["input_ids"][:2], "attention_mask": row["attention_mask"][:2]}
    for data in (Dataset.from_list(rows), rows):
        with pytest.raises(CalibrationError, match=f"the collator could not make a batch.*{WRONG[kind]}"):
            hfprune.prune(bert(), data, config, collator=collator)


def test_a_collator_may_number_the_labels():
    rows = data_with(lambda row: "abc"[row % 3], "label")

    def numbering(samples):
        numbered = [{**row, "label": "abc".index(row["label"])} for row in samples]
        return DataCollatorWithPadding(tiny_tokenizer())(numbered)

    config = hfprune.PruningConfig(sequence_length=8, calibration_samples=16, scorer="taylor", rounds=1)
    expected = hfprune.prune(
        bert(), data_with(lambda row: row % 3, "label"), config, collator=DataCollatorWithPadding(tiny_tokenizer())
    )
    assert hfprune.prune(bert(), rows, config, collator=numbering).pruning_plan == expected.pruning_plan


def test_labels_of_a_batch(caplog):
    expected = hfprune.score(bert(), [tiny_batch()])
    for labels in (["good"] * 4, None, [[1], [1, 2]]):
        same_scores(hfprune.score(bert(), [{**tiny_batch(), "labels": labels}]), expected)
    assert "labels in a batch is a list, not a tensor: left out" in caplog.text
    with pytest.raises(CalibrationError, match="labels in a batch is a list"):
        hfprune.score(bert(), [{**tiny_batch(), "labels": [0, 1, 2, 0]}], scorer="fisher")


@pytest.mark.parametrize("scorer", ["fisher", "movement"])
@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (None, "None, where a number is needed"),
        (["good"] * 4, "the text 'good', where a number is needed"),
        (np.array(["good"] * 4), "the text 'good', where a number is needed"),
        ("good", "the text 'good', where a number is needed"),
        (1, "1, which is no tensor"),
    ],
    ids=["none", "texts", "array", "text", "number"],
)
def test_labels_of_a_batch_that_the_scorer_needs(labels, what, scorer):
    with pytest.raises(CalibrationError, match=f"labels in a batch: {what}.*config.label2id.* or use a scorer"):
        hfprune.score(bert(), [{**tiny_batch(), "labels": labels}], scorer=scorer)


def test_arrays_of_numpy():
    labels = torch.tensor([0, 1, 2, 0])
    expected = hfprune.score(bert(), [{**tiny_batch(), "labels": labels}], scorer="fisher")
    arrays = {name: value.numpy() for name, value in {**tiny_batch(), "labels": labels}.items()}
    same_scores(hfprune.score(bert(), [arrays], scorer="fisher"), expected)
    narrow = {**arrays, "input_ids": arrays["input_ids"].astype(np.int32)}
    same_scores(hfprune.score(bert(), [narrow], scorer="fisher"), expected)
    picture = tiny_batch("vit")
    vit = tiny_model("vit", "AutoModelForImageClassification")
    as_array = {"pixel_values": picture["pixel_values"].numpy()}
    same_scores(hfprune.score(vit, [as_array]), hfprune.score(vit, [picture]))


IDS = torch.tensor([5, 6, 7])


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"input_ids": IDS}, r"input_ids has the shape \(3,\): one sample.* Write input_ids\[None\]"),
        ({"input_ids": IDS[None] + 0.5}, "with fractions; token ids are whole numbers"),
        ({"input_ids": torch.tensor([[5, -100]])}, "input_ids hold -100, which is no token id"),
        ({"input_ids": torch.full((1, 200), 5)}, "of 200 tokens, and the model has positions for 160. Truncate"),
        (
            {"input_ids": IDS[None], "attention_mask": torch.ones(2, 3)},
            "different numbers of samples: input_ids of 1, attention_mask of 2",
        ),
        ({"input_ids": torch.tensor([[5, 64]])}, "token id 64, and the model has 64 rows"),
        ({"input_ids": IDS[None, None]}, r"shape \(1, 1, 3\), and .* takes ids of shape \(samples, tokens\).*flatten"),
        ({"input_ids": IDS[None, None, None]}, r"shape \(1, 1, 1, 3\), and .* takes ids of shape"),
        (
            {"input_ids": IDS[None], "attention_mask": torch.ones(1, 2)},
            r"attention_mask has the shape \(1, 2\) and input_ids \(1, 3\): a token needs one entry in each",
        ),
    ],
    ids=["rank", "fractions", "negative", "long", "rows", "vocabulary", "choices", "four", "short mask"],
)
def test_shapes_and_ids(batch, message):
    for call in (
        lambda: hfprune.score(bert(), [batch]),
        lambda: hfprune.score(bert(), [batch], scorer="fluctuation"),
        lambda: hfprune.reconstruct(bert(), bert(), [batch]),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("model_type", "head"),
    [("gpt2", "AutoModelForCausalLM"), ("opt", "AutoModelForCausalLM"), ("bart", "AutoModelForSeq2SeqLM")],
)
def test_texts_longer_than_the_positions(model_type, head):
    model = tiny_model(model_type, head)
    with pytest.raises(CalibrationError, match="of 300 tokens, and the model has positions for 160"):
        calibration_batches([tiny_batch(model_type, length=300)], model)


def test_positions_that_are_computed_have_no_end():
    model = tiny_model("llama", "AutoModelForCausalLM")
    hfprune.score(model, [tiny_batch("llama", length=200)], scorer="fluctuation")


def test_a_loader_that_gives_single_samples():
    loader = DataLoader([{"input_ids": IDS}] * 8, batch_size=None)
    with pytest.raises(CalibrationError, match="one sample without a dimension of samples.* give the DataLoader"):
        calibration_batches(loader, bert(), samples=8)
    # the same samples without the loader are collated
    found = calibration_batches(loader.dataset, bert(), samples=8)
    assert [tuple(batch["input_ids"].shape) for batch in found] == [(8, 3)]


@pytest.mark.parametrize("model_type", ["t5", "mt5", "whisper"])
def test_a_decoder_without_labels(model_type):
    head = "AutoModelForSpeechSeq2Seq" if model_type == "whisper" else "AutoModelForSeq2SeqLM"
    model = tiny_model(model_type, head)
    batch = tiny_batch(model_type)
    del batch["decoder_input_ids"]
    for call in (
        lambda: hfprune.score(model, [batch]),
        lambda: hfprune.prune(model, [batch], hfprune.PruningConfig(sequence_length=8)),
    ):
        with pytest.raises(CalibrationError, match="has a decoder, and the batch has only .* Pass labels"):
            call()


def test_a_decoder_that_makes_its_own_inputs():
    model = tiny_model("bart", num_labels=3)
    batch = tiny_batch("bart")
    del batch["decoder_input_ids"]
    hfprune.score(model, [batch])


@pytest.mark.parametrize("scorer", ["taylor", "residual_logit_fisher", "kl_fisher", "movement"])
def test_inside_inference_mode(scorer):
    batch = {**tiny_batch(), "labels": torch.tensor([0, 1, 2, 0])}
    expected = hfprune.score(bert(), [batch], scorer=scorer)
    model = bert()
    with torch.inference_mode():
        made_inside = {name: value.clone() for name, value in batch.items()}
        same_scores(hfprune.score(model, [made_inside], scorer=scorer), expected)
    same_scores(hfprune.score(model, [made_inside], scorer=scorer), expected)


def test_pruned_inside_inference_mode_and_trained_outside():
    model = bert()
    config = hfprune.PruningConfig(sequence_length=7)
    expected = hfprune.prune(model, [tiny_batch()], config)
    with torch.inference_mode():
        small = hfprune.prune(model, [tiny_batch()], config)
        cut = hfprune.apply_plan(model, uneven_plan(model))
        hfprune.reconstruct(cut, model, [tiny_batch()])
    assert small.pruning_plan == expected.pruning_plan
    for made in (small, cut):
        made(**tiny_batch(), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        assert made.classifier.weight.grad is not None


def test_a_model_that_was_made_in_inference_mode():
    with torch.inference_mode():
        model = bert()
    with pytest.raises(StructureError, match="made inside torch.inference_mode.*Load or build the model outside"):
        hfprune.score(model, [tiny_batch()])


def test_a_model_that_was_made_in_inference_mode_stays_as_it_is(tmp_path):
    with torch.inference_mode():
        model = bert()
    args = hfprune.RecoveryArguments(str(tmp_path), max_steps=1, use_cpu=True, report_to="none")
    small = hfprune.apply_plan(bert(), uneven_plan(bert()))
    for call in (
        lambda: hfprune.prune(model, [tiny_batch()], hfprune.PruningConfig(sequence_length=7)),
        lambda: hfprune.reconstruct(small, model, [tiny_batch()]),
        lambda: hfprune.RecoveryTrainer(model, args, train_dataset=[]),
    ):
        with pytest.raises(StructureError, match="made inside torch.inference_mode.*Load or build the model outside"):
            call()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_class_of_the_user_may_take_choices():
    class Ranker(BertForSequenceClassification):
        def forward(self, input_ids, **kwargs):
            return super().forward(input_ids.flatten(0, -2), **kwargs)

    model = Ranker(bert().config).eval()
    ids = tiny_batch()["input_ids"]
    scores = hfprune.score(model, [{"input_ids": ids.reshape(2, 2, 7)}], scorer="fluctuation")
    same_scores(scores, hfprune.score(model, [{"input_ids": ids}], scorer="fluctuation"))


LABEL_SCORERS = ("taylor", "sensitivity", "residual_fisher", "weight_sensitivity", "hybrid(l2, fisher, rank)")


@pytest.mark.parametrize("scorer", LABEL_SCORERS)
@pytest.mark.parametrize(
    ("model_type", "head"),
    [("bert", "AutoModelForTokenClassification"), ("llama", "AutoModelForCausalLM"), ("bert", "AutoModelForMaskedLM")],
)
def test_no_label_counts(model_type, head, scorer):
    model = tiny_model(model_type, head)
    batch = tiny_batch(model_type)
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    with pytest.raises(CalibrationError, match="no label of the calibration data counts: all are -100"):
        hfprune.score(model, [batch], scorer=scorer)


def test_batches_without_a_label_are_left_out(caplog):
    model = tiny_model("bert", "AutoModelForTokenClassification", num_labels=3)
    batch = tiny_batch()
    labelled = {**batch, "labels": batch["input_ids"] % 3}
    unlabelled = {**batch, "labels": torch.full_like(batch["input_ids"], -100)}
    expected = hfprune.score(model, [labelled], scorer="taylor")
    same_scores(hfprune.score(model, [labelled, unlabelled], scorer="taylor"), expected)
    assert "1 batches whose labels are all -100 were left out" in caplog.text


@pytest.mark.parametrize(
    ("head", "labels", "message"),
    [
        ("AutoModelForSequenceClassification", torch.tensor([0, 1, 2, 3]), "has the label 3, and .* 3 classes, 0 to 2"),
        ("AutoModelForSequenceClassification", torch.tensor([0, 1, -1, 2]), "has the label -1"),
        ("AutoModelForTokenClassification", torch.full((4, 7), 9), "has the label 9"),
        ("AutoModelForMaskedLM", torch.full((4, 7), 64), "has the label 64, and BertForMaskedLM predicts 64 classes"),
    ],
)
def test_labels_out_of_range(head, labels, message):
    model = tiny_model("bert", head, num_labels=3)
    with pytest.raises(CalibrationError, match=message):
        hfprune.score(model, [{**tiny_batch(), "labels": labels}], scorer="fisher")


def test_numbers_are_no_classes():
    regression = bert(num_labels=1)
    hfprune.score(regression, [{**tiny_batch(), "labels": torch.tensor([7.0, -3.0, 0.5, 2.0])}], scorer="fisher")
    answers = tiny_model("bert", "AutoModelForQuestionAnswering")
    places = {"start_positions": torch.tensor([1, 2, 1, 0]), "end_positions": torch.tensor([3, 3, 2, 1])}
    hfprune.score(answers, [{**tiny_batch(), **places}], scorer="fisher")


def test_scores_that_tell_nothing():
    model = bert()
    torch.nn.init.zeros_(model.classifier.weight)
    with pytest.raises(CalibrationError, match="all scores of logit_fisher are 0"):
        hfprune.score(model, [tiny_batch()], scorer="logit_fisher")
