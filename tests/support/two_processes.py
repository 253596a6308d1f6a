"""Run alone or by torchrun in a test: scores, plan and repaired weights, from batches that the processes share."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

import hfprune
from tests.support.tiny import tiny_batch, tiny_model


def main() -> None:
    torch.set_num_threads(1)
    together = "RANK" in os.environ
    if together:
        dist.init_process_group("gloo")
    batches = [tiny_batch("bert", samples=8, length=12, seed=seed) for seed in range(int(sys.argv[2]))]
    config = hfprune.PruningConfig(sparsity=0.6, rounds=2, sequence_length=12)
    small = hfprune.prune(tiny_model("bert"), batches, config)
    if together:
        dist.destroy_process_group()  # so that each process writes its own
    small.save_pretrained(Path(sys.argv[1]) / os.environ.get("RANK", "alone"))


if __name__ == "__main__":
    main()
