"""Files of texts as people have them: csv, tsv, json, jsonl, parquet, txt and CoNLL, compressed or not."""

import bz2
import codecs
import glob
import gzip
import lzma
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import datasets
from datasets import Dataset

#: The loader of each kind of file: that of `datasets`, or `conll`, which is read here.
_LOADERS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".conll": "conll",
}
#: What opens a compressed file as text.
_OPENERS: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
#: What a csv file may be separated by, if not by commas.
_OTHER_SEPARATORS = {";": "';'", "\t": r"'\t'", "|": "'|'"}
#: The byte-order marks with which a file of text says how it is encoded, the longer first: one begins as another does.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
#: A suffix of letters: names of data sets on the Hub seldom end in one, names of files always do.
_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]{0,7}")
#: Says of a name that it is one of the Hub, whatever it looks like.
_ON_THE_HUB = "hf://datasets/"
KINDS = f"{', '.join(_LOADERS)} (also with {', '.join(_OPENERS)} behind it)"


def is_file_name(name: str) -> bool:
    """Whether a name is that of a file, be it there or not, and not of a folder or of a data set on the Hub.

    >>> is_file_name("CAPS.CSV.gz"), is_file_name("mine.xlsx"), is_file_name("nyu-mll/glue"), is_file_name("me/v1.1")
    (True, True, False, False)

    Args:
        name: What the user wrote.

    Returns:
        Whether it is.
    """
    path = Path(name)
    if name.startswith(_ON_THE_HUB) or path.is_dir():
        return False
    return path.is_file() or _SUFFIX.fullmatch(path.suffix) is not None


def hub_name(name: str) -> str:
    """The name of a data set on the Hub, or of a folder here; what can be neither is refused.

    >>> hub_name("hf://datasets/me/texts.csv")
    'me/texts.csv'

    Args:
        name: What the user wrote; with `hf://datasets/` in front it is a name of the Hub, even if it looks like a file.

    Returns:
        The name.

    Raises:
        ValueError: It is the path of a folder that does not exist.
    """
    if name.startswith(_ON_THE_HUB):
        return name.removeprefix(_ON_THE_HUB)
    if Path(name).is_dir():
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ValueError(f"there is no folder {name!r}.")
    return name


def read_file(
    file: str, split: str, *, documents: bool = False, separator: str | None = None, encoding: str | None = None
) -> Dataset:
    r"""Read one file.

    Args:
        file: Its path; upper and lower case of the suffix are alike.
        split: What it is read for, for messages.
        documents: A txt file is one text, with its line breaks, instead of one text a line.
        separator: What stands between the columns of a csv, tsv or CoNLL file, by default a comma, a tab, or white
            space. `\t`, as a shell passes it, is a tab.
        encoding: Of texts, such as `latin-1`; by default UTF-8.

    Returns:
        The rows. A CoNLL file has the columns `tokens` and `ner_tags`: the first and the last of each of its lines. Its
        lines `-DOCSTART-`, and comments with a `=` in front of a sentence, are left out.

    Raises:
        ValueError: The file does not exist, is of an unknown kind, or cannot be read; or an option does not fit it.
    """
    path = Path(file)
    kind = _kind_of(path, split)
    loader = _LOADERS[kind]
    _check_options(file, loader, separator=separator, encoding=encoding)
    codec = encoding or "utf-8"
    if loader != "parquet":
        _check_mark(path, codec)
    if loader == "conll":
        return _read_conll(path, _unescaped(separator), codec)
    if loader != "parquet":
        _check_decodes(path, codec)
    if kind == ".csv" and separator is None:
        _check_commas(path, codec)
    options: dict[str, Any] = {}
    if loader == "csv":
        usual = "\t" if kind == ".tsv" else ","
        options["sep"] = _unescaped(separator) or usual
    if loader == "text":
        options["sample_by"] = "document" if documents else "line"
    if encoding is not None:
        options["encoding"] = encoding
    rows = _load(loader, file, split, options)
    if rows is None or not len(rows):
        raise ValueError(f"the {split} file {file!r} has no rows. Write at least one, or leave the file out.")
    return rows


def _load(loader: str, file: str, split: str, options: dict[str, Any]) -> Dataset | None:
    """Read a file with a loader of `datasets`; None if it says that there are no rows."""
    try:
        # `datasets` takes a path as a pattern, so brackets and the like in it are escaped. One file is always a split
        # of the name `train` to it.
        return datasets.load_dataset(loader, data_files=glob.escape(file), split="train", **options)
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"the {split} file {file!r} cannot be read: {error.__cause__ or error}") from error
    # the loader of json looks for a first row in vain
    except StopIteration:
        return None
    # of a csv file that ends after its head
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        return None


def _kind_of(path: Path, split: str) -> str:
    """The suffix that says how a file is read, without that of its compression."""
    if not path.is_file():
        raise ValueError(f"the {split} file {str(path)!r} does not exist.")
    name = path.name.lower()
    for compressed in _OPENERS:
        name = name.removesuffix(compressed)
    suffix = Path(name).suffix
    if suffix not in _LOADERS:
        raise ValueError(f"the {split} file {str(path)!r} should end in one of {KINDS}.")
    return suffix


