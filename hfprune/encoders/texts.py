"""Texts for an encoder as a data set of rows, which are tokenized when they are asked for."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor
from torch.utils.data import Dataset

from hfprune.errors import CalibrationError

#: What columns with texts, or with labels, are called.
_TEXT_COLUMNS = ("text", "sentence")
_LABEL_COLUMNS = ("labels", "label", "score")
#: A text, or two.
Text = str | tuple[str, str]
#: What an encoder takes as data, beside what is tokenized.
Texts: TypeAlias = Sequence[str] | Sequence[tuple[str, str]]


class EncoderTexts(Dataset[dict[str, Any]]):
    """Rows of texts: the columns of the tokenizer for each, truncated and with the prompt as the encoder does it.

    Args:
        texts: A text or a pair for each row.
        tokenize: From a list of texts or pairs to tensors.
        labels: A label for each, or none.

    Examples:
        >>> from hfprune.encoders import EncoderTexts
        >>> rows = EncoderTexts(texts, lambda some: tokenizer(some, return_tensors="pt"))
        >>> len(rows), rows[0]["input_ids"] == tokenizer(texts[0])["input_ids"]
        (18, True)
    """

    def __init__(
        self, texts: Sequence[Text], tokenize: Callable[[list[Text]], Mapping[str, Any]], labels: Sequence[Any] = ()
    ) -> None:
        self.texts = texts
        self.labels = labels
        self._tokenize = tokenize

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        columns = self._tokenize([self.texts[index]])
        row: dict[str, Any] = {}
        for name, value in columns.items():
            # other entries tell the encoder of what kind the inputs are
            if isinstance(value, Tensor) and value.ndim == 2:
                row[name] = value[0].tolist()
        if self.labels:
            row["labels"] = self.labels[index]
        return row

    @classmethod
    def of(cls, data: Any, encoder: Any, *, pairs: bool) -> Any:
        """Rows of whatever a user has of texts.

        Args:
            data: A list of texts or pairs, a data set with columns of them, or something that is tokenized.
            encoder: The object of sentence-transformers, which tokenizes.
            pairs: Whether it takes two texts at a time.

        Returns:
            Rows; what is tokenized as it is.

        Raises:
            CalibrationError: There are no texts, or no pairs of them.
        """
        if isinstance(data, str):
            raise CalibrationError(f"texts are a list, got one text: {data!r:.50}. Write [text].")
        if hasattr(data, "column_names") or _has_columns(data):
            return cls._of_columns(data, encoder, pairs=pairs)
        if not _are_texts(data):
            return data
        texts = [_checked(text, pairs=pairs) for text in data]
        return cls(texts, _tokenizer_of(encoder))

    @classmethod
    def _of_columns(cls, data: Any, encoder: Any, *, pairs: bool) -> Any:
        """Rows of a data set with columns, or of a list of rows."""
        first = next(iter(data), None)
        if not isinstance(first, Mapping):
            raise CalibrationError("the data set has no rows. Pass one with texts in it.")
        if "input_ids" in first:
            return data
        names = _text_columns(first, pairs=pairs)
        columns = [[str(row[name]) for row in data] for name in names]
        labels: list[Any] = []
        for name in _LABEL_COLUMNS:
            if pairs and name in first:
                labels = [row[name] for row in data]
                break
        texts: Sequence[Text] = list(zip(*columns, strict=True)) if pairs else columns[0]
        return cls(texts, _tokenizer_of(encoder), labels)


def _are_texts(data: Any) -> bool:
    """Whether data is a list of texts or of pairs, and not of batches or rows of numbers."""
    if not isinstance(data, Sequence) or not data:
        return False
    first = data[0]
    is_pair = isinstance(first, tuple | list) and all(isinstance(part, str) for part in first)
    return isinstance(first, str) or is_pair


def _has_columns(data: Any) -> bool:
    """Whether data is a list of rows with texts."""
    is_list = isinstance(data, Sequence) and len(data) > 0
    return is_list and isinstance(data[0], Mapping) and any(isinstance(value, str) for value in data[0].values())


def _checked(text: Any, *, pairs: bool) -> Text:
    """A text, or a pair where pairs are wanted."""
    if pairs and isinstance(text, tuple | list) and len(text) == 2:
        return str(text[0]), str(text[1])
    if isinstance(text, str) and not pairs:
        return text
    expected = "a pair of texts, (query, passage)," if pairs else "a text"
    raise CalibrationError(f"every entry must be {expected} for this encoder, got {text!r:.80}.")


def _text_columns(row: Mapping[str, Any], *, pairs: bool) -> list[str]:
    """The columns with the texts: one, or two where the encoder takes pairs."""
    with_texts = [name for name, value in row.items() if isinstance(value, str)]
    if pairs and len(with_texts) == 2:
        return with_texts
    if not pairs:
        named = [name for name in _TEXT_COLUMNS if name in with_texts]
        if named or len(with_texts) == 1:
            return [(named or with_texts)[0]]
    wanted = "two columns of texts" if pairs else "one column of texts, or one that is called 'text' or 'sentence'"
    raise CalibrationError(
        f"a data set for this encoder has {wanted}; this one has texts in {', '.join(with_texts) or 'no column'}. "
        f"Choose them: data.select_columns([...])."
    )


def _tokenizer_of(encoder: Any) -> Callable[[list[Text]], Mapping[str, Any]]:
    """The function by which an encoder turns texts into tensors, with its default prompt."""
    name = getattr(encoder, "default_prompt_name", None)
    prompt = (getattr(encoder, "prompts", None) or {}).get(name)

    def tokenize(texts: list[Text]) -> Mapping[str, Any]:
        columns: Mapping[str, Any] = encoder.preprocess(texts, prompt=prompt)
        return columns

    return tokenize
