"""Models that are compiled, made parallel, patched or subclassed: what is inside counts, and what that takes."""

import copy
import functools

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BertForSequenceClassification,
    DataCollatorWithPadding,
    LlamaConfig,
    LlamaForCausalLM,
)

import hfprune
from hfprune.measuring.latency import measure_latency
from hfprune.measuring.size import count_macs, kv_cache_bytes, measure_size
from hfprune.scoring import calibration_batches
from hfprune.structure.wrapping import argument_names, inner, label_arguments, unwrapped
from hfprune.sweeping import correctness
from tests.support.tiny import tiny_batch, tiny_model
from tests.support.tiny_data import tiny_tokenized, tiny_tokenizer
from tests.support.training import arguments, trainer_of


class Handing(BertForSequenceClassification):
    """A subclass that hands everything on."""

    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class Naming(BertForSequenceClassification):
    """A subclass that names one argument, and hands the others on."""

    def forward(self, input_ids=None, **kwargs):
        return super().forward(input_ids=input_ids, **kwargs)


def compiled(model):
    # the backend compiles nothing, so that the test is quick
    return torch.compile(model, backend="eager")


def patched(model):
    own = model.forward
    model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    return model


def decorated(model):
    own = model.forward

    @functools.wraps(own)
    def forward(*args, **kwargs):
        return own(*args, **kwargs)

    model.forward = forward
    return model


def of_class(cls):
    def change(model):
        model.__class__ = cls
        return model

    return change


#: Wrappers that change no number that the model computes.
WRAPPERS = {
    "compiled": compiled,
    "parallel": torch.nn.DataParallel,
    "both": lambda model: compiled(torch.nn.DataParallel(model)),
    "patched": patched,
    "decorated": decorated,
}
#: Subclasses, which cannot be pruned but scored and measured.
SUBCLASSES = {"handing": of_class(Handing), "naming": of_class(Naming)}


def wrappers(choice, quick=("compiled", "patched", "naming")):
    """A test for each wrapper; all but a few are slow."""
    cases = []
    for name, wrap in choice.items():
        marks = [] if name in quick else [pytest.mark.slow]
        cases.append(pytest.param(wrap, id=name, marks=marks))
    return pytest.mark.parametrize("wrap", cases)


@pytest.fixture(scope="module")
def data():
    return tiny_tokenized(16)


CONFIG = hfprune.PruningConfig(sequence_length=8, calibration_samples=8, schedule="one_shot")


def collator():
    return DataCollatorWithPadding(tiny_tokenizer())


def bert():
    return tiny_model("bert", num_labels=3)


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_a_compiled_llama():
    sizes = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    ids = torch.randint(3, 99, (16, 12))
    config = hfprune.PruningConfig(sequence_length=12, calibration_samples=16)
    expected = hfprune.prune(model, [{"input_ids": ids}], config)
    small = hfprune.prune(torch.compile(model), [{"input_ids": ids}], config)
    assert small.pruning_plan == expected.pruning_plan
    same_weights(small, expected)


@wrappers(WRAPPERS)
def test_prune_and_its_steps(wrap, data):
    dense = bert()
    wrapped = wrap(copy.deepcopy(dense))
    expected = hfprune.prune(dense, data, CONFIG, collator=collator())
    small = hfprune.prune(wrapped, data, CONFIG, collator=collator())
    assert small.pruning_plan == expected.pruning_plan
    same_weights(small, expected)

    batches = calibration_batches(data, wrapped, samples=8, collator=collator())
    assert set(batches[0]) == {"input_ids", "attention_mask", "labels"}
    scores = hfprune.score(wrapped, batches, scorer=CONFIG.scorer, teacher=wrapped)
    small = hfprune.apply_plan(wrapped, hfprune.plan(wrapped, scores, CONFIG))
    hfprune.reconstruct(wrap(small), wrapped, batches)
    same_weights(small, expected)


