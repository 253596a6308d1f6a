"""Reconstruction: exact where it must be, never worse, for every architecture; and what is refused."""

import pytest
import torch

import hfprune
from hfprune.errors import CalibrationError, NonFiniteScoreError, PlanMismatchError
from hfprune.reconstruction import least_squares
from hfprune.reconstruction import reconstruct as reconstruction
from hfprune.reconstruction.reconstruct import reconstruct
from hfprune.structure import find_blocks
from hfprune.structure.surgery import keep_units
from tests.support.cells import every_type
from tests.support.tiny import ATTENTION_ONLY, FFN_ONLY, tiny_batch, tiny_model


def batches(model_type="bert", *, count=8):
    return [tiny_batch(model_type, samples=8, length=12, seed=i) for i in range(count)]


def half(model):
    blocks = find_blocks(model)
    return keep_units(model, {b.name: range(0, b.units, 2) for b in blocks}, blocks=blocks)


def distance(small, dense, data):
    """Mean squared distance of the last hidden states over tokens that are no padding."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for batch in data:
            a, b = (model.base_model(**batch)[0] for model in (small, dense))
            mask = batch.get("attention_mask", torch.ones(a.shape[:2])).bool()
            if "decoder_input_ids" in batch:
                mask = torch.ones(a.shape[:2], dtype=torch.bool)
            a, b = a[mask], b[mask]
            total, tokens = total + float((a - b).square().sum()), tokens + len(a)
    return total / tokens


@pytest.mark.parametrize("model_type", every_type())
def test_every_architecture_comes_closer_to_its_dense_model(model_type):
    dense = tiny_model(model_type)
    small, data = half(dense), batches(model_type)
    before = distance(small, dense, data)
    repairs = reconstruct(small, dense, data)
    assert [repair.block for repair in repairs] == [block.name for block in find_blocks(dense)]
    targets = {
        block.name: "output" if block.residual_sum is None else "residual_stream" for block in find_blocks(dense)
    }
    assert {repair.block: repair.target for repair in repairs} == targets
    assert all(repair.error_after <= repair.error_before for repair in repairs)
    assert distance(small, dense, data) < (0.85 if model_type in (*FFN_ONLY, *ATTENTION_ONLY) else 0.8) * before


def test_nothing_pruned_changes_nothing():
    dense = tiny_model("bert")
    same = half(dense) and keep_units(dense, {}, blocks=find_blocks(dense))
    repairs = reconstruct(same, dense, batches())
    assert all(torch.equal(value, dense.state_dict()[name]) for name, value in same.state_dict().items())
    assert all(repair.error_before == repair.error_after == 0 for repair in repairs)


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
def test_a_duplicated_neuron_goes_at_no_cost(model_type):
    dense = tiny_model(model_type)
    block = next(b for b in find_blocks(dense) if b.kind == "ffn")
    producer = dense.base_model.get_submodule(block.producers[0])
    with torch.no_grad():
        rows = producer.weight.T if model_type == "gpt2" else producer.weight
        rows[1] = rows[0]
        producer.bias[1] = producer.bias[0]
    kept = {block.name: [u for u in range(block.units) if u != 1]}
    small, data = keep_units(dense, kept, blocks=find_blocks(dense)), batches(model_type)
    before = distance(small, dense, data)
    reconstruct(small, dense, data)
    assert distance(small, dense, data) < 1e-3 * before


def test_only_consumers_change_and_the_dense_model_does_not():
    dense = tiny_model("bert")
    small, original = half(dense), {k: v.clone() for k, v in dense.state_dict().items()}
    before = {k: v.clone() for k, v in small.state_dict().items()}
    reconstruct(small, dense, batches())
    consumers = {f"bert.{block.consumer}" for block in find_blocks(small)}
    changed = {k.rpartition(".")[0] for k, v in small.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == consumers
    assert all(torch.equal(v, original[k]) for k, v in dense.state_dict().items())
    assert not [m for m in (*small.modules(), *dense.modules()) if m._forward_hooks or m._forward_pre_hooks]


@pytest.mark.parametrize("block", range(4))
def test_weights_beat_the_bias_alone_which_beats_nothing(block):
    """On every block: error(reconstructed) ≤ error(best bias) ≤ error(as it was cut)."""
    dense = tiny_model("bert")
    target = find_blocks(dense)[block]
    small = keep_units(dense, {target.name: range(0, target.units, 2)}, blocks=find_blocks(dense))
    data = batches()
    base = {}
    for name, model in (("small", small), ("dense", dense)):
        found = []
        hook = model.bert.get_submodule(target.residual_sum).register_forward_pre_hook(
            lambda _, args, found=found: found.append(args[0].detach())
        )
        with torch.no_grad():
            for batch in data:
                model(**batch)
        hook.remove()
        masks = [batch["attention_mask"].bool() for batch in data]
        base[name] = torch.cat([x[mask] for x, mask in zip(found, masks, strict=True)])
    missing = base["dense"] - base["small"]
    nothing = float(missing.square().sum(1).mean())
    bias = float((missing - missing.mean(0)).square().sum(1).mean())
    repair = reconstruct(small, dense, data)[block]
    assert repair.error_before == pytest.approx(nothing, rel=1e-3)
    assert repair.error_after <= bias <= nothing


def test_batching_and_padding_do_not_matter():
    dense, data = tiny_model("bert"), batches(count=2)
    longer = [
        {k: torch.nn.functional.pad(v, (0, 5), value=1 if k == "input_ids" else 0) for k, v in b.items()} for b in data
    ]
    models = [half(dense) for _ in range(2)]
    for model, these in zip(models, (data, longer), strict=True):
        reconstruct(model, dense, these)
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_an_output_that_does_not_enter_the_residual_stream_is_aimed_at_itself():
    """OPT with the norms behind: the table's place is then that of another sum."""
    dense = tiny_model("opt", "AutoModelForCausalLM", do_layer_norm_before=False)
    repairs = reconstruct(half(dense), dense, batches("opt"))
    targets = {repair.block.rpartition(".")[2]: repair.target for repair in repairs}
    assert targets["attention"] == "output"


