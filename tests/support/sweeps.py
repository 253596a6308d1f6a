"""Sweeps of tiny models, and points of made-up ones."""

import torch

import hfprune
from hfprune import PruningConfig, Sweep
from hfprune.measuring.latency import Latency
from hfprune.measuring.size import Size
from hfprune.pruning.prune import batches_for
from hfprune.sweeping import SweepPoint
from tests.support.tiny import tiny_batch

BATCHES = [tiny_batch(seed=i) for i in range(3)]
SHORT = PruningConfig(sequence_length=8)
QUICK = {"latency_batch_size": None}


def output_sum(model):
    """A metric that no two different models share, and that needs no labels."""
    with torch.no_grad():
        return float(model(**tiny_batch(seed=9)).logits.sum())


def samples_seen(model):
    with torch.no_grad():
        return model(**tiny_batch(seed=9, samples=6)).logits[:, 0] > 0


def point(sparsity, metric=0.0, per_sample=None, latency_ms=None, **changes):
    timed = {"runs": 3, "batch_size": 2, "sequence_length": 8, "device": "cpu", "dtype": "float32", "threads": 1}
    latency = None if latency_ms is None else Latency(median_ms=latency_ms, low_ms=1, high_ms=9, **timed)
    left = round(1000 * (1 - sparsity))
    return SweepPoint(
        **{
            "sparsity": sparsity,
            "mac_sparsity": sparsity,
            "param_sparsity": sparsity,
            "metric": metric if per_sample is None else sum(per_sample) / len(per_sample),
            "per_sample": per_sample,
            "size": Size(
                params=left + 500,
                prunable_params=left,
                macs=left,
                prunable_macs=left,
                sequence_length=8,
                weight_bytes=4 * left,
            ),
            "latency": latency,
            "speedup": None if latency_ms is None else 10 / latency_ms,
            "seconds": 1.5,
            "plan_digest": "",
            **changes,
        }
    )


def curve(*measured):
    return Sweep(points=measured, settings={"metric": "accuracy", "budget": "macs", "scorer": "fisher"})


def answers(right, wrong):
    return (1.0,) * right + (0.0,) * wrong


def by_hand(model, config, sparsities):
    """The small models of a sweep: its steps, one after the other."""
    batches = batches_for(model, BATCHES, config)
    scores = hfprune.score(model, batches, scorer=config.scorer, seed=config.seed, teacher=model)
    for made in hfprune.plan(model, scores, config, sparsity=sparsities):
        small = hfprune.apply_plan(model, made)
        if config.reconstruct:
            hfprune.reconstruct(small, model, batches)
        yield small
