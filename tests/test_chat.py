"""Chat models stay usable: template, generation config, special tokens, tied embeddings; pipelines, drafts, caches."""

import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, pipeline

import hfprune
from hfprune import PruningConfig, RecoveryArguments, RecoveryTrainer, perplexity, prune
from hfprune.data.corpus import pack
from hfprune.jobs.tasks.causal_text import labelled
from hfprune.measuring.size import kv_cache_bytes
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import WORDS, tiny_tokenizer

TEMPLATE = "{% for m in messages %}[BOS] {{ m['role'] }} {{ m['content'] }} {% endfor %}"
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "gpt2", "gpt_neox")
QUICK = PruningConfig(
    sparsity=0.4, scorer="l2", schedule="one_shot", calibration_samples=4, sequence_length=8, exclude=["*.0.ffn"]
)


def chat_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.padding_side = "left"
    return tokenizer


def chat_model(kind="llama", **changes):
    model = tiny_model(kind, "AutoModelForCausalLM", **{"tie_word_embeddings": True, **changes})
    model.generation_config = GenerationConfig(
        max_new_tokens=6, repetition_penalty=1.3, eos_token_id=[3, 9], pad_token_id=1, bos_token_id=2
    )
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    small = prune(chat_model(), [tiny_batch("llama")], QUICK)
    return hfprune.save(small, tmp_path_factory.mktemp("chat") / "small", tokenizer=chat_tokenizer())


def test_what_makes_a_chat_model_survives(folder):
    dense, tokenizer = chat_model(), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.special_tokens_map == chat_tokenizer().special_tokens_map
    messages = [{"role": "who", "content": "is the dog"}]
    assert tokenizer.apply_chat_template(messages) == chat_tokenizer().apply_chat_template(messages)
    for small in (hfprune.load(folder), AutoModelForCausalLM.from_pretrained(folder)):
        kept = small.generation_config.to_diff_dict()
        asked = dense.generation_config.to_diff_dict()
        assert {name: kept[name] for name in asked if name != "transformers_version"} == {
            name: value for name, value in asked.items() if name != "transformers_version"
        }
        assert small.lm_head.weight is small.model.embed_tokens.weight
        assert torch.equal(small.lm_head.weight, dense.lm_head.weight)
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in list(file.keys())


def test_a_pipeline_chats(folder):
    small = hfprune.load(folder)
    generator = pipeline("text-generation", model=str(folder), device="cpu")
    assert type(generator.model).__name__ == type(small).__name__ == "PrunedLlamaForCausalLM"
    messages = [{"role": "who", "content": "is the dog"}]
    answer = generator(messages, do_sample=False)[0]["generated_text"]
    assert answer[:1] == messages
    ids = generator.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    expected = small.generate(**ids, do_sample=False)[0, ids["input_ids"].shape[1] :]
    said = generator.tokenizer.decode(expected, skip_special_tokens=True)
    assert answer[1] == {"role": "assistant", "content": said}


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gpt2"])
def test_the_pruned_model_drafts_for_its_parent(kind):
    dense = chat_model(kind)
    dense.generation_config.eos_token_id = None
    small = prune(dense, [tiny_batch(kind)], QUICK)
    ids = torch.arange(4, 9)[None]
    alone = dense.generate(ids, do_sample=False, max_new_tokens=12)
    calls = []
    small.register_forward_pre_hook(lambda *_: calls.append(1))
    assisted = dense.generate(ids, assistant_model=small, do_sample=False, max_new_tokens=12)
    assert calls
    assert torch.equal(assisted, alone)
    assert alone.shape[1] == 17


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_story(kind, tmp_path):
    """Scored, pruned and repaired by default in rounds, distilled, saved: it writes and predicts as before."""
    dense, tokenizer = chat_model(kind, tie_word_embeddings=False), chat_tokenizer()
    texts = [" ".join(WORDS[(i * 5 + j * 3) % len(WORDS)] for j in range(40)) for i in range(6)]
    windows = pack(DatasetDict(train=Dataset.from_dict({"text": texts})), tokenizer, max_length=8, whole=True)["train"]
    config = PruningConfig(sparsity=0.4, calibration_samples=16, sequence_length=8)
    small = prune(dense, windows, config, collator=labelled)
    assert len(small.pruning_record.rounds) == 3
    args = RecoveryArguments(
        output_dir=str(tmp_path / "training"), max_steps=2, use_cpu=True, report_to="none", save_strategy="no"
    )
    before = {name: value.clone() for name, value in small.state_dict().items()}
    RecoveryTrainer(small, args, teacher=dense, train_dataset=windows, data_collator=labelled).train()
    assert any(not torch.equal(value, before[name]) for name, value in small.state_dict().items())
    hfprune.save(small, tmp_path / "small", tokenizer=tokenizer)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    found = [perplexity(model, tokenizer, windows["input_ids"][:], window=8).perplexity for model in (small, again)]
    assert found[0] == found[1]
    assert kv_cache_bytes(again) == small.pruning_plan.cost("kv_cache")[0] <= kv_cache_bytes(dense)
    assert_generate_alike(small.eval(), again)


def assert_generate_alike(small, again):
    texts = ["who is the dog", "what", "where is a river of the city"]
    batch = chat_tokenizer()(texts, padding=True, return_tensors="pt", return_token_type_ids=False)
    assert batch["attention_mask"][1, 0] == 0
    for options in (
        {"do_sample": False},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": True, "top_k": 10},
        {"do_sample": False, "cache_implementation": "static"},
        {"do_sample": False, "use_cache": False},
    ):
        made = []
        for model in (small, again):
            torch.manual_seed(0)
            made.append(model.generate(**batch, **options))
        assert torch.equal(*made), options
    alone = small.generate(batch["input_ids"][2:], do_sample=False)
    assert torch.equal(alone[0], small.generate(**batch, do_sample=False)[2, : alone.shape[1]])
