"""Reconstruction with hidden states in files, cut short and gone on with, on a device of its own, in bfloat16."""

import subprocess
import sys

import pytest
import torch

from hfprune.errors import CheckpointError
from hfprune.reconstruction import reconstruct as reconstruction
from hfprune.reconstruction.reconstruct import reconstruct
from hfprune.reconstruction.streams import LayerStream
from tests.support.killed_repair import repair_case


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(model, expected):
    return all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.fixture
def layers_run(monkeypatch):
    """Names of streams, layers and batches, as they run."""
    found, real = [], LayerStream.run

    def run(self, index):
        found.append((self._name, self._next, index))
        return real(self, index)

    monkeypatch.setattr(LayerStream, "run", run)
    return found


@pytest.mark.parametrize("model_type", ["bert", "llama", "t5", "albert"])
def test_files_change_nothing(model_type, tmp_path):
    small, dense, batches = repair_case(model_type)
    repairs = reconstruct(small, dense, batches)
    other, *rest = repair_case(model_type)
    assert reconstruct(other, *rest, folder=tmp_path) == repairs
    assert same(other, weights(small))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}  # no working folder


@pytest.mark.script
@pytest.mark.parametrize(
    ("model_type", "kept"),
    [
        ("llama", True),
        pytest.param("llama", False, marks=pytest.mark.slow),
        pytest.param("t5", True, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_to_the_same_weights(model_type, kept, tmp_path, layers_run):
    small, dense, batches = repair_case(model_type)
    repairs = reconstruct(small, dense, batches)
    command = [sys.executable, "-m", "tests.support.killed_repair", model_type, tmp_path]
    assert subprocess.run(command, check=False, timeout=120, capture_output=True).returncode == -9
    assert sorted(path.name for path in tmp_path.glob("repaired-*")) == [f"repaired-{i}.safetensors" for i in (0, 1)]
    if not kept:
        for path in (tmp_path / "working-0").iterdir():
            path.unlink()
    other, *_ = repair_case(model_type)
    layers_run.clear()
    assert reconstruct(other, dense, batches, folder=tmp_path) == repairs
    assert same(other, weights(small))
    if model_type == "llama":  # the decoder of T5 begins at its own first layer
        assert min(layer for _, layer, _ in layers_run) == (2 if kept else 0)


def test_a_finished_folder_is_only_read(tmp_path, layers_run):
    small, dense, batches = repair_case("llama")
    repairs = reconstruct(small, dense, batches, folder=tmp_path)
    other, *_ = repair_case("llama")
    layers_run.clear()
    assert reconstruct(other, dense, batches, folder=tmp_path) == repairs
    assert same(other, weights(small))
    assert not layers_run


def test_a_folder_of_another_run_is_refused(tmp_path):
    small, dense, batches = repair_case("bert")
    before = weights(small)
    reconstruct(small, dense, batches, folder=tmp_path)
    small.load_state_dict(before)
    for models, data, what in (
        ((small, dense), batches[:4], "batches"),
        ((small, repair_case("bert")[1].double()), batches, "dense"),
    ):
        with pytest.raises(CheckpointError, match=rf"with other {what}: .*Pass what that run was called with"):
            reconstruct(*models, data, folder=tmp_path)
    with torch.no_grad():
        small.bert.pooler.dense.bias += 1
    with pytest.raises(CheckpointError, match="with other pruned"):
        reconstruct(small, dense, batches, folder=tmp_path)


def test_after_an_error_weights_are_as_before_and_the_folder_goes_on(tmp_path, monkeypatch):
    small, dense, batches = repair_case("llama")
    before = weights(small)
    with monkeypatch.context() as patch:
        real, calls = reconstruction._repair, []

        def sixth_fails(*args):
            calls.append(args)
            if len(calls) == 6:
                raise KeyboardInterrupt
            return real(*args)

        patch.setattr(reconstruction, "_repair", sixth_fails)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(small, dense, batches, folder=tmp_path)
    assert same(small, before)
    reconstruct(small, dense, batches, folder=tmp_path)
    other, *_ = repair_case("llama")
    reconstruct(other, dense, batches)
    assert same(other, weights(small))


def test_only_the_layers_at_work_are_on_the_device(monkeypatch):
    """Here the device is the CPU too: what counts is what is moved there and back."""
    small, dense, batches = repair_case("llama")
    reconstruct(small, dense, batches)
    other, *_ = repair_case("llama")
    moves, real = [], torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, place: (moves.append(self), real(self, place))[1])
    reconstruct(other, dense, batches, device="cpu")
    pairs = zip(other.model.layers, dense.model.layers, strict=True)
    assert moves == [layer for ours, theirs in pairs for layer in (ours, theirs, theirs, ours)]
    assert same(other, weights(small))


def test_bfloat16_is_solved_in_float64_and_rounded_once():
    small, dense, batches = repair_case("llama")
    fine = reconstruct(small, dense, batches)
    rough, large, _ = repair_case("llama")
    repairs = reconstruct(rough.bfloat16(), large.bfloat16(), batches)
    assert {value.dtype for value in rough.state_dict().values()} == {torch.bfloat16}
    for repair, other in zip(repairs, fine, strict=True):
        assert repair.error_before == pytest.approx(other.error_before, rel=0.2)
        assert repair.error_after == pytest.approx(other.error_after, rel=0.2)
        assert repair.error_after < repair.error_before
