"""The config says the sizes of every layer: what allocates by it, caches above all, fits a pruned model."""

import json
import warnings

import pytest
import torch
from transformers import DynamicCache, GenerationConfig, LlamaConfig, LlamaForCausalLM, StaticCache
from transformers.configuration_utils import get_head_shapes
from transformers.integrations.executorch import TorchExportableModuleForDecoderOnlyLM

import hfprune
from hfprune.structure import find_blocks
from hfprune.structure.architectures import base_model_type
from tests.support.tiny import DECODERS, FFN_ONLY, KEEPS_ATTENTION, tiny_batch, tiny_model

OPTIONS = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
#: What stays of some blocks, and whether units are query heads.
PLANS = {
    "one group": ({"layers.1.attention": [0], "layers.0.ffn": range(7)}, "group"),
    "whole blocks": ({"layers.0.attention": [], "layers.2.ffn": []}, "group"),
    "queries": ({"layers.1.queries": [0, 2]}, "query"),
}


def cut(dense, kept, unit="group"):
    blocks = find_blocks(dense, unit)
    model_type = base_model_type(dense.config.model_type)
    plan = hfprune.PruningPlan.keep(blocks, kept, model_type=model_type, sequence_length=8)
    return hfprune.apply_plan(dense, plan)


def llama(**changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**(sizes | heads | changes))).eval()


@pytest.fixture(params=sorted(PLANS))
def small(request):
    return cut(llama(), *PLANS[request.param])


@pytest.fixture
def ids():
    return torch.randint(3, 99, (2, 12), generator=torch.Generator().manual_seed(0))


def test_the_config_of_every_layer(ids):
    dense = llama()
    small = cut(dense, {"layers.0.attention": [1], "layers.1.attention": [], "layers.2.ffn": range(5)})
    configs = small.config.per_layer_config
    assert [c.num_key_value_heads for c in configs] == [1, 1, 2]
    assert [c.num_attention_heads for c in configs] == [2, 1, 4]
    assert [c.intermediate_size for c in configs] == [48, 48, 5]
    assert [c.head_dim for c in configs[:2]] == [8, 8]
    assert get_head_shapes(small.config) == ([1, 1, 2], 8)
    assert get_head_shapes(dense.config) == (2, 8)
    # of the dense model still, from which the skeleton is made
    assert small.config.num_key_value_heads == 2
    again = cut(small, {"layers.2.attention": [1]})
    assert get_head_shapes(again.config) == (1, 8)


def test_a_static_cache_filled_in_chunks(small, ids):
    expected = small.generate(ids, **OPTIONS, use_cache=False)
    options = {"cache_implementation": "static", "prefill_chunk_size": 4}
    assert torch.equal(small.generate(ids, **OPTIONS, **options), expected)


