"""Text classification: one class or one number for a text or a pair of texts."""

import logging
from dataclasses import dataclass, field
from typing import Any

from datasets import DatasetDict
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PretrainedConfig,
)

from hfprune.data.classification import load_text_dataset, tokenize
from hfprune.data.labels import align_labels, label_arguments, parse_label_map
from hfprune.data.packages import resolve_model
from hfprune.jobs.settings import LABEL_MAP_HELP, ModelArguments, SequenceArguments
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.samples import sample_metrics_for
from hfprune.jobs.tasks.task import Task, without_rows
from hfprune.measuring.metrics import check_metrics, compute_metrics_for, default_metrics
from hfprune.publishing.sources import check_source
from hfprune.structure.predictions import predicts_number
from hfprune.sweeping.samples import check_sample_metric

logger = logging.getLogger(__name__)


@dataclass
class TextArguments(SequenceArguments):
    """Data of texts, or of pairs of texts, with one label each."""

    text_column: str = field(default="text", metadata={"help": "Column with the text."})
    pair_column: str | None = field(default=None, metadata={"help": "Column with the second text of a pair."})
    label_column: str = field(default="label", metadata={"help": "Column with the labels; floats: a regression."})
    label_map: str | None = field(default=None, metadata={"help": LABEL_MAP_HELP})


@register_task("text_classification", arguments=TextArguments, architectures=r"ForSequenceClassification$")
def text_classification(model: ModelArguments, data: TextArguments, *, seed: int) -> Task:
    """Load and tokenize labelled texts.

    A model that is fine-tuned here first is told the labels of the data. For a model that is fine-tuned already, the
    labels of the data are numbered as the model numbers them.

    Args:
        model: The model.
        data: The data. Labels that are floats make a regression, and `pair_column` makes a task on pairs of texts.
        seed: Draws the splits that the data lacks.

    Returns:
        The task.

    Raises:
        CheckpointError: The model is a pruned checkpoint that `hfprune.load` would refuse.
        ValueError: Data, columns, classes or metrics do not fit.

    Examples:
        >>> from datasets import Dataset
        >>> from hfprune.jobs.tasks import ModelArguments, TextArguments, text_classification
        >>> dense.save_pretrained("dense")
        >>> _ = tokenizer.save_pretrained("dense")
        >>> _ = Dataset.from_dict({"text": texts, "label": ["LABEL_0", "LABEL_1", "LABEL_2"] * 6}).to_csv("train.csv")
        >>> data = TextArguments(train_file="train.csv", max_length=8)
        >>> task = text_classification(ModelArguments("dense"), data, seed=0)
        >>> task.data.num_rows, task.metrics
        ({'train': 14, 'validation': 2, 'test': 2}, ['accuracy'])
    """
    source = resolve_model(model.model_name_or_path)
    check_source(source, revision=model.model_revision)
    label_map = parse_label_map(data.label_map)
    label_column: str | None = data.label_column
    labels: dict[str, Any] = {}
    if model.dense_epochs > 0:
        raw = _labelled(data, seed)
        labels = label_arguments(raw, data.label_column, label_map=label_map)
        config = PretrainedConfig(**labels)
        raw = align_labels(raw, config, data.label_column, label_map=label_map)
    else:
        config = AutoConfig.from_pretrained(source, **model.loading)
        # before the data is read
        _check_metrics(data, regression=predicts_number(config))
        try:
            raw = align_labels(_labelled(data, seed), config, data.label_column, label_map=label_map)
        except ValueError as error:
            if data.needs_labels:
                raise
            # raises the same error again if it is not about labels
            raw = data.load(_text_columns(data), seed=seed)
            label_column = None
            logger.warning("goes on without labels, and measures nothing: %s", error)
    regression = predicts_number(config)
    tokenizer = AutoTokenizer.from_pretrained(source, **model.loading)
    tokenized = tokenize(
        raw,
        tokenizer,
        text_column=data.text_column,
        pair_column=data.pair_column,
        label_column=label_column,
        max_length=data.max_length,
    )
    metrics = data.metrics or default_metrics(regression=regression)
    collator = DataCollatorWithPadding(tokenizer)
    return Task(
        auto_class=AutoModelForSequenceClassification,
        source=source,
        labels=labels,
        data=tokenized,
        processor=tokenizer,
        collator=collator,
        calibration_collator=collator,
        metrics=metrics,
        compute_metrics=without_rows(compute_metrics_for(metrics, regression=regression)),
        sample_metrics=sample_metrics_for(regression=regression),
        is_labelled=label_column is not None,
    )


def _labelled(data: TextArguments, seed: int) -> DatasetDict:
    """The texts with their labels, as the data has them."""
    return load_text_dataset(
        data.dataset,
        config_name=data.dataset_config,
        files=data.files,
        label_column=data.label_column,
        seed=seed,
        reuse_validation=data.reuse_validation,
        separator=data.separator,
        encoding=data.encoding,
    )


def _text_columns(data: TextArguments) -> list[str]:
    columns = [data.text_column]
    if data.pair_column:
        columns.append(data.pair_column)
    return columns


def _check_metrics(data: TextArguments, *, regression: bool) -> None:
    """Refuse metrics that do not suit what the model predicts."""
    check_metrics(data.metrics, regression=regression)
    if data.sample_metric is not None:
        check_sample_metric(data.sample_metric, regression=regression)
