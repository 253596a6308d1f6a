"""Blocks without units leave nothing with a size of 0: quantizers, exporters, adapters and files work as before."""

import copy
import pickle
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

import hfprune
from hfprune import PruningConfig
from hfprune.measuring.size import measure_size
from hfprune.publishing.verification import verify
from hfprune.structure import find_blocks
from tests.support.plans import removed_blocks, removed_plan
from tests.support.tiny import tiny_batch, tiny_model

SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
HEADS = {
    "bart": "AutoModelForSeq2SeqLM",
    "bert": "AutoModelForSequenceClassification",
    "deberta-v2": "AutoModelForSequenceClassification",
    "distilbert": "AutoModelForSequenceClassification",
    "gpt_neox": "AutoModelForCausalLM",
    "llama": "AutoModelForCausalLM",
    "mpnet": "AutoModelForSequenceClassification",
    "mt5": "AutoModelForSeq2SeqLM",
    "opt": "AutoModelForCausalLM",
    "phi3": "AutoModelForCausalLM",
    "t5": "AutoModelForSeq2SeqLM",
    "vit": "AutoModelForImageClassification",
    "wav2vec2": "AutoModelForSequenceClassification",
}


def emptied(model_type, **changes):
    """A model without one feed-forward block and without one attention, where that can go; and the dense model."""
    dense = tiny_model(model_type, HEADS[model_type], **changes)
    return hfprune.apply_plan(dense, removed_plan(dense)), dense


def logits(model, batch):
    with torch.no_grad():
        output = model(**batch)
    # transformers has no classifier of waveforms for the tiny model
    return output["logits"] if "logits" in output else output["last_hidden_state"]


def quantized(model):
    """By torch, in int8: what a Linear of no columns computes there is read from memory that nobody wrote."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that torchao takes over
        return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear})


def sizes_of_0(model):
    """Names of tensors and of projections that have a size of 0."""
    tensors = [*model.named_parameters(), *model.named_buffers()]
    names = [name for name, tensor in tensors if 0 in tensor.shape]
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and 0 in module.weight.shape:
            names.append(name)
    return names


@pytest.mark.parametrize("kind", ["ffn", "attention"])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_int8_of_a_model_without_a_block(family, kind):
    torch.manual_seed(0)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)).eval()
    else:
        model = BertForSequenceClassification(BertConfig(**SIZES)).eval()
    batch = {"input_ids": torch.randint(3, 99, (16, 12))}
    config = PruningConfig(sequence_length=12, calibration_samples=16, min_units=0, scorer="l2", reconstruct=False)
    small = hfprune.prune(model, [batch], config, sparsity={f"*.1.{kind}": 1.0})
    assert any(block.units == 0 for block in find_blocks(small))
    expected = logits(small, batch)
    first = logits(quantized(small), batch)
    assert torch.equal(first, logits(quantized(small), batch))
    assert (first - expected).abs().max() < 0.05 * max(1.0, expected.std())


@pytest.mark.parametrize("model_type", sorted(HEADS))
def test_nothing_has_a_size_of_0(model_type):
    small, _ = emptied(model_type)
    assert len([block for block in find_blocks(small) if not block.units]) >= 1
    assert sizes_of_0(small) == []
    batch = tiny_batch(model_type)
    first = logits(quantized(small), batch)
    assert torch.equal(first, logits(quantized(small), batch))
    expected = logits(small, batch)
    assert (first - expected).abs().max() < expected.std()


@pytest.mark.parametrize("model_type", ["bert", "opt", "vit", "bart"])
def test_the_bias_of_the_consumer_stays(model_type):
    small, dense = emptied(model_type)
    for block in removed_blocks(dense):
        consumer = small.base_model.get_submodule(block.consumer)
        before = dense.base_model.get_submodule(block.consumer)
        assert not isinstance(consumer, nn.Linear)
        assert torch.equal(consumer.bias, before.bias)
        assert torch.equal(consumer(torch.zeros(2, 3, 0)), before.bias.expand(2, 3, -1))
        assert f"{block.consumer}.bias" in dict(small.base_model.named_parameters())


@pytest.mark.parametrize("model_type", ["llama", "bert", "opt", "distilbert", "t5", "vit", "mpnet"])
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_files_hold_no_empty_tensor_and_load(model_type, dtype, tmp_path):
    small, _ = emptied(model_type)
    small = small.to(dtype)
    folder = hfprune.save(small, tmp_path / "small")
    weights = load_file(folder / "model.safetensors")
    assert not [name for name, tensor in weights.items() if not tensor.numel()]
    assert verify(folder) == []
    auto = getattr(transformers, HEADS[model_type])
    batch = tiny_batch(model_type)
    for name in ("input_values", "pixel_values"):
        if name in batch:
            batch[name] = batch[name].to(dtype)
    with torch.no_grad():
        expected = small(**batch).logits
        for again in (hfprune.load(folder), auto.from_pretrained(folder), pickle.loads(pickle.dumps(small))):
            assert torch.equal(again(**batch).logits, expected)
            assert sizes_of_0(again) == []


@pytest.mark.slow
def test_loaded_where_there_is_no_hfprune(tmp_path, client):
    small, _ = emptied("opt")
    hfprune.save(small, tmp_path / "small")
    code = f"""
import torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained({str(tmp_path / "small")!r}, trust_remote_code=True)
model.save_pretrained({str(tmp_path / "again")!r})
with torch.no_grad():
    result = model(input_ids=torch.arange(4, 14).reshape(2, 5)).logits
