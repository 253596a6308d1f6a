"""Classes of a data set in the numbering of a model, and the description of labels that a new model needs."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, DatasetDict
from transformers import PretrainedConfig

from hfprune.structure.arguments import TEXT, checked


@checked(label_column=TEXT)
def align_labels(data: DatasetDict, config: PretrainedConfig, label_column: str = "label") -> DatasetDict:
    """Number the classes of a data set as a fine-tuned model does.

    Args:
        data: Splits with a label column.
        config: The model's config; `id2label` has its classes. A model with the default names LABEL_0, LABEL_1 ... is
            assumed to number the classes as the data does.
        label_column: The column with the labels.

    Returns:
        The same data; labels are numbers of the model.

    Raises:
        ValueError: The model does not know a class of the data, or one of them has numbers to predict and the other
            classes.
    """
    feature = data["train"].features[label_column]
    if not isinstance(feature, ClassLabel):
        if config.num_labels != 1:
            raise ValueError(f"the labels are numbers, but the model has {config.num_labels} classes.")
        return data
    number_of = numbers_of(config, feature.names)
    if list(number_of.values()) == list(range(len(feature.names))):
        return data
    # `datasets` wants the whole numbering of the model, also of classes that the data lacks. A class that both have is
    # called as in the data, by whose names `datasets` looks the numbers up.
    name_in_data = {number: name for name, number in number_of.items()}
    model_numbers: dict[str, int] = {}
    for key, model_name in config.id2label.items():
        number = int(key)
        name = name_in_data.get(number, str(model_name))
        model_numbers[name] = number
    return data.align_labels_with_mapping(model_numbers, label_column)


def numbers_of(config: PretrainedConfig, names: Sequence[str]) -> dict[str, int]:
    """The numbers that a fine-tuned model gives to the classes of a data set.

    Args:
        config: The model's config; `id2label` has its classes. A model with the default names LABEL_0, LABEL_1 ... is
            assumed to number the classes as they are listed; or, if their names are numbers of the model, as these say.
        names: The classes of the data.

    Returns:
        From name to number.

    Raises:
        ValueError: The model does not know a class; or it has default names, and not as many classes as the data.

    Examples:
        >>> config = PretrainedConfig(id2label={0: "negative", 1: "positive"})
        >>> numbers_of(config, ["positive", "negative"])
        {'positive': 1, 'negative': 0}
        >>> numbers_of(PretrainedConfig(num_labels=3), ["0", "2"])
        {'0': 0, '2': 2}
    """
    model_numbers = {str(name): int(number) for number, name in config.id2label.items()}
    if _are_default_names(model_numbers):
        # Integer labels of a data set become classes with these integers for names. They keep them, so that "2" is not
        # the second class where no example is of class "1".
        if set(names) <= set(map(str, range(config.num_labels))):
            return {name: int(name) for name in names}
        if len(names) == config.num_labels:
            return _numbered(names)
    elif set(names) <= model_numbers.keys():
        return {name: model_numbers[name] for name in names}
    raise ValueError(
        f"the model knows the classes {', '.join(model_numbers)}, the data has {', '.join(names)}. Write the model's "
        "names into the label column, or the data's into id2label of the model's config; or fine-tune the model on "
        "this data (dense_epochs in the script)."
    )


def _are_default_names(model_numbers: Mapping[str, int]) -> bool:
    """Whether a config only has the names that transformers gives to classes without names."""
    return all(name == f"LABEL_{number}" for name, number in model_numbers.items())


def label_arguments(data: DatasetDict, label_column: str = "label") -> dict[str, Any]:
    """The arguments of `from_pretrained` that describe the labels of a data set.

    Args:
        data: Splits with a label column.
        label_column: The column with the labels.

    Returns:
        The number and names of the classes, or that it is a regression.
    """
    feature = data["train"].features[label_column]
    if not isinstance(feature, ClassLabel):
        return {"num_labels": 1, "problem_type": "regression"}
    return {**named_labels(feature.names), "problem_type": "single_label_classification"}


def named_labels(names: Sequence[str]) -> dict[str, Any]:
    """The arguments of `from_pretrained` that describe labels with these names.

    >>> named_labels(["no", "yes"])
    {'num_labels': 2, 'id2label': {0: 'no', 1: 'yes'}, 'label2id': {'no': 0, 'yes': 1}}
    """
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": _numbered(names),
    }


def _numbered(names: Sequence[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}
