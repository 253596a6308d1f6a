"""Conversations: lists of messages, written out by a chat template, of which the assistant's words are learned."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from hfprune.data.loading import check_columns, check_filled
from hfprune.structure.arguments import TEXT, checked, whole

logger = logging.getLogger(__name__)

#: The role whose words are learned.
ASSISTANT = "assistant"
#: What a chat template marks the assistant's words with, where it does.
_MARK = "{% generation"
#: The label of a token that is not learned.
_IGNORED = -100

Message = Mapping[str, Any]


@checked(messages_column=TEXT, max_length=whole(least=2))
def tokenize_conversations(
    data: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    *,
    messages_column: str = "messages",
    max_length: int = 1024,
) -> DatasetDict:
    """Make token ids and `labels` of conversations: the assistant's tokens, and −100 for all others.

    A conversation that is too long ends with the last turn of the assistant that fits as a whole. Where none does, it
    is cut within the first one; where not even that begins, it is left out, like conversations in which the assistant
    says nothing. A line in the log says how many.

    Args:
        data: Splits with a column of lists of messages, each with `role` and `content`.
        tokenizer: The model's tokenizer, with a chat template.
        messages_column: The column.
        max_length: The most tokens of a conversation.

    Returns:
        The same splits with `input_ids`, `attention_mask` and `labels`, unpadded.

    Raises:
        ValueError: The column holds no messages, the tokenizer has no template or no offsets, a split has no
            conversation to learn from, or what the template writes of a turn changes with later turns.

    Examples:
        >>> from datasets import Dataset, DatasetDict
        >>> from hfprune.data.conversations import tokenize_conversations
        >>> tokenizer.chat_template = "{% for m in messages %}[BOS] {{ m['content'] }} {% endfor %}"
        >>> messages = [{"role": "user", "content": "a cat sees"}, {"role": "assistant", "content": "a mouse"}]
        >>> data = DatasetDict(train=Dataset.from_dict({"messages": [messages]}))
        >>> row = tokenize_conversations(data, tokenizer)["train"][0]
        >>> tokenizer.decode(row["input_ids"])
        '[BOS] a cat sees [BOS] a mouse'
        >>> tokenizer.decode([label for label in row["labels"] if label != -100])
        '[BOS] a mouse'
    """
    check_columns(data["train"].column_names, [messages_column])
    check_filled(data, [messages_column])
    _check_tokenizer(tokenizer)

    def encode(row: Mapping[str, Any]) -> dict[str, Any]:
        messages = _messages_of(row[messages_column], messages_column)
        ids, is_learned = assistant_tokens(messages, tokenizer)
        kept = kept_tokens(is_learned, max_length)
        labels = []
        for number, learned in zip(ids[:kept], is_learned[:kept], strict=True):
            labels.append(number if learned else _IGNORED)
        return {
            "input_ids": ids[:kept],
            "attention_mask": [1] * kept,
            "labels": labels,
            "is_shorter": kept < len(ids),
        }

    # selected first, as splits may have different other columns, which `map` could not remove
    selected = data.select_columns([messages_column])
    encoded = selected.map(encode, remove_columns=[messages_column], desc="Writing out and tokenizing")
    return DatasetDict({split: _learnable(rows, split) for split, rows in encoded.items()})


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer.chat_template is None:
        raise ValueError(
            f"{type(tokenizer).__name__} has no chat template, so nobody knows how this model is talked to. Take the "
            "checkpoint of a chat model (often called -Instruct or -chat), or name a file with a template: "
            "chat_template."
        )
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} cannot say where its tokens stand in a text. Conversations need a fast "
            "tokenizer (with tokenizer.json)."
        )


def _messages_of(value: Any, column: str) -> list[dict[str, Any]]:
    """The messages of a row, without what the data set fills in where some messages have more fields."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise _no_messages(value, column)
    messages: list[dict[str, Any]] = []
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise _no_messages(value, column)
        messages.append({name: field for name, field in message.items() if field is not None})
        if "content" not in messages[-1]:
            raise _no_messages(value, column)
    return messages


def _no_messages(value: Any, column: str) -> ValueError:
    return ValueError(
        f"the column {column!r} must hold conversations: in every row a list such as "
        '[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]; '
        f"got {str(value)[:100]}"
    )


