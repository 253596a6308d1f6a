"""Scoring with less memory: layers run again in the backward pass, logits of a few tokens at a time."""

from collections import Counter

import pytest
import torch

import hfprune
from hfprune.pruning import prune as pipeline
from hfprune.scoring import objectives, score, token_losses
from hfprune.scoring.objectives import labelled_loss, projected_loss, sampled_loss
from hfprune.structure import find_blocks, frozen, gate_gradients
from tests.support.tiny import tiny_batch, tiny_model

LM = "AutoModelForCausalLM"
#: With one after another way from hidden states to logits: tied, capped, multiplied, a loss without a type.
LANGUAGE_MODELS = ("llama", "gemma2", "cohere", "granite", "gpt2", "gpt_neox")


def same(found, expected):
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scorer", ["kl_fisher", "residual_logit_fisher", "gradient", "movement", "fluctuation"])
@pytest.mark.parametrize(("model_type", "head"), [("llama", LM), ("albert", "AutoModelForSequenceClassification")])
def test_gradient_checkpointing_gives_the_same_scores(model_type, head, scorer):
    model, batch = tiny_model(model_type, head), tiny_batch(model_type)
    batch["labels"] = batch["input_ids"] if head == LM else torch.arange(4) % 2
    expected = score(model, [batch], scorer=scorer)
    same(score(model, [batch], scorer=scorer, gradient_checkpointing=True), expected)
    assert not [module for module in model.modules() if "forward" in vars(module)]


def test_gradient_checkpointing_runs_layers_again_and_keeps_less():
    model, batches = tiny_model("llama", LM, num_hidden_layers=4), [tiny_batch("llama", samples=8, length=32)]
    runs, held = Counter(), Counter()
    for layer in model.model.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: runs.update([checkpointing]))

    def hold(value):
        held[checkpointing] += value.numel()
        return value

    for checkpointing in (False, True):
        with torch.autograd.graph.saved_tensors_hooks(hold, lambda value: value):
            score(model, batches, scorer="kl_fisher", gradient_checkpointing=checkpointing)
    assert runs == {False: 4, True: 8}
    assert held[True] < 0.2 * held[False]


def test_the_config_asks_for_it(monkeypatch):
    model, batches, asked = tiny_model("bert"), [tiny_batch()], []
    real = pipeline.score
    monkeypatch.setattr(pipeline, "score", lambda *args, **named: (asked.append(named), real(*args, **named))[1])
    for value in (False, True):
        config = hfprune.PruningConfig(rounds=1, sequence_length=7, calibration_checkpointing=value)
        hfprune.prune(model, batches, config)
    assert [named["gradient_checkpointing"] for named in asked] == [False, True]


@pytest.mark.parametrize("model_type", LANGUAGE_MODELS)
@pytest.mark.parametrize("objective", [labelled_loss, sampled_loss, projected_loss])
def test_losses_in_parts_are_those_of_the_whole(model_type, objective, monkeypatch):
    model, batch = tiny_model(model_type, LM), tiny_batch(model_type)
    batch["labels"] = batch["input_ids"].masked_fill(torch.rand(batch["input_ids"].shape) < 0.3, -100)
    named = {labelled_loss: {}, sampled_loss: {"teacher": model, "seed": 1}, projected_loss: {"seed": 1}}[objective]

    def result():
        losses = []
        with frozen(model):
            gammas = gate_gradients(
                model, find_blocks(model), batch, lambda *args: (losses.append(objective(*args, **named)), losses[0])[1]
            )
        return {**gammas, "loss": losses[0].detach()}

    parts, real = [], objectives.summed_in_parts
    monkeypatch.setattr(objectives, "summed_in_parts", lambda *args: (parts.append(args), real(*args))[1])
    if objective is not projected_loss:  # which draws part by part
        monkeypatch.setattr(token_losses, "LOGITS", 5 * 64)
    found = result()
    assert len(parts) == 1
    monkeypatch.setattr(objectives, "before_head", lambda *_: None)
    same(found, result())
    assert len(parts) == 1


def test_no_more_logits_at_a_time_than_the_limit(monkeypatch):
    model, batch = tiny_model("llama", LM), tiny_batch("llama", samples=4, length=9)
    monkeypatch.setattr(token_losses, "LOGITS", 5 * 64 + 3)
    shapes = []
    model.lm_head.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    teacher = tiny_model("llama", LM, seed=1)
    score(model, [batch], scorer="kl_fisher", teacher=teacher)
    tokens = int(batch["attention_mask"].sum())
    assert {shape[1] for shape in shapes[:-1]} == {5}
    assert sum(shape[1] for shape in shapes) == tokens


def test_a_teacher_of_its_own_draws_in_parts_as_in_one(monkeypatch):
    model, teacher, batch = (*(tiny_model("llama", LM, seed=seed) for seed in (0, 1)), tiny_batch("llama"))
    expected = score(model, [batch], scorer="kl_fisher", teacher=teacher)
    assert not torch.equal(*(s["layers.0.ffn"] for s in (expected, score(model, [batch], scorer="kl_fisher"))))
    monkeypatch.setattr(token_losses, "LOGITS", 64)
    same(score(model, [batch], scorer="kl_fisher", teacher=teacher), expected)


@torch.no_grad()
def test_a_loss_of_its_own_is_taken_as_it_is():
    model, batch = tiny_model("llama", LM), tiny_batch("llama")
    batch["labels"] = batch["input_ids"]
    assert float(labelled_loss(model, batch)) != pytest.approx(3 * 4 * 6)
    model.loss_function = lambda **_: torch.tensor(3.0)
    assert float(labelled_loss(model, batch)) == pytest.approx(3 * 4 * 6)
