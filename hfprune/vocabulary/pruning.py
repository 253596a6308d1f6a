"""Drop the tokens that a corpus never uses, from a model and its tokenizer."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfprune.encoders import opened
from hfprune.measuring.size import measure_size
from hfprune.planning.plan import PruningPlan
from hfprune.publishing.encoders import with_card
from hfprune.publishing.record import PruningRecord, record_of
from hfprune.structure.anatomy import Anatomy, anatomy_of
from hfprune.structure.arguments import TEXTS, checked, optional, whole
from hfprune.structure.examples import longest_sequence
from hfprune.structure.running import outside_inference_mode
from hfprune.structure.wrapping import unwrapped
from hfprune.vocabulary.counting import check_same_tokens, checked_texts, count_tokens, template_frames
from hfprune.vocabulary.rows import fixed_ids, keep_tokens, named_ids, rows_of
from hfprune.vocabulary.selection import Selection, Vocabulary
from hfprune.vocabulary.tokenizer import smaller_tokenizer, tokenizer_data

#: Tokens in the sequence that multiply-adds are counted for, where the model has so many positions and no plan.
_SEQUENCE_LENGTH = 128
#: A model of transformers, or an encoder of sentence-transformers.
Model = TypeVar("Model")


@checked(keep=TEXTS, min_count=whole(), pad_to_multiple_of=optional(whole()))
@outside_inference_mode
def prune_vocabulary(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    keep: Iterable[str] = (),
    min_count: int = 1,
    pad_to_multiple_of: int | None = None,
) -> tuple[Model, PreTrainedTokenizerBase]:
    """Make a model and a tokenizer that know only the tokens of a corpus.

    With `min_count=1` the texts get the same tokens as before, and the model computes the same for them. Other texts
    are spelled with smaller pieces, with bytes where the tokenizer has them, or with the unknown token. Further tokens
    stay: special and added ones, those that a config gives a role, those that the chat template writes around messages,
    and the tokens that other kept tokens are merged from. Tokens keep their order and get new ids, in the tokenizer and
    in all configs.

    Heads and neurons may be pruned before or after. Distil from a teacher before the vocabulary is pruned, or prune the
    teacher's vocabulary in the same way: logits of different vocabularies cannot be compared.

    Args:
        model: The model, dense or pruned; it stays as it is. A `SentenceTransformer` or `CrossEncoder` gives another
            one, with the smaller model and tokenizer in it.
        tokenizer: Its fast tokenizer (BPE, WordPiece, Unigram or whole words); it stays as it is.
        texts: The corpus, as the model is given it: for a chat model, as the chat template renders it.
        keep: Further tokens to keep, as the vocabulary spells them.
        min_count: How often a token must occur in the texts to stay.
        pad_to_multiple_of: Keep more tokens, those of the lowest ids, until their number is a multiple of this; 64
            suits most kernels.

    Returns:
        The new model, with `.pruning_plan` (a dense model gets one that keeps all units) and `.pruning_record`, and the
        new tokenizer.

    Raises:
        CalibrationError: The texts are no strings, or hold no token.
        StructureError: The model does not have one row of embeddings for each token, or the tokenizer's class does more
            than its tokenizer.json says, so that the new one would split the texts otherwise.
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
        ValueError: The tokenizer is slow, has more tokens than the model has rows, or lacks a token to keep; a count or
            multiple is below 1, or the vocabulary cannot fill the multiple.

    Examples:
        >>> import hfprune
        >>> small, smaller_tokenizer = hfprune.prune_vocabulary(decoder, tokenizer, ["the cat sees a mouse"])
        >>> len(tokenizer), len(smaller_tokenizer)
        (15, 9)
        >>> smaller_tokenizer.tokenize("the cat follows a mouse")
        ['the', 'cat', '[UNK]', 'a', 'mouse']
        >>> decoder.lm_head.weight.shape, small.lm_head.weight.shape
        (torch.Size([15, 16]), torch.Size([9, 16]))
    """
    _check_positive("min_count", min_count)
    if pad_to_multiple_of is not None:
        _check_positive("pad_to_multiple_of", pad_to_multiple_of)
    encoder = opened(model)
    if encoder is not None and encoder.model is not model:
        options: dict[str, Any] = {"keep": keep, "min_count": min_count, "pad_to_multiple_of": pad_to_multiple_of}
        body, new_tokenizer = prune_vocabulary(encoder.body, tokenizer, texts, **options)
        whole: Model = with_card(encoder.around(body, tokenizer=new_tokenizer))
        return whole, new_tokenizer
    smaller = _pruned(unwrapped(model), tokenizer, texts, keep=keep, min_count=min_count, multiple=pad_to_multiple_of)
    return cast("tuple[Model, PreTrainedTokenizerBase]", smaller)


def _pruned(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    *,
    keep: Iterable[str],
    min_count: int,
    multiple: int | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The job of `prune_vocabulary`, for a model of transformers."""
    corpus = checked_texts(texts)
    data = tokenizer_data(tokenizer)
    rows = rows_of(model)

    counts = count_tokens(tokenizer, data["model"], corpus)
    used = {token for token, count in counts.items() if count >= min_count}
    frames = template_frames(tokenizer)
    if frames:
        used.update(count_tokens(tokenizer, data["model"], frames))

    vocabulary = Vocabulary(tokenizer, data)
    used |= vocabulary.check_names(keep)
    roles = named_ids(model) | fixed_ids(model)
    tokens = vocabulary.needed_for(used, roles)
    _check_rows(tokens, rows)
    selection = Selection(tokens, spare_rows=tuple(sorted(roles - set(tokens.values()))))
    if multiple is not None:
        selection = vocabulary.filled(selection, multiple, rows)

    new_tokenizer = smaller_tokenizer(tokenizer, data, selection.new_ids)
    same_as_before = list(frames)
    # With a higher count the corpus loses its rare tokens, and is split otherwise.
    if min_count == 1:
        same_as_before = [*corpus, *frames]
    check_same_tokens(tokenizer, new_tokenizer, same_as_before)
    small = keep_tokens(model, selection.rows)
    _attach_plan_and_record(model, small, texts=len(corpus), min_count=min_count)
    return small, new_tokenizer


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")


