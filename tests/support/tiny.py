"""Tiny random models, built from configs in milliseconds, for every entry of the architecture table."""

import torch
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

VOCABULARY = 64
_COMMON = {"vocab_size": VOCABULARY, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
_BERT = {
    **_COMMON,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 160,
}
_GROUPED = {**_BERT, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 4}

_LOCAL = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 4}

_POSITIONS = {"pos_att_type": ["p2c", "c2p"], "position_buckets": 16}

#: Constructor arguments of the config, by model type.
SIZES: dict[str, dict] = {
    "bert": _BERT,
    "bloom": {**_COMMON, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "camembert": _BERT,
    "cohere": _GROUPED,
    "data2vec-text": _BERT,
    "deberta-v2": {**_BERT, "relative_attention": True, "share_att_key": True, **_POSITIONS},
    "distilbert": {**_COMMON, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 160},
    "electra": {**_BERT, "embedding_size": 32},
    "ernie": _BERT,
    "eurobert": _GROUPED,
    "falcon": {**_BERT, "multi_query": False, "alibi": True, "bias": True, "parallel_attn": True},
    "gemma": _GROUPED,
    "gemma2": {**_GROUPED, **_LOCAL},
    "gemma3_text": {**_GROUPED, **_LOCAL},
    "gpt2": {**_COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 40, "n_positions": 160},
    "gpt_neo": {
        **_COMMON,
        "hidden_size": 32,
        "num_layers": 2,
        "attention_types": [[["global", "local"], 1]],
        "num_heads": 4,
        "intermediate_size": 40,
        "max_position_embeddings": 160,
    },
    "gpt_neox": _BERT,
    "granite": _GROUPED,
    "layoutlm": _BERT,
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "modernbert": {
        **_BERT,
        "global_attn_every_n_layers": 2,
        "local_attention": 32,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "mpnet": _BERT,
    "nomic_bert": _BERT,
    "olmo2": _GROUPED,
    "opt": {
        **_COMMON,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 40,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 160,
    },
    "phi": _GROUPED,
    "phi3": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "roberta": _BERT,
    "roberta-prelayernorm": _BERT,
    "smollm3": _GROUPED,
    "stablelm": {**_GROUPED, "partial_rotary_factor": 0.5},
    "starcoder2": _GROUPED,
    "xlm-roberta": _BERT,
    "xlm-roberta-xl": _BERT,
}
DECODERS = (
    "bloom",
    "cohere",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "granite",
    "llama",
    "mistral",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "stablelm",
    "starcoder2",
)
#: Types whose entry has no attention.
FFN_ONLY = ("olmo2", "phi3")
#: Encoders whose attention cannot run without heads.
KEEPS_ATTENTION = ("eurobert", "modernbert", "nomic_bert")


def has_head(model_type: str, head: str) -> bool:
    """Whether transformers has that head for the model type."""
    return type(AutoConfig.for_model(model_type)) in getattr(modeling_auto, head)._model_mapping


def tiny_config(model_type: str, **changes: object) -> PretrainedConfig:
    return AutoConfig.for_model(model_type, **{**SIZES[model_type], **changes})


def tiny_model(
    model_type: str = "bert", head: str = "AutoModelForSequenceClassification", *, seed: int = 0, **changes: object
) -> PreTrainedModel:
    """A random model in evaluation mode, with weights large enough that every unit matters."""
    torch.manual_seed(seed)
    attention = changes.pop("attn_implementation", "sdpa")
    config = tiny_config(model_type, **changes)
    if head == "AutoModelForSequenceClassification" and not has_head(model_type, head):
        head = "AutoModel"
    auto = getattr(modeling_auto, head)
    if attention == "sdpa" and not auto._model_mapping[type(config)]._supports_sdpa:
        attention = "eager"
    model = auto.from_config(config, attn_implementation=attention)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model.eval()


def tiny_batch(
    model_type: str = "bert", *, samples: int = 4, length: int = 7, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random token ids with right padding of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, VOCABULARY, (samples, length), generator=generator)
    mask = torch.ones_like(ids)
    if model_type not in DECODERS:
        for row in range(samples):
            pad = row % 3
            if pad:
                ids[row, -pad:] = 1
                mask[row, -pad:] = 0
    return {"input_ids": ids, "attention_mask": mask}
