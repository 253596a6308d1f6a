"""The architecture table: for each model type, where producers, consumers and sizes are. Data, no code.

Paths are relative to one layer, layers relative to `model.base_model`. An entry is about ten lines; CONTRIBUTING.md,
"Add an architecture", shows how to write one, and the contract tests run on every entry.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from hfprune.errors import UnsupportedArchitectureError
from hfprune.structure.modeling_pruned import register_config

Kind = Literal["attention", "ffn"]
#: What a size counts: query heads, key/value groups (the units), consumer input features, or one head's width.
Quantity = Literal["heads", "units", "features", "head_dim"]

PRUNED_PREFIX = "pruned_"


@dataclass(frozen=True, kw_only=True)
class BlockSpec:
    """Where one block of a layer keeps its units.

    Attributes:
        producers: Projections whose output rows make the units; of separate ones for attention the query's comes first.
        consumer: The projection whose input columns read them.
        fused: How many equal parts each producer stacks along its output (3 for a query-key-value projection).
        head_dim: Attribute that holds the width of one head; None where a unit is a neuron.
        sizes: Attributes of modules that must follow the number of units, and what each counts.
        config_fields: Fields of the stock config that set this block's size for all layers at once, and what each
            counts. Empty where the stock config cannot say another size.
        head_inputs: Arguments of a module that carry one slice for every head, and the dimension it lies in:
            `{module: {argument: dimension}}`.
        residual_sum: The module whose input is the consumer's output plus the residual stream, before any
            normalisation; empty where that is the output of the layer. None where there is no such place:
            reconstruction then aims at the consumer's own output.
        bypass: The module that is left out when no unit is left, because it cannot run without any. It takes the
            hidden states first and returns a tuple, whose first item the consumer reads, unless the consumer is inside.
            None where it can run. A block of attention without it keeps at least one unit.
    """

    producers: tuple[str, ...]
    consumer: str
    fused: int = 1
    head_dim: str | None = None
    sizes: Mapping[str, Quantity] = field(default_factory=dict)
    config_fields: Mapping[str, Quantity] = field(default_factory=dict)
    head_inputs: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    residual_sum: str | None = None
    bypass: str | None = None


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The blocks of every layer of a model type.

    Attributes:
        layers: Path of the list of layers, from the base model.
        blocks: What each layer holds, by kind.
    """

    layers: str
    blocks: Mapping[Kind, BlockSpec]


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

_TABLE: dict[str, Architecture] = {
    "bert": _BERT,
    "camembert": _BERT,
    "distilbert": _DISTILBERT,
    "electra": _BERT,
    "gemma": _LLAMA,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mpnet": _MPNET,
    "opt": _OPT,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}


def known_architectures() -> Mapping[str, Architecture]:
    """The entries known now, by model type."""
    return dict(_TABLE)


def register_architecture(model_type: str, architecture: Architecture) -> None:
    """Teach hfprune a model type.

    Args:
        model_type: The `config.model_type` of the dense model.
        architecture: Where its blocks are.

    Raises:
        ValueError: The model type is known already; an entry is never replaced silently.
        KeyError: transformers does not know the model type; `AutoConfig.register` it first.
    """
    if model_type in _TABLE:
        raise ValueError(f"model_type {model_type!r} has an architecture entry already; pick another model type.")
    register_config(model_type)
    _TABLE[model_type] = architecture


def base_model_type(model_type: str) -> str:
    """The dense model type: `pruned_bert` and `bert` both give `bert`.

    >>> base_model_type("pruned_bert")
    'bert'
    """
    return model_type.removeprefix(PRUNED_PREFIX)


def architecture_of(model_type: str) -> Architecture:
    """The table's entry for a model type, dense or pruned.

    Args:
        model_type: The `config.model_type` of the model.

    Returns:
        Where its blocks are.

    Raises:
        UnsupportedArchitectureError: There is no entry.
    """
    entry = _TABLE.get(base_model_type(model_type))
    if entry is None:
        known = ", ".join(sorted(_TABLE))
        raise UnsupportedArchitectureError(
            f"no architecture entry for model_type {model_type!r}. Known: {known}. "
            'An entry is about ten lines: see CONTRIBUTING.md, "Add an architecture".'
        )
    return entry
