"""Masked language modelling: recovery for no task in particular, from plain text."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

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
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from hfprune.data.corpus import pack
from hfprune.jobs.settings import ModelArguments, SequenceArguments
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.task import Task, choose_metrics, logits_of
from hfprune.scoring import Collator
from hfprune.structure.batches import Batch

METRICS = ("perplexity", "loss", "masked_accuracy")
#: A batch of logits over a large vocabulary takes much memory.
_TEXTS_IN_A_BATCH = 8
#: How often a collator draws masks anew for a batch in which none was drawn.
_MOST_DRAWS = 100


@dataclass
class MaskedTextArguments(SequenceArguments):
    """Plain text, of which some tokens are masked."""

    example_file: ClassVar[str] = "train.txt"

    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    mask_probability: float = field(default=0.15, metadata={"help": "The share of tokens to predict."})


@register_task("masked_language_modelling", arguments=MaskedTextArguments, architectures=r"ForMaskedLM$")
def masked_language_modelling(model: ModelArguments, data: MaskedTextArguments, *, seed: int) -> Task:
    """Load text and pack it. Training masks other tokens in every epoch; evaluation masks the same tokens always.

    Validation and test are masked once, row by row, so every model is measured on the same masks, whatever the batch
    size and the number of processes.

    Args:
        model: The model.
        data: The text: lines of txt files, or a column.
        seed: Draws the splits that the data lacks, and the masks of evaluation and of calibration.

    Returns:
        The task.

    Raises:
        ValueError: Data, columns or metrics do not fit, or the tokenizer has no mask token.

    Examples:
        >>> from datasets import Dataset
        >>> from transformers import BertForMaskedLM
        >>> from hfprune.jobs.tasks import MaskedTextArguments, ModelArguments, masked_language_modelling
        >>> BertForMaskedLM(dense.config).save_pretrained("dense")
        >>> _ = tokenizer.save_pretrained("dense")
        >>> _ = Dataset.from_dict({"text": texts * 4}).to_csv("train.csv")
        >>> data = MaskedTextArguments(train_file="train.csv", max_length=8)
        >>> task = masked_language_modelling(ModelArguments("dense"), data, seed=0)
        >>> task.data.num_rows, task.metrics
        ({'train': 40, 'validation': 5, 'test': 6}, ['perplexity', 'loss', 'masked_accuracy'])
    """
    metrics = choose_metrics(data.metrics, METRICS, task="masked language modelling")
    raw = data.load([data.text_column], seed=seed)
    source = model.checked_source()
    tokenizer = AutoTokenizer.from_pretrained(source, **model.loading)

    def collator(masks_seed: int | None) -> Collator:
        """Make a collator whose masks follow from a seed, or from the global random state for None."""
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
        processor=tokenizer,
        collator=collator(None),
        calibration_collator=collator(seed),
        metrics=metrics,
        compute_metrics=_compute_metrics,
        sample_metrics={"log_likelihood": _log_likelihoods},
        preprocess_logits=_losses_and_choices,
        batch_size=_TEXTS_IN_A_BATCH,
    )


@dataclass(frozen=True)
class _Collator:
    """Masks rows without labels at random (training), and only pads rows that have labels (evaluation).

    Attributes:
        masking: Makes a batch of rows without labels.
        padding: Makes a batch of rows that were masked before.
    """

    masking: Collator
    padding: Collator

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        if "labels" in rows[0]:
            return self.padding(rows)
        # the loss of a batch in which no token is masked would be NaN, and a short batch may well draw none
        for _ in range(_MOST_DRAWS):
            batch = self.masking(rows)
            if (batch["labels"] != -100).any():
                break
        return batch


def masked(split: Dataset, tokenizer: PreTrainedTokenizerBase, *, probability: float, seed: int) -> Dataset:
    """Mask the tokens of all rows once and for all.

    Args:
        split: Rows with `input_ids`.
        tokenizer: The model's tokenizer.
        probability: The share of tokens to predict; of these 80 % are masked, 10 % replaced, 10 % left, as in BERT.
        seed: Draws the masks.

    Returns:
        The rows with `input_ids` as the model sees them, and with `labels`, which are the ids to predict, and −100
        elsewhere.
    """

    def mask(rows: Mapping[str, list[Any]], indices: list[int]) -> dict[str, Any]:
        # `datasets` calls this for a group of rows at a time, and each group has masks of its own
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=probability, seed=seed + indices[0])
        input_ids = []
        labels = []
        for ids in rows["input_ids"]:
            # alone, as the masks that are drawn for several rows depend on the longest of them
            batch = collator([{"input_ids": ids}])
            input_ids.append(batch["input_ids"][0].tolist())
            labels.append(batch["labels"][0].tolist())
        return {"input_ids": input_ids, "labels": labels}

    return split.map(mask, batched=True, with_indices=True, desc="Masking")


def _losses_and_choices(outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of every token and the likeliest token: `(N, tokens)` each, from `(N, tokens, words)` logits."""
    logits = logits_of(outputs)
    is_masked = labels != -100
    losses = torch.zeros(labels.shape, dtype=torch.float32, device=logits.device)
    # only logits of masked tokens become float32, as a copy of all logits would be large
    losses[is_masked] = F.cross_entropy(logits[is_masked].float(), labels[is_masked], reduction="none")
    return losses, logits.argmax(-1)


def _log_likelihoods(prediction: EvalPrediction, rows: Dataset) -> list[float]:  # noqa: ARG001 (all metrics get both)
    """For every row the logarithm of the probability of all its masked tokens, in nats."""
    losses, _ = prediction.predictions
    is_masked = prediction.label_ids != -100
    likelihoods: list[float] = np.where(is_masked, -losses, 0.0).sum(-1).tolist()
    return likelihoods


def _compute_metrics(prediction: EvalPrediction, rows: Dataset) -> dict[str, float]:  # noqa: ARG001
    """Over the masked tokens of all rows: the mean loss in nats, its exponential, and the share of right guesses.

    Trainer reports this `loss` in place of its own, which is a mean over batches and so depends on their size.
    """
    losses, choices = prediction.predictions
    labels = prediction.label_ids
    is_masked = labels != -100
    loss = float(np.mean(losses[is_masked], dtype=np.float64))
    accuracy = float(np.mean(choices[is_masked] == labels[is_masked]))
    # the exponential of more than 709 would raise OverflowError
    return {"perplexity": math.exp(min(loss, 700.0)), "loss": loss, "masked_accuracy": accuracy}
