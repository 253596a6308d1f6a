"""Files of pictures and sounds: folders with a sub-folder a class, tables of file names, and data sets of the Hub.

Nothing is decoded here. A row holds where its file is, or the bytes of it.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Audio, Dataset, DatasetDict, Image

from hfprune.data.files import is_file_name, read_file
from hfprune.data.loading import check_columns, drop_unlabelled_test, load_raw

logger = logging.getLogger(__name__)
#: What sub-folders are called that hold the splits of a data set.
_SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
#: What a folder holds that the package datasets reads: tables, also of what the files beside it mean.
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow")
#: The most names that a message lists.
_LISTED = 8


@dataclass(frozen=True, kw_only=True)
class Medium:
    """A kind of files that a model looks at or listens to.

    Attributes:
        name: What one of them is called in messages.
        suffixes: How names of such files end, in lower case.
        feature: The type of a column with them, not decoded.
    """

    name: str
    suffixes: tuple[str, ...]
    feature: Image | Audio


PICTURES = Medium(
    name="picture",
    suffixes=(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"),
    feature=Image(decode=False),
)
SOUNDS = Medium(
    name="sound",
    suffixes=(".wav", ".flac", ".ogg", ".mp3", ".opus", ".m4a", ".aiff", ".aif"),
    feature=Audio(decode=False),
)


def load_media(
    medium: Medium,
    name: str | None = None,
    *,
    config_name: str | None = None,
    files: Mapping[str, str] | None = None,
    column: str,
    label_column: str,
    seed: int = 0,
    separator: str | None = None,
    encoding: str | None = None,
) -> DatasetDict:
    """Load files with one label each, with the splits that their source has; `train` is among them.

    Args:
        medium: What kind of files: `PICTURES` or `SOUNDS`.
        name: A folder with a sub-folder for each class, or with such a folder for each split; a data set in an
            installed package; or one on the Hub.
        config_name: The configuration of a data set on the Hub.
        files: Instead of a name, by split: folders with a sub-folder for each class, or tables (csv, jsonl ...) with
            names of files, which are relative to the folder of the table, and labels.
        column: The column with the files.
        label_column: The column with the labels: classes, numbers, or texts that are spoken.
        seed: Seed of the splits of a data set in an installed package.
        separator: Of the columns of a table.
        encoding: Of the texts in a table, by default UTF-8.

    Returns:
        The splits, with these two columns. Files are not decoded; of sounds, a data set may also hold the samples in
        time, as `array`, with their `sampling_rate`.

    Raises:
        ValueError: There is no such folder, file or column, a class or a table is empty, a named file does not exist,
            or a column holds something else.

    Examples:
        >>> from pathlib import Path
        >>> from hfprune.data.media import PICTURES, load_media
        >>> for number in range(20):
        ...     path = Path("pictures", "cat" if number % 2 else "dog", f"{number}.png")
        ...     path.parent.mkdir(parents=True, exist_ok=True)
        ...     _ = path.write_bytes(b"not decoded here")
        >>> data = load_media(PICTURES, "pictures", column="image", label_column="label")
        >>> data.num_rows, data["train"].unique("label")
        ({'train': 20}, ['cat', 'dog'])
    """
    columns = [column, label_column]
    if name is not None and not files and is_file_name(name):
        data = DatasetDict(train=_read_table(name, "train", columns, separator=separator, encoding=encoding))
    elif name is not None and not files and Path(name).is_dir() and not _has_tables(Path(name)):
        data = _splits_of_folder(Path(name), medium, column, label_column)
    elif files and name is None:
        data = _of_files(files, medium, columns, separator=separator, encoding=encoding)
    else:
        data = load_raw(
            name,
            config_name=config_name,
            files=files,
            columns=columns,
            seed=seed,
            separator=separator,
            encoding=encoding,
        )
    data = data.select_columns(columns)
    drop_unlabelled_test(data, label_column)
    for split, rows in data.items():
        _check_filled(rows, split, columns)
        data[split] = _as_files(rows, split, medium, column)
    return data


def _of_files(
    files: Mapping[str, str], medium: Medium, columns: list[str], *, separator: str | None, encoding: str | None
) -> DatasetDict:
    """The splits of folders with a sub-folder for each class, and of tables."""
    if "train" not in files:
        raise ValueError(f"files of the splits {', '.join(files)} are given, but none of 'train'.")
    data = DatasetDict()
    for split, file in files.items():
        if Path(file).is_dir():
            data[split] = _read_folder(Path(file), medium, *columns)
        else:
            data[split] = _read_table(file, split, columns, separator=separator, encoding=encoding)
    return data


def _has_tables(folder: Path) -> bool:
    """Whether a folder has tables, which say what the files beside them are, or hold their contents."""
    return any(path.suffix.lower() in _TABLES for path in folder.rglob("*") if path.is_file())


def _sub_folders(folder: Path) -> list[Path]:
    """The folders in a folder, without those of the system and of other programs, whose names begin with a dot."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _splits_of_folder(folder: Path, medium: Medium, column: str, label_column: str) -> DatasetDict:
    """The splits of a folder: those that its sub-folders are called by, or else all files as `train`."""
    split_of = {path: _SPLITS.get(path.name.lower(), "") for path in _sub_folders(folder)}
    if "train" not in split_of.values() or "" in split_of.values():
        return DatasetDict(train=_read_folder(folder, medium, column, label_column))
    if len(set(split_of.values())) < len(split_of):
        raise ValueError(
            f"two folders in {str(folder)!r} hold the same split: {_listed(path.name for path in split_of)}. Keep one "
            "of train, validation and test each."
        )
    data = DatasetDict()
    for path, split in split_of.items():
        data[split] = _read_folder(path, medium, column, label_column)
    return data


