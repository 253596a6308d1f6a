"""Runs of the scripts on tiny files: their settings, alone in a process or in this one."""

import json
from pathlib import Path

import torch
import yaml
from transformers import PreTrainedModel, ViTImageProcessorPil, Wav2Vec2FeatureExtractor

from hfprune.jobs.run import Outcome, run
from hfprune.jobs.tasks import TextArguments, parse, text_classification
from tests.support.tiny import tiny_model
from tests.support.tiny_data import (
    chat_tokenizer,
    tiny_choices,
    tiny_conversations,
    tiny_pairs,
    tiny_pictures,
    tiny_sounds,
    tiny_speech,
    tiny_speech_processor,
    tiny_squad,
    tiny_tags,
    tiny_texts,
    tiny_tokenizer,
)


def settings(home: Path, **changes: object) -> dict:
    """Of a short run on `home/dense` and `home/data.csv` that writes `home/out`."""
    return {
        "model_name_or_path": str(home / "dense"),
        "train_file": str(home / "data.csv"),
        "output_dir": str(home / "out"),
        "sparsity": 0.4,
        "sequence_length": 16,
        "max_length": 16,
        "calibration_samples": 32,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.001,
        "latency_batch_size": 2,
        "latency_length": 8,
        "use_cpu": True,
        "save_strategy": "epoch",
        "report_to": "none",
        **changes,
    }


def write(home: Path, values: dict) -> Path:
    path = home / "settings.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def run_here(load_task, arguments, home: Path, **changes: object) -> Outcome:
    """In this process, in one round of a quick scorer if nothing else is said."""
    quick = {"scorer": "l1", "schedule": "one_shot", "reconstruct": False, "disable_tqdm": True}
    values = {**quick, "dataloader_pin_memory": torch.cuda.is_available(), **changes}
    path = write(home, settings(home, **values))
    return run(load_task, parse(arguments, None, [str(path)]), program="python scripts/run_x.py")


def classify(home: Path, **changes: object) -> Outcome:
    """The script of text classification on `text_home`."""
    return run_here(text_classification, TextArguments, home, **changes)


def text_home(home: Path, **changes: object) -> Path:
    """With a tiny dense classifier, `dense`, and a tiny file of texts, `data.csv`."""
    labels = {"num_labels": 3, "id2label": {0: "what", 1: "where", 2: "who"}}
    save(tiny_model("bert", **labels, **changes), home / "dense")
    names = ["who", "what", "where"]
    rows = [f"{row['text']},{names[row['label']]}" for row in tiny_texts(80)]
    (home / "data.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return home


def token_home(home: Path) -> Path:
    """With a tiny dense tagger and texts with tags, `data.jsonl`."""
    labels = {"num_labels": 3, "id2label": {0: "I-X", 1: "O", 2: "B-X"}}
    save(tiny_model("bert", "AutoModelForTokenClassification", **labels), home / "dense")
    (home / "data.jsonl").write_text("\n".join(json.dumps(row) for row in tiny_tags()))
    return home


def question_home(home: Path) -> Path:
    """With a tiny dense model that answers questions, and a file of SQuAD 2.0, `data.json`."""
    save(tiny_model("bert", "AutoModelForQuestionAnswering"), home / "dense")
    (home / "data.json").write_text(json.dumps(tiny_squad(100)))
    return home


def choice_home(home: Path) -> Path:
    """With a tiny dense model that chooses, and questions with choices, `data.jsonl`."""
    save(tiny_model("bert", "AutoModelForMultipleChoice"), home / "dense")
    (home / "data.jsonl").write_text("\n".join(json.dumps(row) for row in tiny_choices()))
    return home


def mlm_home(home: Path) -> Path:
    """With a tiny dense language model and text, `data.txt`."""
    save(tiny_model("bert", "AutoModelForMaskedLM"), home / "dense")
    (home / "data.txt").write_text("\n".join(tiny_texts(400)["text"]))
    return home


def causal_home(home: Path, **changes: object) -> Path:
    """With a tiny dense causal language model and text, `data.txt`."""
    save(tiny_model("llama", "AutoModelForCausalLM", **changes), home / "dense")
    (home / "data.txt").write_text(" ".join(tiny_texts(400)["text"]))
    return home


def picture_home(home: Path, rows: int = 60) -> Path:
    """With a tiny dense classifier of pictures, `dense`, and a folder of pictures of three colours, `pictures`."""
    names = {0: "blue", 1: "green", 2: "red"}
    tiny_model("vit", "AutoModelForImageClassification", id2label=names).save_pretrained(home / "dense")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(home / "dense")
    tiny_pictures(home / "pictures", rows)
    return home


def picture_settings(home: Path, **changes: object) -> dict:
    """What a short run on `picture_home` sets otherwise than one on texts."""
    return {"train_file": str(home / "pictures"), "max_length": None, "latency_length": None, **changes}


def sound_home(home: Path, rows: int = 60) -> Path:
    """With a tiny dense classifier of sounds, `dense`, and a folder of tones of three heights, `sounds`."""
    names = {0: "high", 1: "low", 2: "middle"}
    sizes = {"conv_kernel": [10, 4], "conv_stride": [5, 4], "classifier_proj_size": 8}
    model = tiny_model("wav2vec2", "AutoModelForAudioClassification", id2label=names, **sizes)
    model.save_pretrained(home / "dense")
    Wav2Vec2FeatureExtractor(sampling_rate=4000).save_pretrained(home / "dense")
    tiny_sounds(home / "sounds", rows)
    return home


def sound_settings(home: Path, **changes: object) -> dict:
    """What a short run on `sound_home` sets otherwise than one on texts."""
    return {"train_file": str(home / "sounds"), "max_length": None, **changes}


def speech_home(home: Path, model_type: str = "wav2vec2") -> Path:
    """With a tiny dense recogniser of letters, `dense`, and tones that spell words, `spoken.jsonl`."""
    processor = tiny_speech_processor(model_type)
    size = len(processor.tokenizer)
    if model_type == "whisper":
        sizes = {"vocab_size": size, "max_source_positions": 50, "pad_token_id": 0, "eos_token_id": 0}
        sizes |= {"bos_token_id": 0, "decoder_start_token_id": size - 4, "suppress_tokens": None}
        model = tiny_model(model_type, "AutoModelForSpeechSeq2Seq", **sizes, begin_suppress_tokens=None)
    else:
        waves = {"conv_kernel": [10, 4], "conv_stride": [5, 4], "bos_token_id": None, "eos_token_id": None}
        model = tiny_model(model_type, "AutoModelForCTC", vocab_size=size, **(waves | {"pad_token_id": 0}))
    model.save_pretrained(home / "dense")
    processor.save_pretrained(home / "dense")
    tiny_speech(home)
    return home


def chat_home(home: Path) -> Path:
    """With a tiny dense chat model and conversations, `data.jsonl`."""
    tiny_model("llama", "AutoModelForCausalLM").save_pretrained(home / "dense")
    chat_tokenizer().save_pretrained(home / "dense")
    (home / "data.jsonl").write_text("\n".join(json.dumps(row) for row in tiny_conversations()))
    return home


def pair_home(home: Path, model_type: str = "t5", **changes: object) -> Path:
    """With a tiny dense model that writes texts, and texts with summaries, `data.jsonl`."""
    save(tiny_model(model_type, "AutoModelForSeq2SeqLM", **changes), home / "dense")
    (home / "data.jsonl").write_text("\n".join(json.dumps(pair) for pair in tiny_pairs()))
    return home


def save(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
