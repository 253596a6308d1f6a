"""A tokenizer as a GGUF file has it: the tokens, how they are merged, and how llama.cpp cuts texts into words."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfprune.deployment.gguf.characters import adds_space, check_characters, is_byte, merges_characters, scores_of
from hfprune.errors import ExportError

# Kinds of tokens, as llama.cpp numbers them.
_NORMAL = 1
_UNKNOWN = 2
_CONTROL = 3
_USER_DEFINED = 4
_UNUSED = 5
_BYTE = 6

#: How Llama 3 cuts a text into words, in the notation of tokenizer.json.
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: Qwen 2: as Llama 3, every digit alone.
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
#: Mistral's of 2024: words also end where small letters are followed by capitals.
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
#: What llama.cpp calls a way to cut, by the steps of the pre-tokenizer and by whether whole words that are tokens are
#: taken before any merge (`ignore_merges`).
_CUTS = {
    (("words",), False): "gpt-2",
    (("digits", "words"), False): "smollm",
    ((_LLAMA_3, "bytes"), True): "llama-bpe",
    ((_LLAMA_3, "bytes"), False): "smaug-bpe",
    ((_QWEN_2, "bytes"), False): "qwen2",
    ((_TEKKEN, "bytes"), True): "tekken",
}
#: The special tokens that a file names.
_SPECIAL = ("bos", "eos", "unk", "pad")


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as the file has it.

    Attributes:
        model: The name of the algorithm in llama.cpp: `gpt2` for merges of bytes, `llama` for merges of characters.
        pre: The name of the way in which texts are cut into words.
        tokens: All tokens, by their id.
        types: Of each, the number of its kind.
        merges: Pairs of tokens, with a space between them, the first to be merged first; empty where there are scores.
        scores: Of merges of characters: a score for every token, the highest is merged first.
        adds_space: Whether a text is given a space in front.
        special: The ids of special tokens by `bos`, `eos`, `unk` and `pad`, as far as there are any.
        adds_bos: Whether a text is given the token of its beginning.
        adds_eos: Whether a text is given the token of its end.
        chat_templates: Templates of talks by name; the one called `default` is taken where nobody names one.
    """

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    scores: Sequence[float]
    adds_space: bool
    special: Mapping[str, int]
    adds_bos: bool
    adds_eos: bool
    chat_templates: Mapping[str, str]


def vocabulary_of(tokenizer: PreTrainedTokenizerBase, *, rows: int) -> Vocabulary:
    """Read what a file says of a tokenizer.

    Args:
        tokenizer: A fast tokenizer.
        rows: How many tokens the model has embeddings of. Those without a token are written as unused.

    Returns:
        The vocabulary.

    Raises:
        ExportError: llama.cpp would make other tokens of a text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise ExportError(
            f"{type(tokenizer).__name__} has no tokenizer.json, which a GGUF file is written from: load a fast one."
        )
    data = json.loads(backend.to_str())
    merges = [_merge(pair) for pair in data["model"].get("merges", ())]
    of_characters = merges_characters(data["model"])
    _check_model(data["model"])
    if of_characters:
        check_characters(data["model"])
    pre = "default" if of_characters else _pre(data)
    tokens, types = _tokens(data, rows)
    adds_bos, adds_eos = _added(tokenizer)
    return Vocabulary(
        model="llama" if of_characters else "gpt2",
        pre=pre,
        tokens=tokens,
        types=types,
        merges=() if of_characters else merges,
        scores=scores_of(tokens, merges) if of_characters else (),
        adds_space=of_characters and adds_space(data),
        special=_special(tokenizer),
        adds_bos=adds_bos,
        adds_eos=adds_eos,
        chat_templates=_chat_templates(tokenizer.chat_template),
    )


def _chat_templates(template: str | Mapping[str, str] | None) -> dict[str, str]:
    """Templates of talks by name: a tokenizer has none, one, or several with names."""
    if not template:
        return {}
    if isinstance(template, str):
        return {"default": template}
    return dict(template)


def _check_model(model: Mapping[str, Any]) -> None:
    """Refuse all that is not merges."""
    if model["type"] != "BPE":
        raise ExportError(
            f"the tokenizer is {model['type']}, and only merges (BPE: of bytes, as of GPT-2, Llama 3 and Qwen 2, or of "
            "characters, as of Llama 2) are written into a GGUF file. Take another target, or the converter of "
            "llama.cpp."
        )
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise ExportError(f"the tokenizer has {name}={model[name]!r}, which llama.cpp does not have.")


def _pre(data: Mapping[str, Any]) -> str:
    """The name of the way in which a tokenizer cuts texts into words."""
    normalizer = data["normalizer"]
    steps = tuple(_step(part) for part in _parts(data["pre_tokenizer"]))
    name = _CUTS.get((steps, bool(data["model"].get("ignore_merges"))))
    if name is None:
        raise ExportError(
            "llama.cpp has no name for how this tokenizer cuts a text into words: "
            f"{json.dumps(data['pre_tokenizer'], ensure_ascii=False)}, ignore_merges="
            f"{bool(data['model'].get('ignore_merges'))}. Known are the ways of {', '.join(sorted(_CUTS.values()))}. "
            "Take another target, or the converter of llama.cpp."
        )
    # llama.cpp takes texts as they are, and so do most people who write: NFC changes nothing in them
    if normalizer is not None and normalizer != {"type": "NFC"}:
        raise ExportError(f"the tokenizer changes texts first ({json.dumps(normalizer)}), and llama.cpp would not.")
    return name


def _parts(pre_tokenizer: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a pre-tokenizer."""
    if pre_tokenizer is None:
        return []
    if pre_tokenizer["type"] == "Sequence":
        return list(pre_tokenizer["pretokenizers"])
    return [pre_tokenizer]