def _check_rows(tokens: Mapping[str, int], rows: int) -> None:
    """Refuse tokens that the model has no row of embeddings for; a token that is not kept needs none."""
    without_row = [(number, token) for token, number in tokens.items() if number >= rows]
    if without_row:
        number, token = min(without_row)
        raise ValueError(
            f"the tokenizer's {token!r} has the id {number}, but the model has {rows} rows of embeddings. "
            "Take the model's own tokenizer, or call model.resize_token_embeddings(len(tokenizer)) first."
        )


def _attach_plan_and_record(model: PreTrainedModel, small: PreTrainedModel, *, texts: int, min_count: int) -> None:
    """Give the smaller model its plan, and its record with what the vocabulary lost.

    Args:
        model: The model before.
        small: The model after, which gets them.
        texts: How many texts the corpus had.
        min_count: How often a token had to occur.
    """
    anatomy = anatomy_of(model)
    plan: PruningPlan = getattr(model, "pruning_plan", None) or _plan_of_all_units(anatomy)
    small.pruning_plan = plan
    before = measure_size(anatomy, sequence_length=plan.sequence_length)
    smaller = anatomy_of(small)
    earlier: PruningRecord | None = getattr(model, "pruning_record", None)
    if earlier is None:
        record = record_of(anatomy, before, smaller, asked={}, rounds=[])
    else:
        record = record_of(anatomy, before, smaller, earlier.config, earlier.rounds, earlier.calibration)
        # The metrics of the dense model stay true. Those of the pruned model are of the model before.
        dense_metrics: dict[str, dict[str, float]] = {}
        if "dense" in earlier.metrics:
            dense_metrics["dense"] = earlier.metrics["dense"]
        record = replace(record, metrics=dense_metrics, datasets=earlier.datasets, recovery=earlier.recovery)
    # Of an earlier pruning of the vocabulary; empty if there was none.
    vocabulary = record.vocabulary
    after = record.sizes["pruned"]
    removed_token_macs = (before.macs - after["macs"]) // before.sequence_length
    small.pruning_record = replace(
        record,
        # All prunings of the vocabulary together, as the record's dense model is the one before the first.
        vocabulary={
            "before": vocabulary.get("before", rows_of(model)),
            "after": rows_of(small),
            "params": vocabulary.get("params", 0) + before.params - after["params"],
            "token_macs": vocabulary.get("token_macs", 0) + removed_token_macs,
            "texts": texts,
            "min_count": min_count,
        },
    )


def _plan_of_all_units(anatomy: Anatomy) -> PruningPlan:
    longest = longest_sequence(anatomy.model) or _SEQUENCE_LENGTH
    return PruningPlan.keep(
        anatomy.blocks,
        {},
        model_type=anatomy.model_type,
        sequence_length=min(_SEQUENCE_LENGTH, longest),
    )
