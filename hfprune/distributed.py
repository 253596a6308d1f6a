"""Several processes: each works on its share of the calibration batches, and sums are added up over all of them.

Every process must hold the same list of batches and make the same calls, as under `torchrun` or `accelerate launch`.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hfprune.errors import HfpruneError

Item = TypeVar("Item")


def _started() -> bool:
    return dist.is_available() and dist.is_initialized()


def is_main_process() -> bool:
    """Whether this is the process that writes: the first of several, or the only one.

    >>> is_main_process()
    True
    """
    return not _started() or dist.get_rank() == 0


def count_processes() -> int:
    """How many processes work together.

    >>> count_processes()
    1
    """
    return dist.get_world_size() if _started() else 1


def process_rank() -> int:
    """The number of this process, from 0.

    >>> process_rank()
    0
    """
    return dist.get_rank() if _started() else 0


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
            sent = tensor.to(_sendable(tensor.device))
            dist.all_reduce(sent)
            if sent is not tensor:
                tensor.copy_(sent)


def from_main_process(tensors: Iterable[Tensor]) -> None:
    """Put the main process's values into the tensors of all processes, in place; nothing in one process.

    Sums are the same to the last bit in all processes, but what is computed from them may not be where the processes
    run on different hardware.
    """
    if _started():
        for tensor in tensors:
            sent = tensor.contiguous().to(_sendable(tensor.device))
            dist.broadcast(sent, src=0)
            if sent is not tensor:
                tensor.copy_(sent)


@contextmanager
def failing_together() -> Iterator[None]:
    """An error inside the `with` is raised in all processes, which would else wait for the one that has it.

    Nothing inside it may wait for other processes.

    Raises:
        HfpruneError: Another process had an error.
    """
    failed = torch.ones(1)
    try:
        yield
        failed.zero_()
    finally:
        own = bool(failed)
        add_over_processes([failed])
        if failed and not own:
            raise HfpruneError("another process could not go on, so this one ends too. Its own message says why.")


def _sendable(device: torch.device) -> torch.device:
    """A device, or where tensors on it must go to be sent: NCCL takes none from the CPU."""
    backends = dist.get_backend_config().split(",")  # such as "cpu:gloo,cuda:nccl"
    kinds = [backend.partition(":")[0] for backend in backends]
    return device if device.type in kinds else torch.device(kinds[0])


def leave() -> None:
    """Leave the group of processes, where this is one: threads of a group that is there at exit can abort it.

    The launcher would then end the other processes too, in the middle of what they still do.
    """
    if _started():
        dist.destroy_process_group()
