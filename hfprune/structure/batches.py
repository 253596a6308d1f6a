"""Batches: the arguments of a model, how many samples they hold, and which of their tokens are padding."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

Batch = dict[str, Any]
#: Arguments of models that are labels.
LABELS = ("labels", "start_positions", "end_positions", "next_sentence_label", "sentence_order_label")


def refuse_head_mask(batch: Mapping[str, Any]) -> None:
    """Refuse the argument that transformers 4 gated heads with.

    Args:
        batch: Arguments of a model.

    Raises:
        ValueError: `head_mask` is one of them.
    """
    if batch.get("head_mask") is not None:
        raise ValueError(
            "head_mask is in the batch: transformers 5 swallows it without effect. Heads are gated by "
            "hfprune.structure.gated and removed by hfprune.apply_plan; leave head_mask out."
        )


def count_samples(batch: Batch) -> int:
    """How many samples a batch holds: the leading size of its first tensor, with choices counted apart.

    >>> count_samples({"input_ids": torch.zeros(4, 7)}), count_samples({"input_ids": torch.zeros(4, 2, 7)})
    (4, 8)
    """
    ids = batch.get("input_ids")
    if isinstance(ids, Tensor):
        return ids.shape[:-1].numel()
    return next(value.shape[0] for value in batch.values() if isinstance(value, Tensor))


def token_mask(batch: Batch, name: str = "attention_mask") -> Tensor | None:
    """Which tokens of a batch are not padding.

    Args:
        batch: Arguments of a model.
        name: The argument that holds the mask: `Block.mask`. If the batch has no `decoder_attention_mask`, the mask of
            the decoder is made from padded labels, or is the encoder's mask where the decoder reads the same tokens.

    Returns:
        `(samples, tokens)` bool; None if the batch does not say.

    Examples:
        >>> token_mask({"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[1, 0]])})
        tensor([[ True, False]])
    """
    mask = batch.get(name)
    if mask is None and name == "decoder_attention_mask":
        mask = _mask_of_decoder(batch)
    if not isinstance(mask, Tensor) or mask.ndim < 2:
        return None
    return mask.reshape(count_samples(batch), -1).bool()


def _mask_of_decoder(batch: Batch) -> Any:
    """The mask of a decoder, of a batch that does not give it by name."""
    labels = batch.get("labels")
    if isinstance(labels, Tensor) and labels.ndim == 2:
        return labels != -100
    # the head of a classifier gives the decoder the tokens of the encoder
    if "decoder_input_ids" not in batch and "input_ids" in batch:
        return batch.get("attention_mask")
    return None


def fitting_mask(batch: Batch, name: str, value: Tensor) -> Tensor | None:
    """Which tokens of a tensor are not padding, if the batch's mask has as many tokens as the tensor.

    The mask of a sound counts samples of the waveform. A model of speech makes fewer frames of them, so that mask does
    not fit what its layers compute.

    Args:
        batch: Arguments of a model.
        name: The argument that holds the mask, as for `token_mask`.
        value: `(samples, tokens, ...)`.

    Returns:
        `(samples, tokens)` bool; None if the batch has no mask, or one of other tokens.
    """
    mask = token_mask(batch, name)
    if mask is None or mask.shape != value.shape[:2]:
        return None
    return mask


def predicted_tokens(model: PreTrainedModel, batch: Batch, logits: Tensor) -> Tensor | None:
    """At which tokens logits are predictions for a token that is not padding.

    Args:
        model: The model.
        batch: Its arguments.
        logits: `(samples, tokens, ...)`; those of an encoder-decoder are for the tokens of the decoder.

    Returns:
        `(samples, tokens)` bool, on the device of the logits; None if the batch does not say, or if the logits are not
        for single tokens.
    """
    name = "attention_mask"
    if model.config.is_encoder_decoder:
        name = "decoder_attention_mask"
    mask = fitting_mask(batch, name, logits)
    if mask is None:
        return None
    return mask.to(logits.device)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on a device."""
    moved = dict(batch)
    for name, value in batch.items():
        if isinstance(value, Tensor):
            moved[name] = value.to(device)
    return moved
