"""Scoring takes the data that Trainer takes: lazy data sets, lists, loaders, collators with a processor."""

import datasets
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from torch.utils.data import Dataset as TorchDataset
from transformers import DataCollatorWithPadding, LlamaConfig, LlamaForCausalLM

import hfprune
from hfprune.errors import CalibrationError
from hfprune.scoring import calibration_batches
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_texts, tiny_tokenized, tiny_tokenizer


def bert():
    return tiny_model("bert", num_labels=3)


def padding():
    return DataCollatorWithPadding(tiny_tokenizer())


def tokenize(rows):
    return {**tiny_tokenizer()(rows["text"]), "labels": rows["label"]}


def processing(rows):
    """A collator that calls the processor."""
    texts = [row["text"] for row in rows]
    return {
        **tiny_tokenizer()(texts, padding=True, return_tensors="pt"),
        "labels": torch.tensor([row["label"] for row in rows]),
    }


class OfTorch(TorchDataset):
    def __init__(self, rows):
        self.rows = list(rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


class Streamed(IterableDataset):
    def __init__(self, rows):
        self.rows = list(rows)

    def __iter__(self):
        return iter(self.rows)


def same_batches(a, b):
    assert len(a) == len(b)
    for batch, other in zip(a, b, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[name], other[name]) for name in batch)


#: Data that gives the same batches as the tokenized data set, with the collator that it needs.
ALIKE = {
    "transform": lambda: (tiny_texts().with_transform(tokenize), padding()),
    "set_transform": lambda: (tiny_texts().with_transform(tokenize, output_all_columns=True), padding()),
    "torch": lambda: (OfTorch(tiny_tokenized()), padding()),
    "list": lambda: (list(tiny_tokenized()), padding()),
    "tuple": lambda: (tuple(tiny_tokenized()), padding()),
    "raw columns too": lambda: (OfTorch([{**row, "text": "a", "idx": 3} for row in tiny_tokenized()]), padding()),
    "format torch": lambda: (tiny_tokenized().with_format("torch"), padding()),
    "format numpy": lambda: (tiny_tokenized().with_format("numpy"), padding()),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_kinds_that_are_drawn_from(kind):
    model = bert()
    data, collator = ALIKE[kind]()
    options = {"samples": 10, "batch_size": 4, "seed": 3}
    expected = calibration_batches(tiny_tokenized(), model, collator=padding(), **options)
    same_batches(calibration_batches(data, model, collator=collator, **options), expected)


def test_a_lazy_data_set_of_a_llama():
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    ids = torch.randint(3, 99, (16, 12))
    config = hfprune.PruningConfig(sequence_length=12, calibration_samples=16)
    stored = datasets.Dataset.from_dict({"input_ids": ids.tolist()})
    lazy = datasets.Dataset.from_dict({"row": range(16)}).with_transform(
        lambda rows: {"input_ids": [ids[row].tolist() for row in rows["row"]]}
    )
    expected = hfprune.prune(model, stored, config)
    assert hfprune.prune(model, lazy, config).pruning_plan == expected.pruning_plan


@pytest.mark.parametrize(
    "made",
    [
        lambda: tiny_texts(),
        lambda: OfTorch(tiny_texts()),
        lambda: list(tiny_texts()),
        lambda: tiny_texts().with_transform(lambda rows: rows),
    ],
    ids=["stored", "torch", "list", "transform"],
)
def test_a_collator_that_calls_a_processor(made):
    found = calibration_batches(made(), bert(), samples=10, batch_size=4, collator=processing)
    assert [set(batch) for batch in found] == [{"input_ids", "attention_mask", "labels"}] * len(found)
    assert sum(len(batch["input_ids"]) for batch in found) == 10
    limited = calibration_batches(made(), bert(), samples=10, batch_tokens=14, collator=processing)
    assert all(batch["input_ids"].numel() <= 14 or len(batch["input_ids"]) == 1 for batch in limited)
    assert sum(len(batch["input_ids"]) for batch in limited) == 10


def test_a_collator_that_asks_for_a_column_beside_tokenized_ones():
    data = tiny_texts().map(lambda row: tiny_tokenizer()(row["text"]))
    found = calibration_batches(data, bert(), samples=10, collator=processing)
    assert sum(len(batch["input_ids"]) for batch in found) == 10


def test_pictures_that_a_transform_makes():
    model = tiny_model("vit", "AutoModelForImageClassification", num_labels=3)
    raw = datasets.Dataset.from_dict(
        {"shade": [row / 24 for row in range(24)], "label": [row % 3 for row in range(24)]}
    )

    def pictures(rows):
        return {"pixel_values": [torch.full((3, 16, 16), shade) for shade in rows["shade"]], "labels": rows["label"]}

    lazy = raw.with_transform(pictures)
    config = hfprune.PruningConfig(sequence_length=17, calibration_samples=16, scorer="fisher")
    small = hfprune.prune(model, lazy, config)
    assert small.pruning_record.calibration["samples"] == 16
    curve = hfprune.sweep(model, lazy, config, sparsities=[0.3], evaluate=lambda _: [True], latency_batch_size=None)
    assert [point.sparsity for point in curve.points] == [0.0, 0.3]


@pytest.mark.parametrize(
    "made",
    [lambda: Streamed(tiny_tokenized()), lambda: tiny_tokenized().to_iterable_dataset()],
    ids=["torch", "datasets"],
)
def test_streams_give_their_first_samples(made):
    model = bert()
    found = calibration_batches(made(), model, samples=10, batch_size=4, collator=padding())
    first = calibration_batches(list(tiny_tokenized())[:10], model, samples=10, batch_size=4, collator=padding())
    ids = sorted(row for batch in found for row in batch["input_ids"].tolist())
    assert ids == sorted(row for batch in first for row in batch["input_ids"].tolist())
    with pytest.raises(CalibrationError, match="needs 100 samples, the data has 24"):
        calibration_batches(made(), model, samples=100, collator=padding())


def test_a_loader_without_batches_of_its_own():
    rows = [{"input_ids": torch.tensor([[5, 6, 7], [8, 9, 5]])}] * 4
    found = calibration_batches(DataLoader(rows, batch_size=None), bert(), samples=8)
    assert sum(len(batch["input_ids"]) for batch in found) == 8


def no_dict():
    return TensorDataset(torch.ones(20, 3, dtype=torch.long))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: datasets.DatasetDict(train=tiny_tokenized()), "not a DatasetDict of train. Choose a split"),
        (lambda: {"input_ids": torch.ones(2, 3)}, "put a batch into a list"),
        (lambda: (row for row in tiny_tokenized()), "not generator"),
        (lambda: "texts", "not str"),
        (no_dict, "a row of the data set must be a dict of the model's arguments, got tuple"),
        (lambda: list(tiny_texts()), "no column of the data set but labels is an argument.* or pass a collator"),
        (lambda: tiny_texts().with_transform(lambda rows: rows), "no column of the data set"),
    ],
    ids=["splits", "batch", "generator", "text", "tuples", "raw list", "raw lazy"],
)
def test_what_is_refused(made, message):
    with pytest.raises(CalibrationError, match=message):
        calibration_batches(made(), bert(), samples=10)


def test_an_error_of_a_collator_is_shown():
    def broken(rows):
        raise KeyError("audio")

    with pytest.raises(CalibrationError, match="the collator could not make a batch: KeyError: 'audio'"):
        calibration_batches(tiny_tokenized(), bert(), samples=10, collator=broken)
