"""The architecture table: for each model type, where producers, consumers and sizes are. Data, no code.

Paths are relative to one layer, layers relative to `model.base_model`. An entry is about ten lines; CONTRIBUTING.md,
"Add an architecture", shows how to write one, and the contract tests run on every entry.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hfprune.structure.specs import Architecture, BlockSpec

_BERT = Architecture(
    layers="encoder.layer",
    blocks={
        "attention": BlockSpec(
            producers=("attention.self.query", "attention.self.key", "attention.self.value"),
            consumer="attention.output.dense",
            residual_sum="attention.output.LayerNorm",
            bypass="attention.self",
            head_dim="attention.self.attention_head_size",
            sizes={"attention.self.num_attention_heads": "heads", "attention.self.all_head_size": "features"},
        ),
        "ffn": BlockSpec(
            producers=("intermediate.dense",),
            consumer="output.dense",
            residual_sum="output.LayerNorm",
            config_fields={"intermediate_size": "features"},
        ),
    },
)

_DISTILBERT = Architecture(
    layers="transformer.layer",
    blocks={
        "attention": BlockSpec(
            producers=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
            consumer="attention.out_lin",
            residual_sum="sa_layer_norm",
            bypass="attention",
            head_dim="attention.attention_head_size",
            sizes={"attention.n_heads": "heads"},
        ),
        "ffn": BlockSpec(
            producers=("ffn.lin1",),
            consumer="ffn.lin2",
            residual_sum="output_layer_norm",
            config_fields={"hidden_dim": "features"},
        ),
    },
)

_MPNET = Architecture(
    layers="encoder.layer",
    blocks={
        "attention": BlockSpec(
            producers=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
            consumer="attention.attn.o",
            residual_sum="attention.LayerNorm",
            bypass="attention.attn",
            head_dim="attention.attn.attention_head_size",
            sizes={"attention.attn.num_attention_heads": "heads", "attention.attn.all_head_size": "features"},
            # One relative-position bias a head is computed once and handed to every layer.
            head_inputs={"attention.attn": {"position_bias": 1}},
        ),
        "ffn": BlockSpec(
            producers=("intermediate.dense",),
            consumer="output.dense",
            residual_sum="output.LayerNorm",
            config_fields={"intermediate_size": "features"},
        ),
    },
)

_LLAMA = Architecture(
    layers="layers",
    blocks={
        "attention": BlockSpec(
            producers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            consumer="self_attn.o_proj",
            residual_sum="post_attention_layernorm",
            head_dim="self_attn.head_dim",
            config_fields={"num_attention_heads": "heads", "num_key_value_heads": "units", "head_dim": "head_dim"},
        ),
        "ffn": BlockSpec(
            producers=("mlp.gate_proj", "mlp.up_proj"),
            consumer="mlp.down_proj",
            residual_sum="",
            sizes={"mlp.intermediate_size": "features"},
            config_fields={"intermediate_size": "features"},
        ),
    },
)

_GPT2 = Architecture(
    layers="h",
    blocks={
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
    },
)

_OPT = Architecture(
    layers="decoder.layers",
    blocks={
        "attention": BlockSpec(
            producers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            consumer="self_attn.out_proj",
            residual_sum="final_layer_norm",
            head_dim="self_attn.head_dim",
            sizes={"self_attn.num_heads": "heads"},
        ),
        "ffn": BlockSpec(
            producers=("fc1",),
            consumer="fc2",
            residual_sum="",
            config_fields={"ffn_dim": "features"},
        ),
    },
)


def _changed(entry: Architecture, **blocks: Mapping[str, Any]) -> Architecture:
    """An entry with some fields of its blocks changed."""
    kept = {kind: replace(spec, **blocks.get(kind, {})) for kind, spec in entry.blocks.items()}
    return replace(entry, blocks=kept)


# The layer normalises before its sublayers, so the residual stream is read elsewhere.
_ROBERTA_PRELAYERNORM = _changed(_BERT, attention={"residual_sum": "intermediate.LayerNorm"}, ffn={"residual_sum": ""})
_XLM_ROBERTA_XL = _changed(_BERT, attention={"residual_sum": "LayerNorm"}, ffn={"residual_sum": ""})
_NOMIC_BERT = _changed(
    _LLAMA,
    attention={"config_fields": {}},
    ffn={"residual_sum": "post_mlp_layernorm"},
)
# What a consumer gives is normalised or scaled before it joins the residual stream, or attention and feed-forward join
# it together.
_NO_SUM = _changed(_LLAMA, attention={"residual_sum": None}, ffn={"residual_sum": None})
_STABLELM = _changed(
    _LLAMA,
    attention={"sizes": {"self_attn.num_heads": "heads", "self_attn.num_key_value_heads": "units"}},
)
_STARCODER2 = _changed(_LLAMA, ffn={"producers": ("mlp.c_fc",), "consumer": "mlp.c_proj", "sizes": {}})
_PHI = _changed(
    _NO_SUM,
    attention={"consumer": "self_attn.dense"},
    ffn={"producers": ("mlp.fc1",), "consumer": "mlp.fc2", "sizes": {}},
)

# Their attention reads its sizes from the config (Phi-3), or normalises over all heads together (OLMo 2): only the
# feed-forward units can go.
_PHI3 = Architecture(
    layers="layers",
    blocks={
        "ffn": BlockSpec(
            producers=("mlp.gate_up_proj",),
            consumer="mlp.down_proj",
            fused=2,
            residual_sum="",
            config_fields={"intermediate_size": "features"},
        )
    },
)
_OLMO2 = replace(_NO_SUM, blocks={"ffn": _NO_SUM.blocks["ffn"]})

_GPT_NEO = Architecture(
    layers="h",
    blocks={
        "attention": BlockSpec(
            producers=("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj"),
            consumer="attn.attention.out_proj",
            residual_sum="ln_2",
            head_dim="attn.attention.head_dim",
            sizes={"attn.attention.num_heads": "heads"},
        ),
        "ffn": BlockSpec(
            producers=("mlp.c_fc",),
            consumer="mlp.c_proj",
            residual_sum="",
            config_fields={"intermediate_size": "features"},
        ),
    },
)

_GPT_NEOX = Architecture(
    layers="layers",
    blocks={
        "attention": BlockSpec(
            producers=("attention.query_key_value",),
            consumer="attention.dense",
            interleaved=3,
            head_dim="attention.head_size",
        ),
        "ffn": BlockSpec(
            producers=("mlp.dense_h_to_4h",),
            consumer="mlp.dense_4h_to_h",
            config_fields={"intermediate_size": "features"},
        ),
    },
)

_BLOOM = Architecture(
    layers="h",
    blocks={
        "attention": BlockSpec(
            producers=("self_attention.query_key_value",),
            consumer="self_attention.dense",
            interleaved=3,
            residual_sum="post_attention_layernorm",
            head_dim="self_attention.head_dim",
            sizes={"self_attention.num_heads": "heads"},
            head_inputs={"self_attention": {"alibi": 0}},
        ),
        "ffn": BlockSpec(producers=("mlp.dense_h_to_4h",), consumer="mlp.dense_4h_to_h", residual_sum=""),
    },
)

# Falcon's first layout: a key and a value for every head. The others are refused: their sizes do not fit.
_FALCON = Architecture(
    layers="h",
    blocks={
        "attention": BlockSpec(
            producers=("self_attention.query_key_value",),
            consumer="self_attention.dense",
            interleaved=3,
            head_dim="self_attention.head_dim",
            sizes={"self_attention.num_heads": "heads", "self_attention.num_kv_heads": "units"},
            head_inputs={"self_attention": {"alibi": 1, "attention_mask": 1}},
        ),
        "ffn": BlockSpec(
            producers=("mlp.dense_h_to_4h",),
            consumer="mlp.dense_4h_to_h",
            config_fields={"ffn_hidden_size": "features"},
        ),
    },
)

_MODERNBERT = Architecture(
    layers="layers",
    blocks={
        "attention": BlockSpec(
            producers=("attn.Wqkv",),
            consumer="attn.Wo",
            fused=3,
            residual_sum="mlp_norm",
            head_dim="attn.head_dim",
        ),
        "ffn": BlockSpec(
            producers=("mlp.Wi",),
            consumer="mlp.Wo",
            fused=2,
            residual_sum="",
            config_fields={"intermediate_size": "features"},
        ),
    },
)

# Positions have projections of their own unless they share those of the contents, as in all published models. MACs of
# the products with positions are not in the costs of a head.
_DEBERTA_V2 = _changed(
    _BERT,
    attention={
        "absent": ("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
        "producers": ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj"),
    },
)

#: By model type.
TABLE: dict[str, Architecture] = {
    "bert": _BERT,
    "bloom": _BLOOM,
    "camembert": _BERT,
    "cohere": _NO_SUM,
    "data2vec-text": _BERT,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    "electra": _BERT,
    "ernie": _BERT,
    "eurobert": _LLAMA,
    "falcon": _FALCON,
    "gemma": _LLAMA,
    "gemma2": _NO_SUM,
    "gemma3_text": _NO_SUM,
    "gpt2": _GPT2,
    "gpt_neo": _GPT_NEO,
    "gpt_neox": _GPT_NEOX,
    "granite": _NO_SUM,
    "layoutlm": _BERT,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "nomic_bert": _NOMIC_BERT,
    "olmo2": _OLMO2,
    "opt": _OPT,
    "phi": _PHI,
    "phi3": _PHI3,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "roberta": _BERT,
    "roberta-prelayernorm": _ROBERTA_PRELAYERNORM,
    "smollm3": _LLAMA,
    "stablelm": _STABLELM,
    "starcoder2": _STARCODER2,
    "xlm-roberta": _BERT,
    "xlm-roberta-xl": _XLM_ROBERTA_XL,
}
