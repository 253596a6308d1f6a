"""Runs of the scripts on tiny files: their settings, alone in a process or in this one."""

import json
from pathlib import Path

import torch
import yaml
from transformers import PreTrainedModel

from hfprune.jobs.run import Outcome, run
from hfprune.jobs.tasks import TextArguments, parse, text_classification
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_choices, tiny_squad, tiny_tags, tiny_texts, tiny_tokenizer


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


def save(model: PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