@wrappers(WRAPPERS | SUBCLASSES)
def test_scores_measures_and_logits(wrap, data):
    dense = bert()
    wrapped = wrap(copy.deepcopy(dense))
    batches = calibration_batches(data, dense, samples=8, collator=collator())
    same = calibration_batches(data, wrapped, samples=8, collator=collator())
    assert [set(batch) for batch in same] == [set(batch) for batch in batches]
    for scorer in ("taylor", "kl_fisher", "residual_logit_fisher"):
        expected = hfprune.score(dense, batches, scorer=scorer)
        scores = hfprune.score(wrapped, same, scorer=scorer)
        assert all(torch.equal(scores[name], expected[name]) for name in expected)
    assert measure_size(wrapped, sequence_length=8) == measure_size(dense, sequence_length=8)
    assert count_macs(wrapped, sequence_length=8) == count_macs(dense, sequence_length=8)
    assert measure_latency(wrapped, batch_size=1, sequence_length=8, runs=1, warmup=0).dtype == "float32"
    evaluate = correctness(data, collator=collator())
    assert evaluate(wrapped) == evaluate(dense)
    with_logits = hfprune.add_teacher_logits(data, wrapped, collator=collator())
    assert (
        with_logits["teacher_logits"] == hfprune.add_teacher_logits(data, dense, collator=collator())["teacher_logits"]
    )


@wrappers(WRAPPERS, quick=["both"])
def test_sweep_and_search(wrap, data):
    wrapped = wrap(bert())
    options = {"collator": collator(), "evaluate": lambda model: [True] * 500}
    curve = hfprune.sweep(wrapped, data, CONFIG, sparsities=[0.5], latency_batch_size=None, **options)
    assert [point.sparsity for point in curve.points] == [0.0, 0.5]
    small, _ = hfprune.prune_within(wrapped, data, CONFIG, max_drop=0.1, step=0.5, **options)
    assert small.pruning_plan.sparsity("macs") >= 0.5


@wrappers(WRAPPERS, quick=["patched"])
def test_recovery_and_save(wrap, data, tmp_path):
    def recovered(change):
        dense = bert()
        small = hfprune.prune(dense, data, CONFIG, collator=collator())
        trainer = trainer_of(change(small), change(dense), arguments(tmp_path / "run", max_steps=2), data)
        assert trainer.label_names == ["labels"]
        trainer.train()
        assert "eval_loss" in trainer.evaluate()
        return trainer.model

    small = recovered(wrap)
    same_weights(small, recovered(lambda model: model))
    hfprune.save(wrap(small), tmp_path / "small")
    same_weights(hfprune.load(tmp_path / "small"), small)


@pytest.mark.parametrize("cls", [Handing, Naming])
def test_the_trainer_keeps_what_a_subclass_hands_on(cls, data, tmp_path):
    model = of_class(cls)(bert())
    trainer = trainer_of(model, None, arguments(tmp_path, max_steps=1, logits_weight=0.0), data)
    assert trainer.label_names == ["labels"]
    assert set(next(iter(trainer.get_train_dataloader()))) == {"input_ids", "attention_mask", "labels"}
    trainer.train()


def test_a_recover_that_compiles(data):
    seen = []

    def recover(small, dense):
        seen.append(dense)
        small.classifier.bias.data.fill_(7.0)
        return compiled(small)

    small = hfprune.prune(bert(), data, CONFIG, collator=collator(), recover=recover)
    assert type(small).__name__ == "PrunedBertForSequenceClassification"
    assert (small.classifier.bias == 7).all()
    assert seen


def test_gradual_pruning_of_a_compiled_model(data, tmp_path):
    gradual = hfprune.GradualPruning(CONFIG, every=1)
    trainer = trainer_of(
        compiled(bert()), None, arguments(tmp_path, max_steps=4, logits_weight=0.0), data, callbacks=[gradual]
    )
    trainer.train()
    assert trainer.model.pruning_plan.sparsity("macs") >= 0.5