def assistant_tokens(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """The tokens of a conversation, and which of them are the assistant's.

    Where the template marks them (`{% generation %}`), transformers says which they are. Otherwise the conversation is
    written out up to before each turn of the assistant, with the words that make the model answer, and up to behind
    it: the turn is what lies between. So it includes the token that ends it, which the model has to learn to say.

    Args:
        messages: The messages.
        tokenizer: The tokenizer, with a chat template.

    Returns:
        The ids; and for each of them whether it is the assistant's.

    Raises:
        ValueError: What the template writes of a turn changes with later turns.
    """
    if _MARK in _template_text(tokenizer):
        found = tokenizer.apply_chat_template(
            list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return list(found["input_ids"]), [bool(mark) for mark in found["assistant_masks"]]
    whole_text = _written(tokenizer, messages)
    spans = _spans_of_assistant(messages, tokenizer, whole_text)
    # the template has written the special tokens already
    encoded = tokenizer(whole_text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    is_learned = []
    for begin, end in encoded["offset_mapping"]:
        is_learned.append(any(start <= begin and end <= stop and begin < end for start, stop in spans))
    return list(encoded["input_ids"]), is_learned


def _template_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """The template; of several by name that for plain conversations."""
    template = tokenizer.chat_template
    if isinstance(template, Mapping):
        template = template.get("default", "")
    return str(template).replace("{%-", "{%")


def _written(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, asks: bool = False) -> str:
    """A conversation as the template writes it, with or without the words that make the model answer."""
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=asks)
    return text


def _spans_of_assistant(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, whole_text: str
) -> list[tuple[int, int]]:
    """Where the turns of the assistant begin and end in the text of a conversation."""
    spans: list[tuple[int, int]] = []
    for number, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        before = _written(tokenizer, messages[:number], asks=True) if number else ""
        until = _written(tokenizer, messages[: number + 1])
        if not whole_text.startswith(before) or not whole_text.startswith(until) or len(until) <= len(before):
            raise ValueError(
                f"the chat template writes turn {number} (from 0) otherwise where the conversation goes on, so it is "
                f"not known which tokens are the assistant's: {until[-100:]!r}. Give a template that marks them with "
                "{% generation %} ... {% endgeneration %} (chat_template), or conversations of a single answer."
            )
        # a line break behind the end of the turn is not what the assistant says
        spans.append((len(before), len(until.rstrip())))
    return spans


def kept_tokens(is_learned: Sequence[bool], max_length: int) -> int:
    """How many tokens of a conversation are kept.

    Args:
        is_learned: For every token whether it is the assistant's.
        max_length: The most tokens.

    Returns:
        All of them if they fit; else as many as up to the end of the last turn of the assistant that fits as a whole,
        or `max_length` where none does.

    Examples:
        >>> kept_tokens([False, True, True, False, True], 9), kept_tokens([False, True, True, False, True, True], 5)
        (5, 3)
    """
    if len(is_learned) <= max_length:
        return len(is_learned)
    for last in reversed(range(max_length)):
        if is_learned[last] and not is_learned[last + 1]:
            return last + 1
    return max_length


def _learnable(rows: Dataset, split: str) -> Dataset:
    """The conversations with tokens to learn, and a line about those that were cut or are left out."""
    # the first token is predicted from none
    has_labels = [any(label != _IGNORED for label in labels[1:]) for labels in rows["labels"]]
    shorter = sum(rows["is_shorter"][:])
    kept = rows.remove_columns(["is_shorter"])
    if not all(has_labels):
        kept = kept.select([number for number, has in enumerate(has_labels) if has])
    if len(kept) == 0:
        raise ValueError(
            f"in no conversation of the {split} split does the assistant say anything within max_length tokens. The "
            f"role of its messages must be {ASSISTANT!r}."
        )
    left_out = len(rows) - len(kept)
    if shorter or left_out:
        logger.warning(
            "Of %d conversations of the %s split %d were shortened to max_length tokens, and %d are left out, as the "
            "assistant says nothing in them",
            len(rows),
            split,
            shorter,
            left_out,
        )
    return kept
