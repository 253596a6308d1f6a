"""Several processes: each works on its share of the calibration batches, and sums are added up over all of them.

Every process must hold the same list of batches and make the same calls, as under `torchrun` or `accelerate launch`.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import torch.distributed as dist
from torch import Tensor

Item = TypeVar("Item")


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def share_of(items: Sequence[Item]) -> list[tuple[int, Item]]:
    """This process's share of what all processes hold: every n-th item with its index; all of them in one process.

    >>> share_of(["a", "b"])
    [(0, 'a'), (1, 'b')]
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if _started() else (0, 1)
    return list(enumerate(items))[rank::processes]


def add_over_processes(tensors: Iterable[Tensor]) -> None:
    """Add up tensors over all processes, in place; nothing in one process."""
    if _started():
        for tensor in tensors:
            dist.all_reduce(tensor)


def is_main_process() -> bool:
    """Whether this is the process that writes; true in one process."""
    return not _started() or dist.get_rank() == 0
