"""Distillation of language models: the likeliest tokens, kept once; logits of many words; checkpointing."""

import copy

import pytest
import torch
import torch.nn.functional as functional
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling

from hfprune import RecoveryArguments, RecoveryTrainer, add_teacher_logits
from hfprune.jobs.tasks.causal_text import labelled
from hfprune.recovery.losses import logits as distillation
from hfprune.recovery.losses.logits import logits_loss, top_k_logits_loss
from hfprune.recovery.teacher import TEACHER_COLUMNS
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_tokenizer

KL = {"temperature": 2.0, "problem": "single_label_classification"}


def logits(seed, words=12):
    return 3 * torch.randn(2, 5, words, generator=torch.Generator().manual_seed(seed))


def windows(rows=12, length=8):
    ids = torch.randint(4, 60, (rows, length), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"input_ids": ids.tolist()})


def arguments(folder, **changes):
    values = {"hidden_states_weight": 0.0, "temperature": 1.0, "task_weight": 0.0, "logits_weight": 1.0, **changes}
    options = {"use_cpu": True, "report_to": "none", "dataloader_pin_memory": False, "disable_tqdm": True}
    return RecoveryArguments(output_dir=str(folder), **options, **values)


def model_of(seed=0, kind="llama"):
    return tiny_model(kind, "AutoModelForCausalLM", seed=seed)


def kept(teacher_logits, k, temperature):
    p = (teacher_logits / temperature).softmax(-1)
    top, ids = p.topk(k, -1)
    return ids, torch.cat([top, 1 - top.sum(-1, keepdim=True)], -1).log()


def test_the_formula_and_its_bound():
    student, teacher, mask = logits(0), logits(1), torch.ones(2, 5)
    mask[0, :3] = 0
    whole = logits_loss(student, teacher, mask=mask, **KL)
    ids, log_p = kept(teacher, 3, 2.0)
    q = (student / 2).softmax(-1)
    found = []
    for sample, token in torch.nonzero(mask):
        here = [float(q[sample, token, i]) for i in ids[sample, token]]
        pairs = zip(log_p[sample, token].exp().tolist(), [*here, 1 - sum(here)], strict=True)
        found.append(4 * sum(p * torch.log(torch.tensor(p / b)).item() for p, b in pairs))
    loss = top_k_logits_loss(student, ids, log_p, temperature=2.0, mask=mask)
    assert float(loss) == pytest.approx(sum(found) / len(found), rel=1e-4)
    bounds = [float(top_k_logits_loss(student, *kept(teacher, k, 2.0), temperature=2.0, mask=mask)) for k in (1, 3, 11)]
    assert sorted(bounds) == bounds
    assert bounds[1] < float(whole)
    assert bounds[2] == pytest.approx(float(whole), rel=1e-4)  # the rest is one token
    assert float(top_k_logits_loss(teacher, ids, log_p, temperature=2.0)) == pytest.approx(0, abs=1e-5)
    message = r"tokens \(2, 4, 3\) and log-probabilities \(2, 5, 4\) do not fit"
    with pytest.raises(ValueError, match=message):
        top_k_logits_loss(student, ids[:, 1:], log_p, temperature=2.0)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("numbers", [2**24, 36])  # all at once, and three tokens
def test_the_divergence_and_its_gradient_are_those_of_autograd(monkeypatch, numbers, masked):
    monkeypatch.setattr(distillation, "DIVERGENCE_NUMBERS", numbers)
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]]).bool() if masked else torch.ones(2, 5, dtype=torch.bool)
    student, teacher = logits(0).requires_grad_(), logits(1)
    p, q = (of[mask].div(KL["temperature"]).log_softmax(-1) for of in (student, teacher))
    expected = KL["temperature"] ** 2 * functional.kl_div(p, q, log_target=True, reduction="batchmean")
    loss = logits_loss(student, teacher, mask=mask if masked else None, **KL)
    torch.testing.assert_close(loss, expected)
    assert loss > 0
    found, wanted = (torch.autograd.grad(3 * value, student)[0] for value in (loss, expected))
    torch.testing.assert_close(found, wanted)


def test_the_divergence_of_no_token_is_0():
    student = logits(0).requires_grad_()
    loss = logits_loss(student, logits(1), mask=torch.zeros(2, 5), **KL)
    loss.backward()
    assert (loss.item(), student.grad.abs().sum().item()) == (0, 0)


