"""Losses of a language model over a few tokens at a time: the logits of a batch are its largest tensor."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.structure.batches import Batch
from hfprune.structure.running import ForwardEnded, replaced_forward

#: So many logits are held at a time (and a handful of copies of them).
LOGITS = 2**22
#: From hidden states `(tokens, features)` to logits `(tokens, vocabulary)` float32.
Head = Callable[[Tensor], Tensor]


def before_head(model: PreTrainedModel, inputs: Batch) -> tuple[Tensor, Head] | None:
    """Run the base model of a causal language model, and leave its head for later.

    Args:
        model: The model.
        inputs: Its arguments, without labels.

    Returns:
        Hidden states `(samples, tokens, features)`, and the head: the model's own `forward` behind the base model, with
        whatever it does to logits. None for a model that calls only a part of its base model.
    """
    base, found = model.base_model, list[Any]()
    forward = base.forward

    def note(*args: Any, **kwargs: Any) -> None:
        found.append(forward(*args, **kwargs))
        raise ForwardEnded

    with replaced_forward(base, note), suppress(ForwardEnded):
        model(**inputs)
    hidden = getattr(found[0], "last_hidden_state", None) if found else None
    if hidden is None:
        return None
    kind = type(found[0])

    def head(states: Tensor) -> Tensor:
        with replaced_forward(base, lambda *_, **__: kind(last_hidden_state=states[None])):
            logits: Tensor = model(**inputs).logits
        return logits[0].float()

    return hidden, head


def summed_in_parts(hidden: Tensor, loss: Callable[[Tensor, Tensor], Tensor], vocabulary: int) -> Tensor:
    """A sum over tokens of a loss, found for at most `LOGITS` logits at a time, backward pass included.

    Args:
        hidden: `(tokens, features)`.
        loss: From the hidden states of some tokens, and their places among all, to the sum of their losses. It can be
            differentiated by the hidden states alone.
        vocabulary: Logits of one token.

    Returns:
        A scalar.
    """
    total: Tensor = _InParts.apply(hidden, loss, max(1, LOGITS // vocabulary))  # type: ignore[no-untyped-call]
    return total


class _InParts(torch.autograd.Function):
    """The gradient of each part is taken in the forward pass, while its logits are there."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Callable[[Tensor, Tensor], Tensor], size: int) -> Tensor:
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), device=hidden.device)
        for rows in torch.split(torch.arange(len(hidden), device=hidden.device), size):
            part = hidden[rows].requires_grad_()
            with torch.enable_grad():
                value = loss(part, rows)
            gradient[rows] = torch.autograd.grad(value, part)[0]
            total += value.detach().to(total.device)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None
