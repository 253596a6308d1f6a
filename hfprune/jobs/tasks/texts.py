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
from hfprune.data.labels import LabelMap, align_labels, label_arguments, parse_label_map
from hfprune.jobs.settings import LABEL_MAP_HELP, ModelArguments, SequenceArguments
from hfprune.jobs.tasks.registry import register_task
from hfprune.jobs.tasks.samples import (
    check_label_set_sample_metric,
    sample_metrics_for,
    sample_metrics_of_label_sets,
)
from hfprune.jobs.tasks.task import Metrics, SampleMetric, Task, without_rows
from hfprune.measuring.label_sets import label_set_metrics_for
from hfprune.measuring.metrics import check_metrics, compute_metrics_for, default_metrics
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
    source = model.checked_source()
    label_map = parse_label_map(data.label_map)
    label_column: str | None = data.label_column
    labels: dict[str, Any] = {}
    if model.dense_epochs > 0:
        raw = _labelled(data, seed)
        describe = label_set_arguments if has_label_sets(raw, data.label_column) else label_arguments
        labels = describe(raw, data.label_column, label_map=label_map)
        config = PretrainedConfig(**labels)
        raw, several = _aligned(raw, config, data, label_map)
    else:
        config = AutoConfig.from_pretrained(source, **model.loading)
        # before the data is read
        _check_metrics(data, config)
        several = False
        try:
            raw, several = _aligned(_labelled(data, seed), config, data, label_map)
        except ValueError as error:
            if data.needs_labels:
                raise
            # raises the same error again if it is not about labels
            raw = data.load(_text_columns(data), seed=seed)
            label_column = None
            logger.warning("goes on without labels, and measures nothing: %s", error)
    if several:
        # where the config does not say it, transformers would go by the labels of each batch
        labels["problem_type"] = MULTI_LABEL
    measured = _measured(data.metrics, several=several, regression=predicts_number(config))
    tokenizer = AutoTokenizer.from_pretrained(source, **model.loading)
    tokenized = tokenize(
        raw,
        tokenizer,
        text_column=data.text_column,
        pair_column=data.pair_column,
        label_column=label_column,
        max_length=data.max_length,
    )
    collator = DataCollatorWithPadding(tokenizer)
    return Task(
        auto_class=AutoModelForSequenceClassification,
        source=source,
        labels=labels,
        data=tokenized,
        processor=tokenizer,
        collator=collator,
        calibration_collator=collator,
        metrics=measured.names,
        compute_metrics=measured.compute,
        sample_metrics=measured.of_samples,
        is_labelled=label_column is not None,
    )


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


def _aligned(
    raw: DatasetDict, config: PretrainedConfig, data: TextArguments, label_map: LabelMap | None
) -> tuple[DatasetDict, bool]:
    """The texts with labels as the model has them, and whether a text may have several."""
    several = has_label_sets(raw, data.label_column)
    align = align_label_sets if several else align_labels
    return align(raw, config, data.label_column, label_map=label_map), several


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
        check_label_set_sample_metric(data.sample_metric)
        return
    regression = predicts_number(config)
    check_metrics(data.metrics, regression=regression)
    if data.sample_metric is not None:
        check_sample_metric(data.sample_metric, regression=regression)
