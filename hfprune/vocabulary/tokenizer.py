"""A tokenizer that knows fewer tokens: its tokenizer.json cut, and loaded as any tokenizer is."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfprune.errors import StructureError
from hfprune.vocabulary.pieces import merges_left, vocabulary_of

_KINDS = ("BPE", "WordPiece", "Unigram", "WordLevel")


def read(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The tokenizer.json of a fast tokenizer.

    Args:
        tokenizer: The tokenizer.

    Returns:
        Plain values.

    Raises:
        ValueError: It is not a fast tokenizer, or of a kind that hfprune does not know.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} is not a fast tokenizer (one with a tokenizer.json), whose vocabulary can be "
            "pruned. Load it with AutoTokenizer, or convert it."
        )
    data: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    kind = data["model"].get("type")
    if kind not in _KINDS:
        raise ValueError(f"the tokenizer's model is {kind!r}; hfprune can prune {', '.join(_KINDS)}.")
    return data


def protected(tokenizer: PreTrainedTokenizerBase, data: Mapping[str, Any]) -> set[str]:
    """Tokens that a tokenizer adds or finds whole: special and added ones, those of its post-processor, the padding."""
    named = {*tokenizer.all_special_tokens, *(token["content"] for token in data["added_tokens"])}
    for processor in _processors(data.get("post_processor")):
        special = processor.get("special_tokens")
        for each in special.values() if special else ():
            named.update(each["tokens"])
        named.update(processor[part][0] for part in ("sep", "cls") if part in processor)
    if data.get("padding"):
        named.add(data["padding"]["pad_token"])
    return named.intersection(tokenizer.get_vocab())


def cut(tokenizer: PreTrainedTokenizerBase, data: dict[str, Any], ids: Mapping[str, int]) -> PreTrainedTokenizerBase:
    """A tokenizer with the kept tokens only.

    It is loaded from a folder, as a saved one will be, so what works here also reloads.

    Args:
        tokenizer: The tokenizer; it stays as it is.
        data: Its tokenizer.json, which is changed.
        ids: The new ids of the tokens that are kept, in the order of the old ones.

    Returns:
        A tokenizer of the same class.

    Raises:
        StructureError: Loaded again, it has other ids.
    """
    vocabulary, old = vocabulary_of(data["model"]), tokenizer.get_vocab()
    new = {old[token]: number for token, number in ids.items()}
    model = data["model"]
    if model["type"] == "Unigram":
        unknown = model["unk_id"]
        model["vocab"] = [entry for i, entry in enumerate(model["vocab"]) if i in new]
        model["unk_id"] = None if unknown is None else new[unknown]
    else:
        model["vocab"] = {token: new[number] for token, number in vocabulary.items() if number in new}
    if model["type"] == "BPE":
        model["merges"] = merges_left(model, model["vocab"])
    for token in data["added_tokens"]:
        token["id"] = new[token["id"]]
    for processor in _processors(data.get("post_processor")):
        _renumber(processor, new)
    if data.get("padding"):
        data["padding"]["pad_id"] = ids.get(data["padding"]["pad_token"], 0)
    made = _loaded(tokenizer, data)
    if made.get_vocab() != dict(ids):
        differing = sorted(set(made.get_vocab().items()) ^ set(ids.items()))[:4]
        raise StructureError(
            f"{type(tokenizer).__name__} gives other ids to the kept tokens when it is loaded again ({differing} ...). "
            "Its class does more than its tokenizer.json says; hfprune cannot prune its vocabulary."
        )
    return made


def _processors(processor: Any) -> list[dict[str, Any]]:
    """A post-processor, or those in a sequence of them."""
    if not processor:
        return []
    if processor["type"] == "Sequence":
        return [inner for part in processor["processors"] for inner in _processors(part)]
    return [processor]


def _renumber(processor: dict[str, Any], new: Mapping[int, int]) -> None:
    for special in (processor.get("special_tokens") or {}).values():
        special["ids"] = [new[number] for number in special["ids"]]
    for part in ("sep", "cls"):
        if part in processor:
            processor[part] = [processor[part][0], new[processor[part][1]]]


def _loaded(tokenizer: PreTrainedTokenizerBase, data: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer that a folder gives whose tokenizer.json is `data`, and the rest as the tokenizer saves it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        settings.pop("added_tokens_decoder", None)  # with old ids; tokenizer.json has it all
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        made: PreTrainedTokenizerBase = type(tokenizer).from_pretrained(folder)
    made.name_or_path = made.init_kwargs["name_or_path"] = tokenizer.name_or_path
    return made
