"""Recovery of models in bfloat16 and float16: in float32 while they train, and as they were afterwards."""

import copy

import pytest
import torch
from datasets import Dataset

from hfprune import GradualPruning, PruningConfig, RecoveryTrainer
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenized
from tests.support.training import arguments, pruned_pair, trainer_of

HALVES = [torch.bfloat16, torch.float16]
OFF = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def windows():
    ids = torch.randint(4, 60, (24, 12), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


@pytest.mark.parametrize("dtype", HALVES)
def test_the_same_steps_as_in_float32_rounded_once(dtype, tmp_path):
    small, dense = pruned_pair("llama", "AutoModelForCausalLM")
    half = small.to(dtype)
    wide, found = copy.deepcopy(half).float(), []
    for model in (half, wide):
        args = arguments(tmp_path, learning_rate=1e-4, num_train_epochs=2, train_sampling_strategy="sequential")
        trainer = RecoveryTrainer(model, args, teacher=dense.float(), train_dataset=windows())
        trainer.train()
        found.append(trainer.model.state_dict())
    assert {value.dtype for value in found[0].values()} == {dtype}
    assert {value.dtype for value in found[1].values()} == {torch.float32}
    for name, value in found[1].items():
        assert torch.equal(found[0][name], value.to(dtype)), name
    assert half.dtype == dtype
    assert all(parameter.requires_grad for parameter in half.parameters())


@pytest.mark.parametrize("dtype", HALVES)
def test_a_head_beside_adapters_learns_in_float32_too(dtype, tmp_path):
    """The base stays in half precision; the head ends near where float32 takes it, and no hook is left."""
    small, _ = pruned_pair(num_labels=3, **OFF)
    half = small.to(dtype)
    wide, found = copy.deepcopy(half).float(), []
    for model in (half, wide):
        torch.manual_seed(0)
        args = arguments(tmp_path, lora_rank=2, learning_rate=1e-3, num_train_epochs=3)
        seen = []
        trainer = trainer_of(model, None, args, tiny_tokenized(24))
        step = trainer.training_step
        trainer.training_step = lambda m, *a, step=step, seen=seen: (
            seen.append({p.dtype for p in m.parameters() if p.requires_grad}) or step(m, *a)
        )
        trainer.train()
        assert seen
        assert all(dtypes == {torch.float32} for dtypes in seen)
        found.append(trainer.model.classifier.weight.float())
    assert half.dtype == dtype
    assert {p.dtype for p in half.parameters()} == {dtype}
    assert not any(module._forward_pre_hooks for module in half.modules())
    moved = (found[1] - small.classifier.weight.float()).abs().max()
    assert moved > 0
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=2e-3)


def test_gradual_pruning_ends_in_the_dtype_that_it_began_in(tmp_path):
    dense = tiny_model("bert", num_labels=3).bfloat16()
    pruning = GradualPruning(PruningConfig(sparsity=0.5, sequence_length=8), every=1)
    trainer = trainer_of(copy.deepcopy(dense), dense, arguments(tmp_path, num_train_epochs=2), callbacks=[pruning])
    trainer.train()
    assert {p.dtype for p in trainer.model.parameters()} == {torch.bfloat16}
    assert trainer.model.pruning_plan.sparsity("macs") >= 0.5
    assert trainer.model.config.dtype == torch.bfloat16
    sizes = trainer.model.pruning_record.sizes
    for size in sizes.values():
        assert 2 * size["params"] <= size["weight_bytes"] < 3 * size["params"]  # buffers are in it
    assert trainer.evaluate()["eval_loss"] > 0


def test_an_error_gives_the_dtype_back(tmp_path):
    small, _ = pruned_pair(num_labels=3)
    trainer = trainer_of(small.bfloat16(), None, arguments(tmp_path))
    trainer.compute_loss = lambda *_, **__: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}


def test_heads_in_front_of_a_tied_decoder_learn_beside_adapters(tmp_path):
    """The decoder is part of the embeddings, does not learn, and stays in half precision."""
    small, dense = pruned_pair("distilbert", "AutoModelForMaskedLM")
    data = windows()
    args = arguments(tmp_path, lora_rank=2, max_steps=2)
    trainer = RecoveryTrainer(small.bfloat16(), args, teacher=dense.bfloat16(), train_dataset=data)
    before = small.vocab_transform.weight.clone()
    trainer.train()
    assert {p.dtype for p in small.parameters()} == {torch.bfloat16}
    assert not torch.equal(small.vocab_transform.weight, before)


def test_sounds_are_in_the_dtype_of_the_model_that_reads_them(tmp_path):
    """Of the one that learns in float32, and of a teacher in bfloat16."""
    small, dense = pruned_pair("wav2vec2", "AutoModelForCTC")
    batch = tiny_batch("wav2vec2")
    columns = {"input_values": batch["input_values"].tolist(), "labels": torch.randint(4, 60, (4, 3)).tolist()}
    data = Dataset.from_dict(columns)
    trainer = RecoveryTrainer(
        small.bfloat16(), arguments(tmp_path, max_steps=1), teacher=dense.bfloat16(), train_dataset=data
    )
    assert trainer.train().training_loss > 0
    assert trainer.evaluate(data)["eval_loss"] > 0


def test_flash_attention_needs_autocast(tmp_path, monkeypatch):
    small, _ = pruned_pair(num_labels=3)
    monkeypatch.setattr(small.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match="in which flash attention does not compute: set bf16=True"):
        trainer_of(small.bfloat16(), None, arguments(tmp_path))
