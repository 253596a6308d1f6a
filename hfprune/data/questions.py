"""Questions whose answers stand in a text, from files of SQuAD or from rows."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict

from hfprune.data.files import is_file_name, open_text, read_file
from hfprune.data.loading import check_columns, check_filled, load_raw, with_splits

logger = logging.getLogger(__name__)
#: How answers look in a row: as in `datasets`, or as in a file of SQuAD.
_ANSWERS = '{"text": ["Paris"], "answer_start": [17]} or [{"text": "Paris", "answer_start": 17}]'
#: The characters of a text that a message shows.
_SHOWN = 60


@dataclass(frozen=True, kw_only=True)
class QuestionColumns:
    """The names of the columns with the questions, the texts that hold the answers, and the answers.

    Attributes:
        question: The column with the questions.
        context: The column with the texts.
        answers: The column with the answers.
    """

    question: str = "question"
    context: str = "context"
    answers: str = "answers"

    @property
    def names(self) -> list[str]:
        """The three names."""
        return [self.question, self.context, self.answers]


def load_questions(
    name: str | None = None,
    *,
    config_name: str | None = None,
    files: Mapping[str, str] | None = None,
    columns: QuestionColumns | None = None,
    seed: int = 0,
    reuse_validation: bool = False,
    encoding: str | None = None,
) -> DatasetDict:
    """Load questions with contexts and answers, with the splits `train`, `validation` and `test`.

    Splits that the data lacks are cut from train, by contexts: all questions about one context stay in one split.

    Args:
        name: A data set on the Hub, such as `rajpurkar/squad_v2`, a named one, or a file.
        config_name: The configuration of a data set on the Hub.
        files: Instead of a name: paths of files by split; `train` is needed. Files of SQuAD (json with `data` and
            `paragraphs`), or rows (json, jsonl, parquet).
        columns: The names of the columns; files of SQuAD have the usual ones.
        seed: Seed of the splits that are cut.
        reuse_validation: If there is no test split, validation serves as both, and no other one is cut from train.
        encoding: Of the texts in files, by default UTF-8.

    Returns:
        The splits, with the columns `question`, `context`, `texts` (all right answers, none for a question without
        answer) and `starts` (the character of the context where each begins).

    Raises:
        ValueError: A file or a column is missing or has another form, a split has no answers, or an answer does not
            stand in its context.

    Examples:
        >>> from datasets import Dataset
        >>> from hfprune.data.questions import load_questions
        >>> answers = {"text": ["a mouse"], "answer_start": [13]}
        >>> rows = [
        ...     {"question": "what?", "context": f"the cat sees a mouse, {number}", "answers": answers}
        ...     for number in range(20)
        ... ]
        >>> _ = Dataset.from_list(rows).to_json("questions.jsonl")
        >>> data = load_questions(files={"train": "questions.jsonl"})
        >>> data.num_rows, data["train"][0]["texts"], data["train"][0]["starts"]
        ({'train': 16, 'validation': 2, 'test': 2}, ['a mouse'], [13])
    """
    columns = columns or QuestionColumns()
    if name is not None and is_file_name(name):
        files = {"train": name}
        name = None
    if files and name is None:
        raw = _from_files(files, columns, encoding)
    else:
        raw = load_raw(name, config_name=config_name, files=files, columns=columns.names, encoding=encoding)
    questions = DatasetDict()
    for split in ("train", "validation", "test"):
        if split in raw:
            questions[split] = _questions(raw[split], split, columns)
    return with_splits(questions, seed, reuse_validation=reuse_validation, together="context")


def _from_files(files: Mapping[str, str], columns: QuestionColumns, encoding: str | None) -> DatasetDict:
    data = DatasetDict()
    for split, file in files.items():
        data[split] = _squad_rows(file, split, columns, encoding or "utf-8") or read_file(
            file, split, encoding=encoding
        )
    if "train" not in data:
        raise ValueError(f"the data has the splits {', '.join(data)}, but no 'train'. Pass train_file.")
    return data


def _squad_rows(file: str, split: str, columns: QuestionColumns, encoding: str) -> Dataset | None:
    """The questions of a json file that holds one object with `data`; None for a file of any other form."""
    path = Path(file)
    is_json = any(suffix.lower() == ".json" for suffix in path.suffixes)
    if not is_json or not path.is_file():
        return None
    try:
        with open_text(path, encoding) as text:
            content = json.load(text)
    # rows one a line, or an encoding that `read_file` says more about
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        return None
    entries = content["data"]
    if any(isinstance(entry, dict) and "paragraphs" in entry for entry in entries):
        entries = list(_paragraph_questions(entries, file, columns))
    if not entries:
        raise ValueError(f"the {split} file {file!r} holds no question.")
    return Dataset.from_list(entries)


def _paragraph_questions(
    articles: Sequence[Mapping[str, Any]], file: str, columns: QuestionColumns
) -> Iterator[dict[str, Any]]:
    """The questions of all paragraphs of all articles as rows."""
    for number, article in enumerate(articles):
        for place, paragraph in enumerate(_entry(article, "paragraphs", f"data[{number}]", file)):
            where = f"data[{number}].paragraphs[{place}]"
            context = _entry(paragraph, "context", where, file)
            for question in _entry(paragraph, "qas", where, file):
                answers = question.get("answers", [])
                # SQuAD 2.0 says of a question without answer that it is impossible
                if question.get("is_impossible"):
                    answers = []
                yield {
                    columns.question: _entry(question, "question", f"{where}.qas", file),
                    columns.context: context,
                    columns.answers: _answer_lists(answers, f"{where}.qas.answers", file),
                }


def _answer_lists(answers: Sequence[Mapping[str, Any]], where: str, file: str) -> dict[str, list[Any]]:
    """Answers as `datasets` has them: a list of their texts, and a list of where they begin."""
    lists: dict[str, list[Any]] = {"text": [], "answer_start": []}
    for answer in answers:
        for name, values in lists.items():
            values.append(_entry(answer, name, where, file))
    return lists


def _entry(values: Mapping[str, Any], name: str, where: str, file: str) -> Any:
    """A value of an object in a file of SQuAD."""
    if name not in values:
        raise ValueError(
            f"{file!r} looks like a file of SQuAD, but {where} has no {name!r}, only {', '.join(values) or 'nothing'}. "
            "Expected data, a list of articles with paragraphs, each with a context and qas, each with a question and "
            "answers of text and answer_start."
        )
    return values[name]


def _questions(rows: Dataset, split: str, columns: QuestionColumns) -> Dataset:
    """Rows in one form, whose answers stand where they are said to."""
    check_columns(rows.column_names, columns.names)
    rows = rows.select_columns(columns.names)
    check_filled(DatasetDict({split: rows}), columns.names)
    found: dict[str, list[Any]] = {"question": [], "context": [], "texts": [], "starts": []}
    moved = 0
    missing = []
    for number, row in enumerate(rows):
        context = row[columns.context]
        texts, said = _texts_and_starts(row[columns.answers], columns.answers, rows)
        starts = [_place(context, text, start) for text, start in zip(texts, said, strict=True)]
        if None in starts:
            missing.append(number)
        elif starts != said:
            moved += 1
        found["question"].append(row[columns.question])
        found["context"].append(context)
        found["texts"].append(texts)
        found["starts"].append(starts)
    if missing:
        raise _not_in_context(rows, split, columns, missing)
    if moved:
        logger.warning(
            "%d of %d questions of the %s split have an answer that does not stand where answer_start says. The "
            "nearest place in the context where it stands was taken.",
            moved,
            len(rows),
            split,
        )
    if not any(found["texts"]):
        raise ValueError(
            f"none of the {len(rows)} questions of the {split} split has an answer in {columns.answers!r}. Leave it "
            "out: nothing can be learned from it or measured on it."
        )
    return Dataset.from_dict(found)


def _texts_and_starts(answers: Any, column: str, rows: Dataset) -> tuple[list[str], list[int]]:
    """The answers to a question, and where they begin, from one of two forms."""
    texts: Any = None
    starts: Any = None
    if isinstance(answers, Mapping):
        texts = answers.get("text")
        starts = answers.get("answer_start")
    elif isinstance(answers, list) and all(isinstance(answer, Mapping) for answer in answers):
        texts = [answer.get("text") for answer in answers]
        starts = [answer.get("answer_start") for answer in answers]
    if not _are(texts, str) or not _are(starts, int) or len(texts) != len(starts):
        raise _other_form(column, rows)
    return texts, starts


def _are(values: Any, kind: type) -> bool:
    """Whether values are a list of one type."""
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _other_form(column: str, rows: Dataset) -> ValueError:
    return ValueError(
        f"the column {column!r} holds {rows.features[column]}; expected for every question its answers, each with the "
        f"character of the context where it begins: {_ANSWERS}. A question without answer has empty lists."
    )


def _place(context: str, text: str, start: int) -> int | None:
    """Where a text stands in a context: at `start`, or else at the nearest other place; None if nowhere."""
    if context.startswith(text, start) and start >= 0:
        return start
    # the last place that begins before, and the first behind it
    before = context.rfind(text, 0, max(start, 0) + len(text))
    behind = context.find(text, max(start, 0))
    places = [place for place in (before, behind) if place >= 0]
    return min(places, key=lambda place: abs(place - start), default=None)


def _not_in_context(rows: Dataset, split: str, columns: QuestionColumns, missing: Sequence[int]) -> ValueError:
    row = rows[missing[0]]
    texts, _ = _texts_and_starts(row[columns.answers], columns.answers, rows)
    absent = next(text for text in texts if text not in row[columns.context])
    return ValueError(
        f"{len(missing)} of {len(rows)} questions of the {split} split have an answer that does not stand in the "
        f"context, the first is row {missing[0]} (from 0): {absent[:_SHOWN]!r} in {row[columns.context][:_SHOWN]!r}. "
        "Answers are cut out of the context, so it must hold them word for word. Correct these rows or leave them out."
    )