def _unescaped(separator: str | None) -> str | None:
    r"""The separator that is meant: a shell passes a tab as the two characters `\t`."""
    return None if separator is None else separator.replace("\\t", "\t")


def _check_options(file: str, loader: str, *, separator: str | None, encoding: str | None) -> None:
    """Refuse a separator or an encoding that cannot be, or that the kind of file has no use for."""
    if separator is not None and loader not in ("csv", "conll"):
        raise ValueError(f"{file!r} has no columns to separate: leave the separator {separator!r} out.")
    if separator is not None and len(separator.replace("\\t", "\t")) != 1:
        raise ValueError(f"the separator must be one character, got {separator!r}.")
    if encoding is None:
        return
    if loader == "parquet":
        raise ValueError(f"{file!r} says itself how its texts are encoded: leave the encoding {encoding!r} out.")
    try:
        codecs.lookup(encoding)
    except LookupError:
        raise ValueError(f"there is no encoding {encoding!r}; the usual ones are utf-8, latin-1 and cp1252.") from None


def _not_decoded(file: str, encoding: str, error: UnicodeDecodeError) -> ValueError:
    return ValueError(
        f"{file!r} is not in {encoding}: the byte {error.object[error.start]:#04x} in it is none. "
        "Say how it is encoded, such as --encoding latin-1 or cp1252 (encoding in Python)."
    )


def open_text(path: Path, encoding: str) -> IO[str]:
    """Open a file of text, compressed or not.

    Args:
        path: The file.
        encoding: Of its text.

    Returns:
        What reads it.
    """
    opener = _OPENERS.get(path.suffix.lower(), open)
    return cast(IO[str], opener(path, "rt", encoding=encoding))


def _check_mark(path: Path, encoding: str) -> None:
    """Refuse a file that says itself that it is in another encoding, in which latin-1, say, would read nonsense."""
    opener = _OPENERS.get(path.suffix.lower(), open)
    with opener(path, "rb") as data:
        begin = data.read(4)
    for mark, marked in _MARKS.items():
        if not begin.startswith(mark):
            continue
        if codecs.lookup(encoding).name != marked:
            raise ValueError(
                f"{str(path)!r} begins with the byte-order mark of {marked}, and was to be read as {encoding}. Say how "
                f"it is encoded: --encoding {marked} (encoding in Python), or save it as UTF-8."
            )
        return


def _check_decodes(path: Path, encoding: str) -> None:
    """Refuse a file in another encoding; some loaders find out only when a row is looked at."""
    try:
        with open_text(path, encoding) as text:
            while text.read(1 << 20):
                pass
    except UnicodeDecodeError as error:
        raise _not_decoded(str(path), encoding, error) from error


def _check_commas(path: Path, encoding: str) -> None:
    """Refuse a csv file whose head has no comma, but something else that separates columns."""
    with open_text(path, encoding) as lines:
        head = lines.readline()
    if "," in head:
        return
    for separator, written in _OTHER_SEPARATORS.items():
        if separator in head:
            raise ValueError(
                f"{str(path)!r} begins with {head.strip()[:80]!r}, which has no comma: its columns seem to be "
                f"separated by {written}. Say so: --separator {written} (separator in Python)."
            )


def _read_conll(path: Path, separator: str | None, encoding: str) -> Dataset:
    """The sentences of a CoNLL file: words, and the last column as tags."""
    words: list[list[str]] = []
    tags: list[list[str]] = []
    begins = True
    for first, last in _conll_lines(path, separator, encoding):
        if first is None:
            begins = True
            continue
        if begins:
            words.append([])
            tags.append([])
            begins = False
        words[-1].append(first)
        tags[-1].append(last)
    if not words:
        raise ValueError(f"{str(path)!r} holds no sentence.")
    return Dataset.from_dict({"tokens": words, "ner_tags": tags})


def _conll_lines(path: Path, separator: str | None, encoding: str) -> Iterator[tuple[str | None, str]]:
    """The first and the last cell of every line; None for the first between two sentences."""
    columns = 0
    is_between = True
    try:
        with open_text(path, encoding) as lines:
            for number, line in enumerate(lines, start=1):
                cells = line.rstrip("\r\n").split(separator)
                # -DOCSTART- begins a document of CoNLL-2003
                if not line.strip() or cells[0] == "-DOCSTART-":
                    yield None, ""
                    is_between = True
                    continue
                # such as "# id 8 domain=train"; a word # can begin a sentence too
                if is_between and line.startswith("# ") and "=" in line:
                    continue
                is_between = False
                columns = columns or len(cells)
                if len(cells) < 2 or len(cells) != columns:
                    raise ValueError(
                        f"line {number} of {str(path)!r} has {len(cells)} columns, expected "
                        f"{max(columns, 2)}: a word, then its tag last. Other separators: --separator."
                    )
                yield cells[0], cells[-1]
    except UnicodeDecodeError as error:
        raise _not_decoded(str(path), encoding, error) from error
