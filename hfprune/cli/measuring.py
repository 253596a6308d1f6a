"""What commands measure: the metrics of a classifier, and the perplexity of a language model."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, DataCollatorWithPadding, PreTrainedModel, Trainer, TrainingArguments

from hfprune.cli.models import classifier_config
from hfprune.cli.texts import TextSource, split_of
from hfprune.data.corpus import CORPORA, load_documents
from hfprune.data.packages import resolve_model
from hfprune.deployment.loading import load_model
from hfprune.measuring.latency import measure_latency
from hfprune.measuring.metrics import check_metrics, compute_metrics_for, default_metrics
from hfprune.measuring.perplexity import Perplexity, perplexity
from hfprune.structure.predictions import predicts_next_token, predicts_number


def classifier_metrics(
    model: str, texts: TextSource, *, split: str | None, metrics: Sequence[str], batch_size: int, latency: bool
) -> dict[str, Any]:
    """The loss and the metrics of a text classifier.

    Args:
        model: Folder or repository.
        texts: The texts, with labels.
        split: A split of them; None: all of a file, or else test.
        metrics: Their names; by default the usual one.
        batch_size: Samples in a batch.
        latency: Whether to measure the latency too.

    Returns:
        What was measured, by name.

    Raises:
        CheckpointError: The model is no text classifier, or lacks its head.
        ValueError: The texts, their labels or a metric do not fit.
    """
    # before the texts and the weights are read
    check_metrics(metrics, regression=predicts_number(classifier_config(model)))
    # a single file is evaluated whole, unless the user asks for one of the splits that it can be cut into
    splits, tokenizer = texts.tokenized_for(resolve_model(model), whole=split is None)
    samples = split_of(splits, split or "test")
    classifier = load_model(model)
    collator = DataCollatorWithPadding(tokenizer)
    results = metrics_of(classifier, samples, collator, metrics=metrics, batch_size=batch_size)
    results["samples"] = len(samples)
    if latency:
        # Trainer may have moved the model to an accelerator; the command reports the latency of the CPU
        results["latency"] = asdict(measure_latency(classifier.to("cpu"), sequence_length=texts.max_length))
    return results


def metrics_of(
    classifier: PreTrainedModel,
    samples: Dataset,
    collator: DataCollatorWithPadding,
    *,
    metrics: Sequence[str] = (),
    batch_size: int = 64,
) -> dict[str, Any]:
    """The loss and the metrics of a classifier on a tokenized data set.

    Args:
        classifier: The model.
        samples: The data, with labels.
        collator: Pads batches.
        metrics: Names of metrics; by default the usual one.
        batch_size: Samples in a batch.

    Returns:
        What was measured, by name.

    Raises:
        ValueError: A metric is unknown, or does not fit the model.
    """
    regression = predicts_number(classifier.config)
    names = list(metrics) or default_metrics(regression=regression)
    # Trainer wants a folder for its output, even where it only predicts
    with tempfile.TemporaryDirectory() as scratch:
        trainer = Trainer(
            classifier,
            TrainingArguments(
                output_dir=scratch,
                per_device_eval_batch_size=batch_size,
                report_to="none",
                # pinned memory speeds up copies to a GPU; without one torch warns about it
                dataloader_pin_memory=torch.cuda.is_available(),
            ),
            data_collator=collator,
            compute_metrics=compute_metrics_for(names, regression=regression),
        )
        predicted = trainer.predict(samples, metric_key_prefix="").metrics
    results = {}
    for name, value in predicted.items():
        # samples and steps per second describe the machine, not the model
        if "per_second" in name:
            continue
        # Trainer puts an underscore between its prefix, which is empty here, and the name
        results[name.removeprefix("_")] = value
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
