"""What a GGUF file says of a decoder: the name of its graph in llama.cpp, its sizes by layer, and its tensors."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hfprune.structure.architectures import base_model_type

#: llama.cpp's graph of Llama in which every layer may have sizes of its own. It was made for models by Deci.
UNEVEN = "deci"
#: Its graphs for layers that are all alike, by model type.
STOCK = {"llama": "llama", "mistral": "llama", "smollm3": "llama", "qwen2": "qwen2"}
#: The graphs that turn neighbouring features of a head together, where transformers turns its first half with the
#: second.
TURN_NEIGHBOURS = (UNEVEN, "llama")
#: Neurons of zeros in a layer without neurons: llama.cpp leaves out a layer that has none, with its attention. A row of
#: so many weights can be quantised.
ZERO_NEURONS = 32


@dataclass
class Layer:
    """A layer as the file has it.

    Attributes:
        heads: How many query heads it has.
        groups: How many key/value heads.
        neurons: How many neurons.
        tensors: Its tensors by their name within the layer, as `attn_q.weight`.
    """

    heads: int
    groups: int
    neurons: int
    tensors: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """All that a file says of a model, but for its tokenizer.

    Attributes:
        architecture: The name of the graph in llama.cpp.
        layers: The layers, without those that have neither heads, nor neurons, nor biases.
        head_width: Features of a head.
        hidden: Features of the residual stream.
        context: The most tokens that the model was made for.
        epsilon: What RMS norms add to the mean square.
        rope_base: The base of the frequencies of the rotary embedding.
        outside: The tensors outside of layers, by their name in the file.
    """

    architecture: str
    layers: tuple[Layer, ...]
    head_width: int
    hidden: int
    context: int
    epsilon: float
    rope_base: float
    outside: dict[str, Tensor]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors, by their name in the file.

        Yields:
            Name and tensor, those of the layers with the number of the layer in the name.
        """
        yield from self.outside.items()
        for number, layer in enumerate(self.layers):
            for name, tensor in layer.tensors.items():
                yield f"blk.{number}.{name}", tensor


def layout_of(model: PreTrainedModel) -> Layout:
    """Read what a file says of a model.

    Args:
        model: A causal language model that `hfprune.deployment.gguf.checks.refusal` has nothing against.

    Returns:
        Its layout. Tensors are those of the model where nothing had to be rearranged.
    """
    body = model.base_model
    hidden = model.config.hidden_size
    head_width = body.layers[0].self_attn.head_dim
    layers = _without_empty([_read(layer, head_width) for layer in body.layers])
    frequencies = rope_factors(model)
    architecture = _architecture(model, layers, has_factors=frequencies is not None)
    for number, layer in enumerate(layers):
        _fill(layer, head_width, hidden, is_first=number == 0)
        if architecture in TURN_NEIGHBOURS:
            _rearrange(layer, head_width)
    outside = {"token_embd.weight": model.get_input_embeddings().weight, "output_norm.weight": body.norm.weight}
    head = model.get_output_embeddings().weight
    # without an output matrix, llama.cpp takes the embeddings
    if head is not model.get_input_embeddings().weight:
        outside["output.weight"] = head
    if frequencies is not None:
        outside["rope_freqs.weight"] = frequencies
    return Layout(
        architecture=architecture,
        layers=tuple(layers),
        head_width=head_width,
        hidden=hidden,
        context=model.config.max_position_embeddings,
        epsilon=model.config.rms_norm_eps,
        rope_base=float(model.config.rope_parameters["rope_theta"]),
        outside=outside,
    )


