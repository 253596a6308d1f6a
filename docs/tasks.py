"""The page of every task on real data, from the rows of `benchmarks/tasks.py`."""

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROWS = Path(__file__).parent / "results" / "tasks.json"
#: Metrics of which less is better.
_LESS_IS_BETTER = {"perplexity", "loss", "wer", "cer"}
#: Metrics that are not shares, and are shown as they are.
_PLAIN = {"perplexity", "loss", "chrf", "bleu"}


class _Job(NamedTuple):
    """How the page speaks of a job.

    Attributes:
        task: What the task is called.
        data: What its data are.
        model: What its model is.
    """

    task: str
    data: str
    model: str


_MINILM = "MiniLM-L6, fine-tuned"
#: By config, in the order of the page.
_JOBS = {
    "demo": _Job("text classification", "TREC questions, 6 classes", _MINILM),
    "token_classification": _Job("token classification", "proper names in the Brown corpus", _MINILM),
    "question_answering": _Job("question answering", "names blanked in headlines of news", _MINILM),
    "multiple_choice": _Job("multiple choice", "the reply to a line of a film, among 4", _MINILM),
    "translation": _Job("translation", "spelling to pronunciation", "T5 of 4 layers, from scratch"),
    "summarization": _Job("summarisation", "abstracts of papers", "T5, from scratch"),
    "smollm2": _Job("causal language modelling", "addresses to Congress", "SmolLM2-135M, dequantised"),
    "image_classification": _Job("image classification", "MNIST, 28 × 28 digits", "ViT, from scratch"),
    "audio_classification": _Job("audio classification", "four languages", "Whisper's encoder, from scratch"),
    "speech_recognition": _Job("speech recognition", "prompts of a telephone", "from scratch"),
}

HEAD = """# Every task

What is left of each task's metrics when half of the prunable multiply-adds (MACs) of a model are removed, without
training and after recovery. Read this page to see whether pruning does for your task what it does for classification.

All data are real ([Data sets by name](../reference/data-sets.md)). No pretrained models of pictures, sounds and
sequence-to-sequence tasks could be had where this was measured. Those models are small and were trained from scratch on
the data, so their dense figures are low; what counts is the difference between the columns. Every figure is that of the
test split, and of the mean over the seeds. A seed draws the training, the calibration and, where a data set has no
splits, the splits.

The recovery learns from the dense model and the labels. It takes as long as a row of `scripts/configs` says: minutes on
two cores.

```bash
python benchmarks/tasks.py --seeds 0 1 2
```

"""
TAIL = """
↓ marks metrics of which less is better. Sentence embeddings have a [page of their
own](../how-to/sentence-embeddings.md).

## Next

- [Run the whole job from one file](../how-to/run-the-whole-job.md)
- [Add a task](../how-to/add-a-task.md)
"""


def tasks() -> str:
    """docs/results/tasks.md, from the rows that the benchmark left."""
    return HEAD + table(json.loads(ROWS.read_text(encoding="utf-8"))) + TAIL


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table of all jobs, as Markdown.

    Args:
        rows: The content of tasks.json.

    Returns:
        A line for each metric of a job.
    """
    lines = [
        "| task | data | model | metric | dense | pruned | recovered | MACs removed | seeds |",
        "|---|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for config, job in _JOBS.items():
        of_job = [row for row in rows if row["config"] == config]
        if of_job:
            lines += _lines(job, of_job)
    return "\n".join(lines) + "\n"


def _lines(job: _Job, rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    removed = 100 * statistics.mean(row["macs_removed"] for row in rows)
    for number, metric in enumerate(rows[0]["metrics"]["dense"]):
        stages = [_mean(metric, stage, rows) for stage in ("dense", "pruned", "recovered")]
        arrow = " ↓" if metric in _LESS_IS_BETTER else ""
        cells = [*(job if number == 0 else ("", "", "")), f"`{metric}`{arrow}", *stages]
        if number == 0:
            cells += [f"{removed:.1f} %", str(len(rows))]
        else:
            cells += ["", ""]
        yield "| " + " | ".join(cells) + " |"


def _mean(metric: str, stage: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """The mean over the seeds; per cent where the metric is a share."""
    values = [row["metrics"][stage][metric] for row in rows if stage in row["metrics"]]
    if not values:
        return ""
    mean = statistics.mean(values)
    return f"{mean:.2f}" if metric in _PLAIN else f"{100 * mean:.1f}"
