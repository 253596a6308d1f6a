"""Weight, activation and residual scorers, and hybrids: formulas against slow truth, and what each needs."""

import pytest
import torch

from hfprune.scoring import activation_scorers, get_scorer, register_scorer, score, scorers_in
from hfprune.structure import find_blocks, frozen, gate_gradients, gated
from tests.support.cells import every_type
from tests.support.tiny import SIZES, has_head, tiny_batch, tiny_model


def batches(model_type="bert", *, count=3):
    made = [tiny_batch(model_type, seed=i) for i in range(count)]
    for i, batch in enumerate(made):
        batch["labels"] = torch.randint(2, (4,), generator=torch.Generator().manual_seed(i))
    return made


def bert_unit(model, block, unit):
    """The weights of one unit of a BERT block, from the modules themselves."""
    layer = model.bert.encoder.layer[int(block.name.split(".")[2])]
    rows = slice(unit * block.width, (unit + 1) * block.width)
    if block.kind == "ffn":
        producers, consumer = [layer.intermediate.dense], layer.output.dense
    else:
        attention = layer.attention.self
        producers, consumer = [attention.query, attention.key, attention.value], layer.attention.output.dense
    own = [part for p in producers for part in (p.weight[rows].flatten(), p.bias[rows])]
    return torch.cat([*own, consumer.weight[:, rows].flatten()])


def test_weight_formulas():
    model = tiny_model("bert")
    for block in find_blocks(model):
        units = [bert_unit(model, block, unit) for unit in range(block.units)]
        expected = {
            "l1": [w.abs().sum() for w in units],
            "l2": [w.square().sum().sqrt() for w in units],
            "sparsity_measure": [w.square().sum() / w.abs().sum() for w in units],
        }
        for name, values in expected.items():
            torch.testing.assert_close(score(model, batches(), scorer=name)[block.name], torch.stack(values).detach())


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_columns_times_their_gradient_equal_the_gate_gradient(model_type):
    """Σ over a unit's consumer columns of W · ∂L/∂W is Σ_n γ[n, u]."""
    model = tiny_model(model_type, "AutoModelForSequenceClassification")
    batch = batches(model_type, count=1)[0]
    blocks = find_blocks(model)
    with frozen(model):
        gammas = gate_gradients(model, blocks, batch, lambda m, b: 4 * m(**b).loss)
    (4 * model(**batch).loss).backward()
    for block in blocks:
        weight = model.base_model.get_submodule(block.consumer).weight
        product = weight * weight.grad
        columns = product.sum(1) if model_type == "gpt2" else product.sum(0)
        by_unit = columns.reshape(block.units, -1).sum(1)
        torch.testing.assert_close(by_unit.detach(), gammas[block.name].sum(0), rtol=1e-3, atol=1e-5)


def test_weight_gradient_formulas():
    model, data = tiny_model("bert"), batches()
    names = [block.name for block in find_blocks(model)]
    gradient, sensitivity = (dict.fromkeys(names, 0.0) for _ in range(2))
    for batch in data:
        model.zero_grad()
        model(**batch).loss.backward()
        twin = tiny_model("bert")
        for own, other in zip(twin.parameters(), model.parameters(), strict=True):
            own.data = torch.zeros_like(own) if other.grad is None else other.grad.clone()
        for block in find_blocks(model):
            pairs = [(bert_unit(model, block, u), bert_unit(twin, block, u)) for u in range(block.units)]
            gradient[block.name] += torch.stack([g.abs().sum() for _, g in pairs]).detach() / len(data)
            sensitivity[block.name] += torch.stack([(w * g).sum().abs() for w, g in pairs]).detach() / len(data)
    model.zero_grad()
    for name, expected in (("gradient", gradient), ("weight_sensitivity", sensitivity)):
        found = score(model, data, scorer=name)
        for block in names:
            torch.testing.assert_close(found[block], expected[block], rtol=1e-3, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_gradients_of_an_ongoing_training_are_neither_used_nor_lost():
    model, data = tiny_model("bert"), batches()
    clean = score(model, data, scorer="gradient")
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    again = score(model, data, scorer="gradient")
    assert all(torch.equal(clean[name], again[name]) for name in clean)
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())


