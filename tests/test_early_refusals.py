"""What can be known without data is refused before data is read."""

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

import hfprune
from hfprune.errors import CalibrationError, UnsupportedArchitectureError
from hfprune.measuring.latency import measure_latency
from hfprune.measuring.size import count_macs, example_batch, kv_cache_bytes, measure_size
from tests.support.tiny import tiny_batch, tiny_config, tiny_model


class Mine(BertForSequenceClassification):
    pass


class MyGpt2(GPT2ForSequenceClassification):
    pass


class MyConfig(BertConfig):
    pass


class OfMyConfig(BertForSequenceClassification):
    config_class = MyConfig


class NeverRead:
    """Data that must not be looked at."""

    def __len__(self):
        raise AssertionError("the data was read")

    def __getitem__(self, _):
        raise AssertionError("the data was read")


CONFIG = hfprune.PruningConfig(sequence_length=8)
CALLS = {
    "prune": lambda model: hfprune.prune(model, NeverRead(), CONFIG),
    "by pattern": lambda model: hfprune.prune(model, NeverRead(), CONFIG, sparsity={"*.1.ffn": 0.5}),
    "sweep": lambda model: hfprune.sweep(model, NeverRead(), CONFIG, sparsities=[0.5], evaluate=len),
    "prune_within": lambda model: hfprune.prune_within(model, NeverRead(), CONFIG, max_drop=0.1, evaluate=len),
    "gradual": lambda model: hfprune.GradualPruning(CONFIG).attach(model),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize(
    ("cls", "model_type"),
    [(Mine, "bert"), (MyGpt2, "gpt2"), (OfMyConfig, "bert")],
    ids=["bert", "gpt2", "config"],
)
def test_a_class_that_could_not_be_loaded_again(cls, model_type, call):
    fields = tiny_config(model_type).to_dict()
    model = cls(cls.config_class.from_dict(fields)).eval()
    with pytest.raises(UnsupportedArchitectureError, match="is not a class of transformers, nor registered"):
        call(model)


@pytest.mark.parametrize("call", [CALLS[name] for name in ("prune", "by pattern", "sweep", "prune_within")])
@pytest.mark.parametrize("model_type", ["bert", "llama", "vit"])
def test_a_model_without_a_head(model_type, call):
    model = tiny_model(model_type, "AutoModel")
    with pytest.raises(CalibrationError, match="goes by the model's logits, and .* has none. Load the model"):
        call(model)


def test_a_model_without_a_head_is_pruned_by_its_weights():
    config = hfprune.PruningConfig(sequence_length=8, scorer="l2")
    small = hfprune.prune(tiny_model("bert", "AutoModel"), [tiny_batch()], config)
    assert small.pruning_plan.sparsity("macs") >= 0.5


def test_widths_that_the_stock_config_can_say_need_no_class_of_ours():
    model = Mine(tiny_config("bert")).eval()
    config = hfprune.PruningConfig(sequence_length=8, portable=True, sparsity=0.3)
    small = hfprune.prune(model, [tiny_batch()], config)
    assert type(small) is Mine


def test_a_registered_class_is_pruned():
    class RegisteredEarlyConfig(BertConfig):
        model_type = "own_bert_of_early_refusals"

    class RegisteredEarlyBert(BertForSequenceClassification):
        config_class = RegisteredEarlyConfig

    AutoConfig.register(RegisteredEarlyConfig.model_type, RegisteredEarlyConfig)
    AutoModelForSequenceClassification.register(RegisteredEarlyConfig, RegisteredEarlyBert)
    try:
        fields = {**tiny_config("bert").to_dict(), "model_type": RegisteredEarlyConfig.model_type}
        small = hfprune.prune(
            RegisteredEarlyBert(RegisteredEarlyConfig.from_dict(fields)).eval(), [tiny_batch()], CONFIG
        )
        assert type(small).__name__ == "PrunedRegisteredEarlyBert"
    finally:
        CONFIG_MAPPING._extra_content.pop(RegisteredEarlyConfig.model_type)
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING._extra_content.pop(RegisteredEarlyConfig)


#: Configs with five tokens or fewer.
SMALL = {
    "bert": lambda: tiny_model("bert", vocab_size=5),
    "two tokens": lambda: tiny_model("bert", vocab_size=2, pad_token_id=0),
    "gpt2": lambda: tiny_model("gpt2", "AutoModelForCausalLM", vocab_size=5),
    "t5": lambda: tiny_model("t5", "AutoModelForSeq2SeqLM", vocab_size=4),
}


@pytest.mark.parametrize("make", SMALL.values(), ids=SMALL.keys())
def test_a_vocabulary_of_few_tokens_is_measured(make):
    model = make()
    assert measure_size(model, sequence_length=6).macs == count_macs(model, sequence_length=6) > 0
    assert (kv_cache_bytes(model) > 0) == (model.config.model_type != "bert")
    measure_latency(model, batch_size=1, sequence_length=6, runs=1, warmup=0)


def test_a_llama_of_five_tokens_is_pruned():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    torch.manual_seed(0)
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=5, **special)).eval()
    ids = torch.randint(3, 5, (16, 12))
    small = hfprune.prune(model, [{"input_ids": ids}], hfprune.PruningConfig(sequence_length=12))
    assert small.pruning_record.sizes["pruned"]["macs"] > 0


def test_larger_vocabularies_are_measured_as_before():
    assert example_batch(tiny_model("bert"), 1, 3)["input_ids"].tolist() == [[5, 5, 5]]