@pytest.fixture
def no_accelerator():
    """No `Accelerator` of another precision, neither before nor afterwards."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("no_accelerator")
def test_a_model_that_accelerate_prepared_in_bfloat16(data):
    wrapped = Accelerator(cpu=True, mixed_precision="bf16").prepare(bert())
    small = hfprune.prune(wrapped, data, CONFIG, collator=collator())
    assert small.pruning_plan.sparsity("macs") >= 0.5
    assert small.dtype == torch.float32


def test_other_models_patched():
    for model_type, head in (("t5", "AutoModelForSeq2SeqLM"), ("vit", "AutoModelForImageClassification")):
        dense = tiny_model(model_type, head)
        batches = [tiny_batch(model_type)]
        expected = hfprune.score(dense, batches)
        for wrap in (patched, compiled):
            scores = hfprune.score(wrap(copy.deepcopy(dense)), batches)
            assert all(torch.equal(scores[name], expected[name]) for name in expected)
    decoder = tiny_model("llama", "AutoModelForCausalLM")
    assert kv_cache_bytes(patched(copy.deepcopy(decoder))) == kv_cache_bytes(decoder) > 0


@pytest.mark.parametrize("wrap", [compiled, torch.nn.DataParallel, patched], ids=["compiled", "parallel", "patched"])
def test_perplexity_vocabulary_and_trade_off(wrap):
    dense = tiny_model("llama", "AutoModelForCausalLM")
    texts = [[5, 6, 7, 8, 9]] * 3
    tokenizer = tiny_tokenizer()
    assert hfprune.perplexity(wrap(copy.deepcopy(dense)), tokenizer, texts, window=4) == hfprune.perplexity(
        dense, tokenizer, texts, window=4
    )
    small, _ = hfprune.prune_vocabulary(wrap(copy.deepcopy(dense)), tokenizer, ["who is the dog"])
    expected, _ = hfprune.prune_vocabulary(dense, tokenizer, ["who is the dog"])
    same_weights(small, expected)
    scores = hfprune.score(dense, [tiny_batch("llama")])
    assert hfprune.trade_off(wrap(copy.deepcopy(dense)), scores) == hfprune.trade_off(dense, scores)


def test_what_is_inside():
    model = bert()
    assert inner(compiled(torch.nn.DataParallel(compiled(model)))) is model
    assert inner(3) == 3
    names = argument_names(model)
    assert {"input_ids", "attention_mask", "labels"} <= names
    assert not names & {"args", "kwargs", "self"}
    assert argument_names(of_class(Handing)(bert())) == names
    assert argument_names(patched(bert())) == names
    assert label_arguments(tiny_model("bert", "AutoModelForQuestionAnswering")) == ["end_positions", "start_positions"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "PreTrainedModel. is expected, got NoneType"),
        (lambda: "bert-base-uncased", "got str. Load one with"),
        (lambda: torch.nn.Linear(2, 2), "got Linear"),
        (
            lambda: get_peft_model(bert(), LoraConfig(target_modules=["query"], task_type="SEQ_CLS")),
            "PeftModel.*merge_and_unload",
        ),
        (
            lambda: get_peft_model(bert(), PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)),
            "PeftModel.*get_base_model",
        ),
    ],
    ids=["none", "name", "module", "adapters", "prompt"],
)
def test_what_is_no_model_is_refused(make, message, data, tmp_path):
    model = make()
    calls = [
        lambda: hfprune.prune(model, data),
        lambda: hfprune.score(model, [tiny_batch()]),
        lambda: hfprune.sweep(model, data, sparsities=[0.5], evaluate=len),
        lambda: hfprune.prune_within(model, data, max_drop=0.1, evaluate=len),
        lambda: hfprune.save(model, tmp_path / "small"),
        lambda: hfprune.add_teacher_logits(data, model),
        lambda: measure_size(model, sequence_length=4),
        lambda: unwrapped(model),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=message):
            call()
