"""Scorers: iron tests of truth, calibration data, and what is refused."""

import copy
from functools import partial

import pytest
import torch

from hfprune.errors import CalibrationError, NonFiniteScoreError
from hfprune.scoring import Scores, known_scorers, register_scorer, registry, score
from hfprune.scoring.objectives import labelled_loss, projected_loss, sampled_loss
from hfprune.structure import find_blocks, frozen, gate_gradients, gated
from hfprune.structure.batches import token_mask
from tests.support.tiny import tiny_batch, tiny_model


def batches(model_type="bert", *, count=3, labels=2):
    made = [tiny_batch(model_type, seed=i) for i in range(count)]
    for i, batch in enumerate(made):
        batch["labels"] = torch.randint(labels, (4,), generator=torch.Generator().manual_seed(i))
    return made


def gammas(model, data):
    """Per-sample gate gradients, one sample at a time: the slow truth."""
    rows = {block.name: [] for block in find_blocks(model)}
    for batch in data:
        for i in range(4):
            one = {k: v[i : i + 1] for k, v in batch.items()}
            with frozen(model):
                found = gate_gradients(model, find_blocks(model), one, lambda m, b: m(**b).loss)
            for name, gamma in found.items():
                rows[name].append(gamma)
    return {name: torch.cat(parts) for name, parts in rows.items()}


def test_formulas_against_a_loop_of_single_samples():
    model, data = tiny_model("bert"), batches()
    truth = gammas(model, data)
    for name, gamma in truth.items():
        absolute = gamma.abs().mean(0)
        expected = {
            "fisher": gamma.square().mean(0),
            "taylor": gamma.mean(0).square(),
            "sensitivity": absolute / absolute.norm(),
        }
        for scorer, value in expected.items():
            torch.testing.assert_close(score(model, data, scorer=scorer)[name], value, rtol=1e-3, atol=1e-8)


def test_kl_fisher_is_the_hessian_of_the_divergence():
    """In expectation over the drawn labels, on a 2-layer model in double precision."""
    model = tiny_model("bert", num_labels=3, attn_implementation="eager").double()
    batch, blocks = tiny_batch(samples=2), find_blocks(model)
    block = blocks[0]
    with torch.no_grad():
        p = model(**batch).logits.softmax(-1)

    def divergence(gate):
        with gated(model, blocks, {block.name: gate}):
            log_q = model(**batch).logits.log_softmax(-1)
        return (p * (p.log() - log_q)).sum()

    with frozen(model):
        hessian = torch.autograd.functional.hessian(divergence, torch.ones(block.units, dtype=torch.double))
        # the exact expectation: every label, weighed by its probability
        expected = torch.zeros(block.units, dtype=torch.double)
        for label in range(3):
            target = torch.full((2,), label)

            def loss(model, batch, target=target):
                return torch.nn.functional.cross_entropy(model(**batch).logits, target, reduction="sum")

            gamma = gate_gradients(model, [block], batch, loss)[block.name]
            expected += (p[:, label, None] * gamma.square()).sum(0)
        torch.testing.assert_close(expected, hessian.diagonal(), rtol=1e-4, atol=1e-8)
        # and the drawn labels approach it
        drawn = torch.zeros(block.units)
        for seed in range(400):
            gamma = gate_gradients(
                model, [block], batch, lambda m, b, seed=seed: sampled_loss(m, b, teacher=m, seed=seed)
            )[block.name]
            drawn += gamma.square().sum(0) / 400
    torch.testing.assert_close(drawn.double(), hessian.diagonal(), rtol=0.25, atol=1e-5)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification"])
def test_logit_fisher_is_the_hessian_of_the_distance_between_logits(problem):
    model = tiny_model("bert", num_labels=3, attn_implementation="eager", problem_type=problem).double()
    batch, blocks = tiny_batch(samples=2), find_blocks(model)
    block = blocks[0]

    def logits():
        z = model(**batch).logits
        return z - z.mean(-1, keepdim=True) if problem == "single_label_classification" else z

    with torch.no_grad():
        dense = logits()

    def distance(gate):
        with gated(model, blocks, {block.name: gate}):
            return 0.5 * (logits() - dense).square().sum()

    with frozen(model):
        hessian = torch.autograd.functional.hessian(distance, torch.ones(block.units, dtype=torch.double))
        drawn = torch.zeros(block.units)
        for seed in range(400):
            loss = partial(projected_loss, seed=seed)
            drawn += gate_gradients(model, [block], batch, loss)[block.name].square().sum(0) / 400
    torch.testing.assert_close(drawn.double(), hessian.diagonal(), rtol=0.25, atol=1e-5)


