"""measure: the one definition of parameters, MACs, bytes and latency."""

import pytest
import torch

import hfprune
from hfprune.measuring.latency import measure_latencies, measure_latency
from hfprune.measuring.size import checkpoint_bytes, count_macs, measure_size
from hfprune.structure import known_architectures
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_model


def test_size_of_bert_by_hand():
    model = tiny_model("bert", num_labels=2)
    size = measure_size(model, sequence_length=10)
    assert size.params == sum(p.numel() for p in model.parameters())
    assert size.prunable_params == 2 * (4 * (4 * 32 * 8 + 3 * 8) + 40 * 65)
    layer = 4 * 10 * 32 * 32 + 2 * 10 * 10 * 32 + 2 * 10 * 32 * 40
    assert size.prunable_macs == 2 * layer
    assert size.macs == 2 * layer + 32 * 32 + 32 * 2  # pooler and classifier see one token
    assert size.weight_bytes == 4 * size.params + sum(b.numel() * b.element_size() for b in model.buffers())


@pytest.mark.parametrize("model_type", sorted(set(known_architectures()) - {"deberta-v2"}))
def test_counted_and_computed_macs_agree_on_what_was_removed(model_type):
    model = tiny_model(model_type)
    small = hfprune.apply_plan(model, uneven_plan(model))
    tokens = {"vit": 17, "whisper": 8}.get(model_type, 12)  # of a picture of 4 × 4 patches, of 8 frames
    before, after = (measure_size(m, sequence_length=tokens) for m in (model, small))
    assert before.macs - after.macs == before.prunable_macs - after.prunable_macs > 0
    assert before.params - after.params == before.prunable_params - after.prunable_params > 0


def test_products_with_positions_are_not_counted_as_a_units():
    """DeBERTa's: removing heads saves more MACs than the plan says."""
    model = tiny_model("deberta-v2")
    small = hfprune.apply_plan(model, uneven_plan(model))
    before, after = (measure_size(m, sequence_length=12) for m in (model, small))
    assert before.macs - after.macs > before.prunable_macs - after.prunable_macs > 0


def test_tied_parameters_count_once():
    model = tiny_model("llama", "AutoModelForCausalLM", tie_word_embeddings=True)
    untied = tiny_model("llama", "AutoModelForCausalLM", tie_word_embeddings=False)
    difference = measure_size(untied, sequence_length=4).params - measure_size(model, sequence_length=4).params
    assert difference == 64 * 32


def test_latency_says_how_it_was_measured():
    model = tiny_model("bert").train()
    found = measure_latency(model, batch_size=2, sequence_length=5, runs=4, warmup=1)
    assert 0 < found.low_ms <= found.median_ms <= found.high_ms
    assert (found.runs, found.batch_size, found.sequence_length) == (4, 2, 5)
    assert (found.device, found.dtype, found.threads) == ("cpu", "float32", torch.get_num_threads())
    assert model.training
    assert len(measure_latencies([model, model], batch_size=1, sequence_length=3, runs=2)) == 2


def test_a_sequence_longer_than_the_positions_is_refused():
    for measure in (
        lambda m: count_macs(m, sequence_length=161),
        lambda m: measure_latency(m, sequence_length=161),
    ):
        with pytest.raises(ValueError, match="sequence_length=161 is more than the model's 160 positions"):
            measure(tiny_model("bert"))
        with pytest.raises(ValueError, match="sequence_length=161 is more than"):
            measure_latencies([tiny_model("bert")], batch_size=1, sequence_length=161)
    for wrong in ("runs", "batch_size"):
        with pytest.raises(ValueError, match=f"{wrong} must be at least 1, got 0"):
            measure_latency(tiny_model("bert"), **{wrong: 0})


def test_bytes_on_disk(tmp_path):
    tiny_model("bert").save_pretrained(tmp_path)
    assert checkpoint_bytes(tmp_path) == (tmp_path / "model.safetensors").stat().st_size


class TestTooLong:
    """A model of which the positions are computed takes texts of any length, as far as the memory goes."""

    def test_a_number_that_is_no_length_of_a_text(self):
        with pytest.raises(ValueError, match="sequence_length=1000000000000 is more than 1,000,000 tokens"):
            measure_size(tiny_model("t5"), sequence_length=10**12)

    def test_more_than_the_memory_holds(self, monkeypatch):
        model = tiny_model("llama")

        def run(*_, **__):
            torch.empty(2**60, dtype=torch.uint8)

        monkeypatch.setattr(model, "forward", run)
        with pytest.raises(ValueError, match="sequence_length=9: .* does not fit into memory"):
            count_macs(model, sequence_length=9)
