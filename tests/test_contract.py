"""The contract of every architecture: gating a unit to 0 == removing it == saving and reloading."""

import copy
import inspect
import pickle
from dataclasses import asdict

import pytest
import torch

import hfprune
from hfprune.errors import UnsupportedArchitectureError
from hfprune.planning import PruningPlan
from hfprune.structure import find_blocks, gated, known_architectures
from hfprune.structure.modeling_pruned import PrunedModel
from tests.support.cells import ALIKE, every_type, quick
from tests.support.contract_table import PROPERTY, Cell
from tests.support.plans import as_gates, removed_blocks, removed_plan, uneven_plan
from tests.support.tiny import (
    DECODERS,
    EAGER_ONLY,
    ENCODER_DECODERS,
    KEEPS_ATTENTION,
    SIZES,
    has_head,
    tiny_batch,
    tiny_model,
)

pytestmark = pytest.mark.contract


def kind(model_type):
    return "decoder" if model_type in DECODERS else "encoder-decoder" if model_type in ENCODER_DECODERS else "encoder"


HEADS = {
    "encoder-decoder": (
        "AutoModel",
        "AutoModelForSeq2SeqLM",
        "AutoModelForSpeechSeq2Seq",
        "AutoModelForSequenceClassification",
        "AutoModelForQuestionAnswering",
        "AutoModelForCausalLM",
        "AutoModelForAudioClassification",
    ),
    "decoder": ("AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification"),
    "encoder": (
        "AutoModel",
        "AutoModelForMaskedLM",
        "AutoModelForSequenceClassification",
        "AutoModelForTokenClassification",
        "AutoModelForQuestionAnswering",
        "AutoModelForImageClassification",
        "AutoModelForCTC",
        "AutoModelForAudioClassification",
    ),
}
CELLS = [
    (t, head, attention)
    for t in sorted(SIZES)
    for head in HEADS[kind(t)]
    if has_head(t, head)
    for attention in ("sdpa", "eager")
    if attention == "eager" or t not in EAGER_ONLY
]


#: The head of a cell that `make test` runs: the first of these that the type has.
FIRST_HEADS = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForSequenceClassification",
    "AutoModelForImageClassification",
    "AutoModelForCTC",
    "AutoModel",
)
#: One type of every kind, whose attention and heads `make test` runs all. Further types share the code of these.
WHOLE = ("bart", "bert", "gpt_neox", "llama", "modernbert", "vit")


def first_head(model_type):
    heads = [head for head in HEADS[kind(model_type)] if has_head(model_type, head)]
    return min(heads, key=lambda head: FIRST_HEADS.index(head) if head in FIRST_HEADS else len(FIRST_HEADS))


def cells_to_run():
    """All cells. `make test` runs one head of every type, and every cell of a few types."""
    cells = []
    for t, head, attention in CELLS:
        is_first = head == first_head(t) and (attention == "sdpa" or t in EAGER_ONLY)
        cells.append(quick(t, head, attention, is_quick=is_first or t in WHOLE))
    return cells


def test_every_architecture_is_covered():
    assert set(SIZES) == set(known_architectures())


def output(model, batch):
    if type(model).__name__.endswith("CausalLM") and "decoder_input_ids" in batch:
        batch = {"input_ids": batch["decoder_input_ids"]}
    batch = {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in batch.items()}
    taken = {name: value for name, value in batch.items() if name in inspect.signature(model.forward).parameters}
    if type(model).__name__.endswith(("SequenceClassification", "QuestionAnswering")):
        taken.pop("decoder_input_ids", None)  # made from the text itself
    with torch.no_grad():
        result = model(**taken)
    names = ("logits", "start_logits", "last_hidden_state")
    return next(result[name] for name in names if result.get(name) is not None)


def distance(a, b):
    return (a - b).abs().max().item()


