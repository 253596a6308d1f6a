"""Run by torchrun in a test: scores, plan and repaired weights, from batches that the processes share."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

import hfprune
from tests.support.tiny import tiny_batch, tiny_model


def pruned(count: int) -> PreTrainedModel:
    """The same small model in every process, from so many batches."""
    batches = [tiny_batch("bert", samples=8, length=12, seed=seed) for seed in range(count)]
    config = hfprune.PruningConfig(sparsity=0.6, rounds=2, sequence_length=12)
    return hfprune.prune(tiny_model("bert"), batches, config)


def main() -> None:
    torch.set_num_threads(1)
    folder, *counts = sys.argv[1:]
    dist.init_process_group("gloo")
    models = {count: pruned(int(count)) for count in counts}
    dist.destroy_process_group()  # so that each process writes its own
    for count, model in models.items():
        model.save_pretrained(Path(folder) / count / os.environ["RANK"])


if __name__ == "__main__":
    main()