@pytest.mark.parametrize("head", ["TokenClassification", "QuestionAnswering"])
def test_logits_of_padding_count_for_nothing(head):
    model = tiny_model("bert", f"AutoModelFor{head}").double()
    name = "logits" if head == "TokenClassification" else "start_logits"
    batch = tiny_batch()
    output = model(**batch)
    output[name].retain_grad()
    torch.manual_seed(0)
    model.forward = lambda **_: output
    projected_loss(model, batch, seed=0).backward()
    gradient = output[name].grad
    padding = batch["attention_mask"] == 0
    assert padding.any()
    assert not gradient[padding].any()
    assert gradient[~padding].all()
    assert gradient.sum(-1).abs().max() < 1e-5


@pytest.mark.parametrize("target", [5, 7])  # 7: as long as the source
@pytest.mark.parametrize("loss", [projected_loss, sampled_loss])
def test_an_encoder_decoder_counts_the_tokens_that_its_decoder_predicts(target, loss):
    model = tiny_model("bart", "AutoModelForSeq2SeqLM").double()
    batch = tiny_batch("bart", target=target)
    batch["labels"] = batch.pop("decoder_input_ids")
    batch["labels"][0, -2:] = -100
    output = model(**batch)
    output.logits.retain_grad()
    model.forward = lambda **_: output
    options = {"teacher": model} if loss is sampled_loss else {}
    loss(model, batch, seed=0, **options).backward()
    padding = batch["labels"] == -100
    assert not output.logits.grad[padding].any()
    assert output.logits.grad[~padding].all()


def test_a_decoder_that_reads_what_the_encoder_reads_has_its_padding():
    batch = tiny_batch("bart")
    del batch["decoder_input_ids"]
    assert torch.equal(token_mask(batch, "decoder_attention_mask"), batch["attention_mask"].bool())
    assert token_mask({**batch, "decoder_input_ids": batch["input_ids"]}, "decoder_attention_mask") is None


def test_half_precision_is_added_up_in_float32():
    model = tiny_model("bert")
    scores = [
        score(made, batches(), scorer=scorer)
        for scorer in ("weight_sensitivity", "movement")
        for made in (model.float(), copy.deepcopy(model).half())
    ]
    for whole, half in (scores[:2], scores[2:]):
        for name in whole:
            assert spearman(whole[name], half[name]) > 0.9


def spearman(a, b):
    return torch.corrcoef(torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double())[0, 1]


def test_a_question_of_a_multiple_choice_is_one_loss():
    model = tiny_model("bert", "AutoModelForMultipleChoice")
    batch = {**{k: v.reshape(2, 2, -1) for k, v in tiny_batch().items()}, "labels": torch.tensor([0, 1])}
    torch.testing.assert_close(labelled_loss(model, batch), 2 * model(**batch).loss)


def test_a_unit_nobody_reads_scores_zero():
    model = tiny_model("bert")
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():
        layer.attention.output.dense.weight[:, 8:16] = 0  # head 1
        layer.output.dense.weight[:, 5] = 0  # neuron 5
    for scorer in ("sensitivity", "taylor", "fisher", "kl_fisher", "logit_fisher"):
        scores = score(model, batches(), scorer=scorer)
        assert scores["encoder.layer.1.attention"][1] == 0
        assert scores["encoder.layer.1.ffn"][5] == 0
        assert (scores["encoder.layer.1.attention"] > 0).sum() == 3


