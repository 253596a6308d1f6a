"""One dense model in two threads: both get what one thread gets."""

import threading

import pytest
import torch

import hfprune
from hfprune import PruningConfig
from hfprune.structure import find_blocks, frozen, gated
from hfprune.structure.sharing import alone_with
from tests.support.tiny import tiny_batch, tiny_model

ROUNDS = 3


def in_two_threads(work):
    """What the calls return: each thread calls `work` several times. An error in a thread is an error here."""
    results, errors = [], []

    def several_times():
        try:
            results.extend(work() for _ in range(ROUNDS))
        except Exception as error:  # noqa: BLE001 (raised again in the main thread)
            errors.append(error)

    threads = [threading.Thread(target=several_times) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def assert_same(results, expected):
    assert len(results) == 2 * ROUNDS
    for result in results:
        assert result.keys() == expected.keys()
        for name, tensor in result.items():
            # the main thread may add up in another order; the hooks of another thread would change leading digits
            torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-4)


@pytest.fixture(params=["bert", "llama", pytest.param("t5", marks=pytest.mark.slow)])
def dense(request):
    return tiny_model(request.param)


def batches_of(model):
    return [tiny_batch(model.config.model_type, seed=seed) for seed in range(3)]


def test_prune(dense):
    """Also the mode and what is frozen stay those of the model, though the other thread changes them for a while."""
    dense.train()
    frozen_weight = next(dense.parameters()).requires_grad_(False)
    config = PruningConfig(sequence_length=8, calibration_samples=12, schedule="one_shot")

    def work():
        small = hfprune.prune(dense, batches_of(dense), config)
        assert small.training
        free = [parameter.requires_grad for parameter in small.parameters() if parameter.numel()]
        assert not free[0]
        assert all(free[1:])
        return small.state_dict()

    assert_same(in_two_threads(work), work())
    assert dense.training
    assert not frozen_weight.requires_grad


@pytest.mark.parametrize("scorer", ["logit_fisher", "residual_logit_fisher", "sensitivity", "kl_fisher", "l2"])
def test_score(scorer):
    dense = tiny_model("bert", num_labels=3)
    batches = [{**tiny_batch(seed=seed), "labels": torch.tensor([0, 1, 2, 0])} for seed in range(3)]

    def work():
        return dict(hfprune.score(dense, batches, scorer=scorer))

    assert_same(in_two_threads(work), work())


def test_reconstruct():
    dense = tiny_model("bert", num_labels=3)
    batches = batches_of(dense)
    plan = hfprune.plan(dense, hfprune.score(dense, batches, scorer="l2"), PruningConfig(sequence_length=8))

    def work():
        small = hfprune.apply_plan(dense, plan)
        hfprune.reconstruct(small, dense, batches)
        return small.state_dict()

    assert_same(in_two_threads(work), work())


def test_gates():
    dense = tiny_model("bert", num_labels=3)
    blocks = find_blocks(dense)
    gates = {block.name: torch.zeros(block.units) for block in blocks}
    batch = tiny_batch()

    def work():
        with gated(dense, blocks, gates), torch.no_grad():
            without = dense(**batch).logits
        with frozen(dense), torch.no_grad():
            whole = dense(**batch).logits
        return {"without": without, "whole": whole}

    assert_same(in_two_threads(work), work())


def test_two_models_that_need_each_other_do_not_wait_for_ever():
    first, second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    done = []

    def work(*models):
        for _ in range(200):
            with alone_with(*models), alone_with(models[1]), alone_with(models[0]):
                pass
        done.append(models)

    threads = [threading.Thread(target=work, args=pair, daemon=True) for pair in [(first, second), (second, first)]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    assert len(done) == 2
