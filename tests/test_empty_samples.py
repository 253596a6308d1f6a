"""Samples without a token: left out and counted, wherever data comes in."""

import logging

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForSequenceClassification, DataCollatorWithPadding, default_data_collator

import hfprune
from hfprune.errors import CalibrationError
from hfprune.scoring import calibration_batches, known_scorers
from hfprune.sweeping import correctness
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer

SIZES = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}


def padding():
    return DataCollatorWithPadding(tiny_tokenizer())


def rows(empty=(), length=None):
    """16 samples; some are empty, as a tokenizer without a token for the beginning makes them of empty texts."""
    made = []
    for row in tiny_tokenized(16):
        ids = row["input_ids"] if length is None else (row["input_ids"] * length)[:length]
        made.append({"input_ids": ids, "attention_mask": [1] * len(ids), "labels": row["labels"]})
    for place in empty:
        made[place] |= {"input_ids": [], "attention_mask": []}
    return made


def without(made, empty):
    return [row for place, row in enumerate(made) if place not in empty]


def test_empty_texts_of_a_classifier(caplog):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**SIZES, num_attention_heads=4)).eval()
    data = Dataset.from_list([{"input_ids": [5, 6, 7] if row % 4 else []} for row in range(16)])
    config = hfprune.PruningConfig(sequence_length=12, calibration_samples=16, calibration_batch_size=1)
    small = hfprune.prune(model, data, config)
    assert small.pruning_record.calibration["samples"] == 12
    assert small.pruning_record.calibration["left_out"] == 4
    assert "4 samples without any token were left out" in caplog.text
    record = small.pruning_record
    assert hfprune.PruningRecord.from_json(record.to_json()) == record


def ways():
    """Data of 16 samples, 2 of which are empty, as calibration takes it."""
    made = rows(empty=(0, 9), length=4)
    loader = DataLoader(made, batch_size=2, collate_fn=padding())
    return {"data set": Dataset.from_list(made), "rows": made, "loader": loader, "batches": list(loader)}


@pytest.mark.parametrize("way", ways())
def test_the_record_counts_what_was_left_out(way):
    model = tiny_model("bert", num_labels=3)
    config = hfprune.PruningConfig(sequence_length=8, calibration_samples=16, rounds=2)
    data = ways()[way]
    drawn = calibration_batches(data, model, samples=16, collator=padding())
    # drawn before, as scripts and sweeps do, or by `prune` itself
    for given in (data, drawn):
        record = hfprune.prune(model, given, config, collator=padding()).pruning_record
        assert record.calibration["samples"] == 14
        assert record.calibration["left_out"] == 2


def test_a_record_of_full_data_says_nothing_of_empty_samples():
    model = tiny_model("bert", num_labels=3)
    config = hfprune.PruningConfig(sequence_length=8, calibration_samples=16)
    record = hfprune.prune(model, Dataset.from_list(rows()), config, collator=padding()).pruning_record
    assert set(record.calibration) == {"samples", "tokens", "digest"}


@pytest.mark.parametrize("collator", [padding, lambda: default_data_collator], ids=["padding", "default"])
def test_both_collators(collator, caplog):
    model = tiny_model("bert", num_labels=3)
    made = rows(empty=(0, 7, 15), length=4)
    options = {"samples": 16, "batch_size": 1, "collator": collator()}
    found = calibration_batches(Dataset.from_list(made), model, **options)
    assert sum(len(batch["input_ids"]) for batch in found) == 13
    assert "3 samples without any token were left out" in caplog.text


def test_others_are_drawn_in_their_place(caplog):
    model = tiny_model("bert", num_labels=3)
    data = Dataset.from_list(rows(empty=(0, 7, 15)))
    found = calibration_batches(data, model, samples=13, collator=padding())
    assert sum(len(batch["input_ids"]) for batch in found) == 13
    assert "left out" in caplog.text


@pytest.mark.parametrize("scorer", sorted(known_scorers()))
def test_every_scorer(scorer, caplog):
    model = tiny_model("bert", num_labels=3)
    full = {**tiny_batch("bert"), "labels": torch.tensor([0, 1, 2, 0])}
    nothing = {name: torch.zeros(2, 0, dtype=torch.long) for name in ("input_ids", "attention_mask")}
    masked = {name: torch.cat([value, value[:1]]) for name, value in full.items()}
    masked["attention_mask"][-1] = 0
    expected = hfprune.score(model, [full], scorer=scorer)
    caplog.clear()
    scores = hfprune.score(model, [{**nothing, "labels": torch.zeros(2, dtype=torch.long)}, masked], scorer=scorer)
    assert scores.samples == 4
    assert all(torch.equal(scores[name], expected[name]) for name in expected)
    assert "3 samples without any token were left out" in caplog.text


