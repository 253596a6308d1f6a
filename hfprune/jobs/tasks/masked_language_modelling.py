"""Masked language modelling: recovery for no task in particular, from plain text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    DataCollatorForTokenClassification,
    PreTrainedTokenizerBase,
)

from hfprune.data.corpus import pack
from hfprune.data.loading import load_splits
from hfprune.data.packages import resolve_model
from hfprune.jobs.settings import MaskedTextArguments, ModelArguments
from hfprune.jobs.tasks.task import Task
from hfprune.scoring import Collator
from hfprune.structure.batches import Batch

METRICS = ("perplexity", "loss", "masked_accuracy")


def masked_language_modelling(model: ModelArguments, data: MaskedTextArguments, *, seed: int) -> Task:
    """Read text and pack it; what is masked changes in training and is fixed for evaluation.

    Validation and test are masked once, row by row, so every model is measured on the same masks, with whatever batch
    size and in however many processes.

    Args:
        model: Which model.
        data: Which text: lines of txt files, or a column.
        seed: Of the splits that the data lacks, of the fixed masks, and of those of calibration.

    Returns:
        The task.

    Raises:
        ValueError: Data, columns or metrics do not fit, or the tokenizer has no mask token.
    """
    metrics = data.metrics or list(METRICS)
    unknown = [name for name in metrics if name not in METRICS]
    if unknown:
        raise ValueError(
            f"unknown metric {unknown[0]!r} of masked language modelling; these are: {', '.join(METRICS)}."
        )
    raw = load_splits(
        data.dataset, config_name=data.dataset_config, files=data.files, columns=[data.text_column], seed=seed
    )
    source = resolve_model(model.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=model.trust_remote_code)

    def collator(masks_seed: int | None) -> Collator:
        return _Collator(
            masking=DataCollatorForLanguageModeling(tokenizer, mlm_probability=data.mask_probability, seed=masks_seed),
            padding=DataCollatorForTokenClassification(tokenizer),
        )

    packed = pack(raw, tokenizer, text_column=data.text_column, max_length=data.max_length)
    for split in ("validation", "test"):
        packed[split] = masked(packed[split], tokenizer, probability=data.mask_probability, seed=seed)
    return Task(
        auto_class=AutoModelForMaskedLM,
        source=source,
        labels={},
        data=packed,
        tokenizer=tokenizer,
        collator=collator(None),
        calibration_collator=collator(seed),
        metrics=metrics,
        compute_metrics=_scores,
        preprocess_logits=_losses_and_choices,
    )


@dataclass(frozen=True)
class _Collator:
    """Masks at random the rows that have no labels, and pads those that have."""

    masking: Collator
    padding: Collator

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        if "labels" in rows[0]:
            return self.padding(rows)
        for _ in range(100):  # a short batch may have drawn nothing to predict, and so no loss
            batch = self.masking(rows)
            if (batch["labels"] != -100).any():
                break
        return batch


def masked(split: Dataset, tokenizer: PreTrainedTokenizerBase, *, probability: float, seed: int) -> Dataset:
    """The rows with tokens masked once and for all.

    Args:
        split: Rows with `input_ids`.
        tokenizer: The model's tokenizer.
        probability: The share of tokens to predict; of these 80 % are masked, 10 % replaced, 10 % left, as in BERT.
        seed: Of the masks.

    Returns:
        The rows with `input_ids` as the model sees them, and `labels`: what is to be predicted, −100 elsewhere.
    """

    def mask(rows: Mapping[str, list[Any]], indices: list[int]) -> dict[str, Any]:
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability, seed=seed + indices[0])
        batches = [collator([{"input_ids": ids}]) for ids in rows["input_ids"]]
        return {name: [batch[name][0].tolist() for batch in batches] for name in ("input_ids", "labels")}

    return split.map(mask, batched=True, with_indices=True, desc="Masking")


def _losses_and_choices(logits: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """For every token the loss and the likeliest token, `(N, tokens)` each, in place of `(N, tokens, words)` logits."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    wanted = labels != -100
    losses = torch.zeros(labels.shape, device=logits.device)
    losses[wanted] = F.cross_entropy(logits[wanted].float(), labels[wanted], reduction="none")
    return losses, logits.argmax(-1)


def _scores(prediction: Any) -> dict[str, float]:
    """Of the masked tokens of all rows: mean loss in nats, its exponential, and how many were guessed.

    Trainer reports this `loss` in place of its own, a mean over batches, which depends on their size.
    """
    losses, choices = prediction.predictions
    wanted = prediction.label_ids != -100
    loss = float(np.mean(losses[wanted], dtype=np.float64))
    right = float(np.mean(choices[wanted] == prediction.label_ids[wanted]))
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "masked_accuracy": right}
