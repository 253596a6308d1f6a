"""Calibration data: what is drawn, how it is batched, and what is refused."""

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import DataCollatorWithPadding

from hfprune.scoring import calibration_batches, score
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer


def test_a_dataset_is_drawn_by_seed():
    model, data = tiny_model("bert"), tiny_tokenized()
    collate = DataCollatorWithPadding(tiny_tokenizer())
    draw = [
        calibration_batches(data, model, samples=10, batch_size=4, seed=seed, collator=collate) for seed in (0, 0, 1)
    ]
    assert [len(batch["input_ids"]) for batch in draw[0]] == [4, 4, 2]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(draw[0], draw[1], strict=True))
    assert any(a["input_ids"].tolist() != b["input_ids"].tolist() for a, b in zip(draw[0], draw[2], strict=True))


def test_batches_are_of_like_lengths_and_bounded():
    model, data = tiny_model("bert", num_labels=3), tiny_tokenized()
    options = {"samples": 20, "collator": DataCollatorWithPadding(tiny_tokenizer())}
    found = calibration_batches(data, model, batch_size=6, batch_tokens=30, **options)
    shapes = [tuple(batch["input_ids"].shape) for batch in found]
    assert sum(rows for rows, _ in shapes) == 20
    assert all(rows <= 6 and rows * length <= 30 for rows, length in shapes)
    lengths = [length for _, length in shapes]
    assert lengths == sorted(lengths)
    alone = calibration_batches(data, model, batch_tokens=1, **options)
    assert {len(batch["input_ids"]) for batch in alone} == {1}
    a, b = (score(model, batches, scorer="fisher") for batches in (found, alone))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-8)


def test_a_dataloader_is_cut_to_the_number_of_samples():
    loader = DataLoader(tiny_tokenized(), batch_size=8, collate_fn=DataCollatorWithPadding(tiny_tokenizer()))
    found = calibration_batches(loader, tiny_model("bert"), samples=12)
    assert [len(batch["input_ids"]) for batch in found] == [8, 4]


def test_choices_are_counted_by_their_tokens_and_stay_together():
    model = tiny_model("bert", "AutoModelForMultipleChoice")
    rows = Dataset.from_dict({"input_ids": [[[2, 5, 6, 3]] * 3] * 8, "attention_mask": [[[1] * 4] * 3] * 8})
    found = calibration_batches(rows, model, samples=8, batch_tokens=24)
    assert {tuple(batch["input_ids"].shape) for batch in found} == {(2, 3, 4)}
    loader = DataLoader(rows.with_format("torch"), batch_size=4)
    found = calibration_batches(loader, model, samples=16)  # of 24: a question counts its choices
    assert [len(batch["input_ids"]) for batch in found] == [4, 2]


def test_a_list_is_used_whole():
    assert len(calibration_batches([tiny_batch()] * 3, tiny_model("bert"), samples=512)) == 3


def test_what_forward_does_not_take_is_left_out():
    batch = {**tiny_batch(), "idx": torch.arange(4)}
    assert set(calibration_batches([batch], tiny_model("bert"))[0]) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (list, "the calibration data is empty"),
        (lambda: tiny_tokenized(5), "needs 512 samples, the data has 5"),
        (lambda: Dataset.from_dict({"text": ["a"] * 600}), "no column of the data set but labels is an argument"),
        (
            lambda: Dataset.from_dict({"text": ["a"] * 600, "label": [0] * 600}),
            "but labels is an argument of .* Tokenize it first",
        ),
        (lambda: [{"labels": torch.ones(2), "text": ["a", "b"]}], "has no tensor beside labels"),
        (lambda: tiny_tokenized(600), "Rows of different lengths need padding"),
        (lambda: 3, "not int"),
        (lambda: [[1, 2]], "a batch must be a dict of tensors, got list"),
        (lambda: [{**tiny_batch(), "head_mask": torch.ones(2, 4)}], "transformers 5 swallows it"),
        (
            lambda: [{"pixels": torch.ones(2)}],
            "has no tensor beside labels that BertForSequenceClassification.forward takes",
        ),
    ],
)
def test_bad_data_is_refused(data, message):
    with pytest.raises(ValueError, match=message):  # a CalibrationError is one
        calibration_batches(data(), tiny_model("bert"))
