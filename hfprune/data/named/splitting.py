"""The splits of a data set that comes without any."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from datasets import Dataset, DatasetDict, Features

Item = TypeVar("Item")


def three_parts(items: Sequence[Item], *, validation: float, test: float, seed: int) -> dict[str, list[Item]]:
    """Draw three parts from items that may not be in two of them: rows, or what rows belong to, such as texts.

    Args:
        items: The items.
        validation: The share of validation, from 0 to 1.
        test: The share of test.
        seed: Of the draw.

    Returns:
        The items of `train`, `validation` and `test`; at least one each in the last two.

    Examples:
        >>> parts = three_parts("abcdefghij", validation=0.1, test=0.2, seed=0)
        >>> [len(part) for part in parts.values()], sorted(sum(parts.values(), [])) == list("abcdefghij")
        ([7, 1, 2], True)
    """
    shuffled = list(items)
    random.Random(seed).shuffle(shuffled)
    end_of_test = max(1, round(test * len(shuffled)))
    end_of_validation = end_of_test + max(1, round(validation * len(shuffled)))
    return {
        "train": shuffled[end_of_validation:],
        "validation": shuffled[end_of_test:end_of_validation],
        "test": shuffled[:end_of_test],
    }


def as_splits(rows: Mapping[str, list[dict[str, Any]]], features: Features) -> DatasetDict:
    """Make data sets of rows.

    Args:
        rows: The rows by split.
        features: The types of their columns.

    Returns:
        The splits.

    Examples:
        >>> from datasets import Value
        >>> as_splits({"train": [{"text": "a dog"}]}, Features({"text": Value("string")}))["train"][0]
        {'text': 'a dog'}
    """
    splits = DatasetDict()
    for split, part in rows.items():
        columns = {column: [row[column] for row in part] for column in features}
        splits[split] = Dataset.from_dict(columns, features=features)
    return splits
