"""What `save` writes, `load` takes; what it would not take, and what is not finite, never replaces a checkpoint."""

import ast
import re
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations

import hfprune
from hfprune.errors import CheckpointError
from hfprune.publishing.contents import is_covered, may_hold
from hfprune.publishing.verification import verify
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenizer


def pruned(model_type="llama", head="AutoModelForCausalLM", **changes):
    model = tiny_model(model_type, head, **changes)
    return hfprune.apply_plan(model, uneven_plan(model))


def outputs(model, model_type):
    with torch.no_grad():
        return model(**tiny_batch(model_type))[0]


class TestTiedByHand:
    @pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox"])
    def test_a_head_that_is_the_embedding(self, model_type, tmp_path):
        small = pruned(model_type, tie_word_embeddings=False)
        head = small.get_output_embeddings()
        head.weight = small.get_input_embeddings().weight
        folder = hfprune.save(small, tmp_path / "small")
        assert verify(folder) == []
        again = hfprune.load(folder)
        assert torch.equal(outputs(again, model_type), outputs(small, model_type))
        assert head.weight is small.get_input_embeddings().weight, "the model in memory stays as it is"

    def test_two_layers_that_share_a_norm(self, tmp_path):
        small = pruned("bert", "AutoModelForSequenceClassification")
        first, second = small.bert.encoder.layer
        second.output.LayerNorm = first.output.LayerNorm
        folder = hfprune.save(small, tmp_path / "small")
        assert torch.equal(outputs(hfprune.load(folder), "bert"), outputs(small, "bert"))

    def test_in_half_precision(self, tmp_path):
        small = pruned(tie_word_embeddings=False).to(torch.bfloat16)
        small.lm_head.weight = small.model.embed_tokens.weight
        folder = hfprune.save(small, tmp_path / "small")
        assert torch.equal(outputs(hfprune.load(folder), "llama"), outputs(small, "llama"))

    def test_what_the_config_ties_is_written_once(self, tmp_path):
        small = pruned(tie_word_embeddings=True)
        folder = hfprune.save(small, tmp_path / "small")
        again = hfprune.load(folder)
        assert again.lm_head.weight is again.model.embed_tokens.weight


class _Quantizer:
    """Stands for that of bitsandbytes."""


class TestWhatLoadWouldRefuse:
    def _refused(self, model, folder, match):
        before = (folder / "model.safetensors").read_bytes()
        with pytest.raises(CheckpointError, match=match):
            hfprune.save(model, folder, overwrite=True)
        assert (folder / "model.safetensors").read_bytes() == before
        assert verify(folder) == []
        assert [path.name for path in folder.parent.iterdir()] == [folder.name], "no draft is left"

    def test_a_quantized_model(self, tmp_path):
        folder = hfprune.save(pruned(), tmp_path / "small")
        model = hfprune.load(folder)
        model.hf_quantizer = _Quantizer()
        self._refused(model, folder, r"are quantized \(_Quantizer\).*Save the model before it is quantized")

    def test_weights_as_four_bits_are_stored(self, tmp_path):
        folder = hfprune.save(pruned(), tmp_path / "small")
        model = hfprune.load(folder)
        projection = model.model.layers[0].mlp.up_proj
        packed = torch.zeros(projection.weight.numel() // 2, 1, dtype=torch.uint8)
        projection.weight = nn.Parameter(packed, requires_grad=False)
        self._refused(model, folder, r"hfprune.load would refuse what was written: .*up_proj.weight is \(\d+, 1\)")

    def test_an_added_head(self, tmp_path):
        folder = hfprune.save(pruned("bert", "AutoModelForSequenceClassification"), tmp_path / "small")
        model = hfprune.load(folder)
        model.second_classifier = nn.Linear(32, 2)
        self._refused(model, folder, "second_classifier.bias is in the weights, but the model has no such tensor")

    def test_a_parametrized_weight(self, tmp_path):
        folder = hfprune.save(pruned("gpt_neox"), tmp_path / "small")
        model = hfprune.load(folder)
        parametrizations.weight_norm(model.gpt_neox.layers[0].mlp.dense_4h_to_h)
        self._refused(model, folder, "dense_4h_to_h.weight is missing from the weights.*take off what was added")

    def test_a_stock_class(self, tmp_path):
        model = tiny_model("bert")
        config = hfprune.PruningConfig(sparsity=0.3, portable=True, sequence_length=8, scorer="l2", reconstruct=False)
        small = hfprune.prune(model, [tiny_batch()], config)
        folder = hfprune.save(small, tmp_path / "small")
        small.bert.extra = nn.Linear(2, 2)
        self._refused(small, folder, "bert.extra.bias is in the weights, but the model has no such tensor")


class TestFinite:
    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_not_over_a_good_checkpoint(self, value, dtype, tmp_path):
        small = pruned("bert", "AutoModelForSequenceClassification").to(dtype)
        folder = hfprune.save(small, tmp_path / "small")
        small.bert.encoder.layer[1].output.dense.weight.data[0, 0] = float(value)
        what = "NaN" if value == "nan" else "infinite values"
        with pytest.raises(CheckpointError, match=rf"bert.encoder.layer.1.output.dense.weight has {what}"):
            hfprune.save(small, folder, overwrite=True)
        assert verify(folder) == []

    def test_buffers_count_and_their_infinities_do_not(self, tmp_path):
        small = pruned("opt")
        small.model.decoder.register_buffer("mask", torch.full((2, 2), float("-inf")))
        with pytest.raises(CheckpointError, match=r"decoder.mask is in the weights, but the model has no such tensor"):
            hfprune.save(small, tmp_path / "small")
        small.model.decoder.mask[0, 0] = float("nan")
        with pytest.raises(CheckpointError, match=r"model.decoder.mask has NaN"):
            hfprune.save(small, tmp_path / "small")
        assert not (tmp_path / "small").exists()

    def test_a_stock_class_and_its_head(self, tmp_path):
        config = hfprune.PruningConfig(sparsity=0.3, portable=True, sequence_length=8, scorer="l2", reconstruct=False)
        small = hfprune.prune(tiny_model("bert"), [tiny_batch()], config)
        small.classifier.bias.data[0] = float("nan")
        with pytest.raises(CheckpointError, match=r"classifier.bias has NaN: such a model computes nothing"):
            hfprune.save(small, tmp_path / "small")

    @pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")
    def test_weights_that_are_not_in_memory(self, tmp_path):
        small = pruned()
        folder = hfprune.save(small, tmp_path / "small")
        small.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
        small.save_pretrained(tmp_path / "plain")
        devices = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "lm_head": "cpu"}
        devices["model.rotary_emb"] = "cpu"
        offloaded = hfprune.load(tmp_path / "plain", device_map=devices, offload_folder=tmp_path / "offload")
        assert offloaded.model.layers[0].mlp.up_proj.weight.is_meta
        with pytest.raises(CheckpointError, match=r"layers.0.mlp.up_proj.weight has NaN"):
            hfprune.save(offloaded, folder, overwrite=True)
        assert verify(folder) == []


