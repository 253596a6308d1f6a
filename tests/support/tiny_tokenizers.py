"""Tiny tokenizers of every kind, trained on the text of LICENSE in milliseconds."""

import json
from functools import cache
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

LINES = [line.strip() for line in (Path(__file__).parents[2] / "LICENSE").read_text().splitlines() if line.strip()]
SPECIAL = ["<unk>", "<pad>", "<s>", "</s>", "<mask>"]


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL, initial_alphabet=alphabet))
    return tokenizer


def _whole_words_first() -> Tokenizer:
    """As Llama 3 does: a word that is a token is not merged."""
    return _changed(_byte_level(), ignore_merges=True)


def _suffix() -> Tokenizer:
    """As CLIP's, without bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, end_of_word_suffix="</w>")
    _train(tokenizer, trainer)
    return tokenizer


def _prefix() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", continuing_subword_prefix="##"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=SPECIAL, continuing_subword_prefix="##")
    _train(tokenizer, trainer)
    return tokenizer


def _byte_fallback() -> Tokenizer:
    """As Llama 2's: spaces are ▁, unknown characters are bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    _train(tokenizer, trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL))
    data = json.loads(tokenizer.to_str())
    vocabulary = data["model"]["vocab"]
    vocabulary.update({f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)})
    data["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(data))


def _word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    _train(tokenizer, trainers.WordPieceTrainer(vocab_size=500, special_tokens=SPECIAL))
    return tokenizer


def _unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _unigram_bytes() -> Tokenizer:
    data = json.loads(_unigram().to_str())
    data["model"]["vocab"] += [[f"<0x{byte:02X}>", -20.0] for byte in range(256)]
    data["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(data))


def _train(tokenizer: Tokenizer, trainer) -> None:
    trainer.show_progress = False
    tokenizer.train_from_iterator(LINES, trainer)


def _changed(tokenizer: Tokenizer, **changes: object) -> Tokenizer:
    data = json.loads(tokenizer.to_str())
    data["model"].update(changes)
    return Tokenizer.from_str(json.dumps(data))


KINDS = {
    "byte_level": _byte_level,
    "whole_words_first": _whole_words_first,
    "suffix": _suffix,
    "prefix": _prefix,
    "byte_fallback": _byte_fallback,
    "word_piece": _word_piece,
    "unigram": _unigram,
    "unigram_bytes": _unigram_bytes,
}


@cache
def _serialized(kind: str) -> str:
    return KINDS[kind]().to_str()


def trained(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer that frames texts by `<s>` and `</s>` and ends them by `<end>`, its last token; with a template."""
    tokenizer = Tokenizer.from_str(_serialized(kind))
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s> <end>",
        pair="<s> $A </s> $B </s>",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>", "<end>")],
    )
    return wrapped(tokenizer)


def wrapped(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    named = dict(zip(("unk_token", "pad_token", "bos_token", "eos_token", "mask_token"), SPECIAL, strict=True))
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=100, padding_side="left", **named)
    made.add_tokens(["<tool>"])
    made.chat_template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    return made
