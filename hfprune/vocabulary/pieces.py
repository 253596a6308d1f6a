"""Which tokens others need: the merges that make a token, the characters that spell a text.

All functions read the `model` part of a tokenizer.json.
"""

import math
import re
import string
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"  # a space, as SentencePiece writes it


def vocabulary_of(model: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token, without added tokens."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, list):  # Unigram
        return {piece: i for i, (piece, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def chain_of(model: Mapping[str, Any]) -> Callable[[str], set[str]]:
    """A function from a token to the tokens without which it could not be formed, itself included.

    For BPE these are its characters and whatever stands between merges that make it, in the order in which the
    tokenizer merges (Sennrich et al. 2016). A text whose tokens are kept with these is merged just as before: at every
    step the first merge of all is among those that are left. Other tokenizers look tokens up whole.
    """
    if model["type"] != "BPE":
        return lambda token: {token}
    ranks = {(a, b): rank for rank, (a, b) in enumerate(model["merges"])}
    vocabulary, prefix = vocabulary_of(model), model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""

    def chain(token: str) -> set[str]:
        if _BYTE.fullmatch(token):
            return {token}
        symbols = _symbols(token, prefix, suffix)
        seen = {token, *symbols}
        while len(symbols) > 1:
            rank, place = min((ranks.get(pair, math.inf), i) for i, pair in enumerate(pairwise(symbols)))
            if rank == math.inf:
                break
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1][len(prefix) :]]
            seen.add(symbols[place])
        return seen.intersection(vocabulary)

    return chain


def _symbols(token: str, prefix: str, suffix: str) -> list[str]:
    """What BPE starts from: characters, with the marks of the inside and of the end of a word."""
    inside = bool(prefix) and token.startswith(prefix)
    last = bool(suffix) and token.endswith(suffix) and token != suffix
    characters = list(token[len(prefix) if inside else 0 : -len(suffix) if last else None])
    marked = [prefix + character if inside or i else character for i, character in enumerate(characters)]
    return [*marked[:-1], marked[-1] + suffix] if last else marked


def merges_left(model: Mapping[str, Any], kept: Mapping[str, Any]) -> list[list[str]]:
    """The merges of BPE, in order, of which both parts and the result are kept."""
    skip = len(model.get("continuing_subword_prefix") or "")
    return [[a, b] for a, b in model["merges"] if a in kept and b in kept and a + b[skip:] in kept]


def always_kept(data: Mapping[str, Any], used: Iterable[str]) -> set[str]:
    """Tokens that any text needs: the unknown token, bytes and single characters.

    Args:
        data: A whole tokenizer.json.
        used: The tokens of the corpus.

    Returns:
        The unknown token; all byte symbols (byte level) or byte tokens (byte fallback); else the single characters that
        are printable ASCII or part of a used token, at the start and inside of a word. Of Unigram also the token of the
        lowest score, as that of unknown characters follows from it.
    """
    model = data["model"]
    vocabulary = vocabulary_of(model)
    kept = {token for token in vocabulary if _BYTE.fullmatch(token)} if model.get("byte_fallback") else set()
    if model["type"] == "Unigram":
        kept.add(min(model["vocab"], key=lambda entry: entry[1])[0])
        if model["unk_id"] is not None:
            kept.add(model["vocab"][model["unk_id"]][0])
    elif model.get("unk_token") in vocabulary:
        kept.add(model["unk_token"])
    if model["type"] == "WordLevel":
        return kept
    if _has_type(data.get("pre_tokenizer"), "ByteLevel") or _has_type(data.get("decoder"), "ByteLevel"):
        characters = set(ByteLevel.alphabet())
    else:
        characters = {*string.printable, _SPACE, *(character for token in used for character in token)}
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    marked = {first + character + end for character in characters for first in ("", prefix) for end in ("", suffix)}
    return kept | marked.intersection(vocabulary)


def _has_type(part: Any, name: str) -> bool:
    """Whether a part of a tokenizer.json, or a part of it in turn, is of a type."""
    if isinstance(part, Mapping):
        return part.get("type") == name or any(_has_type(item, name) for item in part.values())
    return isinstance(part, list) and any(_has_type(item, name) for item in part)


def tried_in_vain(word: str, model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> set[str]:
    """The tokens that WordPiece took of a word before it found that the rest is unknown (longest match first).

    Without them it would try shorter ones, and might find a way through the word.
    """
    taken: set[str] = set()
    start = 0
    if len(word) > model["max_input_chars_per_word"]:
        return taken
    while start < len(word):
        prefix = model["continuing_subword_prefix"] if start else ""
        found = next((end for end in range(len(word), start, -1) if prefix + word[start:end] in vocabulary), None)
        if found is None:
            break
        taken.add(prefix + word[start:found])
        start = found
    return taken
