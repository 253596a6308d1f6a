"""Batches that a model is traced with, and others, of other sizes, that the exported model is compared on."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hfprune.structure.devices import input_embeddings
from hfprune.structure.examples import example_inputs, longest_sequence
from hfprune.structure.predictions import predicts_next_token
from hfprune.structure.wrapping import argument_names

#: Sentences of different lengths, so that a batch of them is padded. No model was trained on them by us.
_SENTENCES = (
    "The harbour was quiet when the first boats came in.",
    "Who wrote the letter?",
    "A good soup needs time, salt and a little patience, and somebody who waits beside the stove until it is done.",
    "Prices rose again in March, but fewer people than expected noticed it at once.",
    "It works.",
    "She asked for the shortest way to the station, and he drew her a map on the back of an old receipt.",
)
#: The sentences that the model is traced with; all of them are compared.
_TRACED = 3
#: Tokens of the longest text that is compared, if the model has positions for as many.
_LONGEST = 64


def trace_batch(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> dict[str, Tensor]:
    """A batch to trace a model with.

    Args:
        model: The model.
        tokenizer: Its tokenizer; without one the token ids are random.

    Returns:
        Arguments by name: three texts of different lengths, padded; or as many pictures or sounds of noise.
    """
    if not takes_texts(model):
        return _noise(model, _TRACED, seed=0)
    return padded(model, tokenizer, texts_of(model, tokenizer)[:_TRACED])


def held_out_batches(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[dict[str, Tensor]]:
    """Batches of other sizes than `trace_batch` gives: one short text, six texts, and one long text.

    A decoder looks only at what stands before a token, so padding behind a text says nothing of its mask. It gets the
    six texts with padding in front too.

    Args:
        model: The model.
        tokenizer: Its tokenizer; without one the token ids are random.

    Returns:
        The batches.
    """
    if not takes_texts(model):
        return [_noise(model, 1, seed=1), _noise(model, _TRACED + 2, seed=2)]
    texts = texts_of(model, tokenizer)
    longest = longest_sequence(model) or _LONGEST
    joined: list[int] = []
    for text in texts:
        joined += text
    # a text of several sentences; a tokenizer's special tokens inside of it do no harm
    long_text = joined[: min(longest, _LONGEST)]
    batches = [
        padded(model, tokenizer, texts[1:2]),
        padded(model, tokenizer, texts),
        padded(model, tokenizer, [long_text]),
    ]
    if predicts_next_token(model):
        batches.append(with_positions(model, padded(model, tokenizer, texts, left=True)))
    return batches


def takes_texts(model: PreTrainedModel) -> bool:
    """Whether a model takes token ids, and no pictures or sounds."""
    return bool(model.main_input_name == "input_ids")


def texts_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> list[list[int]]:
    """The token ids of a few sentences; without a tokenizer random ids, as many as the sentences have words.

    Args:
        model: The model.
        tokenizer: Its tokenizer.

    Returns:
        The ids of every text.
    """
    rows = _rows(model)
    longest = longest_sequence(model) or _LONGEST
    generator = torch.Generator().manual_seed(0)
    texts = []
    for sentence in _SENTENCES:
        if tokenizer is not None:
            ids = list(tokenizer(sentence)["input_ids"])
        else:
            words = len(sentence.split())
            ids = torch.randint(0, rows, (words,), dtype=torch.long, device="cpu", generator=generator).tolist()
        texts.append(ids[:longest])
    return texts


def padded(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    texts: Sequence[Sequence[int]],
    *,
    left: bool = False,
) -> dict[str, Tensor]:
    """A batch of texts, with padding behind the shorter ones.

    Args:
        model: The model.
        tokenizer: Its tokenizer, which says whether there are token types.
        texts: The token ids of every text.
        left: Whether padding stands in front, as generation wants it.

    Returns:
        `input_ids`, `attention_mask` and, where model and tokenizer have them, `token_type_ids`, each
        `(texts, tokens)`. The types are those of a pair, so that a file that ignores them is found.
    """
    longest = max(map(len, texts))
    filler = _padding_token(model)
    rows = []
    masks = []
    for text in texts:
        missing = longest - len(text)
        row, fill = list(text), [filler] * missing
        ones, zeros = [1] * len(text), [0] * missing
        rows.append(fill + row if left else row + fill)
        masks.append(zeros + ones if left else ones + zeros)
    ids = torch.tensor(rows, dtype=torch.long, device="cpu")
    mask = torch.tensor(masks, dtype=torch.long, device="cpu")
    batch = {"input_ids": ids, "attention_mask": mask}
    has_types = tokenizer is not None and "token_type_ids" in tokenizer.model_input_names
    if has_types and "token_type_ids" in argument_names(model):
        batch["token_type_ids"] = _types(model, mask)
    return batch


def with_positions(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch for a decoder with the positions of its tokens, which padding in front does not move.

    Some models count positions by the mask, and others, such as GPT-2, by where a token stands, unless they are told.

    Args:
        model: The model.
        batch: Its arguments.

    Returns:
        The batch; with `position_ids`, `(texts, tokens)`, where the model is a decoder that takes them and there is a
        mask.
    """
    given = dict(batch)
    is_wanted = predicts_next_token(model) and "position_ids" in argument_names(model)
    if is_wanted and "attention_mask" in given and "position_ids" not in given:
        given["position_ids"] = positions_of(given["attention_mask"])
    return given