def _step(part: Mapping[str, Any]) -> str:
    """A step by its name or, where it cuts by an expression, by that; any text for steps that are not known."""
    kind = part["type"]
    if kind == "ByteLevel" and not part["add_prefix_space"]:
        return "words" if part.get("use_regex", True) else "bytes"
    if kind == "Digits" and part["individual_digits"]:
        return "digits"
    if kind == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
        return str(part["pattern"].get("Regex"))
    return json.dumps(part)


def _merge(pair: str | Sequence[str]) -> str:
    """Two tokens with a space between them; older files have them like that already."""
    return pair if isinstance(pair, str) else " ".join(pair)


def _tokens(data: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """All tokens and their kinds, by id, as many as the model has embeddings of."""
    tokens = [f"[PAD{number}]" for number in range(rows)]
    types = [_UNUSED] * rows
    for token, number in data["model"]["vocab"].items():
        _check_id(token, number, rows)
        tokens[number] = token
        types[number] = _BYTE if merges_characters(data["model"]) and is_byte(token) else _NORMAL
    for added in data["added_tokens"]:
        _check_id(added["content"], added["id"], rows)
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
        if merges_characters(data["model"]) and added["content"] == data["model"].get("unk_token"):
            types[added["id"]] = _UNKNOWN
    return tokens, types


def _check_id(token: str, number: int, rows: int) -> None:
    """Refuse a token that the model has no embedding of."""
    if number >= rows:
        raise ExportError(
            f"the token {token!r} has the id {number}, and the model has embeddings of {rows} tokens. Call "
            "model.resize_token_embeddings(len(tokenizer)), or take the tokenizer of this model."
        )


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """The ids of the special tokens that there are."""
    ids = {}
    for name in _SPECIAL:
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            ids[name] = int(number)
    return ids


def _added(tokenizer: PreTrainedTokenizerBase) -> tuple[bool, bool]:
    """Whether the tokenizer puts a beginning before a text, and an end behind it."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    framed = tokenizer("a").input_ids
    for before in ([], [tokenizer.bos_token_id]):
        for behind in ([], [tokenizer.eos_token_id]):
            if framed == [*before, *bare, *behind]:
                return bool(before), bool(behind)
    raise ExportError(
        f"the tokenizer makes {tokenizer.convert_ids_to_tokens(framed)} of 'a', and llama.cpp can add the tokens of "
        "beginning (bos) and end (eos) only."
    )