@pytest.mark.parametrize(("model_type", "head", "attention"), cells_to_run())
def test_gated_equals_pruned_equals_reloaded(model_type, head, attention, tmp_path, record_property):
    model = tiny_model(model_type, head, attn_implementation=attention)
    assert model.config._attn_implementation == attention
    assert model._supports_sdpa == (model_type not in EAGER_ONLY)
    batch = tiny_batch(model_type, target=5)
    plan = uneven_plan(model)
    dense = output(model, batch)
    with gated(model, find_blocks(model), as_gates(model, plan.kept)):
        with_gates = output(model, batch)
    pruned = hfprune.apply_plan(model, plan)
    assert isinstance(pruned, PrunedModel)
    hfprune.save(pruned, tmp_path / "small")
    again = hfprune.load(tmp_path / "small", attn_implementation=model.config._attn_implementation)
    without, loaded = output(pruned, batch), output(again, batch)
    cell = Cell(
        model_type=model_type,
        head=head,
        attention=attention,
        pruned=distance(with_gates, without),
        reloaded=distance(without, loaded),
    )
    record_property(PROPERTY, asdict(cell))
    assert distance(dense, with_gates) > 1e-2, "the plan changes nothing, so the test would prove nothing"
    assert cell.pruned <= 1e-5
    assert torch.equal(without, loaded)
    assert torch.equal(dense, output(model, batch)), "the dense model changed"
    assert again.pruning_plan == plan


@pytest.mark.parametrize("model_type", every_type())
def test_bfloat16(model_type, tmp_path):
    tiny_model(model_type).save_pretrained(tmp_path / "dense")
    model = type(tiny_model(model_type)).from_pretrained(tmp_path / "dense", dtype=torch.bfloat16)
    pruned = hfprune.apply_plan(model, uneven_plan(model))
    assert pruned.dtype == torch.bfloat16
    hfprune.save(pruned, tmp_path / "small")
    again = hfprune.load(tmp_path / "small", dtype="auto", attn_implementation=model.config._attn_implementation)
    assert torch.equal(output(pruned, tiny_batch(model_type)), output(again, tiny_batch(model_type)))


STORY_HEADS = (
    "AutoModelForSeq2SeqLM",
    "AutoModelForSpeechSeq2Seq",
    "AutoModelForSequenceClassification",
    "AutoModelForImageClassification",
    "AutoModelForCTC",
    "AutoModel",
)


@pytest.mark.parametrize("model_type", every_type())
def test_scored_planned_pruned_and_repaired(model_type):
    """The default job on every architecture: the repair brings every consumer nearer to the dense model."""
    head = next(head for head in STORY_HEADS if has_head(model_type, head))
    model = tiny_model(model_type, head)
    batches = [tiny_batch(model_type, samples=8, length=12, target=9, seed=seed) for seed in range(3)]
    scorer = "activation_norm" if head == "AutoModel" else "residual_logit_fisher"
    config = hfprune.PruningConfig(sparsity=0.3, scorer=scorer, reconstruct=False, sequence_length=12)
    small = hfprune.prune(model, batches, config)
    assert 0.3 <= small.pruning_plan.sparsity("macs") < 0.5
    repairs = hfprune.reconstruct(small, model, batches)
    assert [repair.block for repair in repairs] == [block.name for block in find_blocks(small)]
    assert all(repair.error_after <= repair.error_before * (1 + 1e-5) for repair in repairs)
    assert any(repair.error_after < 0.9 * repair.error_before for repair in repairs)


#: The types whose static cache `make test` runs.
STATIC = ("bart", "gemma2", "gpt2", "llama", "t5", "whisper")


@pytest.mark.parametrize(
    ("model_type", "cache"),
    [
        quick(t, cache, is_quick=cache == "dynamic" or t in STATIC)
        for t in (*DECODERS, *ENCODER_DECODERS)
        for cache in ("dynamic", "static")
        if (t, cache) != ("falcon", "static")  # its alibi
    ],
)
def test_generate_is_the_same_after_reload(model_type, cache, tmp_path):
    head = "AutoModelForCausalLM" if model_type in DECODERS else "AutoModelForSeq2SeqLM"
    model = tiny_model(model_type, head if model_type != "whisper" else "AutoModelForSpeechSeq2Seq")
    batch = tiny_batch(model_type, length=5)
    batch.pop("decoder_input_ids", None)
    pruned = hfprune.apply_plan(model, uneven_plan(model))
    hfprune.save(pruned, tmp_path / "small")
    again = hfprune.load(tmp_path / "small")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    if cache == "dynamic":
        options.pop("cache_implementation")
    tokens = pruned.generate(**batch, **options)
    assert tokens.shape == (4, 11 if model_type in DECODERS else 6 if model_type == "whisper" else 7)
    assert torch.equal(tokens, again.generate(**batch, **options))
    assert torch.equal(
        tokens, pruned.generate(**batch, **{**options, "use_cache": False, "cache_implementation": None})
    )


