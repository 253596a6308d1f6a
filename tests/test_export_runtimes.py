"""Models as files of other runtimes, in those runtimes."""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hfprune
from hfprune.data.packages import resolve_model
from hfprune.deployment import OpenOptions, decoders_of_executorch, get_target
from hfprune.errors import ExportError
from tests.support.plans import removed_plan, uneven_plan
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer


def slow(*values):
    """A case of a test that `make test` leaves out."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def in_onnx(tmp_path_factory):
    """A classifier with a removed attention and a removed feed-forward block."""
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    dense = tiny_model("bert", num_labels=3)
    small = hfprune.apply_plan(dense, removed_plan(dense))
    folder = tmp_path_factory.mktemp("onnx") / "out"
    return small, hfprune.export(small, "onnx", folder, tokenizer=tiny_tokenizer(), threads=1)


class TestOnnx:
    def test_the_file_computes_the_same(self, in_onnx):
        _, exported = in_onnx
        assert all(difference.relative < 1e-5 for difference in exported.differences)

    def test_the_runtime_alone_opens_it(self, in_onnx):
        import onnxruntime

        small, exported = in_onnx
        session = onnxruntime.InferenceSession(exported.path / "model.onnx")
        ids = torch.randint(4, 60, (5, 11))
        (logits,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": np.ones((5, 11), dtype=np.int64)})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(logits), small(input_ids=ids).logits, atol=1e-5, rtol=0)

    @pytest.mark.slow
    def test_int8(self, in_onnx, tmp_path):
        small, exported = in_onnx
        quantised = hfprune.export(small, "onnx", tmp_path / "out", quantize="int8", threads=1)
        assert quantised.differences[0].largest > 0
        assert quantised.size_bytes < exported.size_bytes

    def test_a_decoder_writes_with_its_cache(self, tmp_path):
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
        # one layer is enough to have a cache, and two take twice as long
        dense = tiny_model("llama", "AutoModelForCausalLM", num_hidden_layers=1)
        small = hfprune.apply_plan(dense, uneven_plan(dense))
        exported = hfprune.export(small, "onnx", tmp_path / "out", threads=1)
        assert exported.text == hfprune.deployment.Text(tokens=16, equal=16)
        layers = json.loads((tmp_path / "out" / "cache.json").read_text())["layers"]
        assert [layer["heads"] for layer in layers] == [3]


@pytest.mark.parametrize(
    ("target", "model_type", "head"),
    [
        ("openvino", "bert", "AutoModelForSequenceClassification"),
        ("executorch", "bert", "AutoModelForSequenceClassification"),
        ("litert", "bert", "AutoModelForSequenceClassification"),
        slow("onnx", "llama", "AutoModelForCausalLM"),
        slow("openvino", "llama", "AutoModelForCausalLM"),
        slow("torch", "llama", "AutoModelForCausalLM"),
        slow("torch", "vit", "AutoModelForImageClassification"),
        slow("litert", "roberta", "AutoModelForTokenClassification"),
    ],
)
def test_every_other_target(target, model_type, head, tmp_path):
    for module in get_target(target).modules:
        pytest.importorskip(module)
    dense = tiny_model(model_type, head)
    small = hfprune.apply_plan(dense, uneven_plan(dense))
    exported = hfprune.export(small, target, tmp_path / "out", threads=1)
    assert all(difference.relative < 1e-4 for difference in exported.differences)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [uneven_plan, removed_plan])
def test_decoders_of_executorch(plan, tmp_path, monkeypatch):
    pytest.importorskip("executorch")
    # so that most texts are read in several steps
    monkeypatch.setattr(decoders_of_executorch, "_AT_ONCE", 7)
    dense = tiny_model("llama", "AutoModelForCausalLM")
    small = hfprune.apply_plan(dense, plan(dense))
    exported = hfprune.export(small, "executorch", tmp_path / "out", threads=1)
    assert exported.text == hfprune.deployment.Text(tokens=16, equal=16)
    assert all(difference.relative < 1e-4 for difference in exported.differences)
    # the model is as it was
    assert small.generation_config.cache_implementation is None
    runner = get_target("executorch").open(tmp_path / "out", OpenOptions(threads=1))
    with pytest.raises(ExportError, match="takes texts of at most 160 tokens, got 161"):
        runner({"input_ids": torch.ones(1, 161, dtype=torch.long)})


@pytest.mark.slow
def test_int8_of_openvino(tmp_path):
    pytest.importorskip("nncf")
    dense = tiny_model("bert", num_labels=3)
    small = hfprune.apply_plan(dense, uneven_plan(dense))
    weights = hfprune.export(small, "openvino", tmp_path / "out", quantize="int8", threads=1)
    assert weights.differences[0].largest > 0
    with pytest.raises(ExportError, match="measures the ranges of activations on data, and none was given"):
        hfprune.export(small, "openvino", tmp_path / "more", quantize="int8-calibrated")
    assert not (tmp_path / "more").exists()


@pytest.mark.slow
def test_calibrated_int8_of_openvino_on_rows_without_token_types(tmp_path):
    """The tokenizer gives them, so the graph takes them; rows may have been tokenized without."""
    pytest.importorskip("nncf")
    dense = tiny_model("bert", num_labels=3)
    small = hfprune.apply_plan(dense, uneven_plan(dense))
    rows = tiny_tokenized().select_columns(["input_ids", "attention_mask", "labels"])
    exported = hfprune.export(
        small, "openvino", tmp_path / "out", tokenizer=tiny_tokenizer(), quantize="int8-calibrated", calibration=rows
    )
    assert exported.calibrated_on == "calibration"


@pytest.mark.slow
def test_int8_of_litert(tmp_path):
    pytest.importorskip("litert_torch")
    # layers so wide that the quantiser takes them
    dense = tiny_model("bert", num_labels=3, hidden_size=128, intermediate_size=512)
    small = hfprune.apply_plan(dense, uneven_plan(dense))
    exported = hfprune.export(small, "litert", tmp_path / "out", quantize="int8", threads=1)
    assert exported.differences[0].largest > 0
    assert exported.size_bytes < exported.weights_bytes


class TestLiteRT:
    """What needs no converter."""

    @pytest.mark.parametrize(
        ("model_type", "head", "reason"),
        [
            ("llama", "AutoModelForCausalLM", "writes texts, and a cache in LiteRT was not tried"),
            ("t5", "AutoModelForSeq2SeqLM", "is an encoder-decoder"),
            ("vit", "AutoModelForImageClassification", "does not take single texts"),
        ],
    )
    def test_what_was_not_tried_is_refused(self, model_type, head, reason):
        assert reason in get_target("litert").refusal(tiny_model(model_type, head))

    def test_a_text_is_padded_to_the_next_graph(self, tmp_path, monkeypatch):
        seen = []

        class Interpreter:
            def __init__(self, path, num_threads):
                assert Path(path).name == "model.tflite"

            def get_signature_runner(self, name):
                def run(**arguments):
                    seen.append((name, {name: values.tolist() for name, values in arguments.items()}))
                    return {"output_0": np.repeat(arguments["input_ids"][..., None].astype(np.float32), 2, -1)}

                return run

            def get_signature_list(self):
                graph = {"inputs": ["input_ids", "attention_mask"]}
                return {"tokens_3": graph, "tokens_5": graph}

        runtime = types.ModuleType("ai_edge_litert.interpreter")
        runtime.Interpreter = Interpreter
        monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", runtime)
        (tmp_path / "graphs.json").write_text('{"lengths": [3, 5], "padding": 9, "has_tokens": true}')
        runner = get_target("litert").open(tmp_path, OpenOptions())
        ids = torch.tensor([[4, 5, 6, 7], [8, 1, 9, 9]])
        mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
        output = runner({"input_ids": ids, "attention_mask": mask})
        assert output[..., 0].tolist() == ids.tolist()
        assert seen[0] == ("tokens_5", {"input_ids": [[4, 5, 6, 7, 9]], "attention_mask": [[1, 1, 1, 1, 0]]})
        runner({"input_ids": ids[:, :3]})
        assert seen[-1] == ("tokens_3", {"input_ids": [[8, 1, 9]], "attention_mask": [[1, 1, 1]]})
        with pytest.raises(ExportError, match="takes texts of at most 5 tokens, got 6"):
            runner({"input_ids": torch.ones(1, 6, dtype=torch.long)})


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.parametrize("target", ["onnx", "openvino", "litert", "torch"])
def test_minilm(target, tmp_path):
    for module in get_target(target).modules:
        pytest.importorskip(module)
    exported = hfprune.export("minilm-l6", target, tmp_path / "out", threads=1)
    assert all(difference.relative < 1e-4 for difference in exported.differences)


@pytest.mark.slow
@pytest.mark.demo
@pytest.mark.parametrize("target", ["onnx", "executorch"])
def test_smollm2_writes_the_same(target, tmp_path):
    """A language model of 135 million weights, pruned unevenly: one graph reads a text, and writes with its cache."""
    for module in get_target(target).modules:
        pytest.importorskip(module)
    try:
        source = resolve_model("smollm2-135m")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    tokenizer = AutoTokenizer.from_pretrained(source)
    ids = tokenizer("The capital of France is a city on the river Seine, and", return_tensors="pt").input_ids
    config = hfprune.PruningConfig(
        sparsity=0.2,
        budget="params",
        scorer="activation_norm",
        schedule="one_shot",
        reconstruct=False,
        calibration_samples=1,
    )
    small = hfprune.prune(AutoModelForCausalLM.from_pretrained(source), [{"input_ids": ids}], config)
    exported = hfprune.export(small, target, tmp_path / "out", tokenizer=tokenizer, threads=1)
    assert exported.text == hfprune.deployment.Text(tokens=16, equal=16)
    # the runner writes on behind the token that ends a text
    small.generation_config.eos_token_id = None
    written = small.generate(ids, max_new_tokens=32, do_sample=False)[:, ids.shape[1] :]
    runner = get_target(target).open(tmp_path / "out", OpenOptions(threads=1))
    assert runner.generate(ids, 32).tolist() == written.tolist()
