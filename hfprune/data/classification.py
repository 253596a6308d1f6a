"""Texts with labels, ready for `Trainer`: classes become numbers, texts become token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import ClassLabel, DatasetDict
from transformers import PreTrainedTokenizerBase

from hfprune.data.label_sets import from_columns, has_label_sets, number_label_sets
from hfprune.data.labels import mark_numbered_here
from hfprune.data.loading import check_columns, check_filled, load_splits
from hfprune.structure.arguments import FLAG, SEED, TEXT, checked, optional, whole

#: Beginnings of the names of Arrow types whose values name classes; floats are numbers to predict.
_TYPES_OF_CLASSES = ("string", "large_string", "int", "uint", "bool")


@checked(label_column=TEXT, seed=SEED, reuse_validation=FLAG)
def load_text_dataset(
    name: str | None = None,
    *,
    config_name: str | None = None,
    files: Mapping[str, str] | None = None,
    label_column: str = "label",
    label_columns: Sequence[str] = (),
    seed: int = 0,
    reuse_validation: bool = False,
    separator: str | None = None,
    encoding: str | None = None,
) -> DatasetDict:
    """Load a labelled data set with the splits `train`, `validation` and `test`, as `load_splits` does.

    Args:
        name: One that needs no Hub, such as `trec` (the page Data sets by name has all), or a data set on the Hub.
        config_name: The configuration of a data set on the Hub, such as `sst2` of `glue`.
        files: Instead of a name: paths of csv, tsv, json, jsonl or parquet files by split, such as
            `{"train": "train.csv"}`; `train` is needed.
        label_column: The column with the labels; classes named by strings get numbers. A test split without labels
            (all −1, as in GLUE, or empty) counts as missing. Where a text may have several classes they are lists.
        label_columns: Instead of it: a column for each of several classes, with 1 for texts that have it, else 0. They
            become one column of lists, called `label_column`.
        seed: Seed of the splits that are cut.
        reuse_validation: If there is no test split, validation serves as both, and no other one is cut from train.
        separator: Of the columns of a csv or tsv file.
        encoding: Of the texts in files, by default UTF-8.

    Returns:
        The three splits.

    Raises:
        ValueError: Neither or both of name and files are given, a file is of an unknown kind, there is no train split
            or label column, or a label is empty.

    Examples:
        >>> from datasets import Dataset
        >>> from hfprune.data import load_text_dataset
        >>> animals = ["cat"] * 6 + ["dog"] * 6 + ["bird"] * 6
        >>> _ = Dataset.from_dict({"text": texts, "label": animals}).to_csv("train.csv")
        >>> data = load_text_dataset(files={"train": "train.csv"})
        >>> data.num_rows
        {'train': 14, 'validation': 2, 'test': 2}
        >>> data["train"].features["label"].names
        ['bird', 'cat', 'dog']
    """
    splits = load_splits(
        name,
        config_name=config_name,
        files=files,
        columns=label_columns or [label_column],
        label_column=None if label_columns else label_column,
        seed=seed,
        reuse_validation=reuse_validation,
        separator=separator,
        encoding=encoding,
    )
    if label_columns:
        return from_columns(splits, label_columns, label_column)
    if has_label_sets(splits, label_column):
        return number_label_sets(splits, label_column)
    return encode_labels(splits, label_column)


def encode_labels(data: DatasetDict, label_column: str) -> DatasetDict:
    """Number the classes that are named by strings, other numbers or truth values; floats stay.

    >>> from datasets import Dataset, DatasetDict
    >>> data = encode_labels(DatasetDict(train=Dataset.from_dict({"label": ["dog", "cat"]})), "label")
    >>> data["train"]["label"][:], data["train"].features["label"].names
    ([1, 0], ['cat', 'dog'])

    Args:
        data: Splits with a label column.
        label_column: The column with the labels.

    Returns:
        The splits; classes have the numbers of their names in alphabetical order, unless they have numbers already.

    Raises:
        ValueError: The column holds neither classes nor numbers.
    """
    feature = data["train"].features[label_column]
    dtype: str | None = getattr(feature, "dtype", None)
    if isinstance(feature, ClassLabel) or (dtype is not None and dtype.startswith("float")):
        return data
    if dtype is None or not dtype.startswith(_TYPES_OF_CLASSES):
        raise ValueError(
            f"the column {label_column!r} holds {feature!r}; expected one class or one number a sample. Texts may have "
            "several classes, as a list; other samples with several go through the Python API with your own batches."
        )
    # Of all splits, as a class may be missing in train; sorted, so that the numbers do not depend on the rows' order.
    classes: set[Any] = set()
    for rows in data.values():
        classes.update(rows.unique(label_column))
    ordered = sorted(classes)
    number_of = {value: number for number, value in enumerate(ordered)}

    def encode(rows: Mapping[str, list[Any]]) -> dict[str, list[int]]:
        return {label_column: [number_of[value] for value in rows[label_column]]}

    features = data["train"].features.copy()
    features[label_column] = ClassLabel(names=list(map(str, ordered)))
    numbered = data.map(encode, batched=True, features=features, desc="Numbering the classes")
    mark_numbered_here(numbered)
    return numbered


@checked(text_column=TEXT, pair_column=optional(TEXT), label_column=optional(TEXT), max_length=whole(least=1))
def tokenize(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_column: str = "text",
    pair_column: str | None = None,
    label_column: str | None = "label",
    max_length: int = 128,
) -> DatasetDict:
    """Make token ids and `labels`, unpadded; pad batches with `DataCollatorWithPadding(tokenizer)`.

    Args:
        data: Splits with text and label columns.
        tokenizer: The model's tokenizer.
        text_column: The column with the text.
        pair_column: The column with the second text of a pair, if there is one.
        label_column: The column with the labels; None for texts without labels.
        max_length: Tokens at which longer texts are cut.

    Returns:
        The same splits with the tokenizer's columns and, if they have labels, `labels` only.

    Raises:
        ValueError: A column is missing, or a text is empty.

    Examples:
        >>> from datasets import Dataset, DatasetDict
        >>> from hfprune.data import tokenize
        >>> rows = Dataset.from_dict({"text": ["the cat sees a mouse", "a dog sees the old man"], "label": [0, 1]})
        >>> train = tokenize(DatasetDict(train=rows), tokenizer)["train"]
        >>> train.column_names, train["labels"][:]
        (['input_ids', 'attention_mask', 'labels'], [0, 1])
        >>> tokenizer.decode(train[1]["input_ids"])
        'a dog sees the old man'
    """
    text_columns = [text_column]
    if pair_column:
        text_columns.append(pair_column)
    columns = list(text_columns)
    if label_column is not None:
        columns.append(label_column)
    check_columns(data["train"].column_names, columns)
    check_filled(data, text_columns)

    def encode(rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        texts = [rows[column] for column in text_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        if label_column is None:
            return dict(encoded)
        return {**encoded, "labels": rows[label_column]}

    # Selected first, as splits may have different other columns, which `map` could not remove.
    selected = data.select_columns(columns)
    return selected.map(encode, batched=True, remove_columns=columns, desc="Tokenizing")