def may_go(model_type, block):
    if block.kind == "ffn":
        return model_type != "gpt2"
    return model_type not in KEEPS_ATTENTION and not (
        model_type in ENCODER_DECODERS and block.name.startswith("decoder")
    )


@pytest.mark.parametrize(
    ("model_type", "attention"),
    [
        quick(t, attention, is_quick=t in WHOLE or (attention == "sdpa" and t not in ALIKE))
        for t in sorted(set(SIZES) - {"gpt2"})
        for attention in ("sdpa", "eager")
        if attention == "sdpa" or t not in EAGER_ONLY
    ],
)
def test_whole_blocks_removed(model_type, attention, tmp_path):
    model = tiny_model(model_type, attn_implementation=attention)
    batch, plan, blocks = tiny_batch(model_type), removed_plan(model), find_blocks(model)
    for block in blocks:
        assert (block.least == 0) == may_go(model_type, block), block.name
    with gated(model, blocks, as_gates(model, plan.kept)):
        with_gates = output(model, batch)
    pruned = hfprune.apply_plan(model, plan)
    hfprune.save(pruned, tmp_path / "small")
    again = hfprune.load(tmp_path / "small", attn_implementation=model.config._attn_implementation)
    assert (with_gates - output(pruned, batch)).abs().max() <= 1e-5
    assert torch.equal(output(pruned, batch), output(again, batch))
    last = removed_blocks(model)[-1]
    consumer = pruned.base_model.get_submodule(last.consumer)
    name = next((name for name, _ in consumer.named_parameters(recurse=False)), None)
    copies = [copy.deepcopy(pruned)]
    if model_type != "wav2vec2":  # its weight norm forbids it
        copies.append(pickle.loads(pickle.dumps(pruned)))
    for copied in copies:
        assert torch.equal(output(pruned, batch), output(copied, batch))
        if name is not None:
            with torch.no_grad():  # noise, as norms see no shift
                copied.base_model.get_submodule(last.consumer).get_parameter(name).normal_()
            assert not torch.equal(output(pruned, batch), output(copied, batch)), "the copy runs the original"
    assert {b.name: b.units for b in find_blocks(again)} == {name: kept for name, (kept, _) in plan.counts.items()}
    dense = {b.name: (b.width, b.unit_params) for b in find_blocks(model)}
    assert {b.name: (b.width, b.unit_params) for b in find_blocks(again)} == dense


@pytest.mark.parametrize("scorer", ["residual_logit_fisher", "obs", "l2", "hybrid(l2, apoz, rank)"])
def test_pruning_goes_on_from_removed_blocks(scorer):
    model, data = tiny_model("bert"), [tiny_batch(samples=8, length=12, seed=i) for i in range(4)]
    pruned = hfprune.apply_plan(model, removed_plan(model))
    config = hfprune.PruningConfig(
        sparsity=0.9, scorer=scorer, reconstruct=True, schedule="geometric", min_units=0, sequence_length=8
    )
    small = hfprune.prune(pruned, data, config)
    assert small.pruning_plan.sparsity("macs") >= 0.9
    assert "0 of 0" in str(hfprune.plan(pruned, hfprune.score(pruned, data), config))
    assert not [name for name, p in small.named_parameters() if p.requires_grad and not p.numel()]


def test_attentions_of_a_removed_block_keep_their_place():
    model = tiny_model("bert", attn_implementation="eager")
    pruned = hfprune.apply_plan(model, removed_plan(model))
    attentions = pruned(**tiny_batch(), output_attentions=True).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(4, 4, 7, 7), (4, 0, 7, 7)]


@pytest.mark.parametrize(("model_type", "block"), [("bloom", "h.0.attention"), ("gpt2", "h.0.ffn")])
def test_a_block_that_cannot_run_without_units_keeps_one(model_type, block):
    model = tiny_model(model_type, "AutoModelForCausalLM")
    blocks = find_blocks(model)
    plan = PruningPlan.keep(blocks, {block: []}, model_type=model_type, sequence_length=8)
    with pytest.raises(UnsupportedArchitectureError, match=f"{block} of a {model_type} model cannot run without"):
        hfprune.apply_plan(model, plan)
    data = [tiny_batch(model_type, samples=8, length=12, seed=i) for i in range(2)]
    small = hfprune.prune(model, data, hfprune.PruningConfig(sparsity=0.8, min_units=0, sequence_length=12))
    assert all(kept >= block.least for block, (kept, _) in zip(blocks, small.pruning_plan.counts.values(), strict=True))
