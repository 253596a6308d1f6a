"""Labels of a data set as a model numbers them, and what a model is told of them."""

from collections.abc import Sequence
from typing import Any

from datasets import ClassLabel, DatasetDict
from transformers import PretrainedConfig


def align_labels(data: DatasetDict, config: PretrainedConfig, label_column: str = "label") -> DatasetDict:
    """Number the classes as a fine-tuned model does.

    Args:
        data: Splits with a label column.
        config: The model's config; `id2label` has its classes. A model that only says LABEL_0, LABEL_1 ... is taken to
            number the classes as the data does.
        label_column: The column with the labels.

    Returns:
        The same data; labels are numbers of the model.

    Raises:
        ValueError: The model does not know a class of the data, or one predicts numbers and the other classes.
    """
    feature = data["train"].features[label_column]
    if not isinstance(feature, ClassLabel):
        if config.num_labels != 1:
            raise ValueError(f"the labels are numbers, but the model has {config.num_labels} classes.")
        return data
    numbers = numbers_of(config, feature.names)
    if list(numbers.values()) == list(range(len(feature.names))):
        return data
    taken = {number: name for name, number in numbers.items()}
    known = {taken.get(int(i), str(name)): int(i) for i, name in config.id2label.items()}
    return data.align_labels_with_mapping(known, label_column)


def numbers_of(config: PretrainedConfig, names: Sequence[str]) -> dict[str, int]:
    """The numbers that a fine-tuned model gives to classes.

    Args:
        config: The model's config; `id2label` has its classes. A model that only says LABEL_0, LABEL_1 ... is taken to
            number the classes as they are listed, or as they are numbered where their names are its numbers.
        names: The classes of the data.

    Returns:
        From name to number.

    Raises:
        ValueError: The model does not know a class, or has no names for its classes and the data has fewer.
    """
    known = {str(name): int(i) for i, name in config.id2label.items()}
    unnamed = all(name == f"LABEL_{i}" for name, i in known.items())
    if unnamed and set(names) <= {str(number) for number in range(config.num_labels)}:
        return {name: int(name) for name in names}
    unknown = [name for name in names if name not in known]
    if (unnamed and len(names) != config.num_labels) or (unknown and not unnamed):
        raise ValueError(
            f"the model knows the classes {', '.join(known)}, the data has {', '.join(names)}. Write the model's names "
            "into the label column, or the data's into id2label of the model's config; or fine-tune the model on this "
            "data (dense_epochs in the script)."
        )
    return {name: i if unnamed else known[name] for i, name in enumerate(names)}


def label_arguments(data: DatasetDict, label_column: str = "label") -> dict[str, Any]:
    """What `from_pretrained` needs to know of the labels: their number and names, or that it is a regression."""
    feature = data["train"].features[label_column]
    if not isinstance(feature, ClassLabel):
        return {"num_labels": 1, "problem_type": "regression"}
    return {**named_labels(feature.names), "problem_type": "single_label_classification"}


def named_labels(names: Sequence[str]) -> dict[str, Any]:
    """What `from_pretrained` needs to know of labels with these names.

    >>> named_labels(["no", "yes"])
    {'num_labels': 2, 'id2label': {0: 'no', 1: 'yes'}, 'label2id': {'no': 0, 'yes': 1}}
    """
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
    }
