"""One model in several threads: whoever hangs hooks on it, or reads its state meanwhile, has it alone for that time."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

from torch import nn

#: The lock of each model that was used. A lock may be taken again by the thread that has it.
_locks: "WeakKeyDictionary[nn.Module, threading.RLock]" = WeakKeyDictionary()
_guard = threading.Lock()


@contextmanager
def alone_with(*models: nn.Module) -> Iterator[None]:
    """Keep other threads from the same models, inside the `with`.

    Scoring and repair hang hooks on a model and switch its mode; a second thread that used the model meanwhile would
    run with these hooks, and give wrong scores and weights. It waits instead.

    Args:
        *models: All models that the work needs. To name them together keeps two threads that need the same models from
            waiting for each other.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        # in one order for all threads
        for model in sorted(set(models), key=id):
            stack.enter_context(_lock_of(model))
        yield


def _lock_of(model: nn.Module) -> "threading.RLock":
    """The lock of a model, made when it is first asked for."""
    with _guard:
        if model not in _locks:
            _locks[model] = threading.RLock()
        return _locks[model]
