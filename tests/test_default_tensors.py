"""No tensor of hfprune depends on PyTorch's default dtype and default device."""

import ast
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import DataCollatorWithPadding, LlamaConfig, LlamaForCausalLM

import hfprune
from hfprune.measuring.latency import measure_latency
from hfprune.measuring.size import kv_cache_bytes, measure_size
from hfprune.scoring import calibration_batches
from hfprune.structure import proven_entry
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer
from tests.support.training import arguments, pruned_pair, trainer_of

#: Functions of torch that make a tensor of the default dtype on the default device, unless they are told otherwise.
MAKERS = frozenset(
    [
        "arange",
        "as_tensor",
        "asarray",
        "empty",
        "eye",
        "full",
        "linspace",
        "logspace",
        "normal",
        "ones",
        "rand",
        "randint",
        "randn",
        "randperm",
        "scalar_tensor",
        "tensor",
        "zeros",
    ]
)
ROOT = Path(hfprune.__file__).parent


def untold(source: str) -> list[str]:
    """The calls in a source text that make a tensor without saying its dtype or its device."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
        if not of_torch or node.func.attr not in MAKERS:
            continue
        told = {keyword.arg for keyword in node.keywords}
        if not told >= {"dtype", "device"}:
            found.append(f"line {node.lineno}: torch.{node.func.attr}")
    return found


def test_the_search_finds_calls_without_dtype_or_device():
    assert untold("import torch\nx = torch.zeros(3, dtype=torch.float32)") == ["line 2: torch.zeros"]
    assert untold("import torch\nx = torch.zeros(3, device='cpu')") == ["line 2: torch.zeros"]
    assert untold("import torch\nx = torch.zeros(3, device='cpu', dtype=torch.float32)") == []


def test_every_new_tensor_says_its_dtype_and_device():
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        calls = untold(path.read_text(encoding="utf-8"))
        if calls:
            found[str(path.relative_to(ROOT))] = calls
    assert found == {}


@contextmanager
def defaults(dtype=torch.float32, device=None):
    """Other defaults of PyTorch, inside the `with`. The device `meta` stands for any that the model is not on."""
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


#: What a user may have set. Models and data are made before.
DEFAULTS = {
    "bfloat16": {"dtype": torch.bfloat16},
    "float64": {"dtype": torch.float64},
    "foreign device": {"device": "meta"},
}
other_defaults = pytest.mark.parametrize("settings", DEFAULTS.values(), ids=DEFAULTS.keys())


def llama():
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()


def same_tensors(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert value.dtype == b[name].dtype, name
        assert value.device == b[name].device, name
        assert torch.equal(value, b[name]), name


@other_defaults
def test_prune_gives_the_same_model(settings):
    ids = torch.randint(3, 99, (16, 12), generator=torch.Generator().manual_seed(0))
    config = hfprune.PruningConfig(sequence_length=12, calibration_samples=16)
    expected = hfprune.prune(llama(), [{"input_ids": ids}], config)
    dense = llama()
    with defaults(**settings):
        small = hfprune.prune(dense, [{"input_ids": ids}], config)
    assert small.pruning_plan == expected.pruning_plan
    same_tensors(small.state_dict(), expected.state_dict())
    same_tensors(dict(small.named_buffers()), dict(expected.named_buffers()))


#: One scorer of each statistic, and each kind of draw.
SCORERS = ("taylor", "kl_fisher", "residual_logit_fisher", "l2", "random", "movement", "fluctuation", "obs")


@other_defaults
@pytest.mark.parametrize(
    "model_type", ["bert", "gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("t5", "vit"))]
)
def test_scores_are_the_same(model_type, settings):
    head = "AutoModelForImageClassification" if model_type == "vit" else "AutoModelForSequenceClassification"
    model = tiny_model(model_type, head, num_labels=3)
    batches = [{**tiny_batch(model_type), "labels": torch.tensor([0, 1, 2, 0])}]
    expected = {name: hfprune.score(model, batches, scorer=name) for name in (*SCORERS, "hybrid(l2, taylor, rank)")}
    with defaults(**settings):
        for name, scores in expected.items():
            same_tensors(dict(hfprune.score(model, batches, scorer=name)), dict(scores))


@other_defaults
def test_a_data_set_is_drawn_and_collated_alike(settings):
    model = tiny_model("bert", num_labels=3)
    data = tiny_tokenized(16).with_format("torch")
    options = {"samples": 12, "batch_size": 4, "collator": DataCollatorWithPadding(tiny_tokenizer())}
    expected = calibration_batches(data, model, **options)
    with defaults(**settings):
        drawn = calibration_batches(data, model, **options)
    for batch, other in zip(drawn, expected, strict=True):
        same_tensors(batch, other)


@other_defaults
def test_repair_step_by_step(settings):
    dense = tiny_model("bert", num_labels=3, dtype="float32")
    batches = [tiny_batch()]
    config = hfprune.PruningConfig(sequence_length=7)

    def repaired():
        small = hfprune.apply_plan(dense, hfprune.plan(dense, hfprune.score(dense, batches), config))
        hfprune.reconstruct(small, dense, batches)
        return small

    expected = repaired()
    with defaults(**settings):
        small = repaired()
    same_tensors(small.state_dict(), expected.state_dict())


@other_defaults
def test_a_type_without_an_entry_is_proven(settings, monkeypatch):
    model = tiny_model("bert")
    expected = proven_entry(model, "bert")
    monkeypatch.setattr("hfprune.structure.discovery.discover._PROVEN", {})
    with defaults(**settings):
        assert proven_entry(model, "bert") == expected


@other_defaults
def test_measures_are_the_same(settings):
    model = tiny_model("llama", "AutoModelForCausalLM")
    expected = measure_size(model, sequence_length=8)
    cache = kv_cache_bytes(model)
    with defaults(**settings):
        assert measure_size(model, sequence_length=8) == expected
        assert kv_cache_bytes(model) == cache
        measure_latency(model, batch_size=1, sequence_length=8, runs=1, warmup=0)


@other_defaults
def test_a_training_step_gives_the_same_gradients(settings, tmp_path):
    batch = {**tiny_batch(), "labels": torch.tensor([0, 1, 0, 1])}

    def gradients(**present):
        small, dense = pruned_pair(num_labels=3)
        options = {"logits_weight": 0.5, "hidden_states_weight": 0.5}
        trainer = trainer_of(small, dense, arguments(tmp_path, disable_dropout=True, **options))
        trainer.current_gradient_accumulation_steps = 1
        small.eval()
        small.training = True
        with defaults(**present):
            loss = trainer.compute_loss(small, batch, num_items_in_batch=torch.tensor(8, device="cpu"))
            loss.backward()
        return {name: parameter.grad for name, parameter in small.named_parameters() if parameter.grad is not None}

    expected = gradients()
    assert expected
    same_tensors(gradients(**settings), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float64, marks=pytest.mark.slow)])
def test_training_ends_in_the_same_weights(dtype, tmp_path):
    def trained(**present):
        small, dense = pruned_pair(num_labels=3)
        trainer = trainer_of(small, dense, arguments(tmp_path, max_steps=2))
        with defaults(**present):
            trainer.train()
        return trainer.model

    same_tensors(trained(dtype=dtype).state_dict(), trained().state_dict())


@other_defaults
def test_saved_under_other_defaults_and_loaded_again(settings, tmp_path):
    small, _ = pruned_pair(num_labels=3)
    with defaults(**settings):
        hfprune.save(small, tmp_path / "small")
    # transformers itself refuses to load with the default device meta
    with defaults(dtype=settings.get("dtype", torch.float32)):
        loaded = hfprune.load(tmp_path / "small")
    same_tensors(loaded.state_dict(), small.state_dict())