@pytest.mark.parametrize("model_type", ["llama", "t5", "gpt2"])
def test_other_models(model_type, caplog):
    model = tiny_model(model_type, "AutoModelForSeq2SeqLM" if model_type == "t5" else "AutoModelForCausalLM")
    batch = tiny_batch(model_type)
    longer = {name: torch.cat([value, value[:1]]) for name, value in batch.items()}
    longer["attention_mask"][-1] = 0
    expected = hfprune.score(model, [batch])
    scores = hfprune.score(model, [longer])
    assert all(torch.equal(scores[name], expected[name]) for name in expected)
    assert "1 samples without" in caplog.text


def test_a_loader(caplog):
    model = tiny_model("bert", num_labels=3)
    made = rows(empty=(0, 1, 9), length=4)
    loader = DataLoader(made, batch_size=2, collate_fn=padding())
    found = calibration_batches(loader, model, samples=8)
    expected = calibration_batches(
        DataLoader(without(made, (0, 1, 9)), batch_size=2, collate_fn=padding()), model, samples=8
    )
    assert sum(len(batch["input_ids"]) for batch in found) == 8
    assert torch.equal(torch.cat([b["input_ids"] for b in found]), torch.cat([b["input_ids"] for b in expected]))
    assert "left out" in caplog.text


def test_a_sweep_and_a_repair(caplog):
    model = tiny_model("bert", num_labels=3)
    made = rows(empty=(3, 4))
    config = hfprune.PruningConfig(sequence_length=8, calibration_samples=16)
    evaluate = correctness(Dataset.from_list(made), collator=padding())
    options = {"sparsities": [0.5], "evaluate": evaluate, "collator": padding(), "latency_batch_size": None}
    curve = hfprune.sweep(model, Dataset.from_list(made), config, **options)
    assert [point.samples for point in curve.points] == [14, 14]
    assert "2 samples without any token were left out" in caplog.text


def test_teacher_logits(caplog):
    model = tiny_model("bert", num_labels=3)
    made = rows(empty=(2, 3))
    data = hfprune.add_teacher_logits(Dataset.from_list(made), model, collator=padding(), batch_size=2)
    expected = hfprune.add_teacher_logits(
        Dataset.from_list(without(made, (2, 3))), model, collator=padding(), batch_size=2
    )
    assert data["input_ids"] == expected["input_ids"]
    assert data["teacher_logits"] == expected["teacher_logits"]
    assert "2 samples without any token were left out" in caplog.text


def test_full_data_gives_no_warning(caplog):
    with caplog.at_level(logging.WARNING):
        calibration_batches(Dataset.from_list(rows()), tiny_model("bert", num_labels=3), samples=16, collator=padding())
    assert "left out" not in caplog.text


NOTHING = {"input_ids": torch.zeros(0, 7, dtype=torch.long), "attention_mask": torch.zeros(0, 7, dtype=torch.long)}


@pytest.mark.parametrize(
    "batches",
    [
        [NOTHING],
        [{"input_ids": torch.zeros(3, 0, dtype=torch.long)}],
        [{**tiny_batch("bert"), "attention_mask": torch.zeros(4, 7, dtype=torch.long)}],
    ],
    ids=["no sample", "no token", "masks of zeros"],
)
def test_nothing_but_empty_samples(batches):
    model = tiny_model("bert")
    for call in (
        lambda: hfprune.score(model, batches),
        lambda: hfprune.score(model, batches, scorer="fluctuation"),
        lambda: calibration_batches(batches, model),
        lambda: hfprune.prune(model, batches, hfprune.PruningConfig(sequence_length=7)),
    ):
        with pytest.raises(CalibrationError, match="samples of the calibration data are empty.*Pass texts with words"):
            call()


def test_one_empty_batch_among_others():
    model = tiny_model("bert")
    expected = hfprune.score(model, [tiny_batch("bert")])
    scores = hfprune.score(model, [NOTHING, tiny_batch("bert")])
    assert all(torch.equal(scores[name], expected[name]) for name in expected)


def test_empty_rows_only():
    data = Dataset.from_list([{"input_ids": [], "attention_mask": []}] * 16)
    with pytest.raises(CalibrationError, match="all 16 samples of the calibration data are empty"):
        calibration_batches(data, tiny_model("bert"), samples=16)
