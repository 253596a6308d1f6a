"""Parameters, multiply-adds and bytes of a whole model. Every figure of size in hfprune is defined here."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from hfprune.structure.anatomy import Anatomy, ModelOrAnatomy, UnitCost, anatomy_of
from hfprune.structure.arguments import ATTENTION_UNIT, checked, optional, whole
from hfprune.structure.batches import Batch
from hfprune.structure.devices import input_embeddings
from hfprune.structure.examples import check_length, example_inputs
from hfprune.structure.running import frozen
from hfprune.structure.specs import AttentionUnit
from hfprune.structure.wrapping import argument_names, unwrapped


@dataclass(frozen=True, kw_only=True)
class Size:
    """Parameters, multiply-adds and bytes of a model.

    Attributes:
        params: All parameters; tied ones count once.
        prunable_params: Parameters of all units, which the budget `params` counts.
        macs: Multiply-adds of one forward pass over one sequence, of all operations.
        prunable_macs: Multiply-adds of all units for one sequence, which the budget `macs` counts.
        sequence_length: Tokens in the sequence; where the input of the model fixes their number, that number.
        weight_bytes: Bytes of all parameters and buffers in the present dtype.
    """

    params: int
    prunable_params: int
    macs: int
    prunable_macs: int
    sequence_length: int
    weight_bytes: int


@checked(sequence_length=whole(least=1), attention_unit=optional(ATTENTION_UNIT))
def measure_size(model: ModelOrAnatomy, *, sequence_length: int, attention_unit: AttentionUnit | None = None) -> Size:
    """Count parameters, multiply-adds and bytes.

    Args:
        model: The model, dense or pruned, or its anatomy.
        sequence_length: Tokens in a sequence, for the multiply-adds. A model of pictures, or of spectrograms of one
            length, has a number of its own, which counts instead.
        attention_unit: What one unit of attention is, as for `anatomy_of`; the prunable counts depend on it.

    Returns:
        The counts.

    Raises:
        UnsupportedArchitectureError: The model type is not in the table, and no entry could be proven.
        ValueError: The model has no positions for so long a sequence.

    Examples:
        >>> from transformers import BertConfig, BertModel
        >>> shape = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
        >>> size = measure_size(BertModel(BertConfig(vocab_size=50, **shape)), sequence_length=4)
        >>> size.params, size.prunable_params
        (5200, 552)
    """
    return size_of(anatomy_of(model, attention_unit), sequence_length)


def size_of(anatomy: Anatomy, sequence_length: int) -> Size:
    """Count parameters, multiply-adds and bytes of a model whose structure is known.

    Args:
        anatomy: The anatomy of the model.
        sequence_length: Tokens in a sequence, for the multiply-adds. A model of pictures, or of spectrograms of one
            length, has a number of its own, which counts instead.

    Returns:
        The counts.
    """
    sequence_length = anatomy.sequence_length(sequence_length)
    # `parameters` yields a tied parameter once, so it is counted once.
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


@checked(sequence_length=whole(least=1))
def count_macs(model: PreTrainedModel, *, sequence_length: int) -> int:
    """Multiply-adds of one forward pass over one sequence.

    They are half of the operations that PyTorch's FlopCounterMode counts. In attention all pairs of tokens count, also
    where a causal mask hides half of them.

    Args:
        model: The model.
        sequence_length: Tokens in the sequence.

    Returns:
        Multiply-adds.

    Raises:
        ValueError: The model has no positions for so long a sequence, or it does not fit into memory.
    """
    model = unwrapped(model)
    check_length(model, sequence_length)
    inputs = example_batch(model, 1, sequence_length)
    counter = FlopCounterMode(display=False)
    # The counter does not know all of PyTorch's fused attention kernels. It knows matrix products, and the math
    # backend computes attention by them.
    with frozen(model), torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        _run(model, inputs, sequence_length)
    return counter.get_total_flops() // 2


def _run(model: PreTrainedModel, inputs: Batch, sequence_length: int) -> None:
    """Run a model on a text that may be too long for the memory, and say so then."""
    try:
        model(**inputs)
    except RuntimeError as error:
        # torch has a class of its own for this on accelerators only
        if "memory" not in str(error):
            raise
        raise ValueError(
            f"sequence_length={sequence_length}: the model runs once on a text of so many tokens, which does not fit "
            "into memory. Set the length that it will be used with."
        ) from error


def kv_cache_bytes(model: PreTrainedModel) -> int:
    """Bytes of the key/value cache for every token, in the model's dtype; 0 for a model without a cache.

    They are measured on a short text. In an encoder-decoder the cache of cross-attention counts too, for every token of
    the source.

    Args:
        model: The model, dense or pruned.

    Returns:
        Bytes a token, in all layers together.

    Examples:
        Two layers, each with a key and a value of 8 features in float32:

        >>> from transformers import GPT2Config, GPT2Model
        >>> kv_cache_bytes(GPT2Model(GPT2Config(vocab_size=50, n_embd=8, n_head=2, n_layer=2)))
        128
    """
    if "use_cache" not in argument_names(model):
        return 0
    with frozen(model), torch.no_grad():
        cache = getattr(model(**example_batch(model, 1, 4), use_cache=True), "past_key_values", None)
    # the cache of an encoder-decoder holds two; the cache of any other model is that of self-attention
    self_attention = getattr(cache, "self_attention_cache", cache)
    cross_attention = getattr(cache, "cross_attention_cache", None)
    total = 0
    for part in (self_attention, cross_attention):
        if part is None:
            continue
        for layer in part.layers:
            total += _bytes_per_token(layer.keys) + _bytes_per_token(layer.values)
    return total


def _bytes_per_token(cached: torch.Tensor | None) -> int:
    """Bytes of one token in `(batch, heads, tokens, features)` keys or values, for a batch of one."""
    # A layer that cached nothing holds None, or an empty tensor without a dimension of tokens.
    if cached is None or not cached.numel():
        return 0
    tokens = cached.shape[-2]
    return cached.numel() * cached.element_size() // tokens


def checkpoint_bytes(folder: str | Path) -> int:
    """Bytes on disk of the weight files (safetensors) in a checkpoint folder."""
    return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))


def example_batch(model: PreTrainedModel, batch_size: int, sequence_length: int) -> Batch:
    """A batch of one repeated token, without padding, for measures that do not depend on the values."""
    # The first ids of most vocabularies are special tokens, such as the padding, which some models treat otherwise.
    ordinary_token = 5
    embeddings = input_embeddings(model)
    if isinstance(embeddings, nn.Embedding):
        ordinary_token = min(ordinary_token, embeddings.num_embeddings - 1)
    ids = torch.full((batch_size, sequence_length), ordinary_token, dtype=torch.long, device="cpu")
    return example_inputs(model, ids)


def dense_size(anatomy: Anatomy, size: Size) -> Size:
    """The size of the dense model: the size of the pruned one, with the units that its plan removed.

    Args:
        anatomy: The anatomy of a model, pruned or not.
        size: The size of that model.

    Returns:
        The size of the dense model, for the same sequence length.
    """

    def removed(unit_cost: UnitCost) -> int:
        return anatomy.dense_cost(unit_cost) - anatomy.cost(unit_cost)

    removed_params = removed(lambda block: block.unit_params)
    removed_macs = removed(lambda block: block.unit_macs(size.sequence_length))
    return Size(
        params=size.params + removed_params,
        prunable_params=size.prunable_params + removed_params,
        macs=size.macs + removed_macs,
        prunable_macs=size.prunable_macs + removed_macs,
        sequence_length=size.sequence_length,
        weight_bytes=size.weight_bytes + removed_params * anatomy.model.dtype.itemsize,
    )
