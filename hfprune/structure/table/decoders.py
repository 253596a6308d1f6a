"""Decoders: causal language models."""

from dataclasses import replace

from hfprune.structure.specs import Architecture, BlockSpec, HeadInput, changed

LLAMA = Architecture(
    stacks={
        "layers": {
            "attention": BlockSpec(
                producers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                consumer="self_attn.o_proj",
                residual_sum="post_attention_layernorm",
                bypass="self_attn",
                head_dim="self_attn.head_dim",
                sizes={"self_attn.num_key_value_groups": "group"},
                config_fields={"num_attention_heads": "heads", "num_key_value_heads": "units", "head_dim": "head_dim"},
            ),
            "ffn": BlockSpec(
                producers=("mlp.gate_proj", "mlp.up_proj"),
                consumer="mlp.down_proj",
                residual_sum="",
                sizes={"mlp.intermediate_size": "features"},
                config_fields={"intermediate_size": "features"},
            ),
        }
    },
)

_GPT2 = Architecture(
    stacks={
        "h": {
            "attention": BlockSpec(
                producers=("attn.c_attn",),
                consumer="attn.c_proj",
                residual_sum="ln_2",
                fused=3,
                head_dim="attn.head_dim",
                sizes={"attn.num_heads": "heads", "attn.split_size": "features"},
            ),
            "ffn": BlockSpec(
                producers=("mlp.c_fc",),
                consumer="mlp.c_proj",
                residual_sum="",
                config_fields={"n_inner": "features"},
            ),
        }
    },
    note="every block keeps a unit: its Conv1D takes no empty input",
)

_OPT = Architecture(
    stacks={
        "decoder.layers": {
            "attention": BlockSpec(
                producers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                consumer="self_attn.out_proj",
                residual_sum="final_layer_norm",
                bypass="self_attn",
                head_dim="self_attn.head_dim",
                sizes={"self_attn.num_heads": "heads"},
            ),
            "ffn": BlockSpec(
                producers=("fc1",),
                consumer="fc2",
                residual_sum="",
                config_fields={"ffn_dim": "features"},
            ),
        }
    },
)

# What a consumer gives is normalised or scaled before it joins the residual stream, or attention and feed-forward join
# it together.
NO_SUM = changed(LLAMA, attention={"residual_sum": None}, ffn={"residual_sum": None})

# A norm for every head (`use_qk_norm`) is not cut: only the feed-forward units can go then.
_COHERE = replace(
    changed(NO_SUM, attention={"absent": ("self_attn.q_norm",)}),
    note="with `use_qk_norm` the feed-forward only: each head has a norm of its own",
)

_STABLELM = replace(
    changed(
        LLAMA,
        attention={
            "absent": ("self_attn.q_layernorm",),
            "sizes": {
                "self_attn.num_heads": "heads",
                "self_attn.num_key_value_heads": "units",
                "self_attn.num_key_value_groups": "group",
            },
        },
    ),
    note="with `qk_layernorm` the feed-forward only: each head has a norm of its own",
)

_STARCODER2 = changed(LLAMA, ffn={"producers": ("mlp.c_fc",), "consumer": "mlp.c_proj", "sizes": {}})

_PHI = changed(
    NO_SUM,
    attention={"consumer": "self_attn.dense"},
    ffn={"producers": ("mlp.fc1",), "consumer": "mlp.fc2", "sizes": {}},
)

# Its attention reads its number of heads from the config, of which each layer then has a view of its own.
_PHI3 = Architecture(
    stacks={
        "layers": {
            "attention": BlockSpec(
                producers=("self_attn.qkv_proj",),
                consumer="self_attn.o_proj",
                fused=3,
                residual_sum="post_attention_layernorm",
                bypass="self_attn",
                head_dim="self_attn.head_dim",
                sizes={"self_attn.config.num_attention_heads": "heads", "self_attn.num_key_value_heads": "units"},
                config_fields={"num_attention_heads": "heads", "num_key_value_heads": "units", "head_dim": "head_dim"},
            ),
            "ffn": BlockSpec(
                producers=("mlp.gate_up_proj",),
                consumer="mlp.down_proj",
                fused=2,
                residual_sum="",
                config_fields={"intermediate_size": "features"},
            ),
        }
    },
)

# It normalises over all heads together: only the feed-forward units can go.
_OLMO2 = replace(NO_SUM, stacks={"layers": {"ffn": NO_SUM.stacks["layers"]["ffn"]}})

