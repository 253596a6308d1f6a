"""Several processes share one calibration: each works on its batches, and sums are added up over all of them.

Every process must hold the same list of batches and make the same calls, as under `torchrun` or `accelerate launch`.
Without a process group, all functions here do what one process alone needs.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hfprune.errors import HfpruneError

Item = TypeVar("Item")


def _in_process_group() -> bool:
    return dist.is_available() and dist.is_initialized()


def is_main_process() -> bool:
    """Whether this is the process that writes files: the first of several, or the only one.

    >>> is_main_process()
    True
    """
    return process_rank() == 0


def count_processes() -> int:
    """How many processes work together.

    >>> count_processes()
    1
    """
    if not _in_process_group():
        return 1
    return dist.get_world_size()


def process_rank() -> int:
    """The number of this process, from 0.

    >>> process_rank()
    0
    """
    if not _in_process_group():
        return 0
    return dist.get_rank()


def share_of(items: Sequence[Item]) -> list[tuple[int, Item]]:
    """The items that this process works on, each with its index in the whole list.

    Of n processes, each takes every n-th item; a process alone takes all.

    >>> share_of(["a", "b"])
    [(0, 'a'), (1, 'b')]
    """
    numbered = list(enumerate(items))
    return numbered[process_rank() :: count_processes()]


def add_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor, in place, by its sum over all processes. A process alone changes nothing.

    >>> total = torch.tensor([1.0, 2.0])
    >>> add_over_processes([total])
    >>> total.tolist()
    [1.0, 2.0]
    """
    if not _in_process_group():
        return
    for tensor in tensors:
        sent = tensor.to(_transfer_device(tensor.device))
        dist.all_reduce(sent)
        # `to` returns the tensor itself where it is on the right device already: then the sum is in place.
        if sent is not tensor:
            tensor.copy_(sent)


def from_main_process(tensors: Iterable[Tensor]) -> None:
    """Put the main process's values into the tensors of all processes, in place. A process alone changes nothing.

    Sums over processes are the same to the last bit in all of them. Values computed from the sums may differ, where the
    processes run on different hardware.
    """
    if not _in_process_group():
        return
    for tensor in tensors:
        # Backends send contiguous memory only; a view of a larger tensor is copied for it.
        sent = tensor.contiguous().to(_transfer_device(tensor.device))
        dist.broadcast(sent, src=0)
        if sent is not tensor:
            tensor.copy_(sent)


@contextmanager
def failing_together() -> Iterator[None]:
    """Raise an error inside the `with` in all processes; the others would wait for the failed one for ever.

    Nothing inside the `with` may wait for other processes.

    Raises:
        HfpruneError: Another process had an error.
    """
    # How many processes failed, once it is added up. This one counts as failed until the body has ended.
    failures = torch.ones(1, dtype=torch.float32, device="cpu")
    try:
        yield
        failures.zero_()
    finally:
        failed_here = bool(failures)
        # In `finally`, because the processes without an error wait for this sum.
        add_over_processes([failures])
        if failures and not failed_here:
            raise HfpruneError("another process could not go on, so this one ends too. Its own message says why.")


def _transfer_device(device: torch.device) -> torch.device:
    """The device that a tensor must be on to be sent: its own, if the group has a backend for that kind of device.

    NCCL, for one, sends no tensor from the CPU.
    """
    # Such as "cpu:gloo,cuda:nccl".
    backends = dist.get_backend_config().split(",")
    device_types = [backend.partition(":")[0] for backend in backends]
    if device.type in device_types:
        return device
    return torch.device(device_types[0])


def leave_process_group() -> None:
    """Leave the group of processes, if this process is in one.

    A group that still exists when a process exits has threads that can abort the process. The launcher would then end
    the other processes too, in the middle of their work.
    """
    if _in_process_group():
        dist.destroy_process_group()
