"""Run in a test: a repair in the folder that is its argument, killed when the third layer's turn comes."""

import os
import signal
import sys

import torch

from hfprune.reconstruction import reconstruct as reconstruction
from hfprune.structure import find_blocks
from hfprune.structure.surgery import keep_units
from tests.support.tiny import tiny_batch, tiny_model

#: With four layers each, in one stack and in two.
CHANGES = {"llama": {"num_hidden_layers": 4}, "t5": {}, "albert": {}, "bert": {}}


def repair_case(model_type):
    """A model with half of its units, the dense model, and batches: the same in every process."""
    dense = tiny_model(model_type, **CHANGES[model_type])
    blocks = find_blocks(dense)
    small = keep_units(dense, {b.name: range(0, b.units, 2) for b in blocks}, blocks=blocks)
    return small, dense, [tiny_batch(model_type, samples=8, length=12, seed=seed) for seed in range(5)]


def main() -> None:
    torch.set_num_threads(1)
    real, calls = reconstruction._ModelRepair._layer, []

    def third_is_the_last(*args: object) -> object:
        calls.append(args)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    reconstruction._ModelRepair._layer = third_is_the_last
    small, dense, batches = repair_case(sys.argv[1])
    reconstruction.reconstruct(small, dense, batches, folder=sys.argv[2])


if __name__ == "__main__":
    main()