def test_early_initialization(small, ids):
    cache = StaticCache(config=small.config, max_cache_len=16)
    heads, widths = get_head_shapes(small.config)
    cache.early_initialization(batch_size=2, num_heads=heads, head_dim=widths, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(small(ids, past_key_values=cache).logits, small(ids).logits)


@pytest.mark.slow
def test_continuous_batching(small, ids):
    expected = small.generate(ids, **OPTIONS, use_cache=False)[:, 12:]
    assert batched(small, ids) == expected.tolist()


def batched(model, ids):
    options = GenerationConfig(**OPTIONS, eos_token_id=-1, pad_token_id=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own, of its threads
        found = model.generate_batch([row.tolist() for row in ids], generation_config=options, warmup=False)
    return [found[name].generated_tokens for name in sorted(found)]


@pytest.mark.slow
@pytest.mark.parametrize("plan", sorted(PLANS))
def test_an_exported_decoder(plan, ids):
    small = cut(llama(), *PLANS[plan])
    with torch.no_grad():
        expected = small(ids[:1, :1]).logits
    small.generation_config.update(
        cache_implementation="static", use_cache=True, cache_config={"batch_size": 1, "max_cache_len": 16}
    )
    exportable = TorchExportableModuleForDecoderOnlyLM(small, batch_size=1, max_cache_len=16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of what it exports
        program = exportable.export(input_ids=ids[:1, :1], cache_position=torch.tensor([0]))
    found = program.module()(input_ids=ids[:1, :1], cache_position=torch.tensor([0]))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("model_type", sorted(set(DECODERS) - {*KEEPS_ATTENTION, *FFN_ONLY, "falcon"}))
def test_static_caches_of_other_types(model_type):
    dense = tiny_model(model_type, "AutoModelForCausalLM")
    attentions = [block for block in find_blocks(dense) if block.kind == "attention"]
    small = cut(dense, {attentions[0].name: [], attentions[1].name: [1]})
    heads, _ = get_head_shapes(small.config.get_text_config(decoder=True))
    # one is left of the second, and one stands for the first
    assert heads == 1
    batch = tiny_batch(model_type, length=5)
    cache = StaticCache(config=small.config, max_cache_len=16)
    heads, widths = get_head_shapes(small.config)
    cache.early_initialization(batch_size=4, num_heads=heads, head_dim=widths, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        found = small(**batch, past_key_values=cache).logits
        torch.testing.assert_close(found, small(**batch, use_cache=False).logits)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["qwen2", "opt", "gemma2"])
def test_continuous_batching_of_other_types(model_type):
    dense = tiny_model(model_type, "AutoModelForCausalLM")
    attentions = [block for block in find_blocks(dense) if block.kind == "attention"]
    small = cut(dense, {attentions[1].name: [1]})
    ids = tiny_batch(model_type, samples=2, length=6)["input_ids"]
    options = GenerationConfig(**OPTIONS, eos_token_id=-1, pad_token_id=0)
    expected = small.generate(ids, generation_config=options, use_cache=False)[:, 6:]
    assert batched(small, ids) == expected.tolist()


@pytest.mark.parametrize("model_type", ["t5", "bart", "whisper"])
def test_decoders_of_encoder_decoders(model_type):
    dense = tiny_model(model_type, "AutoModelForSpeechSeq2Seq" if model_type == "whisper" else "AutoModelForSeq2SeqLM")
    of_decoder = [b for b in find_blocks(dense) if b.layer.startswith("decoder.") and b.name.endswith(".attention")]
    small = cut(dense, {of_decoder[1].name: [0, 2, 3]})
    assert get_head_shapes(small.config.get_text_config(decoder=True))[0] == [4, 3]
    batch = tiny_batch(model_type)
    batch.pop("decoder_input_ids")
    expected = small.generate(**batch, **OPTIONS, use_cache=False)
    assert torch.equal(small.generate(**batch, **OPTIONS), expected)


def test_a_cache_of_other_heads_is_refused(ids):
    dense = llama()
    small = cut(dense, *PLANS["one group"])
    with torch.no_grad():
        cache = dense(ids, past_key_values=DynamicCache(config=dense.config)).past_key_values
        with pytest.raises(ValueError, match="2 key/value heads for layer 1, which has 1: .*per_layer_config"):
            small(ids, past_key_values=cache)


def test_prefix_tuning_where_layers_are_alike_and_a_refusal_where_not(ids):
    from peft import PrefixTuningConfig, get_peft_model

    options = {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
    wrapped = get_peft_model(cut(llama(), {"layers.0.ffn": range(5)}), PrefixTuningConfig(**options))
    wrapped(input_ids=ids, labels=ids).loss.backward()
    assert wrapped.prompt_encoder.default.embedding.weight.grad.abs().sum() > 0
    queries = get_peft_model(cut(llama(), *PLANS["queries"]), PrefixTuningConfig(**options))
    assert queries(input_ids=ids).logits.shape == (2, 12, 99)
    uneven = get_peft_model(cut(llama(), *PLANS["one group"]), PrefixTuningConfig(**options))
    with pytest.raises(ValueError, match="prefix tuning by peft makes it.*use an adapter that adds no keys"):
        uneven(input_ids=ids)


def test_prefix_tuning_of_gemma_follows_the_layers():
    from peft import PrefixTuningConfig, get_peft_model

    dense = tiny_model("gemma2", "AutoModelForCausalLM")
    small = cut(dense, {"layers.0.attention": [1, 2], "layers.1.attention": []})
    wrapped = get_peft_model(small, PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    assert wrapped(**tiny_batch("gemma2")).logits.shape == (4, 7, 64)


def test_sizes_are_saved_and_loaded_with_checkpoints_of_earlier_versions(ids, tmp_path):
    small = cut(llama(), *PLANS["whole blocks"])
    folder = hfprune.save(small, tmp_path / "small")
    assert get_head_shapes(hfprune.load(folder).config) == ([1, 2, 2], 8)
    path = small.save_pretrained(tmp_path / "old") or tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    for name in ("per_layer_config", "allow_global_per_layer_attribute_access"):
        del config[name]
    del config["pruning_config"]["layers"]
    path.write_text(json.dumps(config))
    old = hfprune.load(tmp_path / "old")
    assert get_head_shapes(old.config) == ([1, 2, 2], 8)
    expected = small.generate(ids, **OPTIONS, use_cache=False)
    options = {"cache_implementation": "static", "prefill_chunk_size": 4}
    assert torch.equal(old.generate(ids, **OPTIONS, **options), expected)


def test_layers_by_type_and_damage():
    dense = tiny_model("gemma2", "AutoModelForCausalLM")
    small = cut(dense, {"layers.0.attention": [1, 2]})
    # what layers of a type share, as the rotary embedding, is that of the dense model
    assert small.config.per_layer_config["sliding_attention"].num_key_value_heads == 4
    assert small.config.per_layer_config["full_attention"].num_key_value_heads == 4
    small.config.pruning_config["layers"][0] = {"num_key_value_heads": "many"}
    with pytest.raises(ValueError, match="gives a layer 'num_key_value_heads' = 'many', which is no size"):
        get_head_shapes(small.config)