_MPT = Architecture(
    stacks={
        "blocks": {
            "attention": BlockSpec(
                producers=("attn.Wqkv",),
                consumer="attn.out_proj",
                fused=3,
                residual_sum="norm_2",
                bypass="attn",
                head_dim="attn.head_dim",
                sizes={"attn.n_heads": "heads"},
                head_inputs={"attn": {"position_bias": HeadInput(dimension=0)}},
            ),
            "ffn": BlockSpec(producers=("ffn.up_proj",), consumer="ffn.down_proj", residual_sum=""),
        }
    },
)

_GPT_NEO = Architecture(
    stacks={
        "h": {
            "attention": BlockSpec(
                producers=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
                consumer="attn.attention.out_proj",
                residual_sum="ln_2",
                bypass="attn.attention",
                head_dim="attn.attention.head_dim",
                sizes={"attn.attention.num_heads": "heads"},
            ),
            "ffn": BlockSpec(
                producers=("mlp.c_fc",),
                consumer="mlp.c_proj",
                residual_sum="",
                config_fields={"intermediate_size": "features"},
            ),
        }
    },
)

_GPT_NEOX = Architecture(
    stacks={
        "layers": {
            "attention": BlockSpec(
                producers=("attention.query_key_value",),
                consumer="attention.dense",
                interleaved=3,
                bypass="attention",
                head_dim="attention.head_size",
            ),
            "ffn": BlockSpec(
                producers=("mlp.dense_h_to_4h",),
                consumer="mlp.dense_4h_to_h",
                config_fields={"intermediate_size": "features"},
            ),
        }
    },
)

_BLOOM = Architecture(
    stacks={
        "h": {
            "attention": BlockSpec(
                producers=("self_attention.query_key_value",),
                consumer="self_attention.dense",
                interleaved=3,
                residual_sum="post_attention_layernorm",
                head_dim="self_attention.head_dim",
                sizes={"self_attention.num_heads": "heads"},
                head_inputs={"self_attention": {"alibi": HeadInput(dimension=0)}},
            ),
            "ffn": BlockSpec(producers=("mlp.dense_h_to_4h",), consumer="mlp.dense_4h_to_h", residual_sum=""),
        }
    },
    note="attention keeps a head: its module adds the residual stream",
)

# A key and a value stand behind every head, behind the heads of every group (the new decoder architecture), or behind
# all heads (multi-query: one unit).
_FALCON = Architecture(
    stacks={
        "h": {
            "attention": BlockSpec(
                producers=("self_attention.query_key_value",),
                consumer="self_attention.dense",
                interleaved=3,
                bypass="self_attention",
                head_dim="self_attention.head_dim",
                sizes={"self_attention.num_heads": "heads", "self_attention.num_kv_heads": "units"},
                cached_by_head="self_attention.new_decoder_architecture",
                head_inputs={
                    "self_attention": {"alibi": HeadInput(dimension=1), "attention_mask": HeadInput(dimension=1)}
                },
            ),
            "ffn": BlockSpec(
                producers=("mlp.dense_h_to_4h",),
                consumer="mlp.dense_4h_to_h",
                config_fields={"ffn_hidden_size": "features"},
            ),
        }
    },
    note="multi-query attention is one unit: all its heads share a key and a value",
)

_MIXTURE = replace(
    LLAMA,
    stacks={"layers": {"attention": LLAMA.stacks["layers"]["attention"]}},
    note="attention only: the experts' weights are single tensors that no hook reaches",
)

# Every query head has an attention sink: a number that its weights are normalised with, besides those of the tokens.
_GPT_OSS = changed(_MIXTURE, attention={"head_parameters": ("self_attn.sinks",)})

#: By model type.
DECODERS: dict[str, Architecture] = {
    "bloom": _BLOOM,
    "cohere": _COHERE,
    "falcon": _FALCON,
    "gemma": LLAMA,
    "gemma2": NO_SUM,
    "gemma3_text": NO_SUM,
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _GPT_NEOX,
    "gpt_oss": _GPT_OSS,
    "granite": NO_SUM,
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": _MIXTURE,
    "mpt": _MPT,
    "olmo2": _OLMO2,
    "olmo3": _OLMO2,
    "opt": _OPT,
    "phi": _PHI,
    "phi3": _PHI3,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "qwen3_moe": _MIXTURE,
    "smollm3": LLAMA,
    "stablelm": _STABLELM,
    "starcoder2": _STARCODER2,
}
