"""Pairs of texts: one that a model reads, and one that it is to write."""

from collections.abc import Mapping
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from hfprune.data.loading import check_columns, check_filled
from hfprune.structure.arguments import TEXT, checked, whole

#: The column of `tokenize_pairs` with the text to write, whole, as metrics compare with it.
REFERENCE = "reference"
#: The column that data sets of the Hub keep a text in several languages in: `{"en": ..., "de": ...}`.
TRANSLATION = "translation"


def pair_columns(
    data: DatasetDict,
    *,
    source_column: str,
    target_column: str,
    source_language: str | None = None,
    target_language: str | None = None,
) -> tuple[DatasetDict, str, str]:
    """Find the two columns of texts, also inside of a column `translation` with a text in several languages.

    Args:
        data: The splits.
        source_column: The column with the text to read. `translation.en` is the text `en` inside of `translation`.
        target_column: The column with the text to write.
        source_language: Where these columns are missing and there is a column `translation`: the language in it, such
            as `en`; of a longer code, such as `en_XX`, the part before the underscore will do.
        target_language: The same of the text to write.

    Returns:
        The splits, with the texts inside of columns as columns of their own if they are needed; and the names of both.

    Raises:
        ValueError: There are no such columns, they hold no texts, or a cell is empty.

    Examples:
        >>> from datasets import Dataset, DatasetDict
        >>> rows = Dataset.from_dict({"translation": [{"en": "a cat", "de": "eine Katze"}]})
        >>> columns = {"source_column": "source", "target_column": "target"}
        >>> languages = {"source_language": "en_XX", "target_language": "de_DE"}
        >>> found, source, target = pair_columns(DatasetDict(train=rows), **columns, **languages)
        >>> source, target, found["train"][source][0]
        ('translation.en', 'translation.de', 'a cat')
    """
    there = data["train"].column_names
    if source_column not in there or target_column not in there:
        # what is nested in a column becomes a column: `translation` with `en` in it becomes `translation.en`
        flat = DatasetDict({split: rows.flatten() for split, rows in data.items()})
        source_column = _column_of(flat["train"], source_column, source_language, "source_language")
        target_column = _column_of(flat["train"], target_column, target_language, "target_language")
        if {source_column, target_column} - set(there):
            data = flat
    check_columns(data["train"].column_names, [source_column, target_column])
    for column in (source_column, target_column):
        _check_texts(data["train"], column)
    check_filled(data, [source_column, target_column])
    return data, source_column, target_column


def _column_of(rows: Dataset, column: str, language: str | None, option: str) -> str:
    """The column itself if it is there, or else the text in a language."""
    begin = f"{TRANSLATION}."
    languages = [name.removeprefix(begin) for name in rows.column_names if name.startswith(begin)]
    if column in rows.column_names or not languages:
        return column
    if language is None:
        raise ValueError(
            f"the data set has no column {column!r}, but a text in the languages {', '.join(languages)}: say which "
            f"with {option}."
        )
    for name in (language, language.partition("_")[0]):
        if name in languages:
            return begin + name
    raise ValueError(
        f"{option}={language!r} is none of the languages of the data: {', '.join(languages)}. Name the column instead, "
        f"such as {begin}{languages[0]}, where the tokenizer calls the language otherwise."
    )


def _check_texts(rows: Dataset, column: str) -> None:
    kind = rows.features[column]
    if getattr(kind, "dtype", None) not in ("string", "large_string"):
        raise ValueError(f"the column {column!r} holds {kind}; expected a text in every row.")


@checked(source_column=TEXT, target_column=TEXT, max_length=whole(least=1), max_target_length=whole(least=1))
def tokenize_pairs(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    *,
    source_column: str = "source",
    target_column: str = "target",
    source_prefix: str = "",
    max_length: int = 128,
    max_target_length: int = 128,
) -> DatasetDict:
    """Make token ids and `labels`, unpadded; pad batches with `DataCollatorForSeq2Seq(tokenizer)`.

    Args:
        data: Splits with both columns.
        tokenizer: The model's tokenizer. One that knows languages must have been told both.
        source_column: The column with the text to read.
        target_column: The column with the text to write.
        source_prefix: Stands before every text to read.
        max_length: Tokens at which longer texts to read are cut.
        max_target_length: Tokens at which longer texts to write are cut.

    Returns:
        The same splits with `input_ids`, `attention_mask`, `labels`, which are the tokens of the text to write, and
        `reference`, that text itself, uncut.

    Raises:
        ValueError: A column is missing, or a text is empty.

    Examples:
        >>> from datasets import Dataset, DatasetDict
        >>> from hfprune.data.pairs import tokenize_pairs
        >>> rows = Dataset.from_dict({"source": ["the cat sees a mouse"], "target": ["a mouse"]})
        >>> train = tokenize_pairs(DatasetDict(train=rows), tokenizer, max_length=3)["train"]
        >>> tokenizer.decode(train[0]["input_ids"]), tokenizer.decode(train[0]["labels"]), train[0]["reference"]
        ('the cat sees', 'a mouse', 'a mouse')
    """
    columns = [source_column, target_column]
    check_columns(data["train"].column_names, columns)
    check_filled(data, columns)

    def encode(rows: Mapping[str, list[Any]]) -> dict[str, Any]:
        read = [source_prefix + text for text in rows[source_column]]
        targets = list(rows[target_column])
        encoded = tokenizer(read, truncation=True, max_length=max_length)
        # tokenizers of many languages, and those with a vocabulary for each side, encode the two differently
        written = tokenizer(text_target=targets, truncation=True, max_length=max_target_length)
        return {
            "input_ids": encoded["input_ids"],
            "attention_mask": encoded["attention_mask"],
            "labels": written["input_ids"],
            REFERENCE: targets,
        }

    # selected first, as splits may have different other columns, which `map` could not remove
    selected = data.select_columns(columns)
    return selected.map(encode, batched=True, remove_columns=columns, desc="Tokenizing")
