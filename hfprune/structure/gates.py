"""Gates: a multiplier on every unit, at the input of its consumer. 1 keeps a unit, 0 removes it."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from hfprune.structure.blocks import Block
from hfprune.structure.devices import input_device

Batch = dict[str, Any]
#: Arguments of models that are labels.
LABELS = ("labels", "start_positions", "end_positions", "next_sentence_label")


@contextmanager
def gated(model: PreTrainedModel, blocks: Sequence[Block], gates: Mapping[str, Tensor]) -> Iterator[None]:
    """Run the model with gates, inside the `with`.

    Args:
        model: The model; nothing of it changes but the hooks, which go when the `with` ends.
        blocks: Its blocks.
        gates: For some or all blocks, by name: `(units,)` multipliers.

    Yields:
        Nothing.

    Raises:
        ValueError: A gate has another shape than `(units,)`, or names no block.
    """
    by_name = {block.name: block for block in blocks}
    for name, gate in gates.items():
        if name not in by_name:
            raise ValueError(f"no block is named {name!r}. Blocks: {', '.join(by_name)}.")
        if gate.shape != (by_name[name].units,):
            raise ValueError(f"the gate of {name!r} is {tuple(gate.shape)}, expected ({by_name[name].units},).")

    def multiplier(gate: Tensor, width: int) -> Callable[[Tensor], Tensor]:
        return lambda x: x * gate.to(x).repeat_interleave(width)

    with input_hooks(model, {by_name[n]: multiplier(g, by_name[n].width) for n, g in gates.items()}):
        yield


def gate_gradients(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    batch: Batch,
    loss: Callable[[PreTrainedModel, Batch], Tensor],
    *,
    maps: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The derivative of every sample's loss by every unit's gate, exact, from one forward and one backward pass.

    γ[n, u] = ∂loss_n/∂m_u = Σ_t Σ_{c∈C_u} x[n,t,c] · g[n,t,c] with all gates at 1. Call it inside
    `frozen(model)`: weights then get no gradient and the pass costs about two forward passes.

    Args:
        model: The model, frozen.
        blocks: Blocks whose gates are wanted.
        batch: Arguments of the model: tensors with N samples.
        loss: Gives the *sum* over the batch of the samples' losses; samples must not mix in it.
        maps: By block name, `(columns + 1, columns)` float32: take [x, 1] · map for x in the formula.

    Returns:
        By block name: `(N, units)` float32, where the consumer's input is.
    """
    samples = count_samples(batch)
    gates: dict[Block, Tensor] = {}

    def probe(block: Block) -> Callable[[Tensor], Tensor]:
        change = None if maps is None else maps[block.name]

        def gate(x: Tensor) -> Tensor:
            if block not in gates:
                gates[block] = torch.ones(samples, block.units, device=x.device, requires_grad=True)
            gated: Tensor = _Gate.apply(x, gates[block], change)  # type: ignore[no-untyped-call]
            return gated

        return gate

    with torch.enable_grad(), input_hooks(model, {block: probe(block) for block in blocks}):
        total = loss(model, batch)
        found = torch.autograd.grad(total, list(gates.values()), allow_unused=True)
    gradients = dict(zip(gates, found, strict=True))
    return {
        block.name: torch.zeros(samples, block.units) if gradients.get(block) is None else gradients[block]
        for block in blocks
    }


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


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no weight gradients, inside the `with`; exactly as before afterwards, also after an error."""
    modes = [(module, module.training) for module in model.modules()]
    # by name: accelerate makes offloaded parameters anew whenever their module runs
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    try:
        model.eval()
        for name in trainable:
            model.get_parameter(name).requires_grad_(False)
        yield
    finally:
        for name in trainable:
            model.get_parameter(name).requires_grad_(True)
        for module, mode in modes:
            module.training = mode


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


def inputs_of(module: PreTrainedModel, batch: Batch, *, labels: bool = False) -> Batch:
    """What a model, or the base model in one, takes of a batch, where it wants it and by default without labels.

    Scoring and reconstruction never generate, so a decoder is told not to build a key/value cache. The choices of a
    multiple choice are samples of their own, as its head makes them.
    """
    parameters = inspect.signature(module.forward).parameters
    taken = {name: value for name, value in batch.items() if name in parameters and (labels or name != "labels")}
    taken = on_device(taken, input_device(module))
    ids = taken.get("input_ids")
    if isinstance(ids, Tensor) and ids.ndim == 3:
        taken = {
            name: value.flatten(0, 1) if isinstance(value, Tensor) and value.shape[:2] == ids.shape[:2] else value
            for name, value in taken.items()
        }
    return without_cache(module, taken)


@contextmanager
def same_use_cache(model: PreTrainedModel) -> Iterator[None]:
    """Whatever is written there inside the `with`, `use_cache` of the config is behind it as it was.

    Args:
        model: The model.

    Yields:
        Nothing.
    """
    config = model.config
    before = vars(config).get("use_cache")
    try:
        yield
    finally:
        if before is None:
            vars(config).pop("use_cache", None)
        else:
            config.use_cache = before


def without_cache(model: PreTrainedModel, batch: Batch) -> Batch:
    """A batch that tells a decoder to build no key/value cache, which only generation needs.

    Args:
        model: The model.
        batch: Its arguments; if they say whether to build one, that counts.

    Returns:
        The arguments.
    """
    takes_it = "use_cache" in inspect.signature(model.forward).parameters
    return {**batch, "use_cache": False} if takes_it and "use_cache" not in batch else batch


def run_without_head(model: PreTrainedModel, batch: Batch) -> None:
    """Run the base model; an encoder-decoder whole, as its head makes the decoder's inputs of labels."""
    if model.config.is_encoder_decoder:
        model(**inputs_of(model, batch, labels=True))
    else:
        model.base_model(**inputs_of(model.base_model, batch))


