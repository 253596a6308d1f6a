"""A plugin for pytest in a checkout of peft: pruned folders can be loaded by Auto classes, and nothing asks the Hub."""

import hfprune  # noqa: F401 (registers pruned types with the Auto classes)


class _AllCached(dict):
    """How often each model was loaded: as if each had been loaded before."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> int:
        return 1


def pytest_collection_modifyitems() -> None:
    """Keep peft's tests offline.

    They go online for the first access to a model, whatever `HF_HUB_OFFLINE` says, and then wait for a Hub that cannot
    be reached.
    """
    from tests import testing_utils

    testing_utils._HUB_MODEL_ACCESSES = _AllCached()
