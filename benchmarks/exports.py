"""MiniLM-L6, fine-tuned on TREC for one epoch and pruned to half of its multiply-adds, exported to every target.

    python benchmarks/exports.py
    python benchmarks/exports.py --targets onnx onnx:int8

Prints a row of Markdown for every target and quantisation whose packages are installed: bytes, how far its outputs are
from PyTorch's on the 1,000 test questions, and the accuracy of both. cpu, float32, one thread.
"""

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import hfprune
from hfprune.data import load_text_dataset, resolve_model, tokenize
from hfprune.errors import HfpruneError

TARGETS = ("torch", "onnx", "onnx:int8", "openvino", "openvino:int8", "openvino:int8-calibrated", "executorch")


def pruned(folder: Path) -> Path:
    """The pruned model that an earlier run left, or a new one."""
    place = folder / "small"
    if place.is_dir():
        return place
    source = resolve_model("minilm-l6")
    tokenizer = AutoTokenizer.from_pretrained(source)
    data = tokenize(load_text_dataset("trec"), tokenizer)
    names = load_text_dataset("trec")["train"].features["label"].names
    dense = AutoModelForSequenceClassification.from_pretrained(
        source, num_labels=len(names), id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}
    )
    dense.bert.embeddings.requires_grad_(False)
    args = TrainingArguments(
        str(folder / "training"),
        num_train_epochs=1,
        learning_rate=3e-4,
        per_device_train_batch_size=32,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
    )
    Trainer(dense, args, train_dataset=data["train"], processing_class=tokenizer).train()
    config = hfprune.PruningConfig(sparsity=0.5, calibration_samples=128)
    small = hfprune.prune(dense, data["train"], config, collator=DataCollatorWithPadding(tokenizer))
    return hfprune.save(small, place, tokenizer=tokenizer)


def row_of(exported: hfprune.Export) -> str:
    """An export as a row of the table."""
    on_data = exported.differences[-1]
    metrics = exported.metrics
    return (
        f"| `{exported.target}` | {exported.quantization or ''} | {exported.size_bytes / 1e6:.1f} "
        f"| {on_data.largest:.0e} | {100 * on_data.typical:.1g} % | {100 * on_data.agreement:.1f} % "
        f"| {100 * metrics['exported']['accuracy']:.1f} |"
    )


def main() -> None:
    """Export to every target in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/exports"), help="where models and exports are kept")
    parser.add_argument("--targets", nargs="+", default=list(TARGETS), help="such as onnx:int8")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    small = pruned(arguments.folder)
    tokenizer = AutoTokenizer.from_pretrained(small)
    data = tokenize(load_text_dataset("trec"), tokenizer)
    print("| target | quantised | MB | largest difference | typical | same choice | accuracy |")
    print("|---|---|---:|---:|---:|---:|---:|")
    in_pytorch = ""
    for asked in arguments.targets:
        target, _, quantize = asked.partition(":")
        try:
            exported = hfprune.export(
                small,
                target,
                arguments.folder / asked.replace(":", "-"),
                quantize=quantize or None,
                data=data["test"],
                calibration=data["train"],
                threads=1,
                overwrite=True,
            )
        except HfpruneError as error:
            print(f"{asked}: {error}", flush=True)
            continue
        print(row_of(exported), flush=True)
        accuracy = exported.metrics["pytorch"]["accuracy"]
        in_pytorch = f"PyTorch: {exported.weights_bytes / 1e6:.1f} MB, accuracy {100 * accuracy:.1f}"
    print(in_pytorch)


if __name__ == "__main__":
    main()
