"""Batches: the arguments of a model, their samples, and which of their tokens are no padding."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

Batch = dict[str, Any]


#: Arguments of models that are labels.
LABELS = ("labels", "start_positions", "end_positions", "next_sentence_label")


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
    """Which tokens of a batch are no padding.

    Args:
        batch: Arguments of a model.
        name: Of the mask: `Block.mask`. That of a decoder follows from padded labels where there is none, or is that
            of the encoder where it reads the same tokens.

    Returns:
        `(samples, tokens)` bool; None if the batch does not say.
    """
    mask = batch.get(name)
    labels = batch.get("labels")
    if mask is None and name == "decoder_attention_mask":
        if isinstance(labels, Tensor) and labels.ndim == 2:
            mask = labels != -100
        elif "decoder_input_ids" not in batch and "input_ids" in batch:  # its head gives the decoder the same tokens
            mask = batch.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim < 2:
        return None
    return mask.reshape(count_samples(batch), -1).bool()


def fitting_mask(batch: Batch, name: str, value: Tensor) -> Tensor | None:
    """Which tokens of a value are no padding, where the mask is of these tokens.

    That of a sound is of its samples in time, of which a model makes fewer frames.

    Args:
        batch: Arguments of a model.
        name: Of the mask, as for `token_mask`.
        value: `(samples, tokens, ...)`.

    Returns:
        `(samples, tokens)` bool; None if the batch does not say, or the mask is of other tokens.
    """
    mask = token_mask(batch, name)
    return mask if mask is not None and mask.shape == value.shape[:2] else None


def predicted_tokens(model: PreTrainedModel, batch: Batch, logits: Tensor) -> Tensor | None:
    """Which tokens of logits are for no padding.

    Args:
        model: The model.
        batch: Its arguments.
        logits: `(samples, tokens, ...)`, those of an encoder-decoder for the decoder's tokens.

    Returns:
        `(samples, tokens)` bool, where the logits are; None if the batch does not say, or logits are not of tokens.
    """
    name = "decoder_attention_mask" if model.config.is_encoder_decoder else "attention_mask"
    mask = fitting_mask(batch, name, logits)
    return None if mask is None else mask.to(logits.device)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """A batch with its tensors on a device."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}