def test_permuting_heads_permutes_their_scores():
    model, data = tiny_model("bert"), batches()
    before = score(model, data, scorer="fisher")["encoder.layer.0.attention"]
    order = [2, 0, 3, 1]
    rows = torch.cat([torch.arange(h * 8, h * 8 + 8) for h in order])
    attention = model.bert.encoder.layer[0].attention
    with torch.no_grad():
        for projection in (attention.self.query, attention.self.key, attention.self.value):
            projection.weight.copy_(projection.weight[rows])
            projection.bias.copy_(projection.bias[rows])
        attention.output.dense.weight.copy_(attention.output.dense.weight[:, rows])
    after = score(model, data, scorer="fisher")["encoder.layer.0.attention"]
    torch.testing.assert_close(after, before[order], rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("scorer", ["kl_fisher", "logit_fisher"])
@pytest.mark.parametrize("head", ["MaskedLM", "TokenClassification", "QuestionAnswering", "SequenceClassification"])
def test_no_labels_are_needed(head, scorer):
    model = tiny_model("bert", f"AutoModelFor{head}")
    scores = score(model, [tiny_batch(seed=i) for i in range(2)], scorer=scorer)
    assert all((value >= 0).all() and value.sum() > 0 for value in scores.values())
    again = score(model, [tiny_batch(seed=i) for i in range(2)], scorer=scorer)
    assert all(torch.equal(scores[name], again[name]) for name in scores)
    other = score(model, [tiny_batch(seed=i) for i in range(2)], scorer=scorer, seed=1)
    assert any(not torch.equal(scores[name], other[name]) for name in scores)


@pytest.mark.parametrize("problem", ["regression", "multi_label_classification"])
def test_other_problem_types(problem):
    model = tiny_model("bert", num_labels=1 if problem == "regression" else 3, problem_type=problem)
    data = [tiny_batch()]
    assert score(model, data, scorer="kl_fisher")["encoder.layer.0.ffn"].sum() > 0
    data[0]["labels"] = torch.rand(4, 1 if problem == "regression" else 3).round()
    assert score(model, data, scorer="fisher")["encoder.layer.0.ffn"].sum() > 0


def test_causal_language_model_counts_predicted_tokens():
    """The model's mean loss times the number of tokens it averages is the sum that a sequence's γ belongs to."""
    model = tiny_model("llama", "AutoModelForCausalLM")
    data = [tiny_batch("llama", seed=i) for i in range(2)]
    for batch in data:
        batch["labels"] = batch["input_ids"].clone()
        batch["labels"][0, :3] = -100
    expected = {block.name: torch.zeros(block.units) for block in find_blocks(model)}
    for batch in data:
        for i in range(4):

            def loss(model, one):
                logits = model(input_ids=one["input_ids"], attention_mask=one["attention_mask"]).logits[:, :-1]
                return torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), one["labels"][:, 1:].flatten(), reduction="sum"
                )

            with frozen(model):
                one = {k: v[i : i + 1] for k, v in batch.items()}
                for name, gamma in gate_gradients(model, find_blocks(model), one, loss).items():
                    expected[name] += gamma[0].square() / 8
    found = score(model, data, scorer="fisher")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-7)


def test_bfloat16_ranks_like_float32():
    model, data = tiny_model("bert"), batches(count=6)
    exact = score(model, data, scorer="fisher")
    rough = score(model.bfloat16(), data, scorer="fisher")
    for name in exact:
        assert rough[name].dtype == torch.float32
        top = set(exact[name].topk(len(exact[name]) // 2).indices.tolist())
        same = set(rough[name].topk(len(rough[name]) // 2).indices.tolist())
        assert len(top & same) >= 0.7 * len(top)


def test_random_is_seeded_and_needs_no_pass():
    model = tiny_model("bert")

    def forward(input_ids):
        raise AssertionError("a pass was made")

    model.forward = forward
    first, again, other = (
        score(model, [{"input_ids": torch.ones(2, 3)}], scorer="random", seed=seed) for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["encoder.layer.0.ffn"], other["encoder.layer.0.ffn"])


def test_nan_scores_name_block_unit_and_batch():
    model, data = tiny_model("bert"), batches()
    with torch.no_grad():
        model.bert.encoder.layer[1].output.dense.weight[0, 7] = float("nan")
    before = {name: p.clone() for name, p in model.named_parameters()}
    with pytest.raises(
        NonFiniteScoreError, match=r"scores of block 'encoder.layer.\d.\w+' are not finite, at unit .*batch 0"
    ):
        score(model, data, scorer="fisher")
    assert all(torch.equal(p, before[n]) or p.isnan().any() for n, p in model.named_parameters())


def test_unknown_scorer_lists_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown scorer 'best'. Known: activation_norm, apoz, fisher, .*, and hybrids"
    ):
        score(tiny_model("bert"), batches(), scorer="best")


def test_labels_are_asked_for_by_name():
    with pytest.raises(CalibrationError, match="needs labels, and the batch has only input_ids, attention_mask"):
        score(tiny_model("bert"), [tiny_batch()], scorer="fisher")


def test_a_model_without_a_head_has_nothing_to_score_by():
    with pytest.raises(CalibrationError, match="BertModel has none. Load the model with a head"):
        score(tiny_model("bert", "AutoModel"), [tiny_batch()])


def test_users_register_their_own(monkeypatch):
    monkeypatch.setattr(registry, "_SCORERS", dict(registry._SCORERS))

    @register_scorer("variance", labels="data")
    def variance(statistics):
        return statistics.mean_square - statistics.mean.square()

    assert known_scorers()["variance"].labels == "data"
    assert score(tiny_model("bert"), batches(), scorer="variance").scorer == "variance"
    with pytest.raises(ValueError, match="'variance' is registered already"):
        register_scorer("variance", labels="data")(lambda statistics: statistics.mean)


def test_scores_survive_a_file(tmp_path):
    scores = score(tiny_model("bert"), batches(), scorer="kl_fisher")
    scores.save(tmp_path / "scores.safetensors")
    again = Scores.load(tmp_path / "scores.safetensors")
    assert (again.scorer, again.samples) == ("kl_fisher", 12)
    assert all(torch.equal(scores[name], again[name]) for name in scores)
