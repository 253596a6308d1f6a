"""Gates: a multiplier on every unit, at the input of its consumer. 1 keeps a unit, 0 removes it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from hfprune.structure.arguments import FUNCTION, checked
from hfprune.structure.batches import Batch, count_samples
from hfprune.structure.blocks import Block
from hfprune.structure.running import input_hooks
from hfprune.structure.sharing import alone_with


@contextmanager
def gated(model: PreTrainedModel, blocks: Sequence[Block], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Run the model with gates, inside the `with`.

    A gate is a multiplier on one unit, where the projection behind the units (the consumer) reads them. 1 keeps the
    unit. 0 gives the outputs of the model without it, while all shapes stay.

    Args:
        model: The model; nothing of it changes but the hooks, which go when the `with` ends.
        blocks: Its blocks.
        gates: For some or all blocks, by name: `(units,)` multipliers.

    Yields:
        Nothing.

    Raises:
        ValueError: A gate has another shape than `(units,)`, or names no block.

    Examples:
        >>> import torch
        >>> from hfprune.structure import find_blocks, gated
        >>> gates = {"encoder.layer.0.attention": torch.tensor([1.0, 0.0, 1.0, 1.0])}  # without the second head
        >>> with gated(dense, find_blocks(dense), gates):
        ...     without = dense(**batches[0]).logits
        >>> torch.equal(without, dense(**batches[0]).logits)  # the second head is back
        False
    """
    by_name = {block.name: block for block in blocks}
    for name, gate in gates.items():
        if name not in by_name:
            raise ValueError(f"no block is named {name!r}. Blocks: {', '.join(by_name)}.")
        if gate.shape != (by_name[name].units,):
            raise ValueError(f"the gate of {name!r} is {tuple(gate.shape)}, expected ({by_name[name].units},).")

    def multiplier(gate: Tensor, width: int) -> Callable[[Tensor], Tensor]:
        return lambda x: x * gate.to(x).repeat_interleave(width)

    changes = {by_name[name]: multiplier(gate, by_name[name].width) for name, gate in gates.items()}
    # another thread must neither run with these gates nor hang its own
    with alone_with(model), input_hooks(model, changes):
        yield


@checked(loss=FUNCTION)
def gate_gradients(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batch: Batch,
    loss: Callable[[PreTrainedModel, Batch], Tensor],
    *,
    maps: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The derivative of every sample's loss by every unit's gate, exact, from one forward and one backward pass.

    `γ[n, u] = ∂loss_n/∂m_u = Σ_t Σ_{c∈C_u} x[n,t,c] · g[n,t,c]`, with all gates m at 1. Here x is the input of the
    block's consumer, g is the gradient of the loss by x, n is a sample, t a token, and C_u are the columns of unit u.
    Call it inside `frozen(model)`: weights then get no gradient and the pass costs about two forward passes.

    Args:
        model: The model, frozen.
        blocks: Blocks whose gates are wanted.
        batch: Arguments of the model: tensors with N samples.
        loss: Gives the sum (not the mean) of the samples' losses; samples must not mix in it.
        maps: By block name, `(columns + 1, columns)` float32: take [x, 1] · map for x in the formula.

    Returns:
        Gradients by block name, `(N, units)` float32 each, on the device of the consumer's input.

    Examples:
        >>> from hfprune.structure import find_blocks, frozen, gate_gradients
        >>> def loss(model, batch):
        ...     return model(**batch).loss * len(batch["labels"])  # the sum over samples; the model gives their mean
        >>> with frozen(dense):
        ...     gradients = gate_gradients(dense, find_blocks(dense), batches[0], loss)
        >>> for block, values in gradients.items():
        ...     print(block, tuple(values.shape))
        encoder.layer.0.attention (6, 4)
        encoder.layer.0.ffn (6, 32)
        encoder.layer.1.attention (6, 4)
        encoder.layer.1.ffn (6, 32)
    """
    samples = count_samples(batch)
    gradients: dict[str, Tensor] = {}
    # what the backward pass is asked for, so that it comes to every gate although all weights are frozen
    anchor = torch.ones((), dtype=torch.float32, device="cpu", requires_grad=True)

    def at_gate(block: Block) -> Callable[[Tensor], Tensor]:
        change = None if maps is None else maps[block.name]

        def take(by_column: Tensor) -> None:
            by_unit = by_column.reshape(samples, block.units, -1).sum(-1).float()
            # a layer that runs several times hands in the gradients of every use
            if block.name in gradients:
                by_unit = gradients[block.name] + by_unit
            gradients[block.name] = by_unit

        return lambda x: gate_columns(x, None, anchor=anchor, samples=samples, take=take, change=change)

    with alone_with(model), torch.enable_grad(), input_hooks(model, {block: at_gate(block) for block in blocks}):
        total = loss(model, batch)
        torch.autograd.grad(total, anchor, allow_unused=True)
    for block in blocks:
        # a block that the loss does not depend on
        if block.name not in gradients:
            gradients[block.name] = torch.zeros(samples, block.units, dtype=torch.float32, device="cpu")
    return {block.name: gradients[block.name] for block in blocks}


def gate_columns(
    x: Tensor,
    gate: Tensor | None,
    *,
    anchor: Tensor,
    samples: int,
    take: Callable[[Tensor], None],
    change: Tensor | None = None,
) -> Tensor:
    """Gate what a consumer reads, and hand the gradients by its gates to a function in the backward pass.

    γ[n, c] = Σ_t x[n,t,c] · g[n,t,c], also where the gate is 0 and so lets nothing through.

    Args:
        x: `(samples, tokens, columns)`, or with samples and tokens flattened: what the consumer reads.
        gate: `(columns,)` multipliers; None for gates at 1, which do not multiply.
        anchor: A tensor that requires a gradient, for the backward pass to come here; it gets none.
        samples: How many samples x is of.
        take: Gets γ, `(samples, columns)`: float32, or float64 where x is.
        change: `(columns + 1, columns)`: take [x, 1] · change for x in the formula.

    Returns:
        What the consumer shall read.
    """
    gated: Tensor = _Gate.apply(x, gate, anchor, samples, take, change)  # type: ignore[no-untyped-call]
    return gated


class _Gate(torch.autograd.Function):
    """x times its gate; the gradients by the gate are summed in float32 whatever the dtype of the model."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gate: Tensor | None,
        anchor: Tensor,  # noqa: ARG004 (requires a gradient, so that backward is called although all weights are frozen)
        samples: int,
        take: Callable[[Tensor], None],
        change: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, gate)
        ctx.samples = samples
        ctx.take = take
        ctx.change = change
        if gate is None:
            return x.view_as(x)
        return x * gate

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
        x, gate = ctx.saved_tensors
        gradient: Tensor | None = grad_outputs[0]
        assert gradient is not None
        # some models flatten samples and tokens before the consumer, so go by the number of samples
        wide = x.reshape(ctx.samples, -1, x.shape[-1])
        wide = wide.to(torch.promote_types(x.dtype, torch.float32))
        if ctx.change is not None:
            wide = wide @ ctx.change[:-1].to(wide) + ctx.change[-1].to(wide)
        ctx.take((wide * gradient.reshape(wide.shape)).sum(1))
        if not ctx.needs_input_grad[0]:
            gradient = None
        elif gate is not None:
            gradient = gradient * gate
        return gradient, None, None, None, None, None
