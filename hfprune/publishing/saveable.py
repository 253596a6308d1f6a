"""What a model must be to become a checkpoint that can be loaded again: finite, whole, and not quantized anyhow."""

import logging
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import id_tensor_storage

from hfprune.errors import CheckpointError
from hfprune.publishing.quantized import check_not_packed, is_saveable, quantizer_of
from hfprune.publishing.verification import check_loadable

logger = logging.getLogger(__name__)


def check_saveable(model: PreTrainedModel) -> None:
    """Refuse a model whose checkpoint would be of no use, before anything is written.

    Args:
        model: A pruned model.

    Raises:
        CheckpointError: Its weights are quantized in a way that `load` would not take, or one of them is NaN or
            infinite.
    """
    if quantizer_of(model) is not None:
        _check_quantized(model)
    for name, module in model.named_modules():
        # such modules keep packed weights, which are no parameters
        if _is_quantized(module):
            raise CheckpointError(
                f"{name} of this {type(model).__name__} is a quantized {type(module).__name__} of torch "
                "(quantize_dynamic), and a checkpoint of hfprune holds weights as they were pruned, with their shapes. "
                "Save the model before it is quantized, and quantize again what hfprune.load returns."
            )
    check_finite_weights(model)


def check_finite_weights(model: PreTrainedModel) -> None:
    """Refuse a model with a weight that is NaN or infinite.

    Args:
        model: The model.

    Raises:
        CheckpointError: It has one.
    """
    for name, parameter in model.named_parameters():
        _check_finite(name, parameter)
    persistent = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        # a mask may hold infinities
        if name in persistent:
            _check_finite(name, buffer, allows_infinity=True)


def _check_quantized(model: PreTrainedModel) -> None:
    """Refuse quantised weights that would not be checked before they are loaded, or that cannot be written."""
    if not is_saveable(model):
        quantizer = type(getattr(model, "hf_quantizer", None)).__name__
        raise CheckpointError(
            f"the weights of this {type(model).__name__} are quantized ({quantizer}) in a way that a checkpoint of "
            "hfprune does not hold: it takes int8 of torchao, and 8 or 4 bits of bitsandbytes, which hfprune.quantize "
            "makes. Save the model before it is quantized; `hfprune.load(folder, quantization_config=...)` quantizes "
            "while it loads. To keep the quantized weights, call model.save_pretrained(folder), and load them with an "
            "Auto class."
        )
    check_not_packed(model)


def _is_quantized(module: nn.Module) -> bool:
    """Whether a module is one that torch puts in the place of one with plain weights."""
    package = type(module).__module__
    return package.startswith(("torch.ao.nn.", "torch.nn.quantized.")) and "quantized" in package


def _check_finite(name: str, tensor: Tensor, *, allows_infinity: bool = False) -> None:
    """Refuse a tensor with NaN in it, or with infinities."""
    # what is not in memory is looked at when it is written
    if tensor.is_meta or not tensor.is_floating_point() or not tensor.numel():
        return
    # a quantised weight is as finite as its scales, and types of 8 bits have no arithmetic
    tensor = getattr(tensor, "scale", tensor)
    values = tensor.float() if tensor.element_size() == 1 else tensor
    # NaN in a tensor makes both NaN
    low, high = torch.aminmax(values.detach())
    has_nan = bool(low.isnan())
    has_infinity = bool(low.isinf() or high.isinf())
    if has_nan or (has_infinity and not allows_infinity):
        what = "NaN" if has_nan else "infinite values"
        raise CheckpointError(
            f"{name} has {what}: such a model computes nothing, so it is not saved, and no earlier checkpoint is "
            "replaced. Look for the cause where the weights were last changed: a learning rate that is too high, or "
            "float16 where bfloat16 is needed."
        )


def untied_state(model: PreTrainedModel) -> dict[str, Tensor] | None:
    """The weights of a model in which tensors are one by hand, with a copy for every name.

    transformers writes such a tensor once, under one of its names. Loading ties again only what the class and the
    config tie, and would give the other names random weights.

    Args:
        model: The model.

    Returns:
        All tensors by name; None if nothing is tied but what loading ties again.
    """
    state = dict(model.state_dict())
    by_hand = list(_names_tied_by_hand(model, state))
    if not by_hand:
        return None
    for name in by_hand:
        state[name] = state[name].clone()
    logger.info("These share their values with other weights and are saved as copies: %s", ", ".join(by_hand))
    return state


def _names_tied_by_hand(model: PreTrainedModel, state: dict[str, Tensor]) -> Iterator[str]:
    """Names whose tensor has another name, and that loading would not tie to it."""
    names_of: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for name, tensor in state.items():
        in_memory = isinstance(tensor, Tensor) and not tensor.is_meta and tensor.numel() > 0
        if in_memory:
            names_of[tuple(id_tensor_storage(tensor))].append(name)
    tied_by_class = getattr(model, "all_tied_weights_keys", None) or {}
    for names in names_of.values():
        own = [name for name in names if tied_by_class.get(name) not in names]
        # the first name keeps the tensor itself
        yield from own[1:]


def check_draft(draft: Path, place: Path, model: PreTrainedModel) -> None:
    """Check the draft of a checkpoint as `load` would, before it takes the place of an earlier one.

    Args:
        draft: The folder.
        place: Where it shall go.
        model: The model that was written.

    Raises:
        CheckpointError: `load` would refuse it, or a weight that was not in memory is NaN or infinite.
    """
    try:
        check_loadable(draft)
    except CheckpointError as error:
        problem = str(error).removeprefix(f"{draft}: ")
        raise CheckpointError(
            f"this {type(model).__name__} was not saved to {place}, because hfprune.load would refuse what was "
            f"written: {problem}. A checkpoint holds the weights that the class of the model has, in the shapes of its "
            "plan: take off what was added or changed (adapters, parametrizations, heads), and save again."
        ) from error
    if any(parameter.is_meta for parameter in model.parameters()):
        for path in sorted(draft.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (not a mapping)
                    _check_finite(name, file.get_tensor(name))
