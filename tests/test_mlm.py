"""Masked language modelling: packing, masks, what is measured, and what the result is good for."""

import math

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

import hfprune
from hfprune import RecoveryArguments
from hfprune.data.corpus import pack
from hfprune.jobs.tasks import (
    MaskedTextArguments,
    ModelArguments,
    TextArguments,
    masked_language_modelling,
    text_classification,
)
from hfprune.jobs.tasks.masked_text import masked
from hfprune.publishing.verification import verify
from tests.support.runs import mlm_home, run_here, text_home
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_texts, tiny_tokenizer


@pytest.fixture
def home(tmp_path):
    return mlm_home(tmp_path)


def load(home, **changes):
    named = ModelArguments(model_name_or_path=str(home / "dense"))
    data = MaskedTextArguments(train_file=str(home / "data.txt"), **{"max_length": 16, **changes})
    return masked_language_modelling(named, data, seed=changes.pop("seed", 0))


def test_packing_keeps_every_token_in_order():
    texts = [*tiny_texts(20)["text"], "", "  "]
    tokenizer = tiny_tokenizer()
    # every row would begin with it
    tokenizer.bos_token = None
    packed = pack(DatasetDict(train=Dataset.from_dict({"text": texts})), tokenizer, max_length=8)["train"]
    whole = [token for text in texts[:20] for token in tiny_tokenizer()(text)["input_ids"]]
    rows = packed["input_ids"]
    joined = [token for row in rows for token in row]
    assert joined == whole[: len(joined)]
    assert len(whole) - len(joined) < 4
    assert {len(row) for row in rows[:-1]} == {8}
    assert packed.column_names == ["input_ids"]


def test_masks_of_evaluation_are_fixed_and_those_of_training_are_not(home):
    task = load(home)
    assert load(home).data["test"][:] == task.data["test"][:]
    rows = pack(DatasetDict(train=Dataset.from_dict({"text": tiny_texts(40)["text"]})), tiny_tokenizer(), max_length=16)
    first, other = (masked(rows["train"], tiny_tokenizer(), probability=0.5, seed=seed) for seed in (0, 1))
    assert first["labels"] != other["labels"]
    for before, row in zip(rows["train"]["input_ids"], first, strict=True):
        wanted = [label != -100 for label in row["labels"]]
        assert any(wanted)
        assert [a for a, w in zip(before, wanted, strict=True) if w] == [x for x in row["labels"] if x != -100]
        changed = [a != b for a, b in zip(before, row["input_ids"], strict=True)]
        assert all(w for c, w in zip(changed, wanted, strict=True) if c)
    assert sum(ids.count(16) for ids in first["input_ids"]) > 0  # [MASK]
    batch = [task.data["test"][i] for i in range(4)]
    assert torch.equal(task.collator(batch)["labels"], task.collator(batch)["labels"])
    batch = [task.data["train"][i] for i in range(8)]
    assert not torch.equal(task.collator(batch)["labels"], task.collator(batch)["labels"])
    again = load(home).calibration_collator(batch)["labels"]
    assert torch.equal(task.calibration_collator(batch)["labels"], again)


def test_a_batch_always_has_something_to_predict(home):
    task = load(home, mask_probability=0.05)
    for row in task.data["train"].select(range(10)):
        assert (task.collator([row])["labels"] != -100).any()
        assert (task.calibration_collator([row])["labels"] != -100).any()


@pytest.mark.parametrize("batch_size", [1, 8])
def test_loss_and_perplexity_are_of_masked_tokens_whatever_the_batch(home, tmp_path, batch_size):
    task = load(home)
    options = {"use_cpu": True, "report_to": "none", "dataloader_pin_memory": False, "disable_tqdm": True}
    args = RecoveryArguments(output_dir=str(tmp_path / "out"), per_device_eval_batch_size=batch_size, **options)
    model = tiny_model("bert", "AutoModelForMaskedLM")
    trainer = task.trainer(model, args)
    losses, right = [], []
    for row in task.data["test"]:
        labels = torch.tensor(row["labels"])
        with torch.no_grad():
            logits = model(torch.tensor([row["input_ids"]])).logits[0]
        wanted = labels != -100
        losses += (-logits.log_softmax(-1)[wanted, labels[wanted]]).tolist()
        right += (logits.argmax(-1)[wanted] == labels[wanted]).tolist()
    expected = sum(losses) / len(losses)
    found = task.test(trainer)
    assert found["loss"] == pytest.approx(expected, abs=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
    assert found["masked_accuracy"] == pytest.approx(sum(right) / len(right))
    assert trainer.evaluate(task.data["test"])["eval_loss"] == pytest.approx(expected, abs=1e-5)


def test_what_is_refused(home):
    with pytest.raises(ValueError, match="unknown metric 'bleu' of masked language modelling; these are: perplexity"):
        load(home, metrics=["bleu"])
    with pytest.raises(ValueError, match="the train split has too little text in 'text' for one row of 5000"):
        load(home, max_length=5000)
    with pytest.raises(ValueError, match="has no column 'body'; its columns are text"):
        load(home, text_column="body")
    plain = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer().backend_tokenizer, pad_token="[PAD]")
    plain.save_pretrained(home / "dense")
    with pytest.raises(ValueError, match="does not have a mask token"):
        load(home)


def test_recovered_on_plain_text_then_fine_tuned(home, tmp_path):
    outcome = run_here(
        masked_language_modelling,
        MaskedTextArguments,
        home,
        train_file=str(home / "data.txt"),
        sparsity=0.8,
        num_train_epochs=4,
        dense_epochs=4,
        dense_learning_rate=0.005,
        metrics=["perplexity", "loss"],
    )
    assert outcome.results["dense_perplexity"] < 40  # 64 words
    assert outcome.results["recovered_perplexity"] < outcome.results["pruned_perplexity"]
    assert verify(outcome.folder) == []
    assert "pipeline_tag: fill-mask" in (outcome.folder / "README.md").read_text()
    pruned = hfprune.load(outcome.folder)
    classifier = AutoModelForSequenceClassification.from_pretrained(outcome.folder, num_labels=3)
    assert type(classifier).__name__ == "PrunedBertForSequenceClassification"
    ids = torch.arange(4, 12)[None]
    assert torch.equal(classifier.bert(ids).last_hidden_state, pruned.bert(ids).last_hidden_state)

    (tmp_path / "text").mkdir()
    second = text_home(tmp_path / "text")
    fine_tuned = run_here(
        text_classification,
        TextArguments,
        second,
        model_name_or_path=str(outcome.folder),
        sparsity=0,
        dense_epochs=20,
        dense_learning_rate=0.01,
        num_train_epochs=0,
    )
    assert fine_tuned.results["pruned_accuracy"] > 0.9  # the label is the first word
    again = hfprune.load(fine_tuned.folder)
    assert again.pruning_plan == pruned.pruning_plan
    assert again.pruning_record.base_model == pruned.pruning_record.base_model == "dense"
