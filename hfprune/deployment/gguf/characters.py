"""Tokenizers that merge characters, as SentencePiece makes them for Llama 2, Mistral and Gemma.

Spaces are written as ▁, and a character that is no token becomes its bytes. llama.cpp merges the two tokens that make
the token with the highest score, so a merge becomes a score: the earlier the merge, the higher.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hfprune.errors import ExportError

#: What stands for a space.
SPACE = "▁"
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
#: The score of tokens that no merge makes.
_NEVER = -1e9
_BYTES = frozenset(f"<0x{number:02X}>" for number in range(256))


def merges_characters(model: Mapping[str, Any]) -> bool:
    """Whether the model of a tokenizer.json merges characters, and has bytes for the others."""
    return bool(model["type"] == "BPE" and model.get("byte_fallback"))


def is_byte(token: str) -> bool:
    """Whether a token is one byte of a character that is no token."""
    return token in _BYTES


def check_characters(model: Mapping[str, Any]) -> None:
    """Refuse a tokenizer whose merges or bytes llama.cpp does not have.

    Args:
        model: The model of its tokenizer.json.

    Raises:
        ExportError: A byte is no token, or whole words are taken before any merge.
    """
    missing = sorted(_BYTES - set(model["vocab"]))
    if missing:
        raise ExportError(
            f"the tokenizer makes bytes of characters that it does not know, and {len(missing)} of 256 bytes are no "
            f"tokens, the first {missing[0]}. llama.cpp cannot run it. Take another target."
        )
    if model.get("ignore_merges"):
        raise ExportError("the tokenizer has ignore_merges=True, which llama.cpp does not have for characters.")


def adds_space(data: Mapping[str, Any]) -> bool:
    """Whether a tokenizer puts a space before a text, and before what stands behind a special token.

    Args:
        data: Its tokenizer.json.

    Returns:
        Whether it does.

    Raises:
        ExportError: It changes or cuts texts in a way that llama.cpp does not have.
    """
    normalizer, cut = data["normalizer"], data["pre_tokenizer"]
    steps = normalizer["normalizers"] if normalizer and normalizer["type"] == "Sequence" else [normalizer]
    if cut is None and steps in ([_PREPEND, _REPLACE], [_REPLACE]):
        return len(steps) == 2
    # "always" is not the same: it puts no space before a text that begins with one
    is_whole = cut is not None and cut["type"] == "Metaspace" and cut["replacement"] == SPACE and not cut["split"]
    if normalizer is None and is_whole and cut["prepend_scheme"] == "never":
        return False
    raise ExportError(
        "llama.cpp writes spaces as ▁ and puts one before a text, and behind every special token, or nowhere. This "
        f"tokenizer does something else: normalizer {json.dumps(normalizer, ensure_ascii=False)}, pre-tokenizer "
        f"{json.dumps(cut, ensure_ascii=False)}. Take another target."
    )


def scores_of(tokens: Sequence[str], merges: Sequence[str]) -> list[float]:
    """A score for every token, by the first merge that makes it.

    Args:
        tokens: All tokens, by their id.
        merges: Pairs of tokens, with a space between them, the first to be merged first.

    Returns:
        The scores, by id.

    Raises:
        ExportError: Merges that make one token stand apart, so that no score says their order.

    >>> scores_of(["a", "b", "ab"], ["a b"])
    [-1000000000.0, -1000000000.0, 0.0]
    """
    ranks: dict[str, int] = {}
    last = ""
    for number, pair in enumerate(merges):
        made = "".join(pair.split(" "))
        if made in ranks and made != last:
            raise ExportError(
                f"merges that make the token {made!r} do not follow each other, and llama.cpp has one score for a "
                "token. Take another target."
            )
        ranks.setdefault(made, number)
        last = made
    return [float(-ranks[token]) if token in ranks else _NEVER for token in tokens]
