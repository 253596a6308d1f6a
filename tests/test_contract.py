"""The contract of every architecture: gating a unit to 0 == removing it == saving and reloading."""

import pytest
import torch

import hfprune
from hfprune.structure import find_blocks, gated, known_architectures
from hfprune.structure.modeling_pruned import PrunedModel
from tests.support.plans import as_gates, uneven_plan
from tests.support.tiny import DECODERS, SIZES, tiny_batch, tiny_model

pytestmark = pytest.mark.contract
HEADS = {
    "decoder": ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"),
    "encoder": (
        "AutoModel",
        "AutoModelForMaskedLM",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
        "AutoModelForQuestionAnswering",
    ),
}


def test_every_architecture_is_covered():
    assert set(SIZES) == set(known_architectures())


def output(model, batch):
    with torch.no_grad():
        result = model(**batch)
    names = ("logits", "start_logits", "last_hidden_state")
    return next(result[name] for name in names if result.get(name) is not None)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(
    ("model_type", "head"),
    [(t, head) for t in sorted(SIZES) for head in HEADS["decoder" if t in DECODERS else "encoder"]],
)
def test_gated_equals_pruned_equals_reloaded(model_type, head, attention, tmp_path):
    model = tiny_model(model_type, head, attn_implementation=attention)
    batch = tiny_batch(model_type)
    plan = uneven_plan(model)
    dense = output(model, batch)
    with gated(model, find_blocks(model), as_gates(model, plan.kept)):
        with_gates = output(model, batch)
    pruned = hfprune.apply_plan(model, plan)
    assert isinstance(pruned, PrunedModel)
    hfprune.save(pruned, tmp_path / "small")
    again = hfprune.load(tmp_path / "small", attn_implementation=model.config._attn_implementation)
    assert (dense - with_gates).abs().max() > 1e-2, "the plan changes nothing, so the test would prove nothing"
    assert (with_gates - output(pruned, batch)).abs().max() <= 1e-5
    assert torch.equal(output(pruned, batch), output(again, batch))
    assert torch.equal(dense, output(model, batch)), "the dense model changed"
    assert again.pruning_plan == plan


@pytest.mark.parametrize("model_type", sorted(SIZES))
def test_bfloat16(model_type, tmp_path):
    model = tiny_model(model_type).bfloat16()
    pruned = hfprune.apply_plan(model, uneven_plan(model))
    assert pruned.dtype == torch.bfloat16
    hfprune.save(pruned, tmp_path / "small")
    again = hfprune.load(tmp_path / "small", dtype="auto", attn_implementation=model.config._attn_implementation)
    assert torch.equal(output(pruned, tiny_batch(model_type)), output(again, tiny_batch(model_type)))


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("model_type", DECODERS)
def test_generate_is_the_same_after_reload(model_type, cache, tmp_path):
    model = tiny_model(model_type, "AutoModelForCausalLM")
    batch = tiny_batch(model_type, length=5)
    pruned = hfprune.apply_plan(model, uneven_plan(model))
    hfprune.save(pruned, tmp_path / "small")
    again = hfprune.load(tmp_path / "small")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    if cache == "dynamic":
        options.pop("cache_implementation")
    tokens = pruned.generate(**batch, **options)
    assert tokens.shape == (4, 11)
    assert torch.equal(tokens, again.generate(**batch, **options))
    assert torch.equal(
        tokens, pruned.generate(**batch, **{**options, "use_cache": False, "cache_implementation": None})
    )
