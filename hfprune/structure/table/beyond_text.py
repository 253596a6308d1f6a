"""Pictures and speech, where the layers are those of text encoders."""

from collections.abc import Mapping

from hfprune.structure.specs import Architecture, BlockSpec, Quantity

_MLP_WIDTH: Mapping[str, Quantity] = {"intermediate_size": "features"}

_VIT = Architecture(
    stacks={
        "layers": {
            "attention": BlockSpec(
                producers=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
                consumer="attention.o_proj",
                residual_sum="layernorm_after",
                bypass="attention",
                head_dim="attention.head_dim",
                sizes={"attention.num_attention_heads": "heads"},
            ),
            "ffn": BlockSpec(producers=("mlp.fc1",), consumer="mlp.fc2", residual_sum="", config_fields=_MLP_WIDTH),
        }
    },
)

_CLIP_TEXT = Architecture(
    stacks={
        "encoder.layers": {
            "attention": BlockSpec(
                producers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                consumer="self_attn.out_proj",
                residual_sum="layer_norm2",
                bypass="self_attn",
                head_dim="self_attn.head_dim",
                sizes={"self_attn.num_heads": "heads"},
            ),
            "ffn": BlockSpec(producers=("mlp.fc1",), consumer="mlp.fc2", residual_sum="", config_fields=_MLP_WIDTH),
        }
    },
)

# Where the norms are differs between models (`do_stable_layer_norm`), so both sums are tried on the model itself.
_WAV2VEC2 = Architecture(
    stacks={
        "encoder.layers": {
            "attention": BlockSpec(
                producers=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
                consumer="attention.out_proj",
                residual_sum="layer_norm",
                bypass="attention",
                head_dim="attention.head_dim",
                sizes={"attention.num_heads": "heads"},
            ),
            "ffn": BlockSpec(
                producers=("feed_forward.intermediate_dense",),
                consumer="feed_forward.output_dense",
                residual_sum="final_layer_norm",
                config_fields=_MLP_WIDTH,
            ),
        }
    },
)

#: By model type.
BEYOND_TEXT: dict[str, Architecture] = {"clip_text_model": _CLIP_TEXT, "vit": _VIT, "wav2vec2": _WAV2VEC2}
