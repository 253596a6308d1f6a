"""Summaries and translations: columns, languages, what is measured, and the whole story."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSeq2SeqLM, EvalPrediction, MBartTokenizer, NllbTokenizer
from transformers.models.mbart.tokenization_mbart import FAIRSEQ_LANGUAGE_CODES

import hfprune
from hfprune import RecoveryArguments
from hfprune.errors import MissingDependencyError
from hfprune.jobs.tasks import ModelArguments, SummaryArguments, TranslationArguments, summarization, translation
from hfprune.measuring import written_texts
from hfprune.measuring.written_texts import scores_of_texts, written_text_metrics
from hfprune.publishing.verification import verify
from tests.support.processes import ROOT, run_python
from tests.support.runs import pair_home, run_here, save, settings, write
from tests.support.tiny import VOCABULARY, tiny_model
from tests.support.tiny_data import tiny_pairs, tiny_texts, tiny_tokenizer
from tests.support.training import arguments, pruned_pair

KINDS = ("t5", "bart", "mbart", "marian")
QUIET = {"use_cpu": True, "report_to": "none", "dataloader_pin_memory": False, "disable_tqdm": True}

#: transformers 5 has no pipelines of summaries and of translations; this is what its guides write in their place.
WITHOUT = """
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained({folder!r}, trust_remote_code=True)
model = AutoModelForSeq2SeqLM.from_pretrained({folder!r}, trust_remote_code=True)
batch = tokenizer({text!r}, return_tensors="pt", return_token_type_ids=False)
say(ids=model.generate(**batch, max_length=9)[0].tolist())
"""


@pytest.fixture
def home(tmp_path):
    return pair_home(tmp_path)


def load(home, loader=summarization, arguments=SummaryArguments, file="data.jsonl", **changes):
    named = ModelArguments(str(home / "dense"))
    values = {"max_length": 16, "max_target_length": 8, **changes}
    return loader(named, arguments(train_file=str(home / file), **values), seed=0)


def story(home, loader=summarization, arguments=SummaryArguments, **changes):
    values = {"train_file": str(home / "data.jsonl"), "max_target_length": 8, "scorer": "fisher", **changes}
    return run_here(loader, arguments, home, **values)


class TestMetrics:
    WRITTEN = ("the cats sat", "a dog")
    REFERENCES = ("the cat sat down", "a dog")

    def test_rouge_by_hand(self):
        # stemmed: the, cat, sat of the, cat, sat, down
        first = 2 * 3 / (3 + 4)
        pairs_of_words = 2 * 2 / (2 + 3)
        found = written_text_metrics(["rouge1", "rouge2", "rougeL"], self.WRITTEN, self.REFERENCES)
        expected = {"rouge1": first, "rouge2": pairs_of_words, "rougeL": first}
        assert found == pytest.approx({name: (value + 1) / 2 for name, value in expected.items()})
        assert scores_of_texts("rougeL", self.WRITTEN, self.REFERENCES) == pytest.approx([first, 1.0])

    def test_bleu_and_chrf_by_hand(self):
        # 4-grams of "a b c d e" in "a b c d f": 4 of 5, 3 of 4, 2 of 3 and 1 of 2
        bleu = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** (1 / 4)
        assert written_text_metrics(["bleu"], ["a b c d f"], ["a b c d e"]) == pytest.approx({"bleu": bleu})
        # one character of two is right, and no pair of characters
        assert written_text_metrics(["chrf"], ["ab"], ["ac"])["chrf"] == pytest.approx(100 * (1 / 2 + 0) / 2)
        assert written_text_metrics(["chrf", "chrf++"], ["der Hund"], ["der Hund"]) == {"chrf": 100, "chrf++": 100}
        assert scores_of_texts("chrf", ["ab", "ab"], ["ac", "ab"])[1] == 100

    def test_exact_match(self):
        assert written_text_metrics(["exact_match"], self.WRITTEN, self.REFERENCES) == {"exact_match": 0.5}

    def test_words_of_other_scripts_are_not_counted_as_none(self):
        chinese = ["一只猫", "一条狗"]
        with pytest.raises(ValueError, match="rouge1 counts words of the letters a to z .* 2 of 2 .* Measure chrf"):
            written_texts.check_written_text_metrics(["rouge1"], chinese)
        assert written_text_metrics(["chrf"], chinese, chinese) == {"chrf": 100}
        assert written_text_metrics(["bleu"], ["一只猫和狗"], ["一只猫和狗"], bleu_tokenizer="zh")["bleu"] > 99

    def test_what_is_refused(self, monkeypatch):
        with pytest.raises(ValueError, match="unknown metric 'meteor' of written texts; there are: rouge1"):
            written_text_metrics(["meteor"], ["a"], ["a"])
        with pytest.raises(ValueError, match="bleu_tokenizer='words' is none of sacrebleu's: none, zh, 13a"):
            written_text_metrics(["bleu"], ["a"], ["a"], bleu_tokenizer="words")
        with pytest.raises(ValueError, match="1 texts and 2 references"):
            written_text_metrics(["chrf"], ["a"], ["a", "b"])
        with pytest.raises(ValueError, match="'bleu' is no metric of single texts; these are: rouge1"):
            scores_of_texts("bleu", ["a"], ["a"])
        monkeypatch.setattr(written_texts.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingDependencyError, match=r"chrf by sacrebleu: .* 'hfprune\[text-metrics\]'"):
            written_text_metrics(["chrf"], ["a"], ["a"])
        assert written_text_metrics(["exact_match"], ["a"], ["a"]) == {"exact_match": 1}


class TestColumns:
    def test_texts_and_summaries(self, home):
        task = load(home)
        assert set(task.data["train"].column_names) == {"input_ids", "attention_mask", "labels", "reference"}
        row = task.data["test"][0]
        decode = task.tokenizer.decode
        assert decode(row["labels"], skip_special_tokens=True) == row["reference"]
        assert len(decode(row["input_ids"], skip_special_tokens=True).split()) >= 2
        assert (task.metrics, task.generated_length) == (["rougeL", "rouge1", "rouge2"], 9)
        assert list(task.sample_metrics) == ["rougeL", "chrf", "exact_match"]

    def test_texts_are_cut_and_references_are_not(self, home):
        task = load(home, max_length=4, max_target_length=3)
        assert max(map(len, task.data["train"]["input_ids"])) == 4
        assert max(map(len, task.data["train"]["labels"])) == 3
        assert load(home).data["test"]["reference"] == task.data["test"]["reference"]

    def test_a_prefix(self, home):
        plain = load(home).data["test"]["input_ids"]
        asked = load(home, source_prefix="what is ").data["test"]["input_ids"]
        words = tiny_tokenizer().convert_tokens_to_ids(["what", "is"])
        assert asked == [[ids[0], *words, *ids[1:]] for ids in plain]

    def test_the_prefix_that_the_checkpoint_says(self, tmp_path):
        said = {"summarization": {"prefix": "what is "}, "translation_en_to_de": {"prefix": "the "}}
        home = pair_home(tmp_path, task_specific_params=said)
        given = load(home, source_prefix="what is ").data["test"]["input_ids"]
        assert load(home).data["test"]["input_ids"] == given
        columns = {"source_column": "text", "target_column": "summary"}
        languages = {"source_language": "en_XX", "target_language": "de"}
        translated = load(home, translation, TranslationArguments, **columns, **languages)
        assert translated.data["test"]["input_ids"][0][1] == tiny_tokenizer().convert_tokens_to_ids("the")
        assert load(home, source_prefix="").data["test"]["input_ids"] != given

    def test_one_column_with_both_languages(self, home):
        rows = [{"translation": {"en": pair["text"], "de": pair["summary"]}, "id": 1} for pair in tiny_pairs()]
        (home / "both.jsonl").write_text("\n".join(map(json.dumps, rows)))

        def both(**options):
            return load(home, translation, TranslationArguments, "both.jsonl", **options).data["test"]

        expected = load(home).data["test"]
        for options in (
            {"source_language": "en", "target_language": "de"},
            {"source_language": "en_XX", "target_language": "de_DE"},
            {"source_column": "translation.en", "target_column": "translation.de"},
        ):
            assert both(**options)["labels"] == expected["labels"]
            assert both(**options)["input_ids"] == expected["input_ids"]
        assert both(source_language="de", target_language="en")["input_ids"] == expected["labels"]
        with pytest.raises(ValueError, match="a text in the languages en, de: say which with source_language"):
            both(target_language="de")
        with pytest.raises(ValueError, match="target_language='deu_Latn' is none .* Name the column .* translation.en"):
            both(source_language="en", target_language="deu_Latn")

    def test_what_is_refused(self, home):
        with pytest.raises(ValueError, match="has no column 'highlights'; its columns are text, summary"):
            load(home, target_column="highlights")
        with pytest.raises(ValueError, match="has no column 'source'; its columns are text, summary"):
            load(home, translation, TranslationArguments)
        with pytest.raises(ValueError, match="unknown metric 'accuracy' of written texts"):
            load(home, metrics=["accuracy"])
        Dataset.from_dict({"text": ["a", "b", "c"] * 5, "summary": [1, 2, 3] * 5}).to_csv(home / "numbers.csv")
        with pytest.raises(ValueError, match="the column 'summary' holds .*int64.*; expected a text in every row"):
            load(home, file="numbers.csv")
        (home / "gap.jsonl").write_text("\n".join(map(json.dumps, [*tiny_pairs(20), {"text": "a", "summary": None}])))
        with pytest.raises(ValueError, match="rows of the .* split have no 'summary'"):
            load(home, file="gap.jsonl")
        save(tiny_model("llama", "AutoModelForCausalLM"), home / "dense")
        with pytest.raises(ValueError, match="of the type llama, which does not read one text and write another"):
            load(home)

    def test_texts_that_the_decoder_has_no_positions_for(self, tmp_path):
        home = pair_home(tmp_path, "bart")
        task = load(home, max_target_length=200)
        with pytest.raises(ValueError, match="max_target_length=200 is more than the model's 160 positions"):
            task.check(tiny_model("bart", "AutoModelForSeq2SeqLM"))
        load(home, max_target_length=160).check(tiny_model("bart", "AutoModelForSeq2SeqLM"))


def pieces():
    words = [f"▁{word}" for word in sorted(set(" ".join(tiny_texts(80)["text"]).split()))]
    return ["<s>", "<pad>", "</s>", "<unk>", *words]


def mbart_tokenizer():
    return MBartTokenizer(vocab=[(piece, 0.0) for piece in [*pieces(), *FAIRSEQ_LANGUAGE_CODES, "<mask>"]])


def nllb_tokenizer():
    words = [*pieces(), "eng_Latn", "deu_Latn"]
    return NllbTokenizer(vocab={piece: number for number, piece in enumerate(words)}, merges=[])


class TestLanguages:
    def languages(self, home, tokenizer, source, target):
        tokenizer.save_pretrained(home / "dense")
        columns = {"source_column": "text", "target_column": "summary"}
        return load(home, translation, TranslationArguments, source_language=source, target_language=target, **columns)

    def test_a_language_before_the_text(self, home):
        task = self.languages(home, nllb_tokenizer(), "eng_Latn", "deu_Latn")
        english, german = task.tokenizer.convert_tokens_to_ids(["eng_Latn", "deu_Latn"])
        row = task.data["test"][0]
        assert (row["input_ids"][0], row["labels"][0]) == (english, german)
        assert task.generation == {"forced_bos_token_id": german}
        model = task.model(fine_tuned=home / "none")
        assert model.generation_config.forced_bos_token_id == german

    def test_a_language_behind_the_text(self, home):
        task = self.languages(home, mbart_tokenizer(), "en_XX", "de_DE")
        english, german = task.tokenizer.convert_tokens_to_ids(["en_XX", "de_DE"])
        row = task.data["test"][0]
        assert (row["input_ids"][-1], row["labels"][-1]) == (english, german)
        assert task.generation == {"decoder_start_token_id": german}

    def test_what_is_refused(self, home):
        with pytest.raises(ValueError, match="MBartTokenizer knows no language 'german'"):
            self.languages(home, mbart_tokenizer(), "en_XX", "german")
        with pytest.raises(ValueError, match="MBartTokenizer knows many languages: say which are read and written"):
            self.languages(home, mbart_tokenizer(), "en_XX", None)


class TestPredictions:
    def test_by_hand(self, home):
        task = load(home, metrics=["exact_match", "rouge1"])
        rows = Dataset.from_dict({"reference": ["who is", "what is"]})
        ids = [task.tokenizer(text)["input_ids"] for text in ("who is", "what river")]
        padded = np.full((2, 10), -100)
        for row, values in zip(padded, ids, strict=True):
            row[: len(values)] = values
        prediction = EvalPrediction(predictions=padded, label_ids=np.zeros((2, 10)))
        assert task.compute_metrics(prediction, rows) == pytest.approx({"exact_match": 0.5, "rouge1": 0.75})
        assert task.sample_metrics["exact_match"](prediction, rows) == [1.0, 0.0]
        assert task.sample_metrics["rougeL"](prediction, rows) == pytest.approx([1.0, 0.5])

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_model_writes_what_it_writes_alone(self, kind, tmp_path):
        home = pair_home(tmp_path, kind)
        task = load(home, metrics=["exact_match"])
        model = tiny_model(kind, "AutoModelForSeq2SeqLM")
        before = model.generation_config.to_dict()
        args = RecoveryArguments(str(tmp_path / "out"), per_device_eval_batch_size=3, **QUIET)
        trainer = task.trainer(model, args)
        found = trainer.predict(task.data["test"])
        assert math.isfinite(found.metrics["test_loss"])
        assert found.predictions.shape[1] <= 20
        for row, ids in zip(task.data["test"], found.predictions, strict=True):
            alone = model.generate(torch.tensor([row["input_ids"]]), max_length=9, num_beams=1)[0]
            assert ids[: len(alone)].tolist() == alone.tolist()
            assert set(ids[len(alone) :].tolist()) <= {1, -100}
        # Trainer writes the defaults of generation into it
        assert model.generation_config.to_dict() == before


def test_what_the_teacher_said_once_is_what_it_says(home, tmp_path):
    """Of targets of different lengths, in batches that put others together than those that the teacher saw."""
    task = load(home)
    small, dense = pruned_pair("t5", "AutoModelForSeq2SeqLM")
    options = {"hidden_states_weight": 0.0, "task_weight": 0.0, "logits_weight": 1.0, "logging_strategy": "steps"}
    found = []
    for more in ({}, {"teacher_top_k": VOCABULARY - 1}):
        args = arguments(tmp_path, max_steps=3, logging_steps=1, per_device_train_batch_size=2, **options, **more)
        trainer = task.trainer(copy.deepcopy(small), args, teacher=dense)
        trainer.train()
        found.append([entry["loss_logits"] for entry in trainer.state.log_history if "loss_logits" in entry])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    assert len(found[0]) == 3


class TestStory:
    def test_summaries(self, tmp_path, client):
        home = pair_home(tmp_path, "bart")
        outcome = story(home, dense_epochs=5, dense_learning_rate=0.01, num_train_epochs=2, learning_rate=0.005)
        assert outcome.results["dense_rougeL"] > 0.9
        assert outcome.results["recovered_rougeL"] > 0.8
        assert verify(outcome.folder) == []
        small = hfprune.load(outcome.folder)
        assert type(small).__name__ == "PrunedBartForConditionalGeneration"
        assert set(small.pruning_record.metrics["recovered"]) == {"rougeL", "rouge1", "rouge2"}
        text = tiny_pairs()[0]["text"]
        batch = tiny_tokenizer()(text, return_tensors="pt", return_token_type_ids=False)
        ids = small.generate(**batch, max_length=9)[0]
        assert tiny_tokenizer().decode(ids, skip_special_tokens=True) == tiny_pairs()[0]["summary"]
        there = client(WITHOUT.format(folder=str(outcome.folder), text=text), with_hfprune=False)
        assert there["ids"] == ids.tolist()

    @pytest.mark.parametrize("kind", ["t5", pytest.param("mbart", marks=pytest.mark.slow), "marian"])
    def test_translations_of_other_models(self, kind, tmp_path):
        """By the default scorer, in rounds, with repair; and distilled from logits and hidden states of both stacks."""
        home = pair_home(tmp_path, kind)
        outcome = story(
            home,
            translation,
            TranslationArguments,
            source_column="text",
            target_column="summary",
            scorer="residual_logit_fisher",
            schedule="geometric",
            reconstruct=True,
            num_train_epochs=1,
            attention_outputs_weight=0.1,
            eval_strategy="epoch",
            generation_num_beams=2,
            metrics=["chrf", "exact_match"],
        )
        assert verify(outcome.folder) == []
        record = hfprune.load(outcome.folder).pruning_record
        assert set(record.metrics["recovered"]) == {"chrf", "exact_match"}
        again = AutoModelForSeq2SeqLM.from_pretrained(outcome.folder)
        assert again.generation_config.decoder_start_token_id == (1 if kind == "t5" else 2)

    def test_a_pruned_model_again(self, home):
        first = story(home, num_train_epochs=0)
        (home / "again").mkdir()
        changes = {"model_name_or_path": str(first.folder), "output_dir": str(home / "again" / "out")}
        second = story(home, num_train_epochs=0, sparsity=0.6, **changes)
        assert hfprune.load(second.folder).pruning_plan.sparsity("macs") >= 0.6


@pytest.mark.script
@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_measure_every_text_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    home = pair_home(tmp_path)
    values = settings(
        home,
        train_file=str(home / "data.jsonl"),
        max_target_length=8,
        scorer="l1",
        schedule="one_shot",
        reconstruct=False,
        num_train_epochs=1,
        eval_strategy="epoch",
        per_device_eval_batch_size=3,
        metrics=["chrf"],
    )
    run_python(ROOT / "scripts" / "run_summarization.py", write(home, values), processes=2)
    record = hfprune.load(home / "out" / "model").pruning_record
    alone = story(home, num_train_epochs=0, scorer="l1", metrics=["chrf"], output_dir=str(home / "alone"))
    assert record.metrics["dense"]["chrf"] == pytest.approx(alone.results["dense_chrf"], abs=1e-6)
    assert record.recovery["steps"] == 4  # 64 rows, 2 processes of 8
    assert len(tiny_pairs()) // 10 % 6 != 0  # the last batches of the two are filled up


def test_the_vocabulary_of_the_tests_is_large_enough():
    assert len(mbart_tokenizer()) <= VOCABULARY
