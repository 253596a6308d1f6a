"""How many tokens a model sees where its input fixes that, and the one length of the scripts."""

from functools import cache

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    ASTConfig,
    ASTForAudioClassification,
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    ViTConfig,
    ViTForImageClassification,
    WhisperForAudioClassification,
)

import hfprune
from hfprune.jobs.run import _latency_shape
from hfprune.jobs.settings import parse
from hfprune.jobs.tasks.causal_text import CausalTextArguments
from hfprune.jobs.tasks.texts import TextArguments
from hfprune.measuring.latency import measure_latency
from hfprune.measuring.size import count_macs, dense_size, measure_size
from hfprune.structure import anatomy_of
from hfprune.structure.examples import check_length, example_inputs
from tests.support.by_proof import untabled_model
from tests.support.tiny import tiny_config, tiny_model

_SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_PICTURE = {**_SHAPE, "image_size": 16, "patch_size": 4}


def vit(**changes):
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**{**_PICTURE, **changes})).eval()


def spectrogram():
    strides = {"frequency_stride": 4, "time_stride": 4}
    config = ASTConfig(**_SHAPE, **strides, patch_size=4, max_length=24, num_mel_bins=8)
    torch.manual_seed(0)
    return ASTForAudioClassification(config).eval()


def film():
    torch.manual_seed(0)
    return VideoMAEForVideoClassification(VideoMAEConfig(**_PICTURE, num_frames=4)).eval()


#: Models, and the tokens that their input is cut into.
FIXED = {
    "vit": (vit, 1 + 16),
    "vit, larger picture": (lambda: vit(image_size=24), 1 + 36),
    "vit, picture that is no square": (lambda: vit(image_size=(16, 8)), 1 + 8),
    "deit": (lambda: untabled_model("deit"), 2 + 16),
    "beit": (lambda: untabled_model("beit"), 1 + 16),
    "dinov2": (lambda: untabled_model("dinov2"), 1 + 16),
    "siglip": (lambda: untabled_model("siglip_vision_model"), 16),
    "masked autoencoder": (lambda: untabled_model("vit_mae"), 1 + 4),
    "ast": (spectrogram, 2 + 6 * 2),
    "film": (film, 2 * 16),
    "whisper's encoder": (lambda: WhisperForAudioClassification(tiny_config("whisper")).eval(), 8),
}


@cache
def made(name):
    return FIXED[name][0]()


def macs_of_projections(model, length):
    """Multiply-adds in the projections of all blocks, of the shapes that they read and write."""
    macs = 0

    def count(module, args, output):
        nonlocal macs
        macs += output.numel() * args[0].shape[-1]

    modules = {path for block in anatomy_of(model).blocks for path in block.modules}
    hooks = [model.base_model.get_submodule(path).register_forward_hook(count) for path in modules]
    with torch.no_grad():
        model(**example_inputs(model, torch.full((1, length), 5)))
    for hook in hooks:
        hook.remove()
    return macs


def test_the_card_of_a_picture_model_counts_the_tokens_of_a_picture(tmp_path):
    dense = vit()
    batch = {"pixel_values": torch.randn(8, 3, 16, 16)}
    small = hfprune.prune(dense, [batch], hfprune.PruningConfig(sequence_length=32, calibration_samples=8))
    sizes = small.pruning_record.sizes
    for name, model in {"dense": dense, "pruned": small}.items():
        assert sizes[name]["sequence_length"] == 17
        assert sizes[name]["macs"] == count_macs(model, sequence_length=17)
        assert sizes[name]["prunable_macs"] < sizes[name]["macs"]
    assert small.pruning_plan.sequence_length == 17
    assert "sequences of 17 tokens" in str(small.pruning_plan)
    hfprune.save(small, tmp_path / "small")
    card = (tmp_path / "small" / "README.md").read_text()
    assert "MACs (17 tokens)" in card
    assert "32 tokens" not in card


@pytest.mark.parametrize("name", FIXED)
def test_every_figure_is_of_the_tokens_that_the_input_has(name):
    model, tokens = made(name), FIXED[name][1]
    anatomy = anatomy_of(model)
    sizes = [measure_size(anatomy, sequence_length=length) for length in (1, 128)]
    assert sizes[0] == sizes[1]
    assert sizes[0].sequence_length == anatomy.sequence_length(128) == tokens
    # attention products stand beside the projections
    pairs = sum(block.units * block.unit_pair_macs for block in anatomy.blocks) * tokens**2
    assert sizes[0].prunable_macs == macs_of_projections(model, 3) + pairs
    assert sizes[0].prunable_macs < sizes[0].macs
    assert measure_latency(model, batch_size=1, sequence_length=99, runs=1, warmup=0).sequence_length == tokens


