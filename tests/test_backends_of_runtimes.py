"""Latency tables in other runtimes: what is timed is the model, in its type, on as many threads as PyTorch has."""

import pytest
import torch

import hfprune.deployment
from hfprune.deployment import backends
from hfprune.measuring.backends import get_backend, known_backends
from hfprune.measuring.latency import measure_latencies
from hfprune.measuring.size import example_batch
from tests.support.tiny import tiny_model

assert hfprune.deployment  # importing it registers the backends


def need(target):
    pytest.importorskip("transformers.exporters")
    for module in get_backend(target).packages:
        pytest.importorskip(module)


@pytest.mark.parametrize(
    ("target", "model_type", "head"),
    [
        ("onnx", "bert", "AutoModelForSequenceClassification"),
        pytest.param("onnx", "llama", "AutoModelForCausalLM", marks=pytest.mark.slow),
        pytest.param("openvino", "bert", "AutoModelForSequenceClassification", marks=pytest.mark.slow),
        pytest.param("openvino", "llama", "AutoModelForCausalLM", marks=pytest.mark.slow),
    ],
)
def test_what_is_timed_computes_what_the_model_computes(target, model_type, head):
    need(target)
    model = tiny_model(model_type, head).eval()
    batch = example_batch(model, 2, 8)
    run = known_backends()[target].prepare(model, batch)
    found = run(batch)
    logits = torch.as_tensor(found[0])
    with torch.no_grad():
        torch.testing.assert_close(logits, model(**batch).logits, rtol=1e-4, atol=1e-4)
    # the dense model is timed beside every width, and is not written again
    assert known_backends()[target].prepare(model, batch) is run
    latency = measure_latencies([model], batch_size=2, sequence_length=8, runs=2, backend=target, threads=1)[0]
    assert 0 < latency.low_ms <= latency.median_ms


def test_a_model_that_changed_its_shapes_is_written_again(monkeypatch):
    need("onnx")
    monkeypatch.setattr(backends, "_write", lambda *_: None)
    monkeypatch.setattr(backends, "_open_onnx", lambda *_: object())
    model = tiny_model("bert")
    batch = example_batch(model, 2, 8)
    prepare = known_backends()["onnx"].prepare
    first = prepare(model, batch)
    assert prepare(model, batch) is first
    assert prepare(model, example_batch(model, 2, 9)) is not first
    second = prepare(model, batch)
    model.classifier = torch.nn.Linear(32, 5)
    assert prepare(model, batch) is not second


def test_bfloat16_in_onnx_runtime_is_refused():
    need("onnx")
    model = tiny_model("bert").to(torch.bfloat16)
    with pytest.raises(ValueError, match="does not compute in bfloat16 on the CPU.*--backend openvino"):
        measure_latencies([model], batch_size=1, sequence_length=8, runs=1, backend="onnx")


def test_a_model_elsewhere_is_refused():
    need("onnx")
    model = tiny_model("bert").to("meta")
    with pytest.raises(ValueError, match="runs on the CPU here, and the model is on meta"):
        known_backends()["onnx"].prepare(model, {})


def test_without_deployment_the_message_says_what_to_import(monkeypatch):
    from hfprune.measuring import backends as registry

    monkeypatch.setattr(registry, "_BACKENDS", {"eager": registry._BACKENDS["eager"]})
    with pytest.raises(ValueError, match="got 'openvino'. `import hfprune.deployment` adds onnx and openvino"):
        get_backend("openvino")
