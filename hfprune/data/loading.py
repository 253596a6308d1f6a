"""Data sets from the Hub, from files, or from installed packages, with the splits `train`, `validation` and `test`."""

from collections.abc import Mapping, Sequence

import datasets
from datasets import Dataset, DatasetDict

from hfprune.data.files import hub_name, is_file_name, read_file
from hfprune.data.named import is_named_dataset, named_splits, named_texts
from hfprune.structure.arguments import FLAG, SEED, TEXT, TEXTS, checked


@checked(columns=TEXTS, seed=SEED, reuse_validation=FLAG)
def load_splits(
    name: str | None = None,
    *,
    config_name: str | None = None,
    files: Mapping[str, str] | None = None,
    columns: Sequence[str],
    label_column: str | None = None,
    seed: int = 0,
    reuse_validation: bool = False,
    separator: str | None = None,
    encoding: str | None = None,
) -> DatasetDict:
    """Load a data set with the splits `train`, `validation` and `test`. Missing splits are cut from train, seeded.

    Args:
        name: One that needs no Hub, such as `trec` (the page Data sets by name has all), or a data set on the Hub.
        config_name: The configuration of a data set on the Hub.
        files: Instead of a name: paths of csv, tsv, json, jsonl, parquet, txt or conll files by split, such as
            `{"train": "train.csv"}`; `train` is needed. They may be compressed (.gz, .bz2, .xz).
        columns: Columns that the data set must have.
        label_column: If all values of this column in the test split are −1 or empty, the split counts as missing.
        seed: Seed of the splits that are cut.
        reuse_validation: If there is no test split, validation serves as both, and no other one is cut from train.
        separator: Of the columns of a csv, tsv or conll file.
        encoding: Of the texts in files, by default UTF-8.

    Returns:
        The three splits.

    Raises:
        ValueError: Neither or both of name and files are given, a file is of an unknown kind, there is no train split
            or no such column, or a cell of it is empty.

    Examples:
        >>> from datasets import Dataset
        >>> from hfprune.data import load_splits
        >>> _ = Dataset.from_dict({"text": texts}).to_csv("texts.csv")
        >>> load_splits(files={"train": "texts.csv"}, columns=["text"]).num_rows
        {'train': 14, 'validation': 2, 'test': 2}
    """
    data = load_raw(
        name,
        config_name=config_name,
        files=files,
        columns=columns,
        seed=seed,
        separator=separator,
        encoding=encoding,
    )
    if label_column:
        drop_unlabelled_test(data, label_column)
    check_filled(data, columns)
    return with_splits(data, seed, reuse_validation=reuse_validation)


def drop_unlabelled_test(data: DatasetDict, label_column: str) -> None:
    """Take a test split without labels out of a data set, as those of GLUE on the Hub are: all labels are −1.

    >>> from datasets import Dataset, DatasetDict
    >>> data = DatasetDict(train=Dataset.from_dict({"label": [0, 1]}), test=Dataset.from_dict({"label": [-1, -1]}))
    >>> drop_unlabelled_test(data, "label")
    >>> list(data)
    ['train']

    Args:
        data: The splits; `test` goes if all its labels are −1 or empty.
        label_column: The column with the labels.
    """
    if "test" in data and all(label in (-1, None, "") for label in data["test"][label_column][:]):
        data.pop("test")