@pytest.mark.parametrize("name", ["vit", "deit", "ast", "whisper's encoder"])
def test_a_budget_of_macs_is_met_in_the_macs_that_the_model_has(name):
    model = made(name)
    config = hfprune.PruningConfig(sparsity=0.4, scorer="l2", reconstruct=False, schedule="one_shot")
    scores = hfprune.score(model, [example_inputs(model, torch.full((2, 3), 5))], scorer="l2")
    plan = hfprune.plan(model, scores, config)
    small = hfprune.apply_plan(model, plan)
    before, after = (measure_size(each, sequence_length=128) for each in (model, small))
    removed = count_macs(model, sequence_length=3) - count_macs(small, sequence_length=3)
    assert removed == before.prunable_macs - after.prunable_macs
    assert plan.sparsity("macs") == pytest.approx(removed / before.prunable_macs)
    assert 0.4 <= plan.sparsity("macs") < 0.45
    assert dense_size(anatomy_of(small), after).macs == before.macs


def test_whole_blocks_that_are_gone_still_count_in_the_dense_size():
    model = vit()
    kept = {"layers.0.attention": [], "layers.0.ffn": [], "layers.1.ffn": []}
    blocks = anatomy_of(model).blocks
    plan = hfprune.PruningPlan.keep(blocks, kept, model_type="vit", sequence_length=5)
    small = hfprune.apply_plan(model, plan)
    size = measure_size(small, sequence_length=5)
    assert size.sequence_length == 17
    assert dense_size(anatomy_of(small), size).macs == count_macs(model, sequence_length=5)


@pytest.mark.parametrize("target", [3, 12])
def test_the_two_lengths_of_whisper_are_counted_apart(target):
    model = tiny_model("whisper", "AutoModelForSpeechSeq2Seq")
    size = measure_size(model, sequence_length=target)
    assert size.sequence_length == target
    pairs = {"encoder": 8 * 8, "attention": target**2, "cross_attention": target * 8}
    products = 0
    for block in anatomy_of(model).blocks:
        kind = "encoder" if block.name.startswith("encoder") else block.name.rpartition(".")[2]
        products += block.units * block.unit_pair_macs * pairs.get(kind, 0)
    assert size.prunable_macs == macs_of_projections(model, target) + products


@pytest.mark.parametrize("model_type", ["wav2vec2", "hubert", "sew"])
def test_sounds_are_as_long_as_their_frames(model_type):
    model = tiny_model("wav2vec2") if model_type == "wav2vec2" else untabled_model(model_type)
    size = measure_size(model, sequence_length=12)
    assert size.sequence_length == 12
    pairs = sum(block.units * block.unit_pair_macs for block in anatomy_of(model).blocks) * 12**2
    assert size.prunable_macs == macs_of_projections(model, 12) + pairs


def test_texts_are_counted_as_before_and_not_run():
    counter = FlopCounterMode(display=False)
    with counter:
        anatomy = anatomy_of(tiny_model("bart"))
    assert counter.get_total_flops() == 0
    assert all(block.tokens is None for block in anatomy.blocks)


def test_positions_of_whisper_are_known():
    model = tiny_model("whisper", "AutoModelForSpeechSeq2Seq", max_target_positions=32)
    check_length(model, 32)
    with pytest.raises(ValueError, match="sequence_length=128 is more than the model's 32 positions"):
        measure_size(model, sequence_length=128)


class TestOneLengthOfTheScripts:
    @pytest.mark.parametrize(("arguments", "default"), [(TextArguments, 128), (CausalTextArguments, 256)])
    def test_max_length_sets_all(self, arguments, default):
        model = ["--model_name_or_path", "m", "--output_dir", "o"]
        for words, length in [([], default), (["--max_length", "32"], 32)]:
            found = parse(arguments, None, [*model, *words])
            assert found.pruning.sequence_length == length
            assert _latency_shape(found.data)["sequence_length"] == length

    def test_each_can_be_given(self, tmp_path):
        file = tmp_path / "job.yaml"
        file.write_text(
            "model_name_or_path: m\noutput_dir: o\nmax_length: 32\nsequence_length: 16\nlatency_length: 8\n"
        )
        found = parse(TextArguments, None, [str(file)])
        assert found.pruning.sequence_length == 16
        assert _latency_shape(found.data) == {"batch_size": 32, "sequence_length": 8}


@pytest.mark.parametrize("model_type", ["vit", "hubert"])
def test_a_model_without_weights_is_read_and_not_run(model_type):
    model = (vit() if model_type == "vit" else untabled_model(model_type)).to("meta")
    assert len(anatomy_of(model).blocks) == 4
    assert all(block.tokens is None for block in anatomy_of(model).blocks)