def positions_of(mask: Tensor) -> Tensor:
    """The position of every token in its text; padding has no position of its own.

    Args:
        mask: `(texts, tokens)`, 1 for tokens and 0 for padding.

    Returns:
        `(texts, tokens)`.

    Examples:
        >>> positions_of(torch.tensor([[0, 0, 1, 1]])).tolist()
        [[0, 0, 0, 1]]
    """
    return (mask.cumsum(-1) - 1).clamp(min=0)


def arguments_in(model: PreTrainedModel, batch: Mapping[str, object]) -> dict[str, Tensor]:
    """The tensors of a batch that a model takes, without labels.

    Args:
        model: The model.
        batch: The batch.

    Returns:
        Tensors by name.
    """
    taken = argument_names(model) - {"labels", "label", "label_ids"}
    arguments = {}
    for name, value in batch.items():
        if name in taken and isinstance(value, Tensor):
            arguments[name] = value
    return arguments


def _padding_token(model: PreTrainedModel) -> int:
    """The id that stands where there is no token; any does, as the mask leaves it out."""
    token = getattr(model.config, "pad_token_id", None)
    return token if isinstance(token, int) and 0 <= token < _rows(model) else 0


def _rows(model: PreTrainedModel) -> int:
    """How many tokens a model knows."""
    embeddings = input_embeddings(model)
    return int(getattr(embeddings, "num_embeddings", 2))


def _noise(model: PreTrainedModel, samples: int, *, seed: int) -> dict[str, Tensor]:
    """Noise for a model of pictures or sounds; of other seeds other noise."""
    ids = torch.zeros(samples, 8, dtype=torch.long, device="cpu")
    batch = arguments_in(model, example_inputs(model, ids))
    generator = torch.Generator().manual_seed(seed)
    for name, values in batch.items():
        if values.is_floating_point():
            noise = torch.randn(values.shape, dtype=torch.float32, device="cpu", generator=generator)
            batch[name] = noise.to(values.dtype)
    return batch


def _types(model: PreTrainedModel, mask: Tensor) -> Tensor:
    """Token types as a pair of texts has them: 1 for the second half of the tokens, where the model knows a 1."""
    if getattr(model.config, "type_vocab_size", 1) < 2:
        return torch.zeros_like(mask)
    lengths = mask.sum(-1, keepdim=True)
    return ((positions_of(mask) >= (lengths + 1) // 2) & mask.bool()).long()
