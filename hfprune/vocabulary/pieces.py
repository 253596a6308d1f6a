"""Dependencies between tokens: the tokens that BPE merges into a token, and the characters that spell any text.

All functions read the `model` part of a tokenizer.json.
"""

import re
import string
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
#: SentencePiece writes a space so.
_SPACE = "▁"


def vocabulary_of(model: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token, without added tokens.

    >>> vocabulary_of({"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0]]})
    {'<unk>': 0, 'a': 1}
    """
    vocabulary = model["vocab"]
    # Unigram lists pairs of a token and its score, and the place in the list is the id.
    if isinstance(vocabulary, list):
        return {token: number for number, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def chain_of(model: Mapping[str, Any]) -> Callable[[str], set[str]]:
    """A function that names the tokens that are needed to form a token.

    For BPE they are the token itself, its characters, and every token between them on the way that the tokenizer merges
    (Sennrich et al. 2016). A text whose tokens are kept with these is merged just as before: at every step, the first
    of all possible merges is among the merges that stay. Other tokenizers look a token up as a whole, so it needs only
    itself.

    Args:
        model: The `model` part of a tokenizer.json.

    Returns:
        A function from a token to tokens of the vocabulary.

    Examples:
        >>> vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5}
        >>> chain = chain_of({"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"], ["ab", "c"], ["b", "c"]]})
        >>> sorted(chain("abc"))
        ['a', 'ab', 'abc', 'b', 'c']
    """
    if model["type"] != "BPE":
        return lambda token: {token}
    return _Merges(model).needed_for


class _Merges:
    """The merges of a BPE tokenizer.

    Args:
        model: The `model` part of its tokenizer.json.
    """

    def __init__(self, model: Mapping[str, Any]) -> None:
        #: By pair of tokens: its place among the merges. The tokenizer takes the lowest first.
        self.ranks: dict[tuple[str, str], int] = {}
        for rank, (left, right) in enumerate(model["merges"]):
            self.ranks[left, right] = rank
        self.vocabulary = vocabulary_of(model)
        self.prefix: str = model.get("continuing_subword_prefix") or ""
        self.suffix: str = model.get("end_of_word_suffix") or ""

    def needed_for(self, token: str) -> set[str]:
        """The tokens on the way to a token, itself included."""
        # A byte of an unknown character is looked up, not merged from the characters `<`, `0` and so on.
        if _BYTE.fullmatch(token):
            return {token}
        symbols = self._characters(token)
        needed = {token, *symbols}
        while (place := self._first_merge(symbols)) is not None:
            merged = symbols[place] + symbols[place + 1][len(self.prefix) :]
            symbols[place : place + 2] = [merged]
            needed.add(merged)
        # an intersection with a dict would go through all of its tokens, for every token that is asked
        return {part for part in needed if part in self.vocabulary}

    def _characters(self, token: str) -> list[str]:
        """The symbols that BPE starts from: characters, with the marks of the inside and of the end of a word."""
        is_inside = bool(self.prefix) and token.startswith(self.prefix)
        is_last = bool(self.suffix) and token.endswith(self.suffix) and token != self.suffix
        text = token
        if is_inside:
            text = text[len(self.prefix) :]
        if is_last:
            text = text[: -len(self.suffix)]
        symbols = list(text)
        for i, character in enumerate(symbols):
            if is_inside or i > 0:
                symbols[i] = self.prefix + character
        if is_last:
            symbols[-1] += self.suffix
        return symbols

    def _first_merge(self, symbols: list[str]) -> int | None:
        """The place of the pair that the tokenizer merges next: of the lowest rank, and of these the leftmost."""
        candidates: list[tuple[int, int]] = []
        for place, pair in enumerate(pairwise(symbols)):
            if pair in self.ranks:
                candidates.append((self.ranks[pair], place))
        if not candidates:
            return None
        _, place = min(candidates)
        return place


def merges_left(model: Mapping[str, Any], kept: Mapping[str, Any]) -> list[list[str]]:
    """The merges of BPE, in order, of which both parts and the result are kept.

    >>> model = {"merges": [["a", "b"], ["ab", "c"], ["b", "c"]]}
    >>> merges_left(model, {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4})
    [['a', 'b'], ['ab', 'c']]
    """
    prefix = model.get("continuing_subword_prefix") or ""
    merges: list[list[str]] = []
    for left, right in model["merges"]:
        # The part on the right continues a word, and its mark does not go into the result.
        result = left + right[len(prefix) :]
        if left in kept and right in kept and result in kept:
            merges.append([left, right])
    return merges


def always_kept(data: Mapping[str, Any], used: Iterable[str]) -> set[str]:
    """Tokens that any text may need: the unknown token, bytes and single characters.

    Args:
        data: A whole tokenizer.json.
        used: The tokens of the corpus.

    Returns:
        The unknown token; all byte symbols (byte level) or byte tokens (byte fallback); else the single characters that
        are printable ASCII or part of a used token, at the start and inside of a word. Of Unigram also the token of the
        lowest score, as the score of unknown characters follows from it.
    """
    model = data["model"]
    vocabulary = vocabulary_of(model)
    kept = _unknown_tokens(model)
    if model.get("byte_fallback"):
        kept.update(filter(_BYTE.fullmatch, vocabulary))
    # A tokenizer of whole words spells nothing.
    if model["type"] != "WordLevel":
        kept.update(_marked(_alphabet(data, used), model))
    return kept.intersection(vocabulary)


def _unknown_tokens(model: Mapping[str, Any]) -> set[str]:
    """The token for unknown characters, and for Unigram the token that sets its score."""
    if model["type"] != "Unigram":
        if model.get("unk_token") is None:
            return set()
        return {model["unk_token"]}
    lowest, _ = min(model["vocab"], key=lambda entry: entry[1])
    tokens = {lowest}
    if model["unk_id"] is not None:
        unknown, _ = model["vocab"][model["unk_id"]]
        tokens.add(unknown)
    return tokens


def _alphabet(data: Mapping[str, Any], used: Iterable[str]) -> set[str]:
    """The characters that texts are spelled with."""
    if _has_type(data.get("pre_tokenizer"), "ByteLevel") or _has_type(data.get("decoder"), "ByteLevel"):
        # A character for each of the 256 bytes, so every text can be spelled.
        return set(ByteLevel.alphabet())
    characters = {*string.printable, _SPACE}
    for token in used:
        characters.update(token)
    return characters


def _marked(characters: Iterable[str], model: Mapping[str, Any]) -> set[str]:
    """Characters as BPE and WordPiece write them at the start, inside and at the end of a word."""
    prefix = model.get("continuing_subword_prefix") or ""
    suffix = model.get("end_of_word_suffix") or ""
    marked: set[str] = set()
    for character in characters:
        marked.update([character, prefix + character, character + suffix, prefix + character + suffix])
    return marked


def _has_type(part: Any, name: str) -> bool:
    """Whether a part of a tokenizer.json, or a part inside it, is of a type."""
    if isinstance(part, list):
        return any(_has_type(item, name) for item in part)
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == name or _has_type(list(part.values()), name)


def tried_in_vain(word: str, model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> set[str]:
    """The tokens that WordPiece matched in a word before it met characters that no token matches.

    WordPiece takes the longest token at each place and never goes back. Without these tokens it would match shorter
    ones, and might get through a word that was unknown before.

    Args:
        word: A word that is unknown as a whole.
        model: The `model` part of a tokenizer.json.
        vocabulary: Its ids by token.

    Returns:
        The tokens.

    Examples:
        >>> model = {"continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
        >>> tried_in_vain("abc", model, {"a": 0, "ab": 1, "##bc": 2})
        {'ab'}
    """
    matched: set[str] = set()
    # Longer words are unknown without a try.
    if len(word) > model["max_input_chars_per_word"]:
        return matched
    start = 0
    while start < len(word):
        prefix = model["continuing_subword_prefix"] if start else ""
        end = _longest_match(word, start, prefix, vocabulary)
        if end is None:
            break
        matched.add(prefix + word[start:end])
        start = end
    return matched


def _longest_match(word: str, start: int, prefix: str, vocabulary: Mapping[str, int]) -> int | None:
    """Where the longest token that begins at a place of a word ends."""
    for end in range(len(word), start, -1):
        if prefix + word[start:end] in vocabulary:
            return end
    return None
