"""What commands measure: the metrics of a task, and the perplexity of a language model on plain text."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from datasets import DatasetDict
from transformers import AutoTokenizer

from hfprune.cli.task_data import TaskData, split_of
from hfprune.data.corpus import CORPORA, load_documents
from hfprune.data.packages import resolve_model
from hfprune.deployment.loading import load_model
from hfprune.jobs.loading import model_as_it_is
from hfprune.jobs.predicting import measure
from hfprune.measuring.latency import measure_latency
from hfprune.measuring.perplexity import Perplexity, perplexity
from hfprune.structure.predictions import predicts_next_token


def task_metrics(
    data: TaskData, *, split: str | None, metrics: Sequence[str], batch_size: int | None, latency: bool
) -> dict[str, Any]:
    """The loss and the metrics of a model on data of its task.

    Args:
        data: The data, with labels, and the model.
        split: A split of it; None: all of a file, or else test.
        metrics: Their names; by default the usual ones.
        batch_size: Samples in a batch; None: as the task says.
        latency: Whether to measure the latency too.

    Returns:
        What was measured, by name.

    Raises:
        CheckpointError: The model lacks its head.
        ValueError: The data, its labels or a metric do not fit.
    """
    # a single file is evaluated whole, unless the user asks for one of the splits that it can be cut into
    task = data.load(whole=split is None, metrics=metrics)
    rows = split_of(task.data, split or "test")
    model = model_as_it_is(task, revision=data.revision)
    task.check(model)
    results: dict[str, Any] = measure(task, model, rows, batch_size=batch_size)
    if latency:
        # Trainer may have moved the model to an accelerator; the command reports the latency of the CPU
        results["latency"] = asdict(measure_latency(model.to("cpu"), sequence_length=data.sequence_length))
    return results


def text_perplexity(
    name: str,
    text: str,
    *,
    metrics: Sequence[str],
    window: int,
    stride: int | None,
    batch_size: int,
    encoding: str | None,
) -> Perplexity:
    """The perplexity of a causal language model on a txt file, or on the test split of a named corpus.

    Args:
        name: Folder or Hub name of the model.
        text: A file, or the name of a corpus.
        metrics: The metrics that the user asked for; there is only `perplexity`.
        window: Tokens that the model sees at a time.
        stride: Tokens from one window to the next.
        batch_size: Windows in a batch.
        encoding: Of the text in a file.

    Returns:
        The perplexity.

    Raises:
        ValueError: Another metric is asked for, or the model does not predict the next token.
    """
    for metric in metrics:
        if metric != "perplexity":
            raise ValueError(f"the metric of --text is perplexity, got {metric}.")
    # before the model is loaded, so that a mistyped file name is reported at once
    documents = _documents(text, encoding)
    model = load_model(name)
    if not predicts_next_token(model):
        raise ValueError(f"{type(model).__name__} does not predict the next token: --text is for causal LMs.")
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(name), trust_remote_code=False)
    texts = [document for document in documents["test"]["text"] if document]
    return perplexity(model, tokenizer, texts, window=window, stride=stride, batch_size=batch_size)


def _documents(text: str, encoding: str | None) -> DatasetDict:
    """A corpus by name, or a file, which is then the test split."""
    if text in CORPORA:
        return load_documents(text)
    # a train split is required, so the file stands in for that too
    return load_documents(files={"test": text, "train": text}, encoding=encoding)
