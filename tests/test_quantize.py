"""Quantised checkpoints: what is written, that they load equal and checked, and what is refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import hfprune
from hfprune.cli.app import app
from hfprune.deployment import Tolerance, get_method, known_methods, register_method
from hfprune.deployment.folders import EXPORT_FILE
from hfprune.errors import CheckpointError, ExportError, MissingDependencyError, StructureError
from hfprune.planning import PruningPlan
from hfprune.publishing.card import is_unedited
from hfprune.publishing.quantized import plain_shapes, setting_problems_of
from hfprune.publishing.verification import verify
from hfprune.structure import find_blocks
from tests.support.plans import quick_checkpoint, removed_plan, uneven_plan
from tests.support.registries import restored
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer

WIDE = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}


@pytest.fixture(autouse=True)
def _registries():
    with restored():
        yield


def need(method):
    pytest.importorskip(get_method(method).package, reason="pip install 'hfprune[quantize]'")


def pruned(model_type="bert", head="AutoModelForSequenceClassification", plan=uneven_plan, **changes):
    model = tiny_model(model_type, head, **changes)
    return hfprune.apply_plan(model, plan(model))


def in_blocks_of_64(model):
    """A plan that keeps 64 and 128 neurons."""
    kept = {}
    for number, block in enumerate(find_blocks(model)):
        kept[block.name] = list(range(block.units if block.unit != "neuron" else 64 + 64 * (number == 1)))
    return PruningPlan.keep(find_blocks(model), kept, model_type=model.config.model_type, sequence_length=8)


def outputs(model, model_type="bert"):
    with torch.no_grad():
        return model(**tiny_batch(model_type))[0]


class TestWhatIsWritten:
    @pytest.mark.parametrize(
        ("method", "model_type", "plan"),
        [
            ("int8", "bert", uneven_plan),
            ("bitsandbytes-8bit", "llama", removed_plan),
            pytest.param("int8", "llama", removed_plan, marks=pytest.mark.slow),
            pytest.param("int8-weights", "bert", removed_plan, marks=pytest.mark.slow),
            pytest.param("int8-weights", "llama", uneven_plan, marks=pytest.mark.slow),
            pytest.param("bitsandbytes-8bit", "bert", uneven_plan, marks=pytest.mark.slow),
        ],
    )
    def test_a_checkpoint_that_loads_equal_and_is_verified(self, method, model_type, plan, tmp_path):
        need(method)
        head = {"bert": "AutoModelForSequenceClassification", "llama": "AutoModelForCausalLM"}[model_type]
        small = pruned(model_type, head, plan)
        result = hfprune.quantize(small, tmp_path / "out", method=method, tokenizer=tiny_tokenizer())
        assert verify(result.path) == []
        again = hfprune.load(result.path)
        assert again.pruning_plan == small.pruning_plan
        assert type(again) is type(small)
        first = outputs(again, model_type)
        difference = (first - outputs(small, model_type)).abs().max()
        assert 0 < difference < 0.1 * outputs(small, model_type).abs().max()
        resaved = hfprune.save(again, tmp_path / "resaved")
        assert verify(resaved) == []
        assert torch.equal(outputs(hfprune.load(resaved), model_type), first)
        report = json.loads((result.path / EXPORT_FILE).read_text())
        assert report["quantization"] == method
        assert report["versions"][report["target"]]
        assert (result.text is not None) == (model_type == "llama")
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        self.check_what_is_said(result, again)

    @staticmethod
    def check_what_is_said(result, model):
        """The record and the card have the method and the comparison, as long as the weights are those."""
        said = model.pruning_record.quantization
        assert said["quantization"] == result.quantization
        assert said["versions"] == result.versions
        assert said["differences"][0]["typical"] == pytest.approx(result.differences[0].typical)
        assert f"weights quantised: {result.quantization}, by {result.target}" in str(model.pruning_record)
        card = (result.path / "README.md").read_text()
        assert f"| {result.quantization} | {result.size_bytes / 1e6:.1f} MB |" in card
        assert "## Quantisation" in card
        assert is_unedited(result.path)
        others = replace(model.pruning_record, files={"model.safetensors": "0" * 64})
        assert "quantization" not in json.loads(others.to_json())

    def test_weights_are_a_quarter_of_the_size(self, tmp_path):
        need("int8")
        small = pruned(plan=in_blocks_of_64, **WIDE, vocab_size=8)
        before = hfprune.save(small, tmp_path / "small") / "model.safetensors"
        after = hfprune.quantize(small, tmp_path / "out").path / "model.safetensors"
        assert after.stat().st_size < 0.5 * before.stat().st_size
        with safe_open(after, framework="pt") as file:
            name = "bert.encoder.layer.0.intermediate.dense._weight_qdata"
            assert file.get_tensor(name).dtype == torch.int8

    def test_a_dense_model(self, tmp_path):
        need("int8")
        dense = tiny_model("bert")
        result = hfprune.quantize(dense, tmp_path / "out")
        again = type(dense).from_pretrained(result.path)
        assert result.plan_digest == ""
        assert (outputs(again) - outputs(dense)).abs().max() < 0.1 * outputs(dense).abs().max()

    def test_a_checkpoint_of_a_stock_class_is_saved_again(self, tmp_path):
        need("int8")
        small = pruned(
            plan=lambda model: PruningPlan.keep(
                find_blocks(model),
                {block.name: list(range(block.units // 2)) for block in find_blocks(model)},
                model_type="bert",
                sequence_length=8,
            )
        )
        result = hfprune.quantize(small, tmp_path / "out")
        again = hfprune.load(result.path)
        saved = hfprune.save(again, tmp_path / "again")
        assert torch.equal(outputs(hfprune.load(saved)), outputs(again))

    def test_four_bits_where_the_widths_fit(self, tmp_path):
        need("bitsandbytes-4bit")
        small = pruned("llama", "AutoModelForCausalLM", in_blocks_of_64, **WIDE)
        result = hfprune.quantize(small, tmp_path / "out", method="bitsandbytes-4bit")
        assert verify(result.path) == []
        again = hfprune.load(result.path)
        resaved = hfprune.save(again, tmp_path / "resaved")
        expected = outputs(hfprune.load(result.path), "llama")
        assert torch.equal(outputs(hfprune.load(resaved), "llama"), expected)
        ran = hfprune.load(result.path)
        outputs(ran, "llama")
        if getattr(ran.model.layers[0].mlp.up_proj.weight.quant_state, "packing_format_for_cpu", False):
            with pytest.raises(CheckpointError, match="Save the model before it runs"):
                hfprune.save(ran, tmp_path / "ran")

    def test_metrics_of_both_on_data(self, tmp_path):
        need("int8")
        small = pruned(num_labels=3)
        result = hfprune.quantize(small, tmp_path / "out", tokenizer=tiny_tokenizer(), data=tiny_tokenized())
        assert set(result.metrics) == {"pytorch", "exported"}
        assert result.differences[-1].name == "the data"
        assert result.differences[-1].samples == len(tiny_tokenized())


class TestWhatIsRefused:
    def test_widths_that_four_bits_do_not_fit(self, tmp_path):
        need("bitsandbytes-4bit")
        with pytest.raises(
            ExportError, match=r'query \(32 to 24\).*target="bitsandbytes-4bit".*int8 takes every width'
        ):
            hfprune.quantize(pruned(), tmp_path / "out", method="bitsandbytes-4bit")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("model_type", "head", "match"),
        [
            ("gpt2", "AutoModelForCausalLM", "Conv1D layers.*--to onnx --quantize int8"),
            ("t5", "AutoModelForSeq2SeqLM", "is an encoder-decoder.*quantization_config"),
        ],
    )
    def test_models_that_no_method_takes(self, model_type, head, match, tmp_path):
        need("int8")
        with pytest.raises(ExportError, match=f"cannot be quantised by int8: .*{match}"):
            hfprune.quantize(tiny_model(model_type, head), tmp_path / "out")

    def test_one_that_is_further_off_than_it_may_be(self, tmp_path):
        need("int8")
        register_method(replace(get_method("int8"), name="strict", tolerance=Tolerance(typical=1e-6)))
        with pytest.raises(ExportError, match="does not compute what the model computes.*The file was not kept"):
            hfprune.quantize(pruned(), tmp_path / "out", method="strict")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("method", "match"),
        [
            ("quanto", "got 'quanto'. Quanto has no weights that can be written"),
            ("HQQ", "got 'HQQ'. Checkpoints of HQQ are not in the closed list"),
            ("int4", "got 'int4'. Torchao keeps 4-bit weights of a CPU in bytes"),
            ("int7", "got 'int7'."),
        ],
    )
    def test_methods_that_are_not_here(self, method, match, tmp_path):
        with pytest.raises(ValueError, match=match):
            hfprune.quantize(tiny_model("bert"), tmp_path / "out", method=method)

    def test_a_package_that_is_not_installed(self, tmp_path):
        register_method(replace(get_method("int8"), name="absent", package="no_such_package"))
        with pytest.raises(
            MissingDependencyError, match=r"quantised by absent needs no_such_package.*hfprune\[quantize\]"
        ):
            hfprune.quantize(tiny_model("bert"), tmp_path / "out", method="absent")

    def test_a_quantised_model_is_neither_quantised_nor_pruned_nor_exported_again(self, tmp_path):
        need("int8")
        result = hfprune.quantize(pruned(), tmp_path / "out")
        for model in (result.path, hfprune.load(result.path)):
            with pytest.raises(ExportError, match="quantised already, by torchao"):
                hfprune.quantize(model, tmp_path / "twice")
        with pytest.raises(ExportError, match="quantised already, by torchao"):
            hfprune.export(result.path, "torch", tmp_path / "exported")
        again = hfprune.load(result.path)
        config = hfprune.PruningConfig(sparsity=0.2, sequence_length=8)
        for work in (
            lambda: hfprune.prune(again, [tiny_batch()], config),
            lambda: hfprune.score(again, [tiny_batch()], scorer="l2"),
            lambda: hfprune.apply_plan(again, again.pruning_plan),
        ):
            with pytest.raises(StructureError, match="are quantised .* cannot be pruned.*hfprune.quantize"):
                work()


class TestStrangers:
    """Checkpoints that ask for more than `quantize` writes."""

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory):
        need("int8")
        with restored():
            return hfprune.quantize(pruned(), tmp_path_factory.mktemp("quantised") / "out").path

    def changed(self, folder, place, change):
        copy = place / "copy"
        shutil.copytree(folder, copy)
        config = json.loads((copy / "config.json").read_text())
        change(config["quantization_config"])
        (copy / "config.json").write_text(json.dumps(config))
        return copy

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda given: given.update(quant_method="gptq"), "quantised by 'gptq'"),
            (lambda given: given.update(quant_method=["torchao"]), "quantised by "),
            (lambda given: given.update(device="cuda"), "sets 'device' for torchao"),
            (lambda given: given["quant_type"]["default"].update(_type="quantize_"), "names the class 'quantize_'"),
            (lambda given: given.update(modules_to_not_convert=[{"_type": "Popen"}]), "names the class 'Popen'"),
            (
                lambda given: (given.clear(), given.update(quant_method="bitsandbytes", bnb_4bit_compute_dtype="load")),
                "sets bnb_4bit_compute_dtype to 'load'",
            ),
        ],
    )
    def test_settings(self, folder, tmp_path, change, match):
        copy = self.changed(folder, tmp_path, change)
        with pytest.raises(CheckpointError, match=match):
            hfprune.load(copy, verify=False)
        assert any(match in problem for problem in verify(copy))

    def rewritten(self, folder, place, change):
        copy = place / "copy"
        shutil.copytree(folder, copy)
        path = copy / "model.safetensors"
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            head = dict(file.metadata())
        change(tensors, head)
        save_file(tensors, path, metadata=head)
        return copy

    @pytest.mark.parametrize(
        ("change", "match"),
        [
            (lambda tensors, head: head.update({"classifier.weight": '{"_type": "Popen"}'}), "names the class 'Popen'"),
            (lambda tensors, head: head.update({"classifier.weight": "["}), "says nothing readable"),
            (
                lambda tensors, head: tensors.update({"classifier._weight_scale": torch.ones(9, 1)}),
                r"classifier._weight_scale is \(9, 1\)",
            ),
            (
                lambda tensors, head: tensors.update({"x._weight_scale": torch.ones(9, 1)}),
                "no quantised weight that it",
            ),
            (
                lambda tensors, head: tensors.update({"classifier._weight_qdata": torch.ones(2, 9, dtype=torch.int8)}),
                r"classifier.weight is \(2, 9\)",
            ),
        ],
    )
    def test_weights(self, folder, tmp_path, change, match):
        copy = self.rewritten(folder, tmp_path, change)
        with pytest.raises(CheckpointError, match=match):
            hfprune.load(copy, verify=False)

    def test_a_four_bit_weight_whose_description_says_another_size(self, tmp_path):
        state = {"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [2, 64]}
        config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}

        def shapes(**changes):
            text = json.dumps({**state, **changes}).encode()
            name = "a.weight.quant_state.bitsandbytes__nf4"
            tensors = {
                "a.weight": torch.zeros(64, 1, dtype=torch.uint8),
                "a.weight.absmax": torch.zeros(2),
                "a.weight.quant_map": torch.zeros(16),
                name: torch.tensor(list(text), dtype=torch.uint8),
                "b.weight": torch.zeros(3, 3),
            }
            save_file(tensors, tmp_path / "model.safetensors")
            return plain_shapes(tmp_path, config)

        assert shapes() == {"a.weight": (2, 64), "b.weight": (3, 3)}
        for changes, match in (
            (
                {"shape": [64, 64]},
                r"a.weight is \(64, 1\) in the weights, where its quantised weight needs \(2048, 1\)",
            ),
            ({"blocksize": 32}, r"absmax is \(2,\) in the weights, where its quantised weight needs \(4,\)"),
            ({"blocksize": 0}, "as hfprune does not write it"),
            ({"dtype": "load"}, "as hfprune does not write it"),
            ({"shape": "ab"}, "as hfprune does not write it"),
        ):
            with pytest.raises(CheckpointError, match=match):
                shapes(**changes)

    def test_configs_without_quantisation_have_nothing_wrong(self):
        assert list(setting_problems_of({})) == []
        assert list(setting_problems_of({"quantization_config": None})) == []


class TestCommand:
    def test_a_checkpoint_and_what_was_measured(self, tmp_path, monkeypatch):
        need("int8")
        monkeypatch.chdir(tmp_path)
        quick_checkpoint(tmp_path / "small")
        (tmp_path / "test.csv").write_text("text,label\nwho is the dog,0\nwhere is the cat,1\nwhat,2\n")
        done = CliRunner().invoke(app, ["quantize", "small", "--data", "test.csv"])
        assert done.exit_code == 0, done.output
        assert "accuracy: PyTorch" in done.output
        assert (tmp_path / "small-int8" / EXPORT_FILE).is_file()
        assert verify(tmp_path / "small-int8") == []

    def test_mistakes_are_one_line(self, tmp_path):
        done = CliRunner().invoke(app, ["quantize", str(tmp_path), "--method", "quanto"])
        assert done.exit_code == 1
        assert "method must be one of int8" in done.output
        done = CliRunner().invoke(app, ["quantize", str(tmp_path), "--split", "test"])
        assert "--split and --metrics go with --data" in done.output


def test_the_help_names_every_method():
    text = CliRunner().invoke(app, ["quantize", "--help"], env={"COLUMNS": "500"}).output
    for name in known_methods():
        assert name in text
