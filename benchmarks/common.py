"""What the benchmarks share: dense models that are fine-tuned once and kept, how they are tested, curves, memory."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, concatenate_datasets
from matplotlib.figure import Figure
from torch import Tensor
from transformers import PreTrainedModel, set_seed

from hfprune.jobs.tasks import ModelArguments, Task, TextArguments, text_classification
from hfprune.recovery.arguments import RecoveryArguments

#: How each dense model is made: epochs and the learning rate of its fine-tuning, on all that is not the test set.
RECIPES = {"trec": (4.0, 2e-4), "movie_reviews": (3.0, 1e-4)}
Batch = dict[str, Tensor]
#: A row of a table: a measurement and what it is of.
Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class DenseTask:
    """A fine-tuned dense model with its data.

    Attributes:
        name: Of the data set.
        model: The dense model, in evaluation mode.
        train: What it was fine-tuned on, tokenized.
        test: Batches that it has not seen, from the shortest texts to the longest.
        predicted: Its log-probabilities there, `(samples, classes)`.
        task: Tokenizer, collator and trainer.
    """

    name: str
    model: PreTrainedModel
    train: Dataset
    test: list[Batch]
    predicted: Tensor
    task: Task


def dense_task(dataset: str, folder: Path, *, seed: int = 0) -> DenseTask:
    """Fine-tune MiniLM-L6 on a data set, or take the model that an earlier run left.

    Args:
        dataset: `trec` or `movie_reviews`.
        folder: Where dense models are kept.
        seed: Of the split and the fine-tuning.

    Returns:
        The model and its data.
    """
    epochs, rate = RECIPES[dataset]
    named = ModelArguments(model_name_or_path="minilm-l6", dense_epochs=epochs)
    task = text_classification(named, TextArguments(dataset=dataset), seed=seed)
    train = concatenate_datasets([task.data["train"], task.data["validation"]])
    kept = folder / f"{dataset}_seed{seed}"
    set_seed(seed)
    model = task.model(fine_tuned=kept, will_be_fine_tuned=True)
    if not kept.is_dir():
        args = training_arguments(str(folder / "training"), epochs=epochs, learning_rate=rate, seed=seed)
        task.data["train"] = train
        began = time.perf_counter()
        trainer = task.trainer(model, args)
        trainer.train()
        trainer.save_model(str(kept))
        print(f"fine-tuned the dense model on {dataset}: {time.perf_counter() - began:.0f} s", flush=True)
    rows = sorted(task.data["test"].remove_columns(_extra(task.data["test"])), key=lambda row: len(row["input_ids"]))
    batches = [dict(task.collator(rows[i : i + 64])) for i in range(0, len(rows), 64)]
    return DenseTask(
        name=dataset,
        model=model.eval(),
        train=train.remove_columns(_extra(train)),
        test=batches,
        predicted=predictions(model, batches),
        task=task,
    )


def training_arguments(output: str, *, epochs: float, learning_rate: float, seed: int) -> RecoveryArguments:
    """Plain fine-tuning on the CPU, nothing kept on the way."""
    return RecoveryArguments(
        output_dir=output,
        num_train_epochs=epochs,
        learning_rate=learning_rate,
        per_device_train_batch_size=32,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        weight_decay=0.01,
        save_strategy="no",
        seed=seed,
        use_cpu=True,
        report_to="none",
    )


def _extra(data: Dataset) -> list[str]:
    return [name for name in data.column_names if name not in ("input_ids", "attention_mask", "labels")]


@torch.no_grad()
def predictions(model: PreTrainedModel, batches: list[Batch]) -> Tensor:
    """Log-probabilities of all samples, `(samples, classes)`."""
    model.eval()
    return torch.cat([model(**inputs(batch)).logits for batch in batches]).log_softmax(-1)


def accuracy(predicted: Tensor, batches: list[Batch]) -> float:
    """Accuracy of predictions, in per cent."""
    return 100 * float((predicted.argmax(-1) == torch.cat([batch["labels"] for batch in batches])).double().mean())


def divergence(predicted: Tensor, dense: Tensor) -> float:
    """KL(dense ‖ predicted), mean over samples, in nats."""
    return float((dense.exp() * (dense - predicted)).sum(-1).mean())


def inputs(batch: Batch) -> Batch:
    """A batch without its labels."""
    return {name: value for name, value in batch.items() if name != "labels"}


def curves(
    panels: dict[str, dict[str, dict[int, list[float]]]], dense: dict[str, float], path: Path, *, x: str, y: str
) -> None:
    """Draw a PNG with one panel a data set.

    Args:
        panels: By data set and line, for every cost the values over seeds: their mean is drawn, and their range.
        dense: By data set, the value of the dense model.
        path: The file.
        x: What costs are.
        y: What values are.
    """
    figure = Figure(figsize=(7 * len(panels), 5), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, (dataset, lines) in zip(axes[0], sorted(panels.items()), strict=True):
        for name, found in sorted(lines.items()):
            costs = sorted(found)
            means = [sum(found[cost]) / len(found[cost]) for cost in costs]
            below = [max(0.0, mean - min(found[cost])) for mean, cost in zip(means, costs, strict=True)]
            above = [max(0.0, max(found[cost]) - mean) for mean, cost in zip(means, costs, strict=True)]
            axis.errorbar(costs, means, yerr=(below, above), marker="o", markersize=3, capsize=2, label=name)
        axis.axhline(dense[dataset], color="black", linewidth=1, linestyle="--", label="dense")
        axis.set(title=dataset, xlabel=x, ylabel=y)
        axis.invert_xaxis()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def write(path: Path, rows: Sequence[Row]) -> None:
    """Replace a file of rows as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)


def memory_over(work: Callable[[], object]) -> int:
    """Peak memory of some work over what the process has before it, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = _status("VmRSS")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    """A field of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))