def test_what_is_kept_is_what_the_teacher_says():
    teacher = model_of()
    data = add_teacher_logits(windows(), teacher, batch_size=5, top_k=4, temperature=1.5)
    assert set(data.column_names) == {"input_ids", *TEACHER_COLUMNS[1:]}
    with torch.no_grad():
        said = teacher(torch.tensor(data["input_ids"][:])).logits
    ids, log_p = kept(said, 4, 1.5)
    assert torch.equal(torch.tensor(data[TEACHER_COLUMNS[1]][:]), ids)
    assert torch.allclose(torch.tensor(data[TEACHER_COLUMNS[2]][:]), log_p, atol=1e-4)
    assert set(data[TEACHER_COLUMNS[3]]) == {1.5}


class Trainer(RecoveryTrainer):
    """Keeps the gradients of the last step."""

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        self.seen = loss, {name: p.grad.clone() for name, p in named if p.grad is not None}
        return loss


def step(folder, student, teacher, **changes):
    args = arguments(folder, max_steps=1, per_device_train_batch_size=12, learning_rate=1e-9, **changes)
    trainer = Trainer(student, args, teacher=teacher, train_dataset=windows(), data_collator=labelled)
    trainer.train()
    return trainer.seen


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_nearly_all_tokens_kept_is_the_live_teacher(tmp_path, kind):
    """63 of 64 words leave one for the rest: the same divergence."""
    live, live_gradients = step(tmp_path, model_of(1, kind), model_of(0, kind))
    once, gradients = step(tmp_path, model_of(1, kind), model_of(0, kind), teacher_top_k=63)
    few, _ = step(tmp_path, model_of(1, kind), model_of(0, kind), teacher_top_k=2)
    assert float(once) == pytest.approx(float(live), rel=1e-4)
    assert float(few) < float(live)
    for name, gradient in live_gradients.items():
        assert torch.allclose(gradient, gradients[name], atol=1e-4 * float(gradient.abs().max()) + 1e-7), name


@pytest.mark.parametrize("options", [{}, {"hidden_states_weight": 0.5, "attention_outputs_weight": 0.5}], ids=str)
def test_checkpointing_changes_no_gradient(tmp_path, options):
    name = next(n for n in ("activation_checkpointing", "gradient_checkpointing") if hasattr(RecoveryArguments, n))
    plain, again = (step(tmp_path, model_of(1), model_of(0), **options, **{name: on}) for on in (False, True))
    assert torch.equal(plain[0], again[0])
    assert plain[1].keys() == again[1].keys()
    for parameter, gradient in plain[1].items():
        assert torch.allclose(gradient, again[1][parameter], atol=1e-7), parameter


def test_evaluation_leaves_the_columns_out(tmp_path):
    data = add_teacher_logits(windows(), model_of(), top_k=4)
    trainer = RecoveryTrainer(model_of(1), arguments(tmp_path), eval_dataset=data, data_collator=labelled)
    assert trainer.evaluate()["eval_loss"] > 0


def test_what_is_refused(tmp_path):
    teacher = model_of()
    for k in (0, 64):
        with pytest.raises(ValueError, match=f"top_k must be at least 1 and below the 64 words .* got {k}"):
            add_teacher_logits(windows(), teacher, top_k=k)
    with pytest.raises(ValueError, match="gives logits of shape .*or keep the likeliest tokens with top_k"):
        add_teacher_logits(windows(), teacher)
    with pytest.raises(ValueError, match=r"gives logits of shape \(12, 2\); top_k keeps a part of"):
        add_teacher_logits(windows(), tiny_model("bert", num_labels=2), top_k=3)
    masking = DataCollatorForLanguageModeling(tiny_tokenizer(), mlm_probability=0.5)
    with pytest.raises(ValueError, match="the collator changes the texts at random"):
        add_teacher_logits(windows(), tiny_model("bert", "AutoModelForMaskedLM"), collator=masking, top_k=3)
    data = add_teacher_logits(windows(), teacher, top_k=4, temperature=2.0)
    trainer = RecoveryTrainer(copy.deepcopy(teacher), arguments(tmp_path), train_dataset=data, data_collator=labelled)
    with pytest.raises(ValueError, match="softened with a temperature of 2, and temperature=1. Set that"):
        trainer.train()
    rows = windows().to_list()
    with pytest.raises(ValueError, match="must be a datasets.Dataset, got list. Make one"):
        RecoveryTrainer(model_of(1), arguments(tmp_path, teacher_top_k=4), teacher=teacher, train_dataset=rows)
    with torch.device("meta"):
        away = type(teacher)(teacher.config)
    with pytest.raises(ValueError, match="of LlamaForCausalLM is not in memory .*without offload"):
        add_teacher_logits(windows(), away, top_k=4)
    with pytest.raises(ValueError, match="teacher_top_k must not be negative, got -1"):
        arguments(tmp_path, teacher_top_k=-1)
    with pytest.raises(ValueError, match="teacher_top_k=8 keeps .* hidden_states_weight=0.5 needs it to run"):
        arguments(tmp_path, teacher_top_k=8, hidden_states_weight=0.5)