say(output=result.tolist())
"""
    said = client(code, with_hfprune=False)
    ids = {"input_ids": torch.arange(4, 14).reshape(2, 5)}
    assert torch.equal(torch.tensor(said["output"]), logits(small, ids))
    assert torch.equal(logits(hfprune.load(tmp_path / "again"), ids), logits(small, ids))


def as_before(folder, small, dense):
    """Change a checkpoint into one of earlier versions: emptied projections have weights, with a size of 0.

    It gives the state dict of such a model.
    """
    state = {}
    prefix = "" if small.base_model is small else f"{small.base_model_prefix}."
    for block in removed_blocks(dense):
        for piece in block.slices:
            whole = dense.base_model.get_parameter(piece.path)
            state[prefix + piece.path] = whole.detach().narrow(piece.dimension, 0, 0).clone()
    weights = load_file(folder / "model.safetensors") | revert_weight_conversion(small, state)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return small.state_dict() | state


@pytest.mark.parametrize(
    "model_type", ["llama", "bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "t5", "vit"))]
)
def test_a_checkpoint_of_earlier_versions_loads(model_type, tmp_path, caplog):
    small, dense = emptied(model_type)
    small.save_pretrained(tmp_path / "old")
    state = as_before(tmp_path / "old", small, dense)
    batch = tiny_batch(model_type)
    auto = getattr(transformers, HEADS[model_type])
    by_auto, info = auto.from_pretrained(tmp_path / "old", output_loading_info=True)
    assert not any(info.values())
    assert verify(tmp_path / "old") == []
    by_hand = copy.deepcopy(by_auto)
    by_hand.load_state_dict(state, strict=True)
    for again in (hfprune.load(tmp_path / "old"), by_auto, by_hand):
        assert torch.equal(logits(again, batch), logits(small, batch))
        assert sizes_of_0(again) == []
    hfprune.save(hfprune.load(tmp_path / "old"), tmp_path / "new")
    assert verify(tmp_path / "new") == []
    assert all(tensor.numel() for tensor in load_file(tmp_path / "new" / "model.safetensors").values())


@pytest.mark.parametrize("model_type", ["llama", "opt", "bert"])
def test_counts_and_later_rounds_are_those_of_an_empty_block(model_type):
    small, dense = emptied(model_type)
    before = {block.name: block for block in find_blocks(dense)}
    for block in find_blocks(small):
        assert block.unit_params == before[block.name].unit_params
        assert block.unit_cache_bytes == before[block.name].unit_cache_bytes
    gone = sum(block.units * block.unit_params for block in removed_blocks(dense))
    sizes = [measure_size(model, sequence_length=8).params for model in (dense, small)]
    assert sizes[0] - sizes[1] == gone
    batch = tiny_batch(model_type)
    again = hfprune.prune(small, [batch], PruningConfig(sparsity=0.9, min_units=0, sequence_length=7))
    assert torch.isfinite(logits(again, batch)).all()
    assert sizes_of_0(again) == []


@pytest.mark.parametrize("model_type", ["bert", "opt", "llama"])
def test_repair_fits_the_bias_that_is_left(model_type):
    small, dense = emptied(model_type)
    batch = tiny_batch(model_type, samples=16)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    repairs = hfprune.reconstruct(small, dense, [batch])
    assert len(repairs) == len(find_blocks(small))
    changed = [name for name, value in small.state_dict().items() if not torch.equal(value, before[name])]
    prefix = f"{small.base_model_prefix}."
    for block in removed_blocks(dense):
        has_bias = dense.base_model.get_submodule(block.consumer).bias is not None
        assert (f"{prefix}{block.consumer}.bias" in changed) == has_bias


@pytest.mark.parametrize("targets", [["q_proj", "v_proj", "down_proj"], "all-linear"])
def test_adapters_by_name_go_where_there_are_weights(targets):
    from peft import LoraConfig, get_peft_model

    small, dense = emptied("llama")
    expected = logits(small, tiny_batch("llama"))
    wrapped = get_peft_model(small, LoraConfig(r=2, target_modules=targets))
    assert torch.equal(logits(wrapped, tiny_batch("llama")), expected)
    batch = tiny_batch("llama")
    wrapped(**batch, labels=batch["input_ids"]).loss.backward()
    learning = [name for name, parameter in wrapped.named_parameters() if parameter.grad is not None]
    assert len(learning) >= 6
    for block in removed_blocks(dense):
        assert not [name for name in learning if f"{block.consumer}." in name]


@pytest.mark.parametrize(
    "model_type", ["bert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "vit"))]
)
def test_exported_programs_hold_no_empty_weight(model_type):
    small, _ = emptied(model_type)

    class Logits(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = small

        def forward(self, first):
            options = {"use_cache": False} if model_type == "llama" else {}
            return self.model(first, **options).logits

    first = tiny_batch(model_type)[small.main_input_name]
    program = torch.export.export(Logits(), args=(first,))
    stored = [*program.state_dict.values(), *program.constants.values()]
    assert not [value for value in stored if isinstance(value, torch.Tensor) and 0 in value.shape]
    with torch.no_grad():
        torch.testing.assert_close(program.module()(first), small(first).logits)


def test_every_tensor_goes_through_a_gguf_file(tmp_path):
    gguf = pytest.importorskip("gguf")
    small, _ = emptied("llama")
    writer = gguf.GGUFWriter(tmp_path / "small.gguf", "llama")
    state = small.state_dict()
    for name, tensor in state.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "small.gguf").tensors}
    assert read.keys() == state.keys()
    for name, tensor in state.items():
        assert read[name].n_elements == tensor.numel() > 0


def test_gradual_pruning_and_training_go_on():
    small, _ = emptied("opt")
    batch = tiny_batch("opt")
    small.train()
    small(**batch, labels=batch["input_ids"]).loss.backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None or "embed_positions" in name, name
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(small(**batch).logits).all()