def own_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a model that are written, as they are in the model: in its order of rows, without fillings.

    Args:
        model: A causal language model that can be written.

    Yields:
        Name in the file and tensor. A tensor that is shared comes once.
    """
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    yield "token_embd.weight", embeddings
    if head is not embeddings:
        yield "output.weight", head
    body = model.base_model
    for number, layer in enumerate(body.layers):
        for name, tensor in _read(layer, body.layers[0].self_attn.head_dim).tensors.items():
            yield f"blk.{number}.{name}", tensor


def rope_factors(model: PreTrainedModel) -> Tensor | None:
    """By how much the frequencies of the rotary embedding are divided, beside those that follow from the base.

    Args:
        model: The model.

    Returns:
        `(head_width / 2,)`, as llama.cpp takes them for Llama 3; None if they are all 1.
    """
    frequencies = model.base_model.rotary_emb.inv_freq.float().cpu()
    base = float(model.config.rope_parameters["rope_theta"])
    steps = torch.arange(0, 2 * len(frequencies), 2, dtype=torch.float, device="cpu") / (2 * len(frequencies))
    factors: Tensor = (1.0 / base**steps) / frequencies
    if torch.allclose(factors, torch.ones_like(factors), rtol=1e-5):
        return None
    return factors


def _read(layer: Any, head_width: int) -> Layer:
    """A layer of transformers with the names of llama.cpp, and without what a removed block leaves."""
    attention, mlp = layer.self_attn, layer.mlp
    modules = {
        "attn_norm": layer.input_layernorm,
        "attn_q": attention.q_proj,
        "attn_k": attention.k_proj,
        "attn_v": attention.v_proj,
        "attn_output": attention.o_proj,
        "ffn_norm": layer.post_attention_layernorm,
        "ffn_gate": mlp.gate_proj,
        "ffn_up": mlp.up_proj,
        "ffn_down": mlp.down_proj,
    }
    tensors = {}
    for name, module in modules.items():
        for kind in ("weight", "bias"):
            tensor = getattr(module, kind, None)
            if tensor is not None:
                tensors[f"{name}.{kind}"] = tensor
    return Layer(
        heads=_rows(attention.q_proj) // head_width,
        groups=_rows(attention.k_proj) // head_width,
        neurons=_rows(mlp.gate_proj),
        tensors=tensors,
    )


def _rows(projection: nn.Module) -> int:
    """How many output features a projection has; what is left of that of a removed block has no weight."""
    weight = projection.weight
    return len(weight) if isinstance(weight, Tensor) else 0


def _without_empty(layers: list[Layer]) -> list[Layer]:
    """The layers that do something; the first, if none does."""
    busy = []
    for layer in layers:
        has_bias = "attn_output.bias" in layer.tensors or "ffn_down.bias" in layer.tensors
        if layer.heads or layer.neurons or has_bias:
            busy.append(layer)
    return busy or layers[:1]


def _architecture(model: PreTrainedModel, layers: list[Layer], *, has_factors: bool) -> str:
    """The graph of llama.cpp that computes the model."""
    shapes = {(layer.heads, layer.groups, layer.neurons) for layer in layers}
    if len(shapes) > 1 or 0 in shapes.pop():
        return UNEVEN
    stock = STOCK[base_model_type(model.config.model_type)]
    if stock != "qwen2":
        return stock
    # this graph knows no factors of frequencies, and no heads that are wider or narrower together than the stream
    queries = layers[0].tensors["attn_q.weight"]
    if has_factors or len(queries) != queries.shape[1] or not _is_like_qwen2(layers):
        return UNEVEN
    return stock


def _is_like_qwen2(layers: list[Layer]) -> bool:
    """Whether layers have the biases of Qwen 2, all of them and no other."""
    expected = {"attn_q.bias", "attn_k.bias", "attn_v.bias"}
    return all({name for name in layer.tensors if name.endswith(".bias")} == expected for layer in layers)


def _fill(layer: Layer, head_width: int, hidden: int, *, is_first: bool) -> None:
    """Write zeros where llama.cpp cannot do without a block.

    A layer without neurons gets some of zeros. A layer without heads gets one of zeros if a bias is left of its
    attention, and so does the first layer: llama.cpp takes a model whose first layer has no head for one without
    attention.
    """
    norm = layer.tensors["ffn_norm.weight"]
    if not layer.neurons:
        layer.neurons = ZERO_NEURONS
        layer.tensors["ffn_gate.weight"] = norm.new_zeros(ZERO_NEURONS, hidden)
        layer.tensors["ffn_up.weight"] = norm.new_zeros(ZERO_NEURONS, hidden)
        layer.tensors["ffn_down.weight"] = norm.new_zeros(hidden, ZERO_NEURONS)
    if layer.heads:
        return
    if is_first or "attn_output.bias" in layer.tensors:
        layer.heads = layer.groups = 1
        for name in ("attn_q", "attn_k", "attn_v"):
            layer.tensors[f"{name}.weight"] = norm.new_zeros(head_width, hidden)
        layer.tensors["attn_output.weight"] = norm.new_zeros(hidden, head_width)
    else:
        # nothing reads it
        del layer.tensors["attn_norm.weight"]


def _rearrange(layer: Layer, head_width: int) -> None:
    """Put the features that are turned together beside each other, in the rows of queries and keys."""
    for name, heads in (("attn_q", layer.heads), ("attn_k", layer.groups)):
        for kind in ("weight", "bias"):
            tensor = layer.tensors.get(f"{name}.{kind}")
            if tensor is not None:
                layer.tensors[f"{name}.{kind}"] = beside(tensor, heads, head_width)


def beside(tensor: Tensor, heads: int, head_width: int) -> Tensor:
    """Rows of heads in the order in which llama.cpp turns them: feature i of the first half, then i of the second.

    >>> beside(torch.arange(8), 2, 4).tolist()
    [0, 2, 1, 3, 4, 6, 5, 7]

    Args:
        tensor: `(heads * head_width, ...)`.
        heads: How many heads.
        head_width: Features of each.

    Returns:
        The rows in the other order.
    """
    halves = tensor.reshape(heads, 2, head_width // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)
