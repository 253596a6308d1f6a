"""Texts with several classes each, or none: the classes that a text has, in the numbering of a model (multi-label)."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, List, Value
from transformers import PretrainedConfig

from hfprune.data.labels import (
    LabelMap,
    is_numbered_here,
    mark_numbered_here,
    named_labels,
    numbers_of,
    ordered_classes,
)
from hfprune.data.loading import check_columns, check_filled

MULTI_LABEL = "multi_label_classification"
#: Beginnings of the names of types whose values in a list name classes.
_TYPES_OF_CLASSES = ("string", "large_string", "int", "uint")
#: What may stand in a column of one class, and what it says.
_HAS_CLASS = {"1": True, "1.0": True, "True": True, "0": False, "0.0": False, "False": False}


def has_label_sets(data: DatasetDict, column: str) -> bool:
    """Whether a column holds a list of classes for each text.

    Args:
        data: The splits.
        column: The column.

    Returns:
        Whether it does.

    Examples:
        >>> has_label_sets(DatasetDict(train=Dataset.from_dict({"label": [["red"], []]})), "label")
        True
    """
    return hasattr(data["train"].features[column], "feature")


def from_columns(data: DatasetDict, columns: Sequence[str], label_column: str) -> DatasetDict:
    """One column with lists of classes, in place of several columns that say of one class each whether a text has it.

    Args:
        data: Splits with the columns, which hold 0 and 1, or False and True.
        columns: The columns; their names are those of the classes, in the order of their numbers.
        label_column: The name of the new column.

    Returns:
        The same splits, without the columns and with the new one.

    Raises:
        ValueError: There is one column only, or a column is missing or holds something else.

    Examples:
        >>> rows = Dataset.from_dict({"text": ["a", "b"], "rude": [1, 0], "loud": [1, 1]})
        >>> from_columns(DatasetDict(train=rows), ["rude", "loud"], "label")["train"]["label"][:]
        [[0, 1], [1]]
    """
    if len(columns) < 2:
        raise ValueError(f"label_columns must name at least two columns, got {', '.join(columns)}.")
    check_columns(data["train"].column_names, columns)
    check_filled(data, columns)
    features = data["train"].remove_columns(list(columns)).features.copy()
    features[label_column] = List(ClassLabel(names=list(columns)))

    def collect(rows: Mapping[str, list[Any]]) -> dict[str, list[list[int]]]:
        sets: list[list[int]] = [[] for _ in rows[columns[0]]]
        for number, name in enumerate(columns):
            for classes, value in zip(sets, rows[name], strict=True):
                has_class = _HAS_CLASS.get(str(value))
                if has_class is None:
                    raise ValueError(
                        f"the column {name!r} holds {value!r}; expected 1 for texts of this class, and 0 for others."
                    )
                if has_class:
                    classes.append(number)
        return {label_column: sets}

    collected = DatasetDict()
    for split, rows in data.items():
        # splits may have different other columns
        own = rows.remove_columns(list(columns)).features.copy()
        own[label_column] = features[label_column]
        collected[split] = rows.map(
            collect, batched=True, remove_columns=list(columns), features=own, desc="Collecting the classes"
        )
    mark_numbered_here(collected)
    return collected


def number_label_sets(data: DatasetDict, column: str) -> DatasetDict:
    """Number the classes that are named by strings or other numbers, in alphabetical order.

    Args:
        data: Splits with a column of lists.
        column: The column.

    Returns:
        The same splits; the column holds lists of numbered classes.

    Raises:
        ValueError: The lists hold something else than classes.

    Examples:
        >>> rows = Dataset.from_dict({"label": [["rude", "loud"], []]})
        >>> number_label_sets(DatasetDict(train=rows), "label")["train"]["label"][:]
        [[1, 0], []]
    """
    inner = data["train"].features[column].feature
    if isinstance(inner, ClassLabel):
        return data
    if not str(getattr(inner, "dtype", "")).startswith(_TYPES_OF_CLASSES):
        raise ValueError(f"the column {column!r} holds lists of {inner!r}; expected lists of classes, such as texts.")
    classes: set[Any] = set()
    for split, rows in data.items():
        for number, values in enumerate(rows[column]):
            if len(set(values)) < len(values):
                raise ValueError(
                    f"row {number} (from 0) of the {split} split has a class twice in {column!r}: {values}. A list "
                    "names the classes of a text. If 0 and 1 stand in it for each class, write a column for each class "
                    "(label_columns)."
                )
            classes.update(values)
    ordered = sorted(classes)
    number_of = {value: number for number, value in enumerate(ordered)}

    def encode(rows: Mapping[str, list[Any]]) -> dict[str, list[list[int]]]:
        return {column: [[number_of[value] for value in values] for values in rows[column]]}

    numbered = DatasetDict()
    for split, rows in data.items():
        features = rows.features.copy()
        features[column] = List(ClassLabel(names=list(map(str, ordered))))
        numbered[split] = rows.map(encode, batched=True, features=features, desc="Numbering the classes")
    mark_numbered_here(numbered)
    return numbered


def label_set_arguments(data: DatasetDict, column: str, *, label_map: LabelMap | None = None) -> dict[str, Any]:
    """The arguments of `from_pretrained` that describe the classes of texts that may have several.

    Args:
        data: Splits with a column of lists of numbered classes.
        column: The column.
        label_map: The number that every class shall have, if not the data's.

    Returns:
        The number and names of the classes, and that a text may have several.

    Raises:
        ValueError: The label map does not number the classes of the data.
    """
    names = ordered_classes(_names(data["train"], column), label_map)
    return {**named_labels(names), "problem_type": MULTI_LABEL}


def align_label_sets(
    data: DatasetDict, config: PretrainedConfig, column: str, *, label_map: LabelMap | None = None
) -> DatasetDict:
    """Turn lists of classes into what the model learns: for each of its classes 1 if the text has it, else 0.

    Args:
        data: Splits with a column of lists of numbered classes.
        config: The model's config; `id2label` has its classes.
        column: The column.
        label_map: As for `align_labels`.

    Returns:
        The same data; labels are lists of as many floats as the model has classes.

    Raises:
        ValueError: Which class of the data is which of the model cannot be told, or the model gives one class, or a
            number, to a text.

    Examples:
        >>> config = PretrainedConfig(id2label={0: "loud", 1: "calm", 2: "rude"}, problem_type=MULTI_LABEL)
        >>> rows = Dataset.from_dict({"label": [["rude", "loud"], []]})
        >>> data = number_label_sets(DatasetDict(train=rows), "label")
        >>> align_label_sets(data, config, "label")["train"]["label"][:]
        [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]]
    """
    if config.problem_type not in (MULTI_LABEL, None):
        raise ValueError(
            f"the model is one of {config.problem_type}, and the data has a list of classes for each text. Fine-tune "
            "it on this data first (dense_epochs in the script), or take a model whose config has problem_type = "
            f"{MULTI_LABEL!r}."
        )
    names = _names(data["train"], column)
    have_numbers = not is_numbered_here(data["train"])
    number_of = numbers_of(config, names, label_map=label_map, have_numbers=have_numbers)
    numbers = [number_of[name] for name in names]

    def encode(rows: Mapping[str, list[list[int]]]) -> dict[str, list[list[float]]]:
        labels = []
        for classes in rows[column]:
            label = [0.0] * config.num_labels
            for value in classes:
                label[numbers[value]] = 1.0
            labels.append(label)
        return {column: labels}

    aligned = DatasetDict()
    for split, rows in data.items():
        features = rows.features.copy()
        features[column] = List(Value("float32"))
        aligned[split] = rows.map(encode, batched=True, features=features, desc="Numbering the classes")
    return aligned


def _names(rows: Dataset, column: str) -> list[str]:
    names: list[str] = rows.features[column].feature.names
    return names
