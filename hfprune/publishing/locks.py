"""Locks of folders, so that two saves do not exchange the files of one place at the same time.

The system gives a lock back when its process ends, however it ends.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hfprune.errors import CheckpointError

if sys.platform != "win32":
    import fcntl

#: How long another process may take to exchange files that are all written already.
_PATIENCE_SECONDS = 60.0


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """Let no other save exchange the folder at a place."""
    while True:
        lock = lock_patiently(place)
        try:
            is_the_same = lock is None or os.path.samestat(os.fstat(lock), place.stat())
            if is_the_same:
                yield
                return
        finally:
            unlock(lock)


def lock_patiently(folder: Path) -> int | None:
    """Lock a folder that another save may have locked for the moment."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return lock_folder(folder)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"another process has had {folder} locked for {_PATIENCE_SECONDS:.0f} seconds. Wait until it ends."
                ) from error
            time.sleep(0.05)


def lock_folder(folder: Path) -> int | None:
    """Lock a folder until the process ends or `unlock` is called.

    Args:
        folder: The folder.

    Returns:
        What `unlock` takes; None where the system or the file system has no locks.

    Raises:
        BlockingIOError: It is locked.
    """
    if sys.platform == "win32":
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def unlock(lock: int | None) -> None:
    """Give a lock back."""
    if lock is not None:
        os.close(lock)
