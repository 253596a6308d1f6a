"""Sentence embeddings: texts without labels, and the embeddings of the dense model as what is right."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from torch import Tensor
from transformers import DataCollatorWithPadding, EvalPrediction

from hfprune.encoders import AutoSentenceEmbedder, Encoder, load_encoder
from hfprune.encoders.opening import default_prompt
from hfprune.jobs.settings import ModelArguments, SequenceArguments
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.task import Task, choose_metrics, logits_of
from hfprune.measuring.embeddings import cosines_to, embedding_metrics

METRICS = ("cosine", "cosine_5", "spearman", "ndcg_10", "recall_10")
#: Every text is compared with every other, so no more of them are measured.
_MOST_TEXTS = 4000


@dataclass
class EmbeddingArguments(SequenceArguments):
    """Texts without labels."""

    example_file: ClassVar[str] = "train.txt"

    text_column: str = field(default="text", metadata={"help": "Column with the text; a line of a txt file is one."})
    reference_model: str | None = field(
        default=None, metadata={"help": "Whose embeddings are right; by default those of the model that is loaded."}
    )


@register_task("sentence_embeddings", arguments=EmbeddingArguments)
def sentence_embeddings(model: ModelArguments, data: EmbeddingArguments, *, seed: int) -> Task:
    """Load texts for a `SentenceTransformer`, which is measured by how near it stays to the dense embeddings.

    Args:
        model: The model: a folder or repository of sentence-transformers.
        data: The texts. Of the splits `validation` and `test` the first 4,000 are used.
        seed: Draws the splits that the data lacks.

    Returns:
        The task. The labels of a text are its embedding by the dense model.

    Raises:
        CheckpointError: The model is a pruned checkpoint that `hfprune.load` would refuse.
        MissingDependencyError: sentence-transformers is not installed.
        UnsupportedArchitectureError: There is no single model of texts in it that hfprune could take.
        ValueError: Data, columns or metrics do not fit.

    Examples:
        >>> from datasets import Dataset
        >>> from hfprune.jobs.tasks import EmbeddingArguments, ModelArguments, sentence_embeddings
        >>> dense.base_model.save_pretrained("body")
        >>> _ = tokenizer.save_pretrained("body")
        >>> _ = Dataset.from_dict({"text": texts}).to_csv("texts.csv")
        >>> data = EmbeddingArguments(train_file="texts.csv", max_length=8)
        >>> task = sentence_embeddings(ModelArguments("body"), data, seed=0)
        >>> task.data.num_rows, task.metrics[0]
        ({'train': 14, 'validation': 2, 'test': 2}, 'cosine')
    """
    metrics = choose_metrics(data.metrics, METRICS, task="sentence embeddings")
    raw = data.load([data.text_column], seed=seed)
    source = model.checked_source()
    encoder = load_encoder(source, device="cpu", **model.loading)
    reference = encoder
    if data.reference_model is not None:
        other = model.other(data.reference_model)
        reference = load_encoder(other.checked_source(), device="cpu", **other.loading)
    collator = DataCollatorWithPadding(encoder.tokenizer)
    return Task(
        auto_class=AutoSentenceEmbedder,
        source=source,
        labels={},
        data=_tokenized(raw, encoder, reference, data),
        processor=encoder.tokenizer,
        collator=collator,
        calibration_collator=collator,
        metrics=metrics,
        compute_metrics=_compute_metrics,
        sample_metrics={"cosine": _cosines},
        preprocess_logits=_embeddings,
    )


def _tokenized(raw: DatasetDict, encoder: Encoder, reference: Encoder, data: EmbeddingArguments) -> DatasetDict:
    """Texts as token ids, and those that are measured on with their right embeddings."""
    tokenizer = encoder.tokenizer
    prompt = default_prompt(encoder.whole) or ""
    longest = min(data.max_length, encoder.whole.max_seq_length or data.max_length)

    def columns_of(rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        texts = [f"{prompt}{text}" for text in rows[data.text_column]]
        columns: dict[str, Any] = tokenizer(texts, truncation=True, max_length=longest).data
        return columns

    tokenized = DatasetDict()
    for name, split in raw.items():
        if name != "train":
            split = split.select(range(min(len(split), _MOST_TEXTS)))
        rows = split.map(columns_of, batched=True, remove_columns=split.column_names, desc="Tokenizing")
        if name != "train":
            vectors = reference.embed(split[data.text_column])
            rows = rows.add_column("labels", vectors.tolist())
        tokenized[name] = rows
    return tokenized


def _embeddings(outputs: Any, labels: Tensor) -> Tensor:  # noqa: ARG001 (Trainer hands both over)
    """The embeddings alone."""
    return logits_of(outputs)


def _pair(prediction: EvalPrediction) -> tuple[Tensor, Tensor]:
    """The embeddings by the model, and the right ones."""
    mine = torch.from_numpy(np.asarray(prediction.predictions))
    theirs = torch.from_numpy(np.asarray(prediction.label_ids))
    return mine, theirs


def _compute_metrics(prediction: EvalPrediction, rows: Dataset) -> dict[str, float]:  # noqa: ARG001
    """All measures of embeddings that need no labels of people."""
    mine, theirs = _pair(prediction)
    return embedding_metrics(mine, theirs)


def _cosines(prediction: EvalPrediction, rows: Dataset) -> list[float]:  # noqa: ARG001 (all metrics get both)
    """The cosine of every text to its right embedding."""
    mine, theirs = _pair(prediction)
    cosines: list[float] = cosines_to(mine, theirs).tolist()
    return cosines