def load_raw(
    name: str | None = None,
    *,
    config_name: str | None = None,
    files: Mapping[str, str] | None = None,
    columns: Sequence[str],
    seed: int = 0,
    documents: bool = False,
    separator: str | None = None,
    encoding: str | None = None,
) -> DatasetDict:
    """Load a data set with the splits that its source has; `train` is among them.

    Args:
        name: As for `load_splits`.
        config_name: The configuration of a data set on the Hub.
        files: Instead of a name: paths of files by split.
        columns: Columns that the data set must have.
        seed: Seed of the test splits of the data sets in installed packages.
        documents: A txt file is one text, with its line breaks, instead of one text a line.
        separator: Of the columns of a csv, tsv or conll file.
        encoding: Of the texts in files, by default UTF-8.

    Returns:
        The splits.

    Raises:
        ValueError: As for `load_splits`, except that cells may be empty.
    """
    if (name is None) == (not files):
        raise ValueError("give either the name of a data set or its files.")
    if name is not None and is_file_name(name):
        files = {"train": name}
    if files:
        data = _from_files(files, documents=documents, separator=separator, encoding=encoding)
    elif name is not None and is_named_dataset(name):
        data = named_splits(name, seed)
    else:
        options = _builder_options(separator, encoding)
        data = datasets.load_dataset(hub_name(str(name)), config_name, **options)
    if "train" not in data:
        raise ValueError(f"the data set has the splits {', '.join(data)}, but no 'train'.")
    check_columns(data["train"].column_names, columns)
    # MNLI of GLUE has two validation splits; the matched one has the genres of train.
    if "validation" not in data and "validation_matched" in data:
        data["validation"] = data["validation_matched"]
    return data


def _builder_options(separator: str | None, encoding: str | None) -> dict[str, str]:
    """What `datasets` takes for the files of a folder or of a repository; nothing where nothing is asked for."""
    options: dict[str, str] = {}
    if separator is not None:
        options["sep"] = separator.replace("\\t", "\t")
    if encoding is not None:
        options["encoding"] = encoding
    return options


@checked(name_or_file=TEXT, columns=TEXTS, documents=FLAG)
def load_texts(
    name_or_file: str,
    columns: Sequence[str] = ("text",),
    *,
    documents: bool = False,
    separator: str | None = None,
    encoding: str | None = None,
) -> list[str]:
    """Load all texts of a data set, of all its splits, with or without labels.

    Args:
        name_or_file: A name that needs no Hub, such as `trec` (the page Data sets by name has all), a csv, tsv, json,
            jsonl, parquet or txt file (one text a line), or a data set on the Hub.
        columns: The columns that hold texts.
        documents: A txt file is one text, with its line breaks, instead of one text a line.
        separator: Of the columns of a csv or tsv file.
        encoding: Of the texts in a file, by default UTF-8.

    Returns:
        The texts, split after split, and in each column after column.

    Raises:
        ValueError: A file does not exist, there is no such column, or a text is empty.

    Examples:
        >>> from datasets import Dataset
        >>> from hfprune.data import load_texts
        >>> _ = Dataset.from_dict({"text": texts}).to_csv("texts.csv")
        >>> load_texts("texts.csv")[:2]
        ['the cat sees a mouse', 'a cat sees the old man']
    """
    if is_named_dataset(name_or_file):
        return named_texts(name_or_file, columns)
    if is_file_name(name_or_file):
        data = _from_files({"train": name_or_file}, documents=documents, separator=separator, encoding=encoding)
    else:
        data = datasets.load_dataset(hub_name(name_or_file), **_builder_options(separator, encoding))
    for rows in data.values():
        check_columns(rows.column_names, columns)
    check_filled(data, columns)
    texts: list[str] = []
    for rows in data.values():
        for column in columns:
            texts.extend(rows[column])
    return texts


def check_columns(present: Sequence[str], needed: Sequence[str]) -> None:
    """Refuse data without a column.

    Args:
        present: The columns of the data.
        needed: The columns that it must have.

    Raises:
        ValueError: One of them is missing.
    """
    for column in needed:
        if column not in present:
            raise ValueError(
                f"the data set has no column {column!r}; its columns are {', '.join(present)}.{_hint_for(present)}"
            )


def _hint_for(columns: Sequence[str]) -> str:
    """What may help where a txt file was read as texts."""
    if list(columns) != ["text"]:
        return ""
    return " A txt file has one text a line: name a file of words and tags .conll, and a file of columns .csv or .tsv."