def test_what_is_aimed_at_is_no_matter_of_rounding():
    """In bfloat16 a residual stream this large changes by less than its rounding when a consumer's output doubles."""
    dense = tiny_model("llama", "AutoModelForCausalLM")
    dense.model.embed_tokens.weight.data *= 150
    for seed in range(3):
        large = dense.to(torch.bfloat16)
        repairs = reconstruct(half(large), large, [tiny_batch("llama", samples=8, length=12, seed=seed)])
        assert {repair.target for repair in repairs} == {"residual_stream"}


def test_an_error_leaves_the_weights_as_they_were(monkeypatch):
    dense = tiny_model("bert")
    small = half(dense)
    before = {k: v.clone() for k, v in small.state_dict().items()}
    real, calls = reconstruction._repair, []

    def third_fails(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(reconstruction, "_repair", third_fails)
    with pytest.raises(KeyboardInterrupt):
        reconstruct(small, dense, batches())
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


def test_a_forward_that_others_set_on_a_layer_survives():
    """As accelerate's hooks do."""
    dense = tiny_model("bert")
    small, layer = half(dense), dense.bert.encoder.layer[0]
    wrapped = layer.forward
    layer.forward = lambda *args, **kwargs: wrapped(*args, **kwargs)
    own = layer.forward
    reconstruct(small, dense, batches())
    assert layer.forward is own
    assert "forward" not in vars(small.bert.encoder.layer[0])


def test_bad_input_is_refused():
    dense = tiny_model("bert")
    small = half(dense)
    with pytest.raises(CalibrationError, match="a list of at least one batch"):
        reconstruct(small, dense, [])
    with pytest.raises(PlanMismatchError, match="Pass the model that the pruned one was cut from"):
        reconstruct(dense, small, batches())
    with torch.no_grad():
        dense.bert.encoder.layer[1].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteScoreError, match=r"at block 'encoder.layer.1"):
        reconstruct(small, dense, batches())


def test_a_ridge_that_fails_is_raised_and_said(caplog):
    gram = least_squares.Gram.zeros(3, 2, torch.device("cpu"))
    gram.add(torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([[1.0, 2.0]]))
    change, ridge = least_squares.solve(gram, 1e-17, "a.block")
    assert ridge > 1e-17
    assert torch.isfinite(change).all()
    assert "too small to solve block 'a.block'" in caplog.text


def test_prune_in_rounds_repairs_after_each():
    dense, data = tiny_model("bert"), batches()
    config = {"sparsity": 0.6, "schedule": "geometric", "rounds": 3, "sequence_length": 12}
    plain, repaired = (
        hfprune.prune(dense, data, hfprune.PruningConfig(**config, reconstruct=flag)) for flag in (False, True)
    )
    assert distance(repaired, dense, data) < distance(plain, dense, data)
    assert all(entry["reconstruction_seconds"] is not None for entry in repaired.pruning_record.rounds)
