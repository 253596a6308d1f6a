"""Questions with answers to choose from, of which one is right."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

#: How choices look in a row: texts, or texts with the names that labels call them by.
_CHOICES = '["red", "green"], or {"text": ["red", "green"], "label": ["A", "B"]}'


@dataclass(frozen=True, kw_only=True)
class ChoiceColumns:
    """The names of the columns of questions with answers to choose from.

    Attributes:
        question: The column with the questions.
        choices: The column with a list of choices; or several columns with one choice each.
        label: The column that says which choice is right.
        context: The column with a text that the question is about; None if there is none.
    """

    question: str = "question"
    choices: Sequence[str] = ("choices",)
    label: str = "label"
    context: str | None = None

    @property
    def names(self) -> list[str]:
        """All of them."""
        names = [self.question, *self.choices, self.label]
        if self.context is not None:
            names.append(self.context)
        return names


def read_choices(data: DatasetDict, columns: ChoiceColumns) -> DatasetDict:
    """Bring questions with choices into one form.

    Args:
        data: Splits with the columns.
        columns: Their names. Choices are texts, or texts with names (`{"text": [...], "label": [...]}`). A label is the
            name of the right choice, its letter (A, B ...), or its number, counted from 0.

    Returns:
        The same splits with the columns `context` (empty where there is none), `question`, `choices` and `label`, the
        number of the right choice.

    Raises:
        ValueError: Choices or labels have another form, a label is none of the choices, or the questions have different
            numbers of choices.

    Examples:
        >>> rows = [{"question": "the sky?", "choices": {"text": ["red", "blue"], "label": ["A", "B"]}, "label": "B"}]
        >>> read = read_choices(DatasetDict(train=Dataset.from_list(rows)), ChoiceColumns())
        >>> read["train"][0]
        {'context': '', 'question': 'the sky?', 'choices': ['red', 'blue'], 'label': 1}
    """
    read = DatasetDict()
    for split, rows in data.items():
        read[split] = _read_split(rows, split, columns)
    numbers: Counter[int] = Counter()
    for rows in read.values():
        numbers.update(map(len, rows["choices"]))
    if len(numbers) > 1:
        counted = ", ".join(f"{count} have {number}" for number, count in numbers.most_common())
        raise ValueError(
            f"the questions have different numbers of choices: {counted}. A batch needs the same number for all: leave "
            "the questions with others out."
        )
    return read


def _read_split(rows: Dataset, split: str, columns: ChoiceColumns) -> Dataset:
    read: dict[str, list[Any]] = {"context": [], "question": [], "choices": [], "label": []}
    for number, row in enumerate(rows.select_columns(columns.names)):
        texts, names = _choices_of(row, columns, rows)
        label = _number_of(row[columns.label], names)
        if label is None:
            raise ValueError(
                f"row {number} (from 0) of the {split} split has the label {row[columns.label]!r} in "
                f"{columns.label!r}, and {len(texts)} choices. Expected a number from 0 to {len(texts) - 1}, or one "
                f"of {', '.join(names)}."
            )
        read["context"].append(row[columns.context] if columns.context else "")
        read["question"].append(row[columns.question])
        read["choices"].append(texts)
        read["label"].append(label)
    return Dataset.from_dict(read)


def _choices_of(row: Mapping[str, Any], columns: ChoiceColumns, rows: Dataset) -> tuple[list[str], list[str]]:
    """The choices of a question, and the names that labels call them by: letters where they have none."""
    names: Any = None
    texts: Any = [row[name] for name in columns.choices]
    # one column holds them all
    if len(columns.choices) == 1:
        texts = texts[0]
    if isinstance(texts, Mapping):
        names = texts.get("label")
        texts = texts.get("text")
    if not _are_texts(texts) or len(texts) < 2:
        held = ", ".join(f"{name}: {rows.features[name]}" for name in columns.choices)
        raise ValueError(
            f"the choices are {texts!r} in {held}; expected at least two texts, {_CHOICES} in one column, or several "
            "columns with one choice each (choice_columns)."
        )
    if not _are_texts(names) or len(names) != len(texts):
        names = [chr(ord("A") + number) for number in range(len(texts))]
    return texts, names


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _number_of(label: Any, names: Sequence[str]) -> int | None:
    """The number of the choice that a label means; None if it is none of them."""
    if isinstance(label, str):
        # a name that is a number counts as a name
        if label in names:
            return names.index(label)
        if not (label.isascii() and label.isdigit()):
            return None
        label = int(label)
    if not isinstance(label, int) or not 0 <= label < len(names):
        return None
    return label


def tokenize_choices(data: DatasetDict, tokenizer: PreTrainedTokenizerBase, *, max_length: int = 128) -> DatasetDict:
    """Make token ids of every choice of a question, and `labels`; pad with `DataCollatorForMultipleChoice(tokenizer)`.

    A choice is read as a pair of texts: the question and the choice; where there is a context, the context, and the
    question with the choice behind it.

    Args:
        data: Splits, as `read_choices` returns them.
        tokenizer: The model's tokenizer.
        max_length: Tokens at which longer pairs are cut, from the longer of the two texts.

    Returns:
        The same splits. Each of the tokenizer's columns holds a list for every choice.

    Examples:
        >>> rows = [{"context": "", "question": "the cat", "choices": ["sees a mouse", "hears"], "label": 0}]
        >>> row = tokenize_choices(DatasetDict(train=Dataset.from_list(rows)), tokenizer)["train"][0]
        >>> [tokenizer.decode(ids) for ids in row["input_ids"]], row["labels"]
        (['the cat sees a mouse', 'the cat hears'], 0)
    """

    def encode(row: Mapping[str, Any]) -> dict[str, Any]:
        first = row["context"] or row["question"]
        choices = row["choices"]
        if row["context"]:
            choices = [f"{row['question']} {choice}" for choice in choices]
        encoded = tokenizer([first] * len(choices), choices, truncation=True, max_length=max_length)
        return {**encoded, "labels": row["label"]}

    return data.map(encode, remove_columns=data["train"].column_names, desc="Tokenizing")
