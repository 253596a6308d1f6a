"""The contract with widths that nobody chose: gated == pruned == reloaded for any set of units in every block."""

import json
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hfprune
from hfprune.planning import PruningPlan
from hfprune.structure import find_blocks, gated
from hfprune.structure.architectures import base_model_type
from tests.support.cells import quick
from tests.support.plans import as_gates
from tests.support.tiny import DECODERS, ENCODER_DECODERS, tiny_batch, tiny_model

pytestmark = pytest.mark.contract

FAMILIES = (
    "bert",
    "deberta-v2",
    "distilbert",
    "gpt2",
    "gpt_neox",
    "llama",
    "modernbert",
    "qwen3",
    "roberta",
    "t5",
    "whisper",
)


@cache
def dense(model_type):
    head = "AutoModelForSequenceClassification"
    if model_type in DECODERS:
        head = "AutoModelForCausalLM"
    if model_type in ENCODER_DECODERS:
        head = "AutoModelForSpeechSeq2Seq" if model_type == "whisper" else "AutoModelForSeq2SeqLM"
    return tiny_model(model_type, head)


def through_json(model):
    """What loading makes of it: the class and the config as it is written, then its weights, strictly."""
    config = type(model.config).from_dict(json.loads(model.config.to_json_string()))
    config._attn_implementation = model.config._attn_implementation
    again = type(model)(config)
    again.load_state_dict(model.state_dict(), strict=True)
    return again.eval()


#: Whose layers are much like those of another of these.
SECOND = ("distilbert", "gpt_neox", "qwen3", "roberta")


@pytest.mark.parametrize("model_type", [quick(t, is_quick=t not in SECOND) for t in FAMILIES])
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_units(model_type, data):
    model, batch = dense(model_type), tiny_batch(model_type, target=5)
    blocks = find_blocks(model)
    kept = {
        block.name: sorted(data.draw(st.sets(st.sampled_from(range(block.units)), min_size=block.least), block.name))
        for block in blocks
    }
    plan = PruningPlan.keep(blocks, kept, model_type=base_model_type(model.config.model_type), sequence_length=7)
    small = hfprune.apply_plan(model, plan)
    again = through_json(small)
    with torch.no_grad():
        with gated(model, blocks, as_gates(model, kept)):
            with_gates = model(**batch).logits
        pruned, reloaded = small(**batch).logits, again(**batch).logits
    assert all(block.units == len(kept[block.name]) for block in find_blocks(again))
    assert (with_gates - pruned).abs().max() <= 1e-5
    assert torch.equal(pruned, reloaded)
