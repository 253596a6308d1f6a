"""The classes of a data set in the numbering of the model of a job."""

from typing import Any, NamedTuple

from datasets import DatasetDict
from transformers import AutoConfig, PretrainedConfig

from hfprune.data.classification import encode_labels
from hfprune.data.labels import align_labels, label_arguments, parse_label_map
from hfprune.jobs.settings import ModelArguments
from hfprune.structure.predictions import predicts_number


class Numbered(NamedTuple):
    """Labels as a model numbers them.

    Attributes:
        data: The splits.
        labels: Arguments of `from_pretrained` that tell the model its labels; empty if the model knows them.
        regression: Whether the labels are numbers to predict, and no classes.
    """

    data: DatasetDict
    labels: dict[str, Any]
    regression: bool


def numbered(
    data: DatasetDict, model: ModelArguments, source: str, *, label_column: str, label_map: str | None
) -> Numbered:
    """Number the classes of a data set: as a fine-tuned model does, or as a model shall that is fine-tuned first.

    Args:
        data: Splits with a label column.
        model: The arguments of the model; they say whether it is fine-tuned first.
        source: Where the model is loaded from.
        label_column: The column with the labels.
        label_map: As the user wrote it; None for no map.

    Returns:
        The labels.

    Raises:
        ValueError: Which class of the data is which of the model cannot be told.
    """
    named = parse_label_map(label_map)
    encoded = encode_labels(data, label_column)
    labels: dict[str, Any] = {}
    if model.dense_epochs > 0:
        labels = label_arguments(encoded, label_column, label_map=named)
        config = PretrainedConfig(**labels)
    else:
        config = AutoConfig.from_pretrained(source, trust_remote_code=model.trust_remote_code)
    aligned = align_labels(encoded, config, label_column, label_map=named)
    return Numbered(data=aligned, labels=labels, regression=predicts_number(config))
