"""Gates and their gradients."""

from contextlib import nullcontext

import pytest
import torch

from hfprune.structure import find_blocks, frozen, gate_gradients, gated
from tests.support.tiny import tiny_batch, tiny_model


def summed(model, batch):
    return torch.nn.functional.cross_entropy(model(**batch).logits, torch.tensor([0, 1, 0, 1]), reduction="sum")


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "opt", "mpnet"])
def test_gradient_is_the_slope_of_the_loss_along_a_gate(model_type):
    model = tiny_model(model_type).double()
    blocks, batch = find_blocks(model), tiny_batch(model_type)
    with frozen(model):
        gamma = gate_gradients(model, blocks, batch, summed)
    step = 1e-3
    for block in blocks:
        assert gamma[block.name].shape == (4, block.units)
        for unit in (0, block.units - 1):
            ends = []
            for sign in (1, -1):
                gate = torch.ones(block.units, dtype=torch.double)
                gate[unit] += sign * step
                with torch.no_grad(), gated(model, blocks, {block.name: gate}):
                    ends.append(summed(model, batch))
            slope = (ends[0] - ends[1]) / (2 * step)
            assert gamma[block.name][:, unit].sum().item() == pytest.approx(slope.item(), rel=2e-3, abs=1e-4)


def test_gradients_are_per_sample():
    model = tiny_model("bert")
    blocks, batch = find_blocks(model), tiny_batch()

    def one(row):
        def loss(model, batch):
            target = torch.tensor([[0, 1, 0, 1][row]])
            return torch.nn.functional.cross_entropy(model(**batch).logits, target, reduction="sum")

        return gate_gradients(model, blocks, {k: v[row : row + 1] for k, v in batch.items()}, loss)

    with frozen(model):
        together = gate_gradients(model, blocks, batch, summed)
        for row in range(4):
            for name, gamma in one(row).items():
                torch.testing.assert_close(together[name][row : row + 1], gamma, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_gate_gradient_is_consumer_weight_times_its_gradient(model_type):
    """Σ_{columns of u} W·∂L/∂W equals the gate gradient summed over samples."""
    model = tiny_model(model_type)
    blocks, batch = find_blocks(model), tiny_batch(model_type)
    model.zero_grad()
    summed(model, batch).backward()
    with frozen(model):
        gamma = gate_gradients(model, blocks, batch, summed)
    for block in blocks:
        weight = model.base_model.get_submodule(block.consumer).weight
        product = weight.detach() * weight.grad
        if model_type == "gpt2":  # Conv1D holds (in, out)
            product = product.T
        by_unit = product.sum(0).reshape(block.units, block.width).sum(1)
        torch.testing.assert_close(gamma[block.name].sum(0), by_unit, rtol=1e-3, atol=1e-5)


def state_of(model):
    return (
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [len(module._forward_pre_hooks) for module in model.modules()],
        [parameter.grad for parameter in model.parameters()],
    )


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_as_before_also_after_an_error(fail):
    model = tiny_model("bert").train()
    model.bert.encoder.layer[0].eval()
    model.bert.embeddings.requires_grad_(False)
    before = state_of(model)

    def loss(model, batch):
        if fail:
            model(**batch)
            raise RuntimeError("on purpose")
        return summed(model, batch)

    with pytest.raises(RuntimeError, match="on purpose") if fail else nullcontext(), frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        assert not model.training
        gate_gradients(model, find_blocks(model), tiny_batch(), loss)
    assert state_of(model) == before


def test_a_gate_of_the_wrong_shape_or_name_is_refused():
    model = tiny_model("bert")
    blocks = find_blocks(model)
    with pytest.raises(ValueError, match=r"gate of 'encoder.layer.0.attention' is \(3,\), expected \(4,\)"):
        gated(model, blocks, {"encoder.layer.0.attention": torch.ones(3)}).__enter__()
    with pytest.raises(ValueError, match="no block is named 'nowhere'"):
        gated(model, blocks, {"nowhere": torch.ones(3)}).__enter__()


def test_bfloat16_gradients_accumulate_in_float32():
    model = tiny_model("bert")
    blocks, batch = find_blocks(model), tiny_batch()
    with frozen(model):
        exact = gate_gradients(model, blocks, batch, summed)
        rough = gate_gradients(model.bfloat16(), blocks, batch, summed)
    for name, gamma in rough.items():
        assert gamma.dtype == torch.float32
        assert (gamma - exact[name]).norm() < 0.1 * exact[name].norm()
