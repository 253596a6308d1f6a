"""Speech recognition: texts and their tokens, error rates, and the whole story for CTC and for Whisper."""

import importlib.util
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import EvalPrediction

pytest.importorskip("jiwer", reason="error rates need hfprune[speech]")

import hfprune
from hfprune.errors import MissingDependencyError
from hfprune.jobs.tasks import ModelArguments, SpeechArguments, speech_recognition
from hfprune.jobs.tasks.speech import plain_text
from hfprune.publishing.verification import verify
from tests.support.processes import run_python
from tests.support.runs import run_here, settings, sound_home, speech_home, write

SCRIPT = Path(__file__).parent.parent / "scripts" / "run_speech_recognition.py"


@pytest.fixture
def home(tmp_path):
    return speech_home(tmp_path)


def load(home, *, dense_epochs=0, **changes):
    named = ModelArguments(model_name_or_path=str(home / "dense"), dense_epochs=dense_epochs)
    changes.setdefault("train_file", str(home / "spoken.jsonl"))
    return speech_recognition(named, SpeechArguments(**changes), seed=0)


def speech_settings(home, **changes):
    return {"train_file": str(home / "spoken.jsonl"), "max_length": None, **changes}


class TestCtc:
    def test_batches(self, home):
        task = load(home)
        assert task.data.num_rows == {"train": 48, "validation": 6, "test": 6}
        assert task.labels == {"layerdrop": 0.0, "ctc_zero_infinity": True}
        rows = [task.data["train"][number] for number in range(4)]
        for row in rows:
            assert task.processor.tokenizer.decode(row["labels"], group_tokens=False) == row["text"]
        batch = task.collator(rows)
        longest = max(len(row["labels"]) for row in rows)
        assert batch["labels"].shape == (4, longest)
        assert (batch["labels"] == -100).sum() == sum(longest - len(row["labels"]) for row in rows)
        assert batch["input_values"].shape[1] == 500 * max(len(row["text"]) for row in rows)
        new = load(home, dense_epochs=1).labels
        assert (new["vocab_size"], new["pad_token_id"], new["ctc_loss_reduction"]) == (6, 0, "mean")

    def test_error_rates(self, home):
        task = load(home)
        rows = Dataset.from_dict({"text": ["Ab, ca!", "b"]})
        # a blank is 0, a space 2; what follows each other counts once; -100 is padding
        ids = np.array([[3, 3, 0, 4, 2, 2, 5, 0], [4, 0, 4, -100, -100, -100, -100, -100]])
        prediction = EvalPrediction(predictions=ids, label_ids=None)
        # "ab c" for "ab ca", "bb" for "b": 2 of 3 words and 2 of 6 letters are wrong
        assert task.compute_metrics(prediction, rows) == {"wer": pytest.approx(2 / 3), "cer": pytest.approx(2 / 6)}
        assert task.sample_metrics["negative_wer"](prediction, rows) == [-0.5, -1.0]
        assert task.sample_metrics["negative_cer"](prediction, rows) == [pytest.approx(-0.2), -1.0]
        # several processes predict the last samples twice
        twice = EvalPrediction(predictions=np.concatenate([ids, ids]), label_ids=None)
        assert task.compute_metrics(twice, rows) == task.compute_metrics(prediction, rows)
        as_written = load(home, plain_texts=False).compute_metrics(prediction, rows)
        assert as_written == {"wer": 1.0, "cer": pytest.approx(5 / 8)}

    def test_the_whole_story_to_a_pipeline_without_hfprune(self, home, client):
        outcome = run_here(
            speech_recognition,
            SpeechArguments,
            home,
            **speech_settings(home),
            dense_epochs=1,
            num_train_epochs=1,
            scorer="fisher",
            sparsity=0.3,
            save_strategy="no",
        )
        assert set(outcome.results) >= {"dense_wer", "pruned_wer", "recovered_wer"}
        assert verify(outcome.folder) == []
        model = hfprune.load(outcome.folder)
        assert type(model).__name__ == "PrunedWav2Vec2ForCTC"
        assert set(model.pruning_record.metrics["recovered"]) == {"wer", "cer"}
        assert "pipeline_tag: automatic-speech-recognition" in (outcome.folder / "README.md").read_text()
        task = load(home)
        expected = []
        for row in task.data["test"]:
            with torch.no_grad():
                ids = model(**{name: value for name, value in task.collator([row]).items() if name != "labels"})
            expected.append(task.processor.tokenizer.batch_decode(ids.logits.argmax(-1))[0])
        paths = [row["audio"]["path"] for row in task.data["test"]]
        code = f"""
from scipy.io import wavfile
from transformers import pipeline
write = pipeline("automatic-speech-recognition", model={str(outcome.folder)!r}, trust_remote_code=True)
answers = []
for path in {paths!r}:
    rate, samples = wavfile.read(path)
    answers.append(write({{"raw": samples / 2**15, "sampling_rate": rate}})["text"])
say(answers=answers)
"""
        assert client(code, with_hfprune=False)["answers"] == expected


