"""Drop the tokens that a corpus never uses, from a model and its tokenizer."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfprune.errors import CalibrationError, StructureError
from hfprune.measuring.size import longest_sequence, measure_size
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.record import PruningRecord, record_of
from hfprune.structure.anatomy import find_blocks
from hfprune.structure.architectures import base_model_type
from hfprune.vocabulary.pieces import always_kept, chain_of, tried_in_vain, vocabulary_of
from hfprune.vocabulary.rows import fixed_ids, keep_tokens, named_ids, rows_of
from hfprune.vocabulary.tokenizer import cut, protected, read

logger = logging.getLogger(__name__)

_BATCH = 1000
_TALK = (
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "a"}],
    [{"role": "system", "content": "a"}, {"role": "user", "content": "a"}],
)


def prune_vocabulary(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    keep: Iterable[str] = (),
    min_count: int = 1,
    pad_to_multiple_of: int | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and a tokenizer that know only the tokens of a corpus.

    With `min_count=1` the texts get the very tokens that they had, and the model computes for them what it did. Other
    texts are spelled with smaller pieces, bytes where the tokenizer has them, or the unknown token. Special and added
    tokens, those that a config gives a role and those of the chat template's frame stay too, as do the tokens that
    others are made of. Tokens keep their order and get new ids, in the tokenizer and in all configs.

    It goes before or after the pruning of heads and neurons. Distil from a teacher before it, or cut the teacher's
    vocabulary alike: logits of different vocabularies cannot be compared.

    Args:
        model: The model, dense or pruned; it stays as it is.
        tokenizer: Its fast tokenizer (BPE, WordPiece, Unigram or whole words); it stays as it is.
        texts: The corpus, as the model is given it: a text with a chat template's frame as the template renders it.
        keep: Tokens to keep besides, as the vocabulary spells them.
        min_count: How often a token must occur in the texts to stay.
        pad_to_multiple_of: Keep as many more of the tokens, those of the lowest ids, as make their number a multiple of
            this; 64 suits most kernels.

    Returns:
        The new model, with `.pruning_plan` (a dense model gets one that keeps all units) and `.pruning_record`, and the
        new tokenizer.

    Raises:
        CalibrationError: The texts are no texts, or hold no token.
        StructureError: The model has not one row of embeddings a token, or the tokenizer's class does more than its
            tokenizer.json says, so that the new one would split the texts otherwise.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
        ValueError: A slow tokenizer, one with more tokens than the model has rows, a token to keep that it does not
            have, a count or multiple below 1, or a multiple that the vocabulary cannot fill.
    """
    for name, value in (("min_count", min_count), ("pad_to_multiple_of", pad_to_multiple_of)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    texts = _checked(texts)
    data, rows = read(tokenizer), rows_of(model)
    counts, frames = _counted(tokenizer, data["model"], texts), list(_frames(tokenizer))
    used = {token for token, count in counts.items() if count >= min_count}
    used |= set(_counted(tokenizer, data["model"], frames)) if frames else set()
    roles = named_ids(model) | fixed_ids(model)
    tokens = _needed(tokenizer, data, {*used, *_named(tokenizer, keep)}, roles)
    beyond = sorted((number, token) for token, number in tokens.items() if number >= rows)
    if beyond:
        raise ValueError(
            f"the tokenizer's {beyond[0][1]!r} has the id {beyond[0][0]}, but the model has {rows} rows of embeddings. "
            "Take the model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer)) first."
        )
    spare = sorted(roles - set(tokens.values()))  # rows without a token, behind the others
    if pad_to_multiple_of is not None:
        tokens, spare = _filled(tokenizer, data, tokens, spare, pad_to_multiple_of, rows)
    kept = sorted({*tokens.values(), *spare})
    new = {number: place for place, number in enumerate(kept)}
    made = cut(tokenizer, data, {token: new[number] for token, number in tokens.items()})
    _check_same(tokenizer, made, [*(texts if min_count == 1 else ()), *frames])
    small = keep_tokens(model, kept)
    _describe(model, small, texts=len(texts), min_count=min_count)
    return small, made


def _checked(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str):
        raise CalibrationError(f"texts must be many texts, got the one string {texts!r:.50}. Write [text].")
    found = list(texts)
    for text in found:
        if not isinstance(text, str):
            raise CalibrationError(f"texts must be strings, got {text!r:.50}. Take the column that holds the text.")
    return found


def _frames(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Short conversations as the chat template renders them: roles, marks, and its own system message."""
    for talk in _TALK if tokenizer.chat_template else ():
        try:
            yield tokenizer.apply_chat_template(talk, tokenize=False)
            yield tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        except (TemplateError, ValueError) as error:
            roles = [turn["role"] for turn in talk]
            logger.info("The chat template renders no talk of %s (%s): its frame must be in texts", roles, error)


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    return (texts[start : start + _BATCH] for start in range(0, len(texts), _BATCH))


def _encoded(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> Any:
    return tokenizer(list(texts), add_special_tokens=False, truncation=False, padding=False, verbose=False)


def _counted(tokenizer: PreTrainedTokenizerBase, model: Mapping[str, Any], texts: Sequence[str]) -> Counter[str]:
    """How often each token occurs. What WordPiece tries on a word before it calls it unknown counts as well."""
    counts: Counter[int] = Counter()
    tried: Counter[str] = Counter()
    vocabulary = vocabulary_of(model)
    unknown = vocabulary.get(model["unk_token"]) if model["type"] == "WordPiece" else None
    normalizer = tokenizer.backend_tokenizer.normalizer
    for batch in _batches(texts):
        encoded = _encoded(tokenizer, batch)
        for text, ids, encoding in zip(batch, encoded["input_ids"], encoded.encodings, strict=True):
            counts.update(ids)
            if unknown is None or unknown not in ids:
                continue
            for number, (start, end) in zip(ids, encoding.offsets, strict=True):
                if number == unknown:
                    word = text[start:end] if normalizer is None else normalizer.normalize_str(text[start:end])
                    tried.update(tried_in_vain(word, model, vocabulary))
    if not counts:
        raise CalibrationError("the texts hold no token. Vocabulary pruning needs a corpus like what the model reads.")
    named = tokenizer.convert_ids_to_tokens(list(counts))
    return tried + Counter(dict(zip(named, counts.values(), strict=True)))


def _named(tokenizer: PreTrainedTokenizerBase, keep: Iterable[str]) -> list[str]:
    wanted = [keep] if isinstance(keep, str) else list(keep)
    unknown = [token for token in wanted if token not in tokenizer.get_vocab()]
    if unknown:
        raise ValueError(
            f"the tokenizer has no token {unknown[0]!r}. Name tokens to keep as its vocabulary spells them: "
            "tokenizer.tokenize(text) shows how."
        )
    return wanted


def _needed(
    tokenizer: PreTrainedTokenizerBase, data: Mapping[str, Any], wanted: set[str], roles: set[int]
) -> dict[str, int]:
    """Old ids of all tokens that must be there for some that are wanted."""
    vocabulary, chain = tokenizer.get_vocab(), chain_of(data["model"])
    whole = protected(tokenizer, data)
    wanted = wanted | always_kept(data, wanted) | {token for token, number in vocabulary.items() if number in roles}
    found = whole.union(*(chain(token) for token in wanted - whole))
    return {token: vocabulary[token] for token in found}


def _filled(
    tokenizer: PreTrainedTokenizerBase,
    data: Mapping[str, Any],
    tokens: Mapping[str, int],
    spare: Sequence[int],
    multiple: int,
    rows: int,
) -> tuple[dict[str, int], list[int]]:
    """The tokens and spare rows with more of both, tokens first, up to a multiple."""
    goal = -(-(len(tokens) + len(spare)) // multiple) * multiple
    vocabulary, chain, filled = tokenizer.get_vocab(), chain_of(data["model"]), dict(tokens)
    free = goal - len(filled) - len(spare)
    for token, _ in sorted(vocabulary.items(), key=lambda entry: entry[1]):
        more = chain(token) - filled.keys() if free and token not in filled else set()
        if len(more) <= free and all(vocabulary[part] < rows for part in more):
            filled.update({part: vocabulary[part] for part in more})
            free -= len(more)
    unnamed = sorted(set(range(rows)) - {*vocabulary.values(), *spare})
    if free > len(unnamed):
        raise ValueError(
            f"pad_to_multiple_of={multiple}: {len(tokens) + len(spare)} tokens are kept, and the next multiple of it, "
            f"{goal}, is more than the model's {rows}. Choose a smaller one."
        )
    return filled, [*spare, *unnamed[:free]]


def _check_same(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, texts: Sequence[str]) -> None:
    for batch in _batches(texts):
        pairs = zip(_encoded(old, batch)["input_ids"], _encoded(new, batch)["input_ids"], strict=True)
        for text, (before, after) in zip(batch, pairs, strict=True):
            was, now = old.convert_ids_to_tokens(before), new.convert_ids_to_tokens(after)
            if was != now:
                raise StructureError(
                    f"with the smaller vocabulary {text!r:.60} would be split into {now[:8]} instead of {was[:8]}. "
                    f"{type(old).__name__} does more than its tokenizer.json says, or draws at random (dropout): "
                    "hfprune cannot prune its vocabulary."
                )


def _describe(model: PreTrainedModel, small: PreTrainedModel, *, texts: int, min_count: int) -> None:
    """Attach the plan and the record of what was done. Measures of the model before it are not those of this one."""
    plan: PruningPlan | None = getattr(model, "pruning_plan", None)
    small.pruning_plan = plan or PruningPlan.keep(
        find_blocks(model),
        {},
        model_type=base_model_type(model.config.model_type),
        sequence_length=min(128, longest_sequence(model) or 128),
    )
    before = measure_size(model, sequence_length=small.pruning_plan.sequence_length)
    old: PruningRecord | None = getattr(model, "pruning_record", None)
    record = record_of(
        model, before, small, old.config if old else {}, old.rounds if old else [], old.calibration if old else None
    )
    size, was = record.sizes["pruned"], record.vocabulary
    small.pruning_record = replace(
        record,
        vocabulary={
            "before": was.get("before", rows_of(model)),
            "after": rows_of(small),
            "params": was.get("params", 0) + before.params - size["params"],
            "token_macs": was.get("token_macs", 0) + (before.macs - size["macs"]) // before.sequence_length,
            "texts": texts,
            "min_count": min_count,
        },
        metrics={"dense": old.metrics["dense"]} if old and "dense" in old.metrics else {},
        datasets=old.datasets if old else [],
        recovery=old.recovery if old else {},
    )
