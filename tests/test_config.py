"""PruningConfig says what is wrong and what to do."""

from dataclasses import replace

import pytest

import hfprune
from hfprune import PruningConfig
from hfprune.pruning.steps import width_multiple
from hfprune.structure.anatomy import anatomy_of
from tests.support.tiny import tiny_batch, tiny_model


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 50}, r"sparsity must be in \[0, 1\), got 50. It is a fraction: write 0.5 for 50 %."),
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), got 1"),
        ({"sparsity": -0.1}, r"sparsity must be in \[0, 1\), got -0.1"),
        ({"budget": "flops"}, "budget must be one of macs, params, kv_cache, latency, got 'flops'"),
        ({"rounds": 3, "schedule": "one_shot"}, "rounds=3 needs a schedule that spreads them"),
        ({"min_units": -1}, "min_units must be a whole number of at least 0, got -1"),
        ({"calibration_batch_tokens": 0}, "calibration_batch_tokens must be a whole number of at least 1, got 0"),
        ({"round_to": 0}, "round_to must be a whole number of at least 1, got 0"),
        ({"rounds": 2.5}, "rounds must be a whole number of at least 1, got 2.5"),
        ({"portable": True, "allocation": "layerwise"}, "portable=True wants the same widths in every layer"),
        ({"exclude": "*.0.ffn"}, "exclude must be a list of patterns"),
        (
            {"target": "gguf-q3"},
            "gguf-q8_0, gguf-q4_0, gguf-q4_1, bitsandbytes-4bit, got 'gguf-q3'; or leave",
        ),
        ({"target": "gguf-q8_0", "round_to": 48}, "in multiples of 32, and round_to=48 is none of these"),
        ({"sparsity": "0.3"}, "sparsity must be a number in .0, 1., got .0.3."),
    ],
)
def test_bad_values(fields, message):
    with pytest.raises(ValueError, match=message):
        PruningConfig(**fields)


def test_plain_values():
    assert PruningConfig(exclude=["a"]).to_dict()["exclude"] == ["a"]
    assert PruningConfig(**PruningConfig(sparsity=0.3).to_dict()) == PruningConfig(sparsity=0.3)


def test_a_target_says_in_multiples_of_how_many_neurons_are_kept():
    config = PruningConfig(target="gguf-q8_0")
    assert PruningConfig(**config.to_dict()) == config
    assert config.round_to is None
    assert PruningConfig(target="gguf-q4_0", round_to=64).round_to == 64
    # the multiple of a target goes with it, and one that was asked for stays
    assert replace(config, seed=1).target == "gguf-q8_0"
    assert replace(config, target=None) == PruningConfig()
    assert replace(PruningConfig(target="gguf-q4_0", round_to=32), target=None).round_to == 32
    assert "target" not in PruningConfig().to_dict()


class TestMultiples:
    """In multiples of how many neurons blocks are kept, where the user does not say it."""

    @pytest.mark.parametrize(
        ("model_type", "head", "neurons", "fields", "multiple"),
        [
            ("bert", "AutoModelForSequenceClassification", 512, {}, 16),
            ("bert", "AutoModelForSequenceClassification", 256, {}, 8),
            ("bert", "AutoModelForSequenceClassification", 255, {}, 1),
            ("llama", "AutoModelForCausalLM", 1024, {}, 32),
            ("llama", "AutoModelForCausalLM", 512, {}, 16),
            ("llama", "AutoModelForCausalLM", 512, {"target": "gguf-q8_0"}, 32),
            ("llama", "AutoModelForCausalLM", 512, {"target": "bitsandbytes-4bit"}, 64),
            ("bert", "AutoModelForSequenceClassification", 256, {"round_to": 3}, 3),
        ],
    )
    def test_widths(self, model_type, head, neurons, fields, multiple):
        dense = tiny_model(model_type, head, intermediate_size=neurons)
        config = PruningConfig(sparsity=0.6, scorer="random", rounds=2, reconstruct=False, **fields)
        small = hfprune.prune(dense, [tiny_batch(model_type)], config)
        assert small.pruning_record.config["round_to"] == multiple
        assert type(small.pruning_record.config["round_to"]) is int
        widths = [kept for name, (kept, _) in small.pruning_plan.counts.items() if "attention" not in name]
        assert all(width % multiple == 0 for width in widths)
        # the plan that follows is in multiples of what the dense model's widths ask for
        assert width_multiple(anatomy_of(small), config) == multiple