class TestWhisper:
    @pytest.fixture
    def whisper(self, tmp_path):
        return speech_home(tmp_path, "whisper")

    def test_batches_and_the_language(self, whisper):
        task = load(whisper, language="english")
        tokenizer = task.processor.tokenizer
        row = task.data["train"][0]
        begin = tokenizer.decode(row["labels"], skip_special_tokens=False)
        assert begin == f"<|startoftranscript|><|en|><|transcribe|><|notimestamps|>{row['text']}<|endoftext|>"
        batch = task.collator([row])
        # the model puts the first token before the labels itself
        assert batch["labels"][0].tolist() == row["labels"][1:]
        assert batch["input_features"].shape == (1, 8, 100)
        assert task.model(fine_tuned=whisper / "none").generation_config.language == "english"
        with pytest.raises(ValueError, match="has 12 tokens, more than max_target_length=5. Raise it"):
            load(whisper, language="english", max_target_length=5)

    def test_the_whole_story(self, whisper):
        outcome = run_here(
            speech_recognition,
            SpeechArguments,
            whisper,
            **speech_settings(whisper),
            max_target_length=20,
            num_train_epochs=1,
            sparsity=0.3,
            save_strategy="no",
            per_device_eval_batch_size=8,
        )
        assert set(outcome.results) >= {"dense_wer", "pruned_wer", "recovered_wer"}
        assert verify(outcome.folder) == []
        model = hfprune.load(outcome.folder)
        assert type(model).__name__ == "PrunedWhisperForConditionalGeneration"
        task = load(whisper)
        batch = task.collator([task.data["test"][0]])
        assert model.generate(batch["input_features"], max_length=12).shape[1] <= 12


def test_what_is_refused(home, monkeypatch, caplog, tmp_path_factory):
    lines = [json.loads(line) for line in (home / "spoken.jsonl").read_text().splitlines()]
    other = home / "other.jsonl"
    lines[3]["text"] = " "
    other.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="1 of 60 rows of the train split have no text in 'text', the first is row 3"):
        load(home, train_file=str(other))
    with pytest.raises(ValueError, match="unknown metric 'bleu' of speech recognition; these are: wer, cer"):
        load(home, metrics=["bleu"])
    with pytest.raises(ValueError, match="all 60 sounds of the train split are longer than max_seconds=0.1"):
        load(home, max_seconds=0.1)
    with caplog.at_level(logging.WARNING, logger="hfprune"):
        short = load(home, max_seconds=0.7)
    assert "30 of 60 sounds of the train split are longer than 0.7 seconds, and are left out" in caplog.text
    assert sum(short.data.num_rows.values()) == 30
    with pytest.raises(ValueError, match="Wav2Vec2CTCTokenizer knows of no languages: leave language='english' out"):
        load(home, language="english")
    sounds = sound_home(tmp_path_factory.mktemp("sounds"))
    with pytest.raises(ValueError, match="dense has no processor of a feature extractor and a tokenizer"):
        load(sounds, train_file=str(home / "spoken.jsonl"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'hfprune\[speech\]'"):
        load(home)


def test_plain_texts():
    assert plain_text("It\N{RIGHT SINGLE QUOTATION MARK}s  Ten o'clock, Mr. BÄR!\n") == "it's ten o'clock mr bär"
    assert plain_text("١٢ हिन्दी") == "١٢ हिन्दी"
    assert plain_text("...") == ""


@pytest.mark.script
@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["wav2vec2", "whisper"])
def test_two_processes(model_type, tmp_path, monkeypatch):
    home = speech_home(tmp_path, model_type)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / "cache"))
    values = settings(home, **speech_settings(home), num_train_epochs=1, max_target_length=20)
    run_python(SCRIPT, write(home, values), processes=2)
    record = hfprune.load(home / "out" / "model").pruning_record
    assert record.recovery["steps"] == 3  # 48 rows, 2 processes of 8
    assert set(record.metrics["recovered"]) == {"wer", "cer"}
    assert verify(home / "out" / "model") == []
