"""Parameters, multiply-adds and bytes of a whole model: the one definition of each."""

import inspect
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hfprune.structure.anatomy import ModelOrAnatomy, UnitCost, anatomy_of
from hfprune.structure.batches import Batch
from hfprune.structure.examples import example_inputs
from hfprune.structure.running import frozen
from hfprune.structure.specs import AttentionUnit


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model is and costs.

    Attributes:
        params: All parameters, tied ones once.
        prunable_params: Parameters of all units: what a budget of `params` counts.
        macs: Multiply-adds of one forward pass over one sequence, everything included.
        prunable_macs: Multiply-adds of all units for one sequence: what a budget of `macs` counts.
        sequence_length: Tokens in that sequence.
        weight_bytes: Bytes of all parameters and buffers in the present dtype.
    """

    params: int
    prunable_params: int
    macs: int
    prunable_macs: int
    sequence_length: int
    weight_bytes: int


def measure_size(model: ModelOrAnatomy, *, sequence_length: int, attention_unit: AttentionUnit | None = None) -> Size:
    """Count parameters, multiply-adds and bytes.

    Args:
        model: The model, dense or pruned, or its anatomy.
        sequence_length: Tokens in a sequence, for the multiply-adds.
        attention_unit: What units are, as for `anatomy_of`: it says what is prunable.

    Returns:
        The counts.
    """
    anatomy = anatomy_of(model, attention_unit)
    parameters = list(anatomy.model.parameters())
    tensors = [*parameters, *anatomy.model.buffers()]
    return Size(
        params=sum(parameter.numel() for parameter in parameters),
        prunable_params=anatomy.cost(lambda block: block.unit_params),
        macs=count_macs(anatomy.model, sequence_length=sequence_length),
        prunable_macs=anatomy.cost(lambda block: block.unit_macs(sequence_length)),
        sequence_length=sequence_length,
        weight_bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
    )


def longest_sequence(model: PreTrainedModel) -> int | None:
    """How many tokens the model has positions for; None if its config does not say."""
    longest: int | None = getattr(model.config, "max_position_embeddings", None)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            longest = module.num_embeddings - module.padding_idx - 1  # RoBERTa's positions start behind the padding
    return longest


def check_length(model: PreTrainedModel, sequence_length: int, *, option: str = "sequence_length") -> None:
    """Refuse sequences that the model has no positions for.

    Args:
        model: The model.
        sequence_length: Tokens in a sequence.
        option: What the user set it by.

    Raises:
        ValueError: They are more than the model has positions for.
    """
    longest = longest_sequence(model)
    if longest is not None and sequence_length > longest:
        raise ValueError(
            f"{option}={sequence_length} is more than the model's {longest} positions. Set the length that it "
            "will be used with; windows and texts must not be longer either (window, max_length)."
        )


def count_macs(model: PreTrainedModel, *, sequence_length: int) -> int:
    """Multiply-adds of one forward pass over one sequence: half of what PyTorch's FlopCounterMode counts.

    Attention counts all pairs of tokens, causal or not.

    Args:
        model: The model.
        sequence_length: Tokens in the sequence.

    Returns:
        Multiply-adds.

    Raises:
        ValueError: The model has no positions for so long a sequence.
    """
    check_length(model, sequence_length)
    inputs = _example(model, 1, sequence_length)
    counter = FlopCounterMode(display=False)
    # PyTorch's own attention kernels are not all known to the counter; its plain matrix products are.
    with frozen(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        model(**inputs)
    return counter.get_total_flops() // 2


def kv_cache_bytes(model: PreTrainedModel) -> int:
    """Bytes of the key/value cache for every token, in the model's dtype; 0 for a model without one.

    It is measured on a short text. In an encoder-decoder cross-attention counts too, for every token of the source.

    Args:
        model: The model, dense or pruned.

    Returns:
        Bytes a token, in all layers together.
    """
    if "use_cache" not in inspect.signature(model.forward).parameters:
        return 0
    with frozen(model), torch.no_grad():
        cache = getattr(model(**_example(model, 1, 4), use_cache=True), "past_key_values", None)
    parts = (getattr(cache, "self_attention_cache", cache), getattr(cache, "cross_attention_cache", None))
    layers = [layer for part in parts if part is not None for layer in part.layers]
    tensors = [t for layer in layers for t in (layer.keys, layer.values) if t is not None and t.numel()]
    return sum(t.numel() * t.element_size() // t.shape[-2] for t in tensors)


def checkpoint_bytes(folder: str | Path) -> int:
    """Bytes on disk of the weight files (safetensors) in a checkpoint folder."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def _example(model: PreTrainedModel, batch_size: int, sequence_length: int) -> Batch:
    return example_inputs(model, torch.full((batch_size, sequence_length), 5))


def dense_size(model: ModelOrAnatomy, size: Size) -> Size:
    """What the dense model measures: this one, and the units that its plan removed.

    Args:
        model: A model, pruned or not, or its anatomy.
        size: What it measures.

    Returns:
        The size of the dense model, for the same sequence length.
    """
    anatomy = anatomy_of(model)

    def removed(unit_cost: UnitCost) -> int:
        return anatomy.dense_cost(unit_cost) - anatomy.cost(unit_cost)

    params = removed(lambda block: block.unit_params)
    macs = removed(lambda block: block.unit_macs(size.sequence_length))
    return Size(
        params=size.params + params,
        prunable_params=size.prunable_params + params,
        macs=size.macs + macs,
        prunable_macs=size.prunable_macs + macs,
        sequence_length=size.sequence_length,
        weight_bytes=size.weight_bytes + params * anatomy.model.dtype.itemsize,
    )
