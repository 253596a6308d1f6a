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

_YARN = {"rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0, "original_max_position_embeddings": 5}
_SINKS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 64, "rope_parameters": _YARN}
_LOCAL = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 4}

_T5 = {
    **_COMMON,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 1,
}
_BART = {
    **_COMMON,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 160,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_CONVOLUTIONS = {"conv_dim": [16, 16], "conv_kernel": [4, 2], "conv_stride": [4, 2], "num_feat_extract_layers": 2}

_POSITIONS = {"pos_att_type": ["p2c", "c2p"], "position_buckets": 16}

#: Constructor arguments of the config, by model type.
SIZES: dict[str, dict] = {
    "albert": {**_BERT, "embedding_size": 16},
    "bart": _BART,
    "bert": _BERT,
    "bloom": {**_COMMON, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    "camembert": _BERT,
    "clip_text_model": _BERT,
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
    "gpt_oss": {**_GROUPED, **_SINKS},
    "granite": _GROUPED,
    "layoutlm": _BERT,
    "llama": _GROUPED,
    "marian": _BART,
    "mbart": _BART,
    "mistral": _GROUPED,
    "mixtral": {**_GROUPED, "num_local_experts": 4},
    "modernbert": {
        **_BERT,
        "global_attn_every_n_layers": 2,
        "local_attention": 32,
        "cls_token_id": 2,
        "sep_token_id": 3,
    },
    "mpnet": _BERT,
    "mt5": {**_T5, "feed_forward_proj": "gated-gelu"},
    "nomic_bert": _BERT,
    "mpt": {**_COMMON, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 160, "use_cache": True},
    "olmo2": _GROUPED,
    "olmo3": {**_GROUPED, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
    "opt": {
        **_COMMON,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 40,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 160,
    },
    "pegasus": _BART,
    "phi": _GROUPED,
    "phi3": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "qwen3_moe": {**_GROUPED, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "roberta": _BERT,
    "roberta-prelayernorm": _BERT,
    "smollm3": _GROUPED,
    "stablelm": {**_GROUPED, "partial_rotary_factor": 0.5},
    "starcoder2": _GROUPED,
    "t5": {**_T5, "feed_forward_proj": "relu"},
    "vit": {key: _BERT[key] for key in _BERT if key not in _COMMON} | {"image_size": 16, "patch_size": 4},
    "wav2vec2": {**_BERT, **_CONVOLUTIONS, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 4},
    "whisper": {**_BART, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 40},
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
    "gpt_oss",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "mpt",
    "olmo2",
    "olmo3",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "stablelm",
    "starcoder2",
)
ENCODER_DECODERS = ("bart", "marian", "mbart", "mt5", "pegasus", "t5", "whisper")
#: Types whose entry has no attention, and those that have nothing else.
FFN_ONLY = ("olmo2", "olmo3")
ATTENTION_ONLY = ("gpt_oss", "mixtral", "qwen3_moe")
#: Types whose attention cannot run without heads; nor can that of decoders of encoder-decoders.
KEEPS_ATTENTION = ("albert", "bloom", "gpt2", "modernbert", "mt5", "t5")

#: Types that transformers has no sdpa attention for.
EAGER_ONLY = ("bloom", "deberta-v2", "gemma2", "gpt_neo", "gpt_oss", "mpnet", "mpt")


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
            if name in (model._keys_to_ignore_on_save or ()):  # sinusoids
                continue
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif name.endswith("sinks"):
                parameter.normal_()
    return model.eval()


def tiny_batch(
    model_type: str = "bert", *, samples: int = 4, length: int = 7, target: int | None = None, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random token ids with right padding of different lengths; pictures or speech for models of those.

    Decoders of encoder-decoders get `target` tokens, by default as many as encoders, which classifiers need.
    """
    generator = torch.Generator().manual_seed(seed)
    if model_type == "vit":
        return {"pixel_values": torch.randn(samples, 3, 16, 16, generator=generator)}
    if model_type == "wav2vec2":
        return {"input_values": torch.randn(samples, 16 * length, generator=generator)}
    ids = torch.randint(4, VOCABULARY, (samples, length), generator=generator)
    mask = torch.ones_like(ids)
    if model_type not in DECODERS:
        for row in range(samples):
            pad = row % 3
            if model_type in ENCODER_DECODERS:
                ids[row, -pad - 1] = 3  # an end in every text
            if pad:
                ids[row, -pad:] = 1
                mask[row, -pad:] = 0
    if model_type not in ENCODER_DECODERS:
        return {"input_ids": ids, "attention_mask": mask}
    decoder = {"decoder_input_ids": torch.randint(4, VOCABULARY, (samples, target or length), generator=generator)}
    if model_type == "whisper":
        return {"input_features": torch.randn(samples, 8, 16, generator=generator), **decoder}
    return {"input_ids": ids, "attention_mask": mask, **decoder}