def test_weights_that_torch_quantized_are_refused_before_anything_is_written(tmp_path):
    small = pruned("bert", "AutoModelForSequenceClassification")
    record = small.pruning_record
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch announces that torchao takes over
        quantized = torch.ao.quantization.quantize_dynamic(small, {nn.Linear})
    with pytest.raises(CheckpointError, match="is a quantized Linear of torch.* Save the model before it is quantized"):
        hfprune.save(quantized, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []
    assert quantized.pruning_record == record


class TestATokenizerOfItsOwn:
    """`tokenizer.save_pretrained` into the folder of a checkpoint, whose record then has no digests of the files."""

    ADVICE = r"save both at once.*hfprune.save\(model, folder, tokenizer=tokenizer, overwrite=True\)"

    def test_the_message_says_what_to_do_and_it_helps(self, tmp_path):
        small = pruned("bert", "AutoModelForSequenceClassification")
        folder = hfprune.save(small, tmp_path / "small")
        tokenizer = tiny_tokenizer()
        tokenizer.save_pretrained(folder)
        problems = verify(folder)
        assert len(problems) >= 2
        for problem in problems:
            assert re.search(f"^tokenizer.* is not part of what was saved. If .*{self.ADVICE}", problem)
        with pytest.raises(CheckpointError, match=self.ADVICE):
            hfprune.load(folder)
        hfprune.save(small, folder, tokenizer=tokenizer, overwrite=True)
        assert verify(folder) == []


@pytest.mark.parametrize(
    "name",
    ["source.spm", "target.spm", "target_vocab.json", "vocab-src.json", "vocab-tgt.json", "dict.txt", "byte_maps.json"],
)
def test_a_checkpoint_may_hold_what_tokenizers_write(name):
    assert may_hold(name)
    assert is_covered(name)


def test_every_file_of_a_tokenizer_of_transformers_is_listed():
    """Read from the sources, as some tokenizers need packages that are not there."""
    names = set()
    for path in (Path(transformers.__file__).parent / "models").glob("*/tokenization*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            targets = [getattr(target, "id", "") for target in getattr(node, "targets", [])]
            if "VOCAB_FILES_NAMES" in targets:
                names |= set(ast.literal_eval(node.value).values())
    assert len(names) > 10
    assert [name for name in sorted(names) if not (may_hold(name) and is_covered(name))] == []
