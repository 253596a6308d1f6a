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

#: Constructor arguments of the config, by model type.
SIZES: dict[str, dict] = {
    "bert": _BERT,
    "camembert": _BERT,
    "distilbert": {**_COMMON, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40, "max_position_embeddings": 160},
    "electra": {**_BERT, "embedding_size": 32},
    "gemma": _GROUPED,
    "gpt2": {**_COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 40, "n_positions": 160},
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "mpnet": _BERT,
    "opt": {
        **_COMMON,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "ffn_dim": 40,
        "word_embed_proj_dim": 32,
        "max_position_embeddings": 160,
    },
    "qwen2": _GROUPED,
    "qwen3": _GROUPED,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
}
DECODERS = ("gemma", "gpt2", "llama", "mistral", "opt", "qwen2", "qwen3")


def tiny_config(model_type: str, **changes: object) -> PretrainedConfig:
    return AutoConfig.for_model(model_type, **{**SIZES[model_type], **changes})


def tiny_model(
    model_type: str = "bert", head: str = "AutoModelForSequenceClassification", *, seed: int = 0, **changes: object
) -> PreTrainedModel:
    """A random model in evaluation mode, with weights large enough that every unit matters."""
    torch.manual_seed(seed)
    attention = changes.pop("attn_implementation", "sdpa")
    config = tiny_config(model_type, **changes)
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
