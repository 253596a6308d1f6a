"""Encoders of text."""

from dataclasses import replace

from hfprune.structure.specs import Architecture, BlockSpec, HeadInput, changed, specs_of
from hfprune.structure.table.decoders import LLAMA

_BERT = Architecture(
    stacks={
        "encoder.layer": {
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
        }
    },
)

_DISTILBERT = Architecture(
    stacks={
        "transformer.layer": {
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
        }
    },
)

_MPNET = Architecture(
    stacks={
        "encoder.layer": {
            "attention": BlockSpec(
                producers=("attention.attn.q", "attention.attn.k", "attention.attn.v"),
                consumer="attention.attn.o",
                residual_sum="attention.LayerNorm",
                bypass="attention.attn",
                head_dim="attention.attn.attention_head_size",
                sizes={"attention.attn.num_attention_heads": "heads", "attention.attn.all_head_size": "features"},
                # One relative-position bias a head is computed once and handed to every layer.
                head_inputs={"attention.attn": {"position_bias": HeadInput(dimension=1)}},
            ),
            "ffn": BlockSpec(
                producers=("intermediate.dense",),
                consumer="output.dense",
                residual_sum="output.LayerNorm",
                config_fields={"intermediate_size": "features"},
            ),
        }
    },
)

# The layer normalises before its sublayers, so the residual stream is read elsewhere.
_ROBERTA_PRELAYERNORM = changed(_BERT, attention={"residual_sum": "intermediate.LayerNorm"}, ffn={"residual_sum": ""})

_XLM_ROBERTA_XL = changed(_BERT, attention={"residual_sum": "LayerNorm"}, ffn={"residual_sum": ""})

_MODERNBERT = Architecture(
    stacks={
        "layers": {
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
        }
    },
)


def _deberta_attention(*of_positions: str) -> BlockSpec:
    """Positions have projections of their own unless they share those of the contents (`share_att_key`).

    MACs of the products with positions are not in the costs of a head.
    """
    contents = ("attention.self.query_proj", "attention.self.key_proj", "attention.self.value_proj")
    (attention,) = specs_of(_BERT.stacks["encoder.layer"])["attention"]
    return replace(attention, producers=(*contents, *of_positions), of_positions=of_positions)


_DEBERTA_V2 = Architecture(
    stacks={
        "encoder.layer": {
            **_BERT.stacks["encoder.layer"],
            # the first whose projections a layer has: contents to positions, positions to contents, or both
            "attention": (
                _deberta_attention("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
                _deberta_attention("attention.self.pos_key_proj"),
                _deberta_attention("attention.self.pos_query_proj"),
                _deberta_attention(),
            ),
        }
    },
)

_NOMIC_BERT = changed(
    LLAMA,
    attention={"config_fields": {}, "sizes": {}},
    ffn={"residual_sum": "post_mlp_layernorm"},
)

# All layers of a group are one, gone through again and again: a unit is pruned in all its uses.
_ALBERT = Architecture(
    stacks={
        "encoder.albert_layer_groups.*.albert_layers": {
            "attention": BlockSpec(
                producers=("attention.query", "attention.key", "attention.value"),
                consumer="attention.dense",
                residual_sum="attention.LayerNorm",
                head_dim="attention.attention_head_size",
                sizes={"attention.num_attention_heads": "heads", "attention.all_head_size": "features"},
            ),
            "ffn": BlockSpec(
                producers=("ffn",),
                consumer="ffn_output",
                residual_sum="full_layer_layer_norm",
                config_fields={"intermediate_size": "features"},
            ),
        }
    },
    runs="num_hidden_layers",
)

#: By model type.
ENCODERS: dict[str, Architecture] = {
    "albert": _ALBERT,
    "bert": _BERT,
    "camembert": _BERT,
    "data2vec-text": _BERT,
    "deberta-v2": _DEBERTA_V2,
    "distilbert": _DISTILBERT,
    "electra": _BERT,
    "ernie": _BERT,
    "eurobert": LLAMA,
    "layoutlm": _BERT,
    "modernbert": _MODERNBERT,
    "mpnet": _MPNET,
    "nomic_bert": _NOMIC_BERT,
    "roberta": _BERT,
    "roberta-prelayernorm": _ROBERTA_PRELAYERNORM,
    "xlm-roberta": _BERT,
    "xlm-roberta-xl": _XLM_ROBERTA_XL,
}
