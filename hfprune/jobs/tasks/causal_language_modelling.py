"""Causal language modelling: recovery of a decoder from plain text, or from text that the dense model writes."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import DatasetDict
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase, default_data_collator

from hfprune.data.corpus import cut_splits, load_documents, pack, self_generated
from hfprune.data.packages import resolve_model
from hfprune.jobs.settings import CausalTextArguments, ModelArguments
from hfprune.jobs.tasks.task import Task
from hfprune.structure.batches import Batch

METRICS = ("perplexity", "loss")


def causal_language_modelling(model: ModelArguments, data: CausalTextArguments, *, seed: int) -> Task:
    """Read text and pack it into windows of `max_length` tokens; every token but the first of a window is predicted.

    The perplexity is that of `hfprune.perplexity` with window = stride = `max_length`. Splits that the data lacks are
    cut from the windows of train. With `self_generated` the dense model writes those of train.

    Args:
        model: Which model.
        data: Which text: txt files as a whole, or a column.
        seed: Of the splits that the data lacks, and of text that is generated.

    Returns:
        The task.

    Raises:
        ValueError: Data, columns or metrics do not fit, windows have less than two tokens, or there is too little text.
        FileNotFoundError: A named corpus is not there.
    """
    metrics = data.metrics or list(METRICS)
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(
            f"unknown metric {unknown[0]!r} of causal language modelling; these are: {', '.join(METRICS)}."
        )
    if data.max_length < 2:
        raise ValueError(
            f"max_length must be at least 2, got {data.max_length}: tokens are predicted from those before."
        )
    source = resolve_model(model.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=model.trust_remote_code)
    windows = _generated(model, source, tokenizer, data, seed) if data.self_generated else _read(tokenizer, data, seed)
    return Task(
        auto_class=AutoModelForCausalLM,
        source=source,
        labels={},
        data=cut_splits(windows, seed),
        tokenizer=tokenizer,
        collator=labelled,
        calibration_collator=labelled,
        metrics=metrics,
        compute_metrics=_scores,
        preprocess_logits=_losses,
    )


def _read(tokenizer: PreTrainedTokenizerBase, data: CausalTextArguments, seed: int) -> DatasetDict:
    raw = load_documents(
        data.dataset, config_name=data.dataset_config, files=data.files, text_column=data.text_column, seed=seed
    )
    return _windows(raw, tokenizer, data)


def _windows(raw: DatasetDict, tokenizer: PreTrainedTokenizerBase, data: CausalTextArguments) -> DatasetDict:
    splits = DatasetDict({name: raw[name] for name in ("train", "validation", "test") if name in raw})
    return pack(splits, tokenizer, text_column=data.text_column, max_length=data.max_length, whole=True)


def _generated(
    model: ModelArguments, source: str, tokenizer: PreTrainedTokenizerBase, data: CausalTextArguments, seed: int
) -> DatasetDict:
    """What the dense model writes, and beside it validation and test texts of the user's, if there are any."""
    if data.dataset or data.train_file:
        raise ValueError(
            f"self_generated={data.self_generated} has the dense model write what is learned from, and "
            f"{data.dataset or data.train_file!r} has it too. Drop one of the two; other files may stay."
        )
    windows = DatasetDict()
    if data.files:
        files = {"train": next(iter(data.files.values())), **data.files}
        raw = load_documents(files=files, text_column=data.text_column)
        del raw["train"]
        windows = _windows(raw, tokenizer, data)
    writer = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=model.trust_remote_code)
    written = self_generated(writer, tokenizer, samples=data.self_generated, tokens=data.max_length, seed=seed)
    return DatasetDict({"train": written, **windows})


def labelled(rows: list[dict[str, Any]]) -> Batch:
    """A batch of windows of one length, with their own tokens for labels."""
    batch: Batch = default_data_collator(rows)
    return {**batch, "labels": batch["input_ids"].clone()}


def _losses(logits: Any, labels: Tensor) -> Tensor:
    """The loss of every token but the first in nats, `(N, tokens − 1)`, in place of `(N, tokens, words)` logits."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    pairs = zip(logits, labels, strict=True)  # a text at a time: float32 copies of all logits would be large
    return torch.stack([F.cross_entropy(row[:-1].float(), wanted[1:], reduction="none") for row, wanted in pairs])


def _scores(prediction: Any) -> dict[str, float]:
    """Mean loss of the tokens in nats, and its exponential; Trainer reports this `loss` in place of its own."""
    wanted = prediction.label_ids[:, 1:] != -100
    loss = float(np.mean(prediction.predictions[wanted], dtype=np.float64))
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss}
