"""Rerankers: pairs of texts without labels, and the scores of the dense model as what is right."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import DatasetDict
from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

from hfprune.encoders import Encoder, load_encoder
from hfprune.jobs.settings import ModelArguments, SequenceArguments
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.samples import sample_metrics_for
from hfprune.jobs.tasks.task import Task, without_rows
from hfprune.measuring.metrics import check_metrics, compute_metrics_for

#: What is measured by default: whether pairs stay in the order that the dense model puts them into, and how near.
METRICS = ("spearman", "pearson")


@dataclass
class RerankerArguments(SequenceArguments):
    """Pairs of texts without labels."""

    query_column: str = field(default="query", metadata={"help": "Column with the first text of a pair."})
    passage_column: str = field(default="passage", metadata={"help": "Column with the second text."})
    reference_model: str | None = field(
        default=None, metadata={"help": "Whose scores are right; by default those of the model that is loaded."}
    )


@register_task("reranking", arguments=RerankerArguments)
def reranking(model: ModelArguments, data: RerankerArguments, *, seed: int) -> Task:
    """Load pairs of texts for a `CrossEncoder`, which is measured by how near it stays to the dense scores.

    Args:
        model: The model: a folder or repository that `CrossEncoder` loads, with one score for a pair.
        data: The pairs.
        seed: Draws the splits that the data lacks.

    Returns:
        The task. The label of a pair is its score by the dense model, before any activation.

    Raises:
        CheckpointError: The model is a pruned checkpoint that `hfprune.load` would refuse.
        MissingDependencyError: sentence-transformers is not installed.
        UnsupportedArchitectureError: It is a reranker of another kind.
        ValueError: Data, columns or metrics do not fit, or the model gives several scores.

    Examples:
        >>> from datasets import Dataset
        >>> from transformers import BertForSequenceClassification
        >>> from hfprune.jobs.tasks import ModelArguments, RerankerArguments, reranking
        >>> dense.config.num_labels = 1
        >>> BertForSequenceClassification(dense.config).save_pretrained("dense")
        >>> _ = tokenizer.save_pretrained("dense")
        >>> _ = Dataset.from_dict({"query": texts, "passage": texts[::-1]}).to_csv("pairs.csv")
        >>> data = RerankerArguments(train_file="pairs.csv", max_length=16)
        >>> task = reranking(ModelArguments("dense"), data, seed=0)
        >>> task.data.num_rows, task.metrics
        ({'train': 14, 'validation': 2, 'test': 2}, ['spearman', 'pearson'])
    """
    metrics = data.metrics or list(METRICS)
    check_metrics(metrics, regression=True)
    columns = [data.query_column, data.passage_column]
    raw = data.load(columns, seed=seed)
    source = model.checked_source()
    encoder = _load(source, model)
    reference = encoder
    if data.reference_model is not None:
        other = model.other(data.reference_model)
        reference = _load(other.checked_source(), other)
    collator = DataCollatorWithPadding(encoder.tokenizer)
    return Task(
        auto_class=AutoModelForSequenceClassification,
        source=source,
        labels={},
        data=_tokenized(raw, encoder, reference, columns, data.max_length),
        processor=encoder.tokenizer,
        collator=collator,
        calibration_collator=collator,
        metrics=metrics,
        compute_metrics=without_rows(compute_metrics_for(metrics, regression=True)),
        sample_metrics=sample_metrics_for(regression=True),
    )


def _load(source: str, model: ModelArguments) -> Encoder:
    """A reranker with one score for a pair, from a source that was checked."""
    encoder = load_encoder(source, class_name="CrossEncoder", device="cpu", **model.loading)
    scores = encoder.model.config.num_labels
    if scores != 1:
        raise ValueError(
            f"{source} gives {scores} scores to a pair, and a reranker gives one. A classifier of pairs is of the "
            "task text_classification, with a pair_column."
        )
    return encoder


def _tokenized(
    raw: DatasetDict, encoder: Encoder, reference: Encoder, columns: list[str], max_length: int
) -> DatasetDict:
    """Pairs as token ids, with the scores of the reference."""
    tokenizer = encoder.tokenizer
    longest = min(max_length, encoder.whole.max_seq_length or max_length)

    def columns_of(rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        first, second = (list(map(str, rows[name])) for name in columns)
        found: dict[str, Any] = tokenizer(first, second, truncation=True, max_length=longest).data
        pairs = list(zip(first, second, strict=True))
        scores = reference.whole.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        return {**found, "labels": [float(score) for score in scores]}

    tokenized = DatasetDict()
    for name, split in raw.items():
        tokenized[name] = split.map(columns_of, batched=True, remove_columns=split.column_names, desc="Tokenizing")
    return tokenized
