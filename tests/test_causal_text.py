"""Causal language modelling: windows, what is measured, and the whole story with what can be turned on."""

import math
from pathlib import Path

import pytest
import torch

import hfprune
from hfprune import RecoveryArguments, RecoveryTrainer, perplexity
from hfprune.jobs.tasks import CausalTextArguments, ModelArguments, causal_language_modelling
from hfprune.publishing.verification import verify
from tests.support.processes import run_python
from tests.support.runs import causal_home, run_here, save, settings, write
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_texts

#: Its name before transformers 5.23.
CHECKPOINTING = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(RecoveryArguments, n))
SCRIPT = Path(__file__).parent.parent / "scripts" / "run_language_modeling.py"
DISTILLED = {"hidden_states_weight": 0, "temperature": 1, "metrics": ["perplexity", "loss"]}


@pytest.fixture
def home(tmp_path):
    return causal_home(tmp_path)


def load(home, **changes):
    named = ModelArguments(model_name_or_path=str(home / "dense"))
    source = {} if changes.get("self_generated") else {"train_file": str(home / "data.txt")}
    return causal_language_modelling(named, CausalTextArguments(**{"max_length": 16, **source, **changes}), seed=0)


def story(home, **changes):
    values = {"train_file": str(home / "data.txt"), "sparsity": 0.5, "num_train_epochs": 3, **DISTILLED, **changes}
    return run_here(causal_language_modelling, CausalTextArguments, home, **values)


def test_windows_have_their_own_tokens_for_labels(home):
    task = load(home)
    assert {len(ids) for part in task.data.values() for ids in part["input_ids"]} == {16}
    assert load(home).data["test"][:] == task.data["test"][:]
    rows = [task.data["train"][i] for i in range(3)]
    batch = task.collator(rows)
    assert torch.equal(batch["labels"], batch["input_ids"])
    assert batch["labels"].shape == (3, 16)


@pytest.mark.parametrize("batch_size", [1, 8])
def test_the_perplexity_is_that_of_hfprune_perplexity(home, tmp_path, batch_size):
    task, model = load(home), tiny_model("llama", "AutoModelForCausalLM")
    options = {"use_cpu": True, "report_to": "none", "dataloader_pin_memory": False, "disable_tqdm": True}
    args = RecoveryArguments(output_dir=str(tmp_path / "out"), per_device_eval_batch_size=batch_size, **options)
    found = task.test(task.trainer(model, args))
    expected = perplexity(model, task.tokenizer, task.data["test"]["input_ids"][:], window=16)
    assert found["loss"] == pytest.approx(expected.nll, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(expected.nll), rel=1e-5)


def test_recovered_on_plain_text(home):
    outcome = story(home, dense_epochs=4, dense_learning_rate=0.005)
    assert outcome.results["dense_perplexity"] < 20  # 16 words, 64 tokens
    assert outcome.results["recovered_perplexity"] < outcome.results["pruned_perplexity"]
    assert verify(outcome.folder) == []
    assert "pipeline_tag: text-generation" in (outcome.folder / "README.md").read_text()


def test_recovered_on_text_of_the_dense_model_by_what_it_said_once(home):
    outcome = story(home, train_file=None, self_generated=64, teacher_top_k=8, max_length=32, task_weight=0)
    assert outcome.results["recovered_perplexity"] < outcome.results["pruned_perplexity"]
    recovery = hfprune.load(outcome.folder).pruning_record.recovery
    assert recovery["teacher_top_k"] == 8
    assert recovery["steps"] == 3 * 7


@pytest.mark.parametrize(
    "options",
    [
        {CHECKPOINTING: True},
        {"bf16": True},
        {"lora_rank": 4, CHECKPOINTING: True, "learning_rate": 0.01},
        {"lora_rank": 4, "bf16": True, "teacher_top_k": 8, "learning_rate": 0.01},
        {"hidden_states_weight": 0.5, "attention_outputs_weight": 0.5, CHECKPOINTING: True},
    ],
    ids=str,
)
def test_what_can_be_turned_on(home, options):
    outcome = story(home, **{"num_train_epochs": 1, **options})
    assert outcome.results["recovered_perplexity"] < outcome.results["pruned_perplexity"]


def test_a_model_in_bfloat16(home):
    save(tiny_model("llama", "AutoModelForCausalLM").bfloat16(), home / "dense")
    chosen = {"scorer": "residual_logit_fisher", "schedule": "geometric", "rounds": 2, "reconstruct": True}
    outcome = story(home, num_train_epochs=1, **chosen)
    model = hfprune.load(outcome.folder)
    assert model.dtype == torch.bfloat16
    assert math.isfinite(outcome.results["recovered_perplexity"])


def test_a_teacher_with_more_rows_than_tokens(home):
    """Some families pad the embeddings of their larger models further. What only one of the two has is no token."""
    save(tiny_model("llama", "AutoModelForCausalLM", vocab_size=72, seed=1), home / "large")
    outcome = story(home, teacher_model=str(home / "large"), num_train_epochs=0, max_steps=2, task_weight=0)
    assert hfprune.load(outcome.folder).pruning_record.recovery["steps"] == 2
    with pytest.raises(
        ValueError, match=r"the teacher has logits of 63 words, the model of 64.* model.resize_token_embeddings\(63\)"
    ):
        RecoveryTrainer(
            tiny_model("llama", "AutoModelForCausalLM"),
            RecoveryArguments(output_dir=str(home), use_cpu=True, report_to="none"),
            teacher=tiny_model("llama", "AutoModelForCausalLM", vocab_size=63),
        )


def test_generated_text_is_measured_on_the_users(home):
    task = load(home, self_generated=20, test_file=str(home / "data.txt"))
    assert len(task.data["train"]) + len(task.data["validation"]) == 20
    assert task.data["test"]["input_ids"][0] == load(home).tokenizer((home / "data.txt").read_text())["input_ids"][:16]


def test_files_have_the_column_that_was_named(home):
    (home / "t.csv").write_text("body\n" + "\n".join(tiny_texts(40)["text"]) + "\n")
    task = load(home, self_generated=20, test_file=str(home / "t.csv"), text_column="body")
    assert len(task.data["test"]) > 3


def test_what_is_refused(home):
    with pytest.raises(ValueError, match="unknown metric 'bleu' of causal language modelling; these are: perplexity"):
        load(home, metrics=["bleu"])
    with pytest.raises(ValueError, match="self_generated=4 has the dense model write .* Drop one of the two"):
        load(home, self_generated=4, train_file="x.txt")
    with pytest.raises(ValueError, match="max_length must be at least 2, got 1"):
        load(home, max_length=1)
    with pytest.raises(ValueError, match="max_length=200 is more than the model's 160 positions"):
        story(home, max_length=200)
    assert not (home / "out" / "pruned").exists()
    with pytest.raises(ValueError, match="too little text in 'text' for one row of 50000"):
        load(home, max_length=50000)


@pytest.mark.script
@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_learn_from_what_one_wrote(home, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(home / "cache"))
    values = settings(home, self_generated=48, teacher_top_k=4, num_train_epochs=1, eval_strategy="epoch", **DISTILLED)
    values.pop("train_file")
    run_python(SCRIPT, write(home, values), processes=2)
    record = hfprune.load(home / "out" / "model").pruning_record
    assert record.recovery["steps"] == 3  # 38 rows, 2 processes of 8
    assert set(record.metrics["recovered"]) == {"perplexity", "loss"}
    assert verify(home / "out" / "model") == []