def _read_folder(folder: Path, medium: Medium, column: str, label_column: str) -> Dataset:
    """The files of a folder with a sub-folder for each class, which is the label of all that is in it."""
    paths: list[str] = []
    labels: list[str] = []
    for sub_folder in _sub_folders(folder):
        found = _files_in(sub_folder, medium)
        if not found:
            logger.warning("%s holds no %s, and is no class", sub_folder, medium.name)
        for path in found:
            paths.append(str(path.resolve()))
            labels.append(sub_folder.name)
    if not paths:
        there = _listed(path.name for path in sorted(folder.iterdir())) or "nothing"
        raise ValueError(
            f"the folder {str(folder)!r} has no sub-folder with a {medium.name} in it: expected a sub-folder for each "
            f"class, with files that end in {', '.join(medium.suffixes)}; it holds {there}."
        )
    return Dataset.from_dict({column: paths, label_column: labels})


def _files_in(folder: Path, medium: Medium) -> list[Path]:
    """All files of a kind in a folder and the folders in it, in the same order on every machine."""
    found: list[Path] = []
    for path in folder.rglob("*"):
        # macOS leaves ._x.png beside x.png on disks of other systems
        if path.suffix.lower() in medium.suffixes and not path.name.startswith(".") and path.is_file():
            found.append(path)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _read_table(file: str, split: str, columns: list[str], *, separator: str | None, encoding: str | None) -> Dataset:
    """A table with names of files in its first column; they become absolute ones."""
    rows = read_file(file, split, separator=separator, encoding=encoding)
    check_columns(rows.column_names, columns)
    rows = rows.select_columns(columns)
    column = columns[0]
    names = rows[column][:]
    # a table of the format parquet may hold the files themselves
    if not all(isinstance(name, str) for name in names):
        return rows
    folder = Path(file).resolve().parent
    # an absolute name stays as it is
    paths = [str(folder / name) for name in names]
    return rows.remove_columns(column).add_column(column, paths)


def _check_filled(rows: Dataset, split: str, columns: Iterable[str]) -> None:
    """Refuse rows with an empty cell. Files are not read for it."""
    for column in columns:
        # the count of the whole table, of which the split may be a part
        if not rows.data.column(column).null_count:
            continue
        empty = [row for row, cell in enumerate(rows.select_columns(column).with_format("arrow")) if _is_null(cell)]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(rows)} rows of the {split} split have no {column!r}, the first is row "
                f"{empty[0]} (from 0). Fill them in or leave the rows out."
            )


def _is_null(cell: Any) -> bool:
    """Whether a table of Arrow of one cell has nothing in it."""
    return bool(cell.column(0).null_count)


def _as_files(rows: Dataset, split: str, medium: Medium, column: str) -> Dataset:
    """Rows whose column is of files that are not decoded. Files that are named exist."""
    feature = rows.features[column]
    if isinstance(feature, type(medium.feature)) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"}):
        return rows.cast_column(column, medium.feature)
    if isinstance(medium.feature, Audio) and isinstance(feature, dict) and {"array", "sampling_rate"} <= set(feature):
        return rows
    if getattr(feature, "dtype", None) not in ("string", "large_string"):
        raise ValueError(
            f"the column {column!r} of the {split} split holds {feature}; expected names of files, or "
            f"{type(medium.feature).__name__} of the package datasets."
        )
    missing = [path for path in rows[column] if not Path(path).is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(rows)} files of the {split} split do not exist, the first is {missing[0]!r}. "
            "Names in a table are relative to its folder."
        )
    return rows.cast_column(column, medium.feature)


def _listed(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" ... ({len(listed)} in all)" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more
