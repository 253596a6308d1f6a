"""Questions and their contexts as token ids, in windows that a model can read."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from datasets import DatasetDict
from transformers import BatchEncoding, PreTrainedTokenizerBase


def tokenize_questions(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int = 384,
    doc_stride: int = 128,
    max_question_length: int = 64,
) -> DatasetDict:
    """Make rows of one window each: a question, and as much of its context as fits.

    A context that is longer than a window makes several, which overlap. Batches must be padded on the right.

    Args:
        data: Splits, as `load_questions` returns them.
        tokenizer: The model's tokenizer; it must be a fast one.
        max_length: Tokens of a window, with the question and the special tokens.
        doc_stride: Tokens of the context that two neighbouring windows share.
        max_question_length: Tokens at which longer questions are cut.

    Returns:
        The same splits. A row has the tokenizer's columns; `start_positions` and `end_positions`, the first and the
        last token of the first right answer, or `no_answer` for both where the window does not hold it whole;
        `example_id`, the number of the question in its split; `context`; `answers`, the texts of all right answers;
        `offset_mapping`, for each token the characters of the context from which and up to which it goes, −1 for all
        tokens that are none of the context; and `no_answer`, the token that stands for "there is no answer".

    Raises:
        ValueError: The tokenizer is a slow one, or the windows are too short for the questions and the overlap.

    Examples:
        >>> from datasets import Dataset, DatasetDict
        >>> from hfprune.data.windows import tokenize_questions
        >>> asked = {"question": ["the dog"], "context": ["the cat sees a mouse"]}
        >>> answered = {**asked, "texts": [["mouse"]], "starts": [[15]]}
        >>> data = DatasetDict(train=Dataset.from_dict(answered))
        >>> rows = tokenize_questions(data, tokenizer, max_length=6, doc_stride=1, max_question_length=2)["train"]
        >>> rows["example_id"][:], rows["start_positions"][:]
        ([0, 0], [0, 3])
        >>> tokenizer.decode(rows[1]["input_ids"])
        'the dog a mouse'
    """
    check_windows(tokenizer, max_length=max_length, doc_stride=doc_stride, max_question_length=max_question_length)

    def encode(rows: Mapping[str, list[Any]], numbers: list[int]) -> dict[str, Any]:
        encoded = tokenizer(
            _shortened(rows["question"], tokenizer, max_question_length),
            rows["context"],
            truncation="only_second",
            max_length=max_length,
            stride=doc_stride,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        further = []
        for window, question in enumerate(encoded.pop("overflow_to_sample_mapping")):
            offsets = _offsets_of_context(encoded, window)
            no_answer = _no_answer_token(encoded["input_ids"][window], tokenizer)
            texts = rows["texts"][question]
            tokens = _tokens_of_first(offsets, texts, rows["starts"][question])
            first, last = tokens or (no_answer, no_answer)
            values = {
                "start_positions": first,
                "end_positions": last,
                "example_id": numbers[question],
                "context": rows["context"][question],
                "answers": texts,
                "offset_mapping": offsets.tolist(),
                "no_answer": no_answer,
            }
            further.append(values)
        columns = {name: [values[name] for values in further] for name in further[0]}
        return {**encoded, **columns}

    columns = data["train"].column_names
    return data.map(encode, batched=True, with_indices=True, remove_columns=columns, desc="Tokenizing")


def _offsets_of_context(encoded: BatchEncoding, window: int) -> np.ndarray:
    """Where in the context the tokens of a window stand, `(tokens, 2)`, −1 for the others."""
    in_context = np.array([part == 1 for part in encoded.sequence_ids(window)])
    return np.where(in_context[:, None], np.array(encoded["offset_mapping"][window]), -1)


def _tokens_of_first(offsets: np.ndarray, texts: Sequence[str], starts: Sequence[int]) -> tuple[int, int] | None:
    """The first and the last token of the first of several answers; None if the window does not hold it."""
    if not texts:
        return None
    return tokens_of(offsets, starts[0], starts[0] + len(texts[0]))


def check_windows(
    tokenizer: PreTrainedTokenizerBase, *, max_length: int, doc_stride: int, max_question_length: int
) -> None:
    """Refuse windows that have no room for a question and for new tokens of its context.

    Args:
        tokenizer: The model's tokenizer.
        max_length: Tokens of a window.
        doc_stride: Tokens that two neighbouring windows share.
        max_question_length: Tokens at which longer questions are cut.

    Raises:
        ValueError: They have not, or the tokenizer is a slow one.
    """
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} cannot say where in the text a token stands. Question answering needs a fast "
            "tokenizer (with tokenizer.json)."
        )
    if max_question_length < 1 or doc_stride < 0:
        raise ValueError(
            f"max_question_length must be at least 1 and doc_stride at least 0, got {max_question_length} and "
            f"{doc_stride}."
        )
    room = max_length - max_question_length - tokenizer.num_special_tokens_to_add(pair=True)
    if room <= doc_stride:
        raise ValueError(
            f"a window of max_length={max_length} tokens has room for {max(room, 0)} tokens of the context beside a "
            f"question of max_question_length={max_question_length} tokens and the special tokens, and doc_stride="
            f"{doc_stride} of them are those of the window before. Raise max_length, or lower doc_stride or "
            "max_question_length."
        )


def _shortened(questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, most: int) -> list[str]:
    """Questions without white space at the begin, and without what is behind their first `most` tokens."""
    kept = []
    for question in questions:
        text = question.lstrip()
        tokens = most
        while True:
            # cut in the middle of a word, a text may make another token more
            offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            if len(offsets) <= most:
                break
            text = text[: offsets[tokens - 1][1]]
            tokens -= 1
        kept.append(text)
    return kept


def _no_answer_token(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of the token that begins texts for classifiers; of the first token where the tokenizer has none."""
    if tokenizer.cls_token_id in ids:
        return ids.index(tokenizer.cls_token_id)
    return 0


def tokens_of(offsets: np.ndarray, start: int, end: int) -> tuple[int, int] | None:
    """The first and the last token of a part of the context.

    Args:
        offsets: `(tokens, 2)` characters of the context, −1 for tokens of something else.
        start: The first character of the part.
        end: The character behind its last.

    Returns:
        The two tokens; None if the window does not hold the whole part.

    Examples:
        >>> offsets = np.array([[-1, -1], [0, 3], [4, 7], [8, 11], [-1, -1]])
        >>> tokens_of(offsets, 4, 11), tokens_of(offsets, 8, 12)
        ((2, 3), None)
    """
    in_context = np.flatnonzero(offsets[:, 0] >= 0)
    if not len(in_context):
        return None
    starts = offsets[in_context, 0]
    ends = offsets[in_context, 1]
    if starts[0] > start or ends[-1] < end:
        return None
    first = int(np.searchsorted(starts, start, side="right")) - 1
    last = int(np.searchsorted(ends, end, side="left"))
    return int(in_context[first]), int(in_context[max(first, last)])
