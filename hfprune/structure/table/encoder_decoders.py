"""Encoder-decoders of text (and Whisper, whose layers are BART's): two stacks, and cross-attention in the second."""

from dataclasses import replace

from hfprune.structure.specs import Architecture, BlockSpec, HeadInput


def _bart_attention(name: str, residual_sum: str, *, bypass: str | None = None) -> BlockSpec:
    return BlockSpec(
        producers=(f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj"),
        consumer=f"{name}.out_proj",
        residual_sum=residual_sum,
        bypass=bypass,
        head_dim=f"{name}.head_dim",
        sizes={f"{name}.num_heads": "heads"},
    )


def _bart_ffn(field: str, residual_sum: str) -> BlockSpec:
    return BlockSpec(producers=("fc1",), consumer="fc2", residual_sum=residual_sum, config_fields={field: "features"})


# Normalises behind every sublayer.
_BART = Architecture(
    stacks={
        "encoder.layers": {
            "attention": _bart_attention("self_attn", "self_attn_layer_norm", bypass="self_attn"),
            "ffn": _bart_ffn("encoder_ffn_dim", "final_layer_norm"),
        },
        "decoder.layers": {
            "attention": _bart_attention("self_attn", "self_attn_layer_norm"),
            "cross_attention": _bart_attention("encoder_attn", "encoder_attn_layer_norm"),
            "ffn": _bart_ffn("decoder_ffn_dim", "final_layer_norm"),
        },
    },
)

# Normalises in front of them.
_MBART = Architecture(
    stacks={
        "encoder.layers": {
            "attention": _bart_attention("self_attn", "final_layer_norm", bypass="self_attn"),
            "ffn": _bart_ffn("encoder_ffn_dim", ""),
        },
        "decoder.layers": {
            "attention": _bart_attention("self_attn", "encoder_attn_layer_norm"),
            "cross_attention": _bart_attention("encoder_attn", "final_layer_norm"),
            "ffn": _bart_ffn("decoder_ffn_dim", ""),
        },
    },
)


def _t5_attention(name: str, residual_sum: str, bias: HeadInput) -> BlockSpec:
    return BlockSpec(
        producers=(f"{name}.q", f"{name}.k", f"{name}.v"),
        consumer=f"{name}.o",
        residual_sum=residual_sum,
        head_dim=f"{name}.key_value_proj_dim",
        sizes={f"{name}.n_heads": "heads", f"{name}.inner_dim": "features"},
        head_inputs={name: {"position_bias": bias}},
    )


def _t5_ffn(layer: int) -> tuple[BlockSpec, BlockSpec]:
    """T5's own, and the gated one of v1.1, Flan and mT5."""
    path = f"layer.{layer}.DenseReluDense"
    plain = BlockSpec(
        producers=(f"{path}.wi",), consumer=f"{path}.wo", residual_sum="", config_fields={"d_ff": "features"}
    )
    return plain, replace(plain, producers=(f"{path}.wi_0", f"{path}.wi_1"))


# The first layer of a stack makes the relative-position bias of all heads and hands it on. Cross-attention has none:
# its first layer hands on zeros.
_T5_BIAS = HeadInput(dimension=1, made_by="compute_bias", returned=1)
_T5 = Architecture(
    stacks={
        "encoder.block": {
            "attention": _t5_attention("layer.0.SelfAttention", "layer.1.layer_norm", _T5_BIAS),
            "ffn": _t5_ffn(1),
        },
        "decoder.block": {
            "attention": _t5_attention("layer.0.SelfAttention", "layer.1.layer_norm", _T5_BIAS),
            "cross_attention": _t5_attention("layer.1.EncDecAttention", "layer.2.layer_norm", HeadInput()),
            "ffn": _t5_ffn(2),
        },
    },
)

#: By model type.
ENCODER_DECODERS: dict[str, Architecture] = {
    "bart": _BART,
    "marian": _BART,
    "mbart": _MBART,
    "mt5": _T5,
    "pegasus": _MBART,
    "t5": _T5,
    "whisper": _MBART,
}
