"""Model types of transformers outside the table: `python -m tests.support.by_proof` tries all of them."""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

import hfprune
from hfprune.errors import UnsupportedArchitectureError
from hfprune.structure import find_blocks, gated, support_of
from hfprune.structure.examples import example_inputs
from tests.support.plans import as_gates, uneven_plan
from tests.support.tiny import _BART, _BERT, _COMMON, _GROUPED, _LOCAL, _T5, SIZES, VOCABULARY

_GPT = {**_COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 40}
_EXPERTS = {"expert_layer_period": 3, "num_experts": 4}
_MIXED = {**_EXPERTS, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4}
_NAMES = {
    "decoders": """apertus arcee biogpt bitnet cohere2 cwm diffllama doge ernie4_5 exaone4 flex_olmo gemma4_text glm
        glm4 granitemoe helium hunyuan_v1_dense jais2 jamba lfm2 ministral ministral3 nanochat nemotron olmo
        olmoe persimmon phimoe seed_oss vaultgemma""",
    "encoders": """bert-generation big_bird canine convbert deberta fnet jina_embeddings_v3 longformer markuplm
        megatron-bert mobilebert modernbert-decoder mra nystromformer rembert roformer splinter tapas yoso""",
    "pictures": """aimv2_vision_model beit chinese_clip_vision_model clip_vision_model data2vec-vision deit dinov2
        dinov2_with_registers ijepa siglip_vision_model vit_mae vit_msn""",
    "speech": "data2vec-audio hubert sew sew-d unispeech unispeech-sat wav2vec2-conformer wavlm",
    "pairs": "bigbird_pegasus blenderbot blenderbot-small led m2m_100 mvp nllb-moe plbart",
    "t5": "longt5 switch_transformers umt5",
    "gpt": "codegen gpt_bigcode gptj",
}
_SIZES = {
    "decoders": _GROUPED,
    "encoders": _BERT,
    "pictures": SIZES["vit"],
    "speech": SIZES["wav2vec2"],
    "pairs": _BART,
    "t5": _T5,
    "gpt": _GPT,
}
#: Constructor arguments of the config, by model type.
BY_PROOF: dict[str, dict] = {
    **{name: _SIZES[kind] for kind, names in _NAMES.items() for name in names.split()},
    "codegen": {**_GPT, "rotary_dim": 4},
    "esm": {**_BERT, "mask_token_id": 4, "position_embedding_type": "rotary"},
    "gemma4_text": {**_GROUPED, **_LOCAL, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY},
    "gptj": {**_GPT, "rotary_dim": 4},
    "jamba": {**_GROUPED, "num_hidden_layers": 4, **_MIXED},
    "xglm": {**_COMMON, "d_model": 32, "ffn_dim": 40, "num_layers": 2, "attention_heads": 4},
    "xmod": {**_BERT, "languages": ["en_XX"], "default_language": "en_XX"},
}


def untabled_model(model_type: str) -> PreTrainedModel:
    """A random model in evaluation mode, with weights large enough that every unit matters."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(model_type, **BY_PROOF[model_type])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.2)
    return model


def measured(model_type: str) -> dict:
    """Which units discovery finds, and how far pruned is from gated, by a plan with another width in every layer."""
    model = untabled_model(model_type)
    try:
        blocks = find_blocks(model)
    except UnsupportedArchitectureError as error:
        lines = str(error).partition("\nWrite the entry")[0].splitlines()[1:]
        reasons = [line for line in lines if not line.endswith(": proven")]
        return {"refused": reasons[0].strip()}
    plan = uneven_plan(model)
    batch = example_inputs(model, torch.randint(4, 60, (4, 12)))

    def output(model: PreTrainedModel) -> torch.Tensor:
        torch.manual_seed(0)  # where a model draws
        with torch.no_grad():
            return model(**batch)[0]

    dense = output(model)
    with gated(model, blocks, as_gates(model, plan.kept)):
        with_gates = output(model)
    return {
        "refused": "",
        "kinds": sorted({block.kind for block in blocks}),
        "note": support_of(model).entry.note,
        "effect": float((with_gates - dense).abs().max()),
        "difference": float((with_gates - output(hfprune.apply_plan(model, plan))).abs().max()),
    }


def main() -> None:
    """Write docs/reference/by_proof.json."""
    found = {model_type: measured(model_type) for model_type in sorted(BY_PROOF)}
    path = Path(__file__).parents[2] / "docs" / "reference" / "by_proof.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