def check_filled(data: DatasetDict, columns: Sequence[str]) -> None:
    """Refuse data with an empty cell.

    Args:
        data: The splits.
        columns: The columns that must be filled.

    Raises:
        ValueError: A cell is empty; the message says how many are, and where the first is.
    """
    for split, rows in data.items():
        for column in columns:
            empty = _empty_cells(rows, column)
            if empty:
                raise ValueError(
                    f"{len(empty)} of {len(rows)} rows of the {split} split have no {column!r}, the first is row "
                    f"{empty[0]} (from 0). Fill them in or leave the rows out. In csv and tsv files words such as NA "
                    "and null count as empty too."
                )


def _empty_cells(rows: Dataset, column: str) -> list[int]:
    """The numbers of the rows whose cell is empty; pictures and sounds stay as they are stored."""
    cells = rows.select_columns([column]).with_format("arrow")[:][column]
    if not cells.null_count:
        return []
    return [row for row, is_empty in enumerate(cells.is_null().to_pylist()) if is_empty]


def _from_files(
    files: Mapping[str, str], *, documents: bool, separator: str | None, encoding: str | None
) -> DatasetDict:
    data = DatasetDict()
    for split, file in files.items():
        data[split] = read_file(file, split, documents=documents, separator=separator, encoding=encoding)
    return data


def _cut(rows: Dataset, split: str, seed: int, together: str | None) -> DatasetDict:
    """Rows in two parts, `train` and, of a tenth of them, `test`; the name of the split is for the message."""
    if together is None:
        _check_enough_rows(len(rows), split)
        return rows.train_test_split(test_size=0.1, seed=seed)
    values = Dataset.from_dict({together: rows.unique(together)})
    if len(values) < 2:
        raise ValueError(
            f"the data has no {split} split, and none can be cut from a train split whose rows all have one "
            f"{together!r}: rows with the same stay together. Pass rows with others, or a file for {split}."
        )
    cut_off = set(values.train_test_split(test_size=0.1, seed=seed)["test"][together])
    parts: dict[str, list[int]] = {"train": [], "test": []}
    for row, value in enumerate(rows[together][:]):
        part = "test" if value in cut_off else "train"
        parts[part].append(row)
    return DatasetDict({part: rows.select(indices) for part, indices in parts.items()})


def _check_enough_rows(rows: int, split: str) -> None:
    """Refuse to cut a split from so few rows that one of the two would be empty."""
    if rows < 2:
        raise ValueError(
            f"the data has no {split} split, and none can be cut from a train split of {rows} row(s): it needs a tenth "
            f"of the rows, at least one, and leaves at least one. Pass more rows, or a file for {split}."
        )


def with_splits(
    data: DatasetDict, seed: int, *, reuse_validation: bool = False, together: str | None = None
) -> DatasetDict:
    """Give data the splits `train`, `validation` and `test`.

    If there is validation but no test, validation becomes test. After that, each missing split is a tenth of train, cut
    off at random.

    Args:
        data: Splits, `train` among them; they are left as they are.
        seed: Seed of the cuts.
        reuse_validation: If there is no test split, validation serves as both.
        together: A column; rows with the same value in it stay together, and a tenth of its values is cut off.

    Returns:
        The three splits.

    Examples:
        >>> from datasets import Dataset
        >>> rows = Dataset.from_dict({"text": [str(number) for number in range(100)]})
        >>> with_splits(DatasetDict(train=rows), seed=0).num_rows
        {'train': 81, 'validation': 9, 'test': 10}
    """
    splits = DatasetDict(data)
    if "test" not in splits and "validation" in splits:
        # Test takes the place of validation, and another validation split is cut below: what decides when training
        # stops must not be what is reported, unless the user asks for it.
        splits["test"] = splits["validation"]
        if not reuse_validation:
            del splits["validation"]
    for split in ("test", "validation"):
        if split not in splits:
            parts = _cut(splits["train"], split, seed, together)
            splits["train"] = parts["train"]
            splits[split] = parts["test"]
    return DatasetDict(train=splits["train"], validation=splits["validation"], test=splits["test"])
