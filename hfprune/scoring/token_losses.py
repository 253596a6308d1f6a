"""Losses of a causal language model, a few tokens at a time, because the logits of a batch are its largest tensor."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.structure.batches import Batch
from hfprune.structure.running import ForwardEnded, replaced_forward

#: The most logits in memory at a time. A loss needs a handful of copies of them.
LOGITS = 2**22
#: From hidden states `(tokens, features)` to logits `(tokens, vocabulary)` float32.
Head = Callable[[Tensor], Tensor]


class BeforeHead(NamedTuple):
    """A causal language model that has run up to its head.

    Attributes:
        hidden: The hidden states behind the base model, `(samples, tokens, features)`.
        head: Computes the logits of some of these hidden states. It runs the model's own `forward`, so logits are
            scaled or capped as in the model.
    """

    hidden: Tensor
    head: Head


def before_head(model: PreTrainedModel, inputs: Batch) -> BeforeHead | None:
    """Run the base model of a causal language model, but not its head.

    Args:
        model: The model.
        inputs: Its arguments, without labels.

    Returns:
        The hidden states and the head; None for a model whose `forward` does not call its base model as a whole.
    """
    base = model.base_model
    base_forward = base.forward
    outputs: list[Any] = []

    def stop_after_base(*args: Any, **kwargs: Any) -> None:
        outputs.append(base_forward(*args, **kwargs))
        raise ForwardEnded

    with replaced_forward(base, stop_after_base), suppress(ForwardEnded):
        model(**inputs)
    if not outputs:
        return None
    hidden = getattr(outputs[0], "last_hidden_state", None)
    if hidden is None:
        return None
    output_class = type(outputs[0])

    def head(states: Tensor) -> Tensor:
        # the model runs as ever, but its base model gives these states as one sample
        with replaced_forward(base, lambda *_, **__: output_class(last_hidden_state=states[None])):
            logits: Tensor = model(**inputs).logits
        return logits[0].float()

    return BeforeHead(hidden, head)


def summed_in_parts(hidden: Tensor, loss: Callable[[Tensor, Tensor], Tensor], vocabulary: int) -> Tensor:
    """A sum of a loss over tokens, computed for at most `LOGITS` logits at a time, also in the backward pass.

    Args:
        hidden: `(tokens, features)`.
        loss: Gets the hidden states of some tokens, and the indices of these tokens; returns the sum of their losses.
            Gradients flow to the hidden states alone.
        vocabulary: The number of logits of one token.

    Returns:
        A scalar.

    Examples:
        >>> states = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
        >>> total = summed_in_parts(states, lambda part, rows: part.square().sum(), vocabulary=LOGITS)
        >>> total.backward()
        >>> total.item(), states.grad.tolist()
        (30.0, [[2.0, 4.0], [6.0, 8.0]])
    """
    tokens_at_a_time = max(1, LOGITS // vocabulary)
    total: Tensor = _InParts.apply(hidden, loss, tokens_at_a_time)  # type: ignore[no-untyped-call]
    return total


class _InParts(torch.autograd.Function):
    """A sum over parts. The gradient of each part is taken in the forward pass, while its logits are in memory."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Callable[[Tensor, Tensor], Tensor], size: int) -> Tensor:
        gradient = torch.empty_like(hidden)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for rows in torch.split(torch.arange(len(hidden), dtype=torch.long, device=hidden.device), size):
            part = hidden[rows].requires_grad_()
            # autograd is off inside a Function's forward
            with torch.enable_grad():
                value = loss(part, rows)
            gradient[rows] = torch.autograd.grad(value, part)[0]
            # the head may be on another device than the hidden states
            total += value.detach().to(total.device)
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None