def test_movement_leaves_the_model_alone_and_starts_as_the_signed_sensitivity():
    model, data = tiny_model("bert"), batches(count=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    moved = score(model, data, scorer="movement")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    sensitivity = score(model, data, scorer="weight_sensitivity")
    for block in moved:
        torch.testing.assert_close(moved[block].abs(), sensitivity[block])


def inputs_of_consumers(model, data):
    """Inputs of every consumer without padding, `(tokens, columns)`, and by sample."""
    found = {block.name: [] for block in find_blocks(model)}
    for batch in data:
        handles, mask = [], batch["attention_mask"].bool()
        for block in find_blocks(model):

            def keep(_, args, name=block.name, mask=mask):
                x = args[0].detach().reshape(*mask.shape, -1)
                found[name].extend(row[m] for row, m in zip(x, mask, strict=True))

            handles.append(model.base_model.get_submodule(block.consumer).register_forward_pre_hook(keep))
        with torch.no_grad():
            model(**batch)
        for handle in handles:
            handle.remove()
    return found


def test_activation_formulas():
    model, data = tiny_model("bert"), batches()
    found = {name: score(model, data, scorer=name) for name in ("apoz", "activation_norm", "fluctuation", "obs")}
    for block in find_blocks(model):
        samples = inputs_of_consumers(model, data)[block.name]
        x = torch.cat(samples)
        weight = model.base_model.get_submodule(block.consumer).weight.detach()
        by_unit = [slice(u * block.width, (u + 1) * block.width) for u in range(block.units)]
        kept = 1 - torch.stack([(x[:, c].abs() < 1e-2).float().mean() for c in by_unit])
        torch.testing.assert_close(found["apoz"][block.name], kept, rtol=1e-4, atol=1e-5)
        norm = torch.stack([torch.stack([s[:, c].norm() for s in samples]).mean() for c in by_unit])
        torch.testing.assert_close(found["activation_norm"][block.name], norm)
        columns = x.var(0, correction=0) * weight.square().sum(0)
        value = torch.stack([columns[c].mean() for c in by_unit])
        standard = (value - value.mean()) / value.std(correction=0)
        torch.testing.assert_close(found["fluctuation"][block.name], standard, rtol=1e-3, atol=1e-3)
        gram = x.double().T @ x.double()
        gram += 1e-2 * gram.diagonal().mean() * torch.eye(len(gram))
        errors = []
        for c in by_unit:  # the least squares problem itself: remove the unit, re-solve the rest
            rest = torch.ones(len(gram), dtype=torch.bool)
            rest[c] = False
            inner = gram[c, c] - gram[c][:, rest] @ torch.linalg.solve(gram[rest][:, rest], gram[rest][:, c])
            errors.append((weight[:, c].double() @ inner * weight[:, c].double()).sum())
        torch.testing.assert_close(found["obs"][block.name], torch.stack(errors).float(), rtol=1e-3, atol=1e-4)


def test_a_duplicate_costs_nothing_after_repair():
    """The residual of a neuron that has a twin is nearly zero, and so is its score; its plain fisher is not."""
    model, data = tiny_model("bert"), batches(count=8)
    layer = model.bert.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.weight[1] = layer.intermediate.dense.weight[0]
        layer.intermediate.dense.bias[1] = layer.intermediate.dense.bias[0]
    name = "encoder.layer.0.ffn"
    ratio = score(model, data, scorer="residual_fisher")[name] / score(model, data, scorer="fisher")[name]
    assert ratio[:2].max() < 0.3 * ratio[2:].median()


@pytest.mark.parametrize(
    "name", ["l2", "weight_sensitivity", "movement", "activation_norm", "obs", "residual_fisher", "fluctuation"]
)
@pytest.mark.parametrize(
    "model_type", every_type(t for t in SIZES if has_head(t, "AutoModelForSequenceClassification"))
)
def test_every_family_scores_every_architecture(model_type, name):
    model = tiny_model(model_type)
    scores = score(model, batches(model_type), scorer=name)
    assert {name: value.shape for name, value in scores.items()} == {b.name: (b.units,) for b in find_blocks(model)}


@pytest.mark.parametrize("name", ["l1", "activation_norm", "obs", "fisher", "weight_sensitivity"])
def test_a_dead_head_scores_lowest(name):
    model = tiny_model("bert")
    attention = model.bert.encoder.layer[1].attention
    with torch.no_grad():
        for projection in (attention.self.query, attention.self.key, attention.self.value):
            projection.weight[8:16] = 0
            projection.bias[8:16] = 0
        attention.output.dense.weight[:, 8:16] = 0
    assert int(score(model, batches(), scorer=name)["encoder.layer.1.attention"].argmin()) == 1


def test_the_entry_says_what_a_scorer_needs():
    assert get_scorer("l2").needs == set()
    assert get_scorer("apoz").needs == {"activations"}
    assert get_scorer("kl_fisher").needs == {"gradients"}
    assert get_scorer("fisher").needs == {"gradients", "labels"}
    assert get_scorer("residual_kl_fisher").needs == {"gradients", "activations"}


def test_hybrids_prune_what_either_or_both_would():
    model, data = tiny_model("bert"), batches()
    blocks = find_blocks(model)

    def lowest(name, count):
        scores = score(model, data, scorer=name)
        density = torch.cat([scores[b.name].double() / b.unit_params for b in blocks])
        return set(density.argsort(stable=True)[:count].tolist())

    first, second = lowest("l2", 30), lowest("fisher", 30)
    assert lowest("hybrid(l2, fisher, any)", len(first | second)) == first | second
    assert lowest("hybrid(l2, fisher, rule=all)", len(first & second)) == first & second
    assert score(model, data, scorer="hybrid(l2, fisher, rank)").scorer == "hybrid(l2, fisher, rank)"
    assert [entry.name for entry in scorers_in("hybrid(l2, fisher, any)")[0]] == ["l2", "fisher"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hybrid(l2, fisher, or)", "the rule of a hybrid is one of any, all, rank, got 'or'"),
        ("hybrid(l2, best, any)", "unknown scorer 'best'"),
        ("hybrid(l2)", "such as hybrid"),
    ],
)
def test_bad_hybrids_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        score(tiny_model("bert"), batches(), scorer=name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reads": "gates"}, "needs labels='data', 'model' or 'logits'"),
        ({"reads": "weights", "labels": "data"}, "takes no labels, got 'data'"),
        ({"reads": "tea"}, "reads must be one of activations"),
    ],
)
def test_bad_registrations_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        register_scorer("mine", **arguments)
    with pytest.raises(ValueError, match="made of letters"):
        register_scorer("my scorer", labels="data")


def test_gating_a_scored_model_still_works():
    model, data = tiny_model("bert"), batches(count=1)
    before = model(**data[0]).logits
    score(model, data, scorer="residual_fisher")
    with gated(model, find_blocks(model), {}):
        assert torch.equal(model(**data[0]).logits, before)


@pytest.mark.parametrize("scorer", ["residual_logit_fisher", "obs"])
def test_blocks_in_groups_score_alike(scorer, monkeypatch):
    """As for models whose Gram matrices do not fit in memory together."""
    model, data = tiny_model("bert"), batches()
    together = score(model, data, scorer=scorer)
    monkeypatch.setattr(activation_scorers, "GRAM_BYTES", 1)
    assert [len(group) for group in activation_scorers.groups_of(find_blocks(model))] == [1, 1, 1, 1]
    apart = score(model, data, scorer=scorer)
    for name, values in together.items():
        torch.testing.assert_close(apart[name], values)
