"""The classes of a data set in the numbering of the model of a job, alone or beside pictures and sounds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from datasets import DatasetDict, concatenate_datasets
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from hfprune.data.classification import encode_labels
from hfprune.data.labels import align_labels, label_arguments, parse_label_map
from hfprune.data.loading import with_splits
from hfprune.data.media import Medium
from hfprune.jobs.settings import DataArguments, ModelArguments
from hfprune.structure.predictions import predicts_number

#: The column of labels that models take.
LABELS = "labels"


class Numbered(NamedTuple):
    """Labels as a model numbers them.

    Attributes:
        data: The splits. Their labels are in the column that they came in, or in `labels`.
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
        config = AutoConfig.from_pretrained(source, **model.loading)
    aligned = align_labels(encoded, config, label_column, label_map=named)
    return Numbered(data=aligned, labels=labels, regression=predicts_number(config))


def numbered_files(
    medium: Medium,
    data: DataArguments,
    model: ModelArguments,
    source: str,
    *,
    column: str,
    label_column: str,
    label_map: str | None,
    seed: int,
) -> Numbered:
    """Load pictures or sounds, and number their classes.

    Args:
        medium: What kind of files.
        data: The arguments of the data.
        model: The arguments of the model.
        source: Where the model is loaded from.
        column: The column with the files.
        label_column: The column with the labels.
        label_map: As the user wrote it; None for no map.
        seed: Draws the splits that the data lacks.

    Returns:
        The labels, in `labels`, with the files in their column.

    Raises:
        ValueError: Data or columns do not fit, or which class is which cannot be told.
    """
    files = data.load_files(medium, column=column, label_column=label_column, seed=seed)
    # without the files, whose contents would be copied with the new numbers
    alone = files.select_columns(label_column)
    labels = numbered(alone, model, source, label_column=label_column, label_map=label_map)
    joined = DatasetDict()
    for split, rows in files.items():
        renamed = labels.data[split].rename_columns({label_column: LABELS})
        joined[split] = concatenate_datasets([rows.select_columns(column), renamed], axis=1)
    # last, as rows that were drawn from others would be copied when they are joined
    return labels._replace(data=with_splits(joined, seed, reuse_validation=data.reuse_validation))


def labels_of(rows: Sequence[Mapping[str, Any]]) -> Tensor:
    """The labels of rows, for a batch.

    Args:
        rows: The rows: with the number of a class each, or with a number to predict.

    Returns:
        `(rows,)` int64 for classes, float32 for numbers.
    """
    labels = [row[LABELS] for row in rows]
    dtype = torch.float32 if isinstance(labels[0], float) else torch.long
    return torch.tensor(labels, dtype=dtype, device="cpu")
