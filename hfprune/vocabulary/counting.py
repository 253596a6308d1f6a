"""Which tokens a corpus and a chat template use, and how often."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hfprune.errors import CalibrationError, StructureError
from hfprune.vocabulary.pieces import tried_in_vain, vocabulary_of

logger = logging.getLogger(__name__)

#: Texts that are tokenized at a time.
_BATCH = 1000
#: Conversations that between them have all roles. Some templates refuse a system message, so only one has it.
_CONVERSATIONS = (
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}],
    [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}],
)


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts of a corpus as a list.

    Args:
        texts: The texts.

    Returns:
        The same texts.

    Raises:
        CalibrationError: They are a single string, or something else than strings.
    """
    if isinstance(texts, str):
        raise CalibrationError(f"texts must be many texts, got the one string {texts!r:.50}. Write [text].")
    checked = list(texts)
    for text in checked:
        if not isinstance(text, str):
            raise CalibrationError(f"texts must be strings, got {text!r:.50}. Take the column that holds the text.")
    return checked


def template_frames(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Short conversations as the chat template renders them: with its names of roles, marks, and own system message.

    Args:
        tokenizer: The tokenizer.

    Returns:
        Texts; none for a tokenizer without a template.
    """
    frames: list[str] = []
    if not tokenizer.chat_template:
        return frames
    for conversation in _CONVERSATIONS:
        try:
            frames.append(tokenizer.apply_chat_template(conversation, tokenize=False))
            frames.append(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
        except (TemplateError, ValueError) as error:
            roles = [turn["role"] for turn in conversation]
            logger.info("The chat template renders no talk of %s (%s): its frame must be in texts", roles, error)
    return frames


def count_tokens(
    tokenizer: PreTrainedTokenizerBase, model: Mapping[str, Any], texts: Sequence[str]
) -> Mapping[str, int]:
    """Count how often each token occurs in some texts.

    The tokens that WordPiece tries on a word before it calls it unknown count as well: without them the word might get
    other tokens.

    Args:
        tokenizer: The tokenizer.
        model: The `model` part of its tokenizer.json.
        texts: The texts.

    Returns:
        Counts by token.

    Raises:
        CalibrationError: The texts hold no token.
    """
    counts: Counter[int] = Counter()
    tried: Counter[str] = Counter()
    vocabulary = vocabulary_of(model)
    unknown: int | None = None
    if model["type"] == "WordPiece":
        unknown = vocabulary.get(model["unk_token"])
    for batch in _batches(texts):
        encoded = _encoded(tokenizer, batch)
        for text, ids, encoding in zip(batch, encoded["input_ids"], encoded.encodings, strict=True):
            counts.update(ids)
            if unknown is None or unknown not in ids:
                continue
            for word in _words_of(tokenizer, text, ids, encoding.offsets, unknown):
                tried.update(tried_in_vain(word, model, vocabulary))
    if not counts:
        raise CalibrationError("the texts hold no token. Vocabulary pruning needs a corpus like what the model reads.")
    for token, count in zip(tokenizer.convert_ids_to_tokens(list(counts)), counts.values(), strict=True):
        tried[token] += count
    return tried


def check_same_tokens(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    """Refuse a smaller tokenizer that splits a text otherwise.

    Args:
        old: The tokenizer with all tokens.
        new: The smaller one.
        texts: Texts that both shall split alike.

    Raises:
        StructureError: They split a text otherwise.
    """
    for batch in _batches(texts):
        old_rows = _encoded(old, batch)["input_ids"]
        new_rows = _encoded(new, batch)["input_ids"]
        for text, old_ids, new_ids in zip(batch, old_rows, new_rows, strict=True):
            before = old.convert_ids_to_tokens(old_ids)
            after = new.convert_ids_to_tokens(new_ids)
            if before != after:
                raise StructureError(
                    f"with the smaller vocabulary {text!r:.60} would be split into {after[:8]} instead of "
                    f"{before[:8]}. {type(old).__name__} does more than its tokenizer.json says, or draws at random "
                    "(dropout): hfprune cannot prune its vocabulary."
                )


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), _BATCH):
        yield texts[start : start + _BATCH]


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Any:
    return tokenizer(list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False)


def _words_of(
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    ids: Sequence[int],
    offsets: Sequence[tuple[int, int]],
    wanted: int,
) -> Iterator[str]:
    """The words of a text that one token replaced, usually the unknown one, as the tokenizer's normalizer writes them.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        ids: Its token ids.
        offsets: For each token its first character in the text, and the character after its last.
        wanted: The id of the token.

    Yields:
        A word for each time that the token occurs.
    """
    normalizer = tokenizer.backend_tokenizer.normalizer
    for number, (start, end) in zip(ids, offsets, strict=True):
        if number != wanted:
            continue
        word = text[start:end]
        # Offsets are places in the text before it was normalised, but tokens are matched in the text after.
        if normalizer is not None:
            word = normalizer.normalize_str(word)
        yield word