@contextmanager
def recomputed(model: PreTrainedModel, blocks: Sequence[Block]) -> Iterator[None]:
    """Gradient checkpointing, inside the `with`: layers are run again in the backward pass instead of kept.

    The same gradients for one more forward pass. transformers' own works in training mode only, where there is dropout.

    Args:
        model: The model.
        blocks: Its blocks; what is kept is the inputs of their layers.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for path in {block.layer for block in blocks}:
            layer = model.base_model.get_submodule(path)
            forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
            stack.enter_context(replaced_forward(layer, forward))
        yield


@contextmanager
def replaced_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another `forward` for one module; one that was set on the instance before (by accelerate's hooks) comes back."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


@contextmanager
def input_hooks(model: PreTrainedModel, changes: Mapping[Block, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Pass the input of each block's consumer through a function."""

    def hook(change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[Tensor, ...]]:
        return lambda _, args: (change(args[0]), *args[1:])

    with ExitStack() as stack:
        for block, change in changes.items():
            consumer = model.base_model.get_submodule(block.consumer)
            stack.callback(consumer.register_forward_pre_hook(hook(change)).remove)
        yield


class _Gate(torch.autograd.Function):
    """The identity, whose gradient by the gate is accumulated in float32 whatever the dtype of the model."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, change: Tensor | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.gate_shape, ctx.change = gate.shape, change
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (x,) = ctx.saved_tensors
        (gradient,) = grad_outputs
        samples, units = ctx.gate_shape
        # Some models flatten samples and tokens before the consumer, so go by the number of samples.
        wide = x.reshape(samples, -1, x.shape[-1]).to(torch.promote_types(x.dtype, torch.float32))
        if ctx.change is not None:
            wide = wide @ ctx.change[:-1].to(wide) + ctx.change[-1].to(wide)
        product = (wide * gradient.reshape(wide.shape)).sum(1)
        by_unit = product.reshape(samples, units, -1).sum(-1)
        return (gradient if ctx.needs_input_grad[0] else None), by_unit, None
