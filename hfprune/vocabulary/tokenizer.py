"""A tokenizer that knows fewer tokens: its tokenizer.json without the others, loaded as any tokenizer is."""

import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import PreTrainedTokenizerBase

from hfprune.errors import StructureError
from hfprune.vocabulary.pieces import merges_left, vocabulary_of

_KINDS = ("BPE", "WordPiece", "Unigram", "WordLevel")
#: Fields of post-processors (of BERT's and RoBERTa's kind) that hold a pair of a token and its id.
_PAIRS = ("sep", "cls")


def tokenizer_data(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of a fast tokenizer's tokenizer.json.

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


def protected_tokens(tokenizer: PreTrainedTokenizerBase, data: Mapping[str, Any]) -> set[str]:
    """Tokens that a tokenizer adds to texts or finds whole in them.

    Args:
        tokenizer: The tokenizer.
        data: Its tokenizer.json.

    Returns:
        Special and added tokens, those of the post-processor, and the padding.
    """
    tokens = set(tokenizer.all_special_tokens)
    for added in data["added_tokens"]:
        tokens.add(added["content"])
    for processor in _processors(data.get("post_processor")):
        for special in _special_tokens(processor):
            tokens.update(special["tokens"])
        for field in _PAIRS:
            if field in processor:
                token, _ = processor[field]
                tokens.add(token)
    if data.get("padding"):
        tokens.add(data["padding"]["pad_token"])
    # A tokenizer may have the name of a special token that is no token of it.
    return tokens.intersection(tokenizer.get_vocab())


def smaller_tokenizer(
    tokenizer: PreTrainedTokenizerBase, data: dict[str, Any], ids: Mapping[str, int]
) -> PreTrainedTokenizerBase:
    """A tokenizer that knows only some of the tokens.

    It is loaded from a folder, so saving and loading it again gives the same.

    Args:
        tokenizer: The tokenizer; it stays as it is.
        data: Its tokenizer.json, which is changed.
        ids: The new ids of the tokens that are kept, in the order of the old ones.

    Returns:
        A tokenizer of the same class.

    Raises:
        StructureError: Loaded again, it has other ids.
    """
    old_ids = tokenizer.get_vocab()
    new_id_of = {old_ids[token]: new_id for token, new_id in ids.items()}
    _shrink_model(data["model"], new_id_of)
    for added in data["added_tokens"]:
        added["id"] = new_id_of[added["id"]]
    for processor in _processors(data.get("post_processor")):
        _renumber_processor(processor, new_id_of)
    if data.get("padding"):
        data["padding"]["pad_id"] = ids.get(data["padding"]["pad_token"], 0)
    smaller = _loaded(tokenizer, data)
    if smaller.get_vocab() != dict(ids):
        differing = sorted(set(smaller.get_vocab().items()) ^ set(ids.items()))[:4]
        raise StructureError(
            f"{type(tokenizer).__name__} gives other ids to the kept tokens when it is loaded again ({differing} ...). "
            "Its class does more than its tokenizer.json says; hfprune cannot prune its vocabulary."
        )
    return smaller


def _shrink_model(model: dict[str, Any], new_id_of: Mapping[int, int]) -> None:
    """Leave only the kept tokens in the `model` part of a tokenizer.json.

    Args:
        model: The part, which is changed.
        new_id_of: New ids by old ids.
    """
    if model["type"] == "Unigram":
        # The place of a token in the list is its id, and the kept tokens stay in order.
        model["vocab"] = [entry for old_id, entry in enumerate(model["vocab"]) if old_id in new_id_of]
        if model["unk_id"] is not None:
            model["unk_id"] = new_id_of[model["unk_id"]]
        return
    smaller: dict[str, int] = {}
    for token, old_id in vocabulary_of(model).items():
        if old_id in new_id_of:
            smaller[token] = new_id_of[old_id]
    model["vocab"] = smaller
    if model["type"] == "BPE":
        model["merges"] = merges_left(model, smaller)


def _processors(processor: Any) -> list[dict[str, Any]]:
    """A post-processor, or the single ones in a sequence; sequences may be nested."""
    if not processor:
        return []
    if processor["type"] != "Sequence":
        return [processor]
    processors: list[dict[str, Any]] = []
    for part in processor["processors"]:
        processors.extend(_processors(part))
    return processors


def _special_tokens(processor: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The special tokens of a post-processor with a template, each with its `tokens` and `ids`."""
    return list((processor.get("special_tokens") or {}).values())


def _renumber_processor(processor: dict[str, Any], new_id_of: Mapping[int, int]) -> None:
    """Put the new ids into a post-processor."""
    for special in _special_tokens(processor):
        special["ids"] = [new_id_of[old_id] for old_id in special["ids"]]
    for field in _PAIRS:
        if field in processor:
            token, old_id = processor[field]
            processor[field] = [token, new_id_of[old_id]]


def _loaded(tokenizer: PreTrainedTokenizerBase, data: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """Load a tokenizer with another tokenizer.json, and all else as the tokenizer saves it."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer.save_pretrained(folder)
        (folder / "tokenizer.json").write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
        config_file = folder / "tokenizer_config.json"
        settings = json.loads(config_file.read_text(encoding="utf-8"))
        # It would repeat the added tokens with their old ids; tokenizer.json says all of them.
        settings.pop("added_tokens_decoder", None)
        config_file.write_text(json.dumps(settings), encoding="utf-8")
        loaded: PreTrainedTokenizerBase = type(tokenizer).from_pretrained(folder)
    # The folder is gone, and nobody knows its name.
    loaded.name_or_path = tokenizer.name_or_path
    loaded.init_kwargs["name_or_path"] = tokenizer.name_or_path
    return loaded
