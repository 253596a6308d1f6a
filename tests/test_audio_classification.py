"""Audio classification: what is made of sound files, and the whole story."""

import importlib.util
import json
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Audio, ClassLabel, Dataset, Features, List, Value
from scipy.io import wavfile
from transformers import (
    ASTFeatureExtractor,
    AutoConfig,
    AutoModelForAudioClassification,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

import hfprune
from hfprune.data.sounds import open_sound
from hfprune.errors import MissingDependencyError
from hfprune.jobs.tasks import AudioArguments, ModelArguments, audio_classification
from hfprune.publishing.verification import verify
from tests.support.processes import run_python
from tests.support.runs import run_here, settings, sound_home, sound_settings, write
from tests.support.tiny import SIZES
from tests.support.tiny_data import tiny_sounds

SCRIPT = Path(__file__).parent.parent / "scripts" / "run_audio_classification.py"
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
_PATCHES = {"patch_size": 4, "time_stride": 4, "frequency_stride": 4, "max_length": 32, "num_mel_bins": 16}
_WAVES = {"conv_kernel": [10, 4], "conv_stride": [5, 4], "classifier_proj_size": 8}
#: Types of models, with their sizes and their feature extractors.
MODEL_TYPES = {
    "audio-spectrogram-transformer": (_SIZES | _PATCHES, ASTFeatureExtractor(max_length=32, num_mel_bins=16)),
    "whisper": (
        {**SIZES["whisper"], "max_source_positions": 50, "classifier_proj_size": 8},
        WhisperFeatureExtractor(feature_size=8, chunk_length=1),
    ),
    "hubert": (SIZES["wav2vec2"] | _WAVES, Wav2Vec2FeatureExtractor()),
}


@pytest.fixture
def home(tmp_path):
    return sound_home(tmp_path)


def load(home, *, dense_epochs=0, **changes):
    named = ModelArguments(model_name_or_path=str(home / "dense"), dense_epochs=dense_epochs)
    if "dataset" not in changes:
        changes.setdefault("train_file", str(home / "sounds"))
    return audio_classification(named, AudioArguments(**changes), seed=0)


def stored(path):
    return {"path": str(path), "bytes": None}


class TestSoundFiles:
    def test_every_kind_of_number(self, tmp_path):
        expected = np.sin(np.arange(100) / 5) * 0.5
        kinds = {"int16": 2**15, "int32": 2**31, "float32": 1, "float64": 1}
        for kind, largest in kinds.items():
            wavfile.write(tmp_path / f"{kind}.wav", 8000, (expected * largest).astype(kind))
        wavfile.write(tmp_path / "uint8.wav", 8000, (expected * 128 + 128).astype(np.uint8))
        with wave.open(str(tmp_path / "int24.wav"), "wb") as file:
            file.setparams((1, 3, 8000, 0, "NONE", None))
            numbers = (expected * 2**23).astype("<i4")
            file.writeframes(b"".join(number.tobytes()[:3] for number in numbers))
        for path in tmp_path.glob("*.wav"):
            found = open_sound(stored(path), 8000)
            assert found.dtype == np.float32
            assert np.abs(found - expected).max() < (0.01 if path.stem == "uint8" else 1e-4), path

    def test_channels_and_rates(self, tmp_path):
        tone = np.sin(np.arange(800) * 2 * np.pi / 80)
        both = np.stack([tone, np.zeros(800)], axis=1)
        wavfile.write(tmp_path / "stereo.wav", 8000, both.astype(np.float32))
        found = open_sound(stored(tmp_path / "stereo.wav"), 16_000)
        assert found.shape == (1600,)
        assert np.abs(found[::2] - tone / 2)[50:-50].max() < 1e-3  # at the ends it begins and ends with silence
        lower = open_sound({"array": found.tolist(), "sampling_rate": 16_000}, 8000)
        assert np.abs(lower - tone / 2)[50:-50].max() < 1e-3
        content = (tmp_path / "stereo.wav").read_bytes()
        assert np.array_equal(open_sound({"path": None, "bytes": content}, 16_000), found)

    def test_what_is_no_sound(self, home, monkeypatch):
        path = home / "sounds" / "low" / "0.wav"
        content = path.read_bytes()
        path.write_bytes(b"")
        with pytest.raises(ValueError, match=r"row \d+ \(from 0\) of the \w+ split has an empty file: .*0\.wav"):
            load(home)
        wavfile.write(path, 4000, np.zeros(0, dtype=np.int16))
        with pytest.raises(ValueError, match=r"the sound '.*0\.wav' is empty"):
            open_sound(stored(path), 4000)
        # a law of telephones, which SciPy does not know
        path.write_bytes(content[:20] + b"\x06\x00" + content[22:])
        find_spec = importlib.util.find_spec
        without = lambda name, *rest: None if name == "soundfile" else find_spec(name, *rest)  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", without)
        with pytest.raises(ValueError, match=r"the sound '.*0\.wav' cannot be decoded: Unknown wave file format"):
            open_sound(stored(path), 4000)
        path.write_bytes(b"fLaC and more")
        with pytest.raises(MissingDependencyError, match=r"0\.wav is no wav file; .* pip install 'hfprune\[audio\]'"):
            load(home)

    def test_other_formats(self, tmp_path):
        soundfile = pytest.importorskip("soundfile")
        tone = np.sin(np.arange(4000) * 2 * np.pi / 80) / 2
        for name, subtype in (("a.flac", "PCM_24"), ("a.ogg", "VORBIS"), ("a.wav", "ULAW")):
            soundfile.write(tmp_path / name, tone, 8000, subtype=subtype)
            found = open_sound(stored(tmp_path / name), 8000)
            assert np.abs(found - tone)[100:-100].max() < 0.05, name
        (tmp_path / "b.flac").write_bytes(b"fLaC and more")
        with pytest.raises(ValueError, match="b.flac' cannot be decoded"):
            open_sound(stored(tmp_path / "b.flac"), 8000)


def test_sub_folders_are_classes(home):
    task = load(home)
    assert task.data.num_rows == {"train": 48, "validation": 6, "test": 6}
    numbers = {"high": 0, "low": 1, "middle": 2}
    for row in task.data["train"]:
        assert row["labels"] == numbers[Path(row["audio"]["path"]).parent.name]
    # layers that are skipped at random would leave student and teacher with unlike numbers of hidden states
    assert task.labels == {"layerdrop": 0.0}
    assert task.model(fine_tuned=home / "none").config.layerdrop == 0
    rows = [task.data["train"][number] for number in range(3)]
    longest = max(len(open_sound(row["audio"], 4000)) for row in rows)
    assert task.collator(rows)["input_values"].shape == (3, longest)
    cut = load(home, max_seconds=0.1).collator(rows)
    assert cut["input_values"].shape == (3, 400)
    assert load(home, dense_epochs=1).labels["id2label"] == {0: "high", 1: "low", 2: "middle"}


def test_data_sets_that_hold_their_sounds(home):
    paths = sorted((home / "sounds").rglob("*.wav"))
    names = ["high", "low", "middle"]
    labels = [names.index(path.parent.name) for path in paths]
    files = Features(audio={"bytes": Value("binary"), "path": Value("string")}, label=ClassLabel(names=names))
    rows = {"audio": [{"bytes": path.read_bytes(), "path": path.name} for path in paths], "label": labels}
    (home / "stored").mkdir()
    Dataset.from_dict(rows, features=files).cast_column("audio", Audio()).to_parquet(home / "stored" / "train.parquet")
    numbers = [{"array": open_sound(stored(path), 4000).tolist(), "sampling_rate": 4000} for path in paths]
    arrays = Features(audio={"array": List(Value("float32")), "sampling_rate": Value("int64")}, label=files["label"])
    Dataset.from_dict({"audio": numbers, "label": labels}, features=arrays).to_parquet(home / "arrays.parquet")
    first = load(home, dataset=str(home / "stored"))
    second = load(home, train_file=str(home / "arrays.parquet"))
    for split in ("train", "test"):
        assert first.data[split]["labels"][:] == second.data[split]["labels"][:]
        batch = first.collator([first.data[split][0]])["input_values"]
        assert torch.equal(batch, second.collator([second.data[split][0]])["input_values"])


def test_what_is_refused(home):
    with pytest.raises(ValueError, match=r"has no sub-folder with a sound in it: expected .*; it holds 0\.wav"):
        load(home, train_file=str(home / "sounds" / "low"))
    with pytest.raises(ValueError, match="max_seconds must be above 0, got 0"):
        load(home, max_seconds=0)
    Dataset.from_dict({"audio": [[0.1, 0.2]] * 20, "label": [0] * 20}).to_parquet(home / "numbers.parquet")
    with pytest.raises(ValueError, match="the column 'audio' of the train split holds List.*; expected names of files"):
        load(home, train_file=str(home / "numbers.parquet"))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_models_of_other_types(model_type, tmp_path):
    home = sound_home(tmp_path, rows=40)
    sizes, extractor = MODEL_TYPES[model_type]
    config = AutoConfig.for_model(model_type, **sizes, id2label={0: "high", 1: "low", 2: "middle"})
    torch.manual_seed(0)
    AutoModelForAudioClassification.from_config(config).save_pretrained(home / "dense")
    extractor.save_pretrained(home / "dense")
    changes = sound_settings(home, num_train_epochs=0, sparsity=0.3, calibration_samples=16)
    outcome = run_here(audio_classification, AudioArguments, home, **changes)
    assert 0.3 <= outcome.results["mac_sparsity"] < 0.4
    assert verify(outcome.folder) == []


def test_the_whole_story_to_a_pipeline_without_hfprune(home, client):
    tiny_sounds(home / "test", 30)
    outcome = run_here(
        audio_classification,
        AudioArguments,
        home,
        **sound_settings(home, test_file=str(home / "test")),
        dense_epochs=6,
        dense_learning_rate=0.01,
        num_train_epochs=3,
        learning_rate=0.005,
        save_strategy="no",
        scorer="fisher",
    )
    assert outcome.results["dense_accuracy"] > 0.9
    assert outcome.results["recovered_accuracy"] > 0.9
    assert verify(outcome.folder) == []
    model = hfprune.load(outcome.folder)
    assert type(model).__name__ == "PrunedWav2Vec2ForSequenceClassification"
    assert model.config.id2label == {0: "high", 1: "low", 2: "middle"}
    assert "pipeline_tag: audio-classification" in (outcome.folder / "README.md").read_text()
    paths = sorted((home / "test").rglob("*.wav"))
    code = f"""
from scipy.io import wavfile
from transformers import pipeline
listen = pipeline("audio-classification", model={str(outcome.folder)!r}, trust_remote_code=True)
answers = []
for path in {list(map(str, paths))!r}:
    rate, samples = wavfile.read(path)
    answers.append(listen({{"raw": samples / 2**15, "sampling_rate": rate}})[0]["label"])
say(answers=answers)
"""
    answers = client(code, with_hfprune=False)["answers"]
    right = sum(path.parent.name == answer for path, answer in zip(paths, answers, strict=True))
    assert right / 30 == pytest.approx(outcome.results["recovered_accuracy"])


@pytest.mark.script
@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes(home, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / "cache"))
    values = settings(home, **sound_settings(home), num_train_epochs=1, dense_epochs=1)
    run_python(SCRIPT, write(home, values), processes=2)
    record = hfprune.load(home / "out" / "model").pruning_record
    assert record.recovery["steps"] == 3  # 48 rows, 2 processes of 8
    assert verify(home / "out" / "model") == []
    assert "recovered_accuracy" in json.loads((home / "out" / "results.json").read_text())
