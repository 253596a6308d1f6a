"""What llama.cpp's graphs of Llama cannot compute, said before anything is written."""

from collections.abc import Callable

from transformers import PreTrainedModel

from hfprune.deployment.gguf.layout import STOCK
from hfprune.structure.architectures import base_model_type

#: Kinds of rotary embedding that are frequencies and nothing else: they go into the file as they are.
_ROPE = ("default", "linear", "llama3")


def refusal(model: PreTrainedModel) -> str | None:
    """Why a model cannot be written into a GGUF file.

    Args:
        model: The model.

    Returns:
        A message without its last full stop; None if it can be written.
    """
    for check in _CHECKS:
        reason = check(model)
        if reason is not None:
            return reason.removesuffix(".")
    return None


def _type(model: PreTrainedModel) -> str | None:
    """Model types whose layers are those of Llama."""
    model_type = base_model_type(model.config.model_type)
    if model_type in STOCK:
        return None
    return (
        f"no graph of llama.cpp with widths by layer computes {model_type!r}: it takes {', '.join(STOCK)}, whose "
        "layers are those of Llama. Export to another target, or convert a model that was pruned with portable=True by "
        "the converter of llama.cpp."
    )


def _head(model: PreTrainedModel) -> str | None:
    """Decoders with logits for every token."""
    if model.get_output_embeddings() is not None and hasattr(model, "lm_head"):
        return None
    return (
        f"{type(model).__name__} has no language model head, and a GGUF file is written for decoders that write texts. "
        "Load the checkpoint with AutoModelForCausalLM."
    )


def _weights(model: PreTrainedModel) -> str | None:
    """Weights that are there, and that are numbers."""
    for name, parameter in model.named_parameters():
        if parameter.device.type == "meta":
            return f"{name} is not in memory (device meta). Load the model without offloading."
        if not parameter.is_floating_point():
            return f"{name} is quantised ({parameter.dtype}). Export the model that it was quantised from."
    return None


def _activation(model: PreTrainedModel) -> str | None:
    """The gated feed-forward of Llama."""
    activation = model.config.hidden_act
    if activation in ("silu", "swish"):
        return None
    return f"the feed-forward blocks have hidden_act={activation!r}, and llama.cpp's graph of Llama has 'silu'."


def _windows(model: PreTrainedModel) -> str | None:
    """Attention to all tokens before."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    is_used = getattr(config, "use_sliding_window", True)
    # a window that holds all tokens is none
    if not window or not is_used or window >= config.max_position_embeddings:
        return None
    return (
        f"the model attends to a sliding window of {window} tokens, which llama.cpp's graph of Llama does not. For "
        f"texts of at most {window} tokens the two are equal: set config.sliding_window = None and "
        f"config.max_position_embeddings = {window}, and export that."
    )


def _positions(model: PreTrainedModel) -> str | None:
    """Rotary embeddings in all layers, of whole heads, with fixed frequencies."""
    config = model.config
    kind = config.rope_parameters.get("rope_type", "default")
    if kind not in _ROPE:
        return (
            f"the rotary embedding is of the type {kind!r}, whose frequencies are not written yet: it takes "
            f"{', '.join(_ROPE)}."
        )
    with_rope = getattr(config, "no_rope_layers", None)
    if with_rope is not None and not all(with_rope):
        layers = [number for number, has_rope in enumerate(with_rope) if not has_rope]
        return (
            f"layers {layers} have no rotary embedding, and llama.cpp's graph of Llama has one in every layer. Export "
            "to another target."
        )
    width = model.base_model.layers[0].self_attn.head_dim
    turned = 2 * len(model.base_model.rotary_emb.inv_freq)
    if turned == width:
        return None
    return f"the rotary embedding turns {turned} of {width} features of a head, and llama.cpp's graph of Llama all."


def _norms(model: PreTrainedModel) -> str | None:
    """No norms of queries and keys."""
    for number, layer in enumerate(model.base_model.layers):
        if hasattr(layer.self_attn, "q_norm") or hasattr(layer.self_attn, "k_norm"):
            return f"layer {number} normalises queries and keys, which llama.cpp's graph of Llama does not."
    return None


def _groups(model: PreTrainedModel) -> str | None:
    """As many query heads for every key/value head of a layer."""
    for number, layer in enumerate(model.base_model.layers):
        queries = layer.self_attn.q_proj.weight
        keys = layer.self_attn.k_proj.weight
        if queries is not None and keys is not None and len(queries) % len(keys):
            return (
                f"layer {number} has {len(queries)} rows of queries for {len(keys)} of keys: no whole number of heads."
            )
    return None


_CHECKS: tuple[Callable[[PreTrainedModel], str | None], ...] = (
    _type,
    _head,
    _weights,
    _activation,
    _windows,
    _positions,
    _norms,
    _groups,
)
