"""Text classification: one class or one number for a text or a pair of texts."""

import logging
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from datasets import DatasetDict
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PretrainedConfig,
)

from hfprune.data.classification import load_text_dataset, tokenize
from hfprune.data.label_sets import MULTI_LABEL, align_label_sets, has_label_sets, label_set_arguments
from hfprune.data.labels import align_labels, label_arguments, parse_label_map
from hfprune.data.packages import resolve_model
from hfprune.jobs.settings import LABEL_MAP_HELP, ModelArguments, SequenceArguments
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.samples import sample_metrics_for, sample_metrics_of_label_sets
from hfprune.jobs.tasks.task import Metrics, SampleMetric, Task, without_rows
from hfprune.measuring.label_sets import LABEL_SET_METRICS, label_set_metrics_for
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
    label_column: str = field(
        default="label",
        metadata={"help": "Column with the labels; floats: a regression, lists: several classes a text."},
    )
    label_columns: list[str] = field(
        default_factory=list, metadata={"help": "Instead of it: columns of 0 and 1, one for each of several classes."}
    )
    label_map: str | None = field(default=None, metadata={"help": LABEL_MAP_HELP})


@register_task("text_classification", arguments=TextArguments, architectures=r"ForSequenceClassification$")
def text_classification(model: ModelArguments, data: TextArguments, *, seed: int) -> Task:
    """Load and tokenize labelled texts.

    A model that is fine-tuned here first is told the labels of the data. For a model that is fine-tuned already, the
    labels of the data are numbered as the model numbers them.

    Args:
        model: The model.
        data: The data. Labels that are floats make a regression; lists of classes, of which a text may have several,
            make a multi-label task; and `pair_column` makes a task on pairs of texts.
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
    if model.dense_epochs > 0:
        texts = _with_labels_of_data(data, seed)
    else:
        config = AutoConfig.from_pretrained(source, **model.loading)
        # before the data is read
        _check_metrics(data, config)
        texts = _with_labels_of_model(data, config, seed)
    several = texts.labels.get("problem_type") == MULTI_LABEL
    measured = _measured(data.metrics, several=several, regression=predicts_number(texts.config))
    tokenizer = AutoTokenizer.from_pretrained(source, **model.loading)
    tokenized = tokenize(
        texts.rows,
        tokenizer,
        text_column=data.text_column,
        pair_column=data.pair_column,
        label_column=texts.label_column,
        max_length=data.max_length,
    )
    collator = DataCollatorWithPadding(tokenizer)
    return Task(
        auto_class=AutoModelForSequenceClassification,
        source=source,
        labels=texts.labels,
        data=tokenized,
        processor=tokenizer,
        collator=collator,
        calibration_collator=collator,
        metrics=measured.names,
        compute_metrics=measured.compute,
        sample_metrics=measured.of_samples,
        is_labelled=texts.label_column is not None,
    )


class _Texts(NamedTuple):
    """Texts with the numbers of their labels.

    Attributes:
        rows: The splits.
        label_column: The column with the numbers; None: the data has no labels that could be used.
        labels: Arguments of `from_pretrained` that tell the model its labels.
        config: A config that knows them.
    """

    rows: DatasetDict
    label_column: str | None
    labels: dict[str, Any]
    config: PretrainedConfig


def _with_labels_of_data(data: TextArguments, seed: int) -> _Texts:
    """Texts for a model that is told the labels of the data."""
    raw = _labelled(data, seed)
    label_map = parse_label_map(data.label_map)
    describe = label_set_arguments if has_label_sets(raw, data.label_column) else label_arguments
    labels = describe(raw, data.label_column, label_map=label_map)
    return _numbered(raw, data, PretrainedConfig(**labels), labels, label_map)


def _with_labels_of_model(data: TextArguments, config: PretrainedConfig, seed: int) -> _Texts:
    """Texts whose labels are numbered as the model numbers them; without labels where none are needed, and none fit."""
    try:
        return _numbered(_labelled(data, seed), data, config, {}, parse_label_map(data.label_map))
    except ValueError as error:
        if data.needs_labels:
            raise
        # raises the same error again if it is not about labels
        raw = data.load(_text_columns(data), seed=seed)
        logger.warning("goes on without labels, and measures nothing: %s", error)
    return _Texts(raw, None, {}, config)


def _numbered(
    raw: DatasetDict,
    data: TextArguments,
    config: PretrainedConfig,
    labels: dict[str, Any],
    label_map: dict[str, int | str] | None,
) -> _Texts:
    """Texts with the numbers that a config gives their labels."""
    if has_label_sets(raw, data.label_column):
        rows = align_label_sets(raw, config, data.label_column, label_map=label_map)
        # where the config does not say it, transformers would go by the labels of each batch
        return _Texts(rows, data.label_column, {**labels, "problem_type": MULTI_LABEL}, config)
    rows = align_labels(raw, config, data.label_column, label_map=label_map)
    return _Texts(rows, data.label_column, labels, config)


def _labelled(data: TextArguments, seed: int) -> DatasetDict:
    """The texts with their labels, as the data has them."""
    return load_text_dataset(
        data.dataset,
        config_name=data.dataset_config,
        files=data.files,
        label_column=data.label_column,
        label_columns=data.label_columns,
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


def _check_metrics(data: TextArguments, config: PretrainedConfig) -> None:
    """Refuse metrics that do not suit what the model predicts."""
    if config.problem_type == MULTI_LABEL:
        label_set_metrics_for(data.metrics)
        return
    regression = predicts_number(config)
    # an old config may not say that the model gives several classes to a text
    may_be_of_sets = data.metrics and all(name in LABEL_SET_METRICS for name in data.metrics)
    if not may_be_of_sets:
        check_metrics(data.metrics, regression=regression)
    if data.sample_metric is not None:
        check_sample_metric(data.sample_metric, regression=regression)


class _Measured(NamedTuple):
    """What is measured of a classifier or a regression.

    Attributes:
        names: The names of the metrics.
        compute: Computes them.
        of_samples: The metrics of single samples.
    """

    names: list[str]
    compute: Metrics
    of_samples: dict[str, SampleMetric]


def _measured(asked: list[str], *, several: bool, regression: bool) -> _Measured:
    """The metrics that were asked for, or the usual ones: of several classes a text, of numbers, or of one class."""
    if several:
        names, compute = label_set_metrics_for(asked)
        return _Measured(names, without_rows(compute), sample_metrics_of_label_sets())
    names = asked or default_metrics(regression=regression)
    compute = compute_metrics_for(names, regression=regression)
    return _Measured(names, without_rows(compute), sample_metrics_for(regression=regression))
