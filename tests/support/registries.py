"""The registries of hfprune. What a test or an example adds to them is gone after it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# importing these modules fills the registries: what is imported later would be taken for what an example adds
from hfprune.deployment import methods as quantisers
from hfprune.deployment.targets import _TARGETS
from hfprune.jobs import methods
from hfprune.jobs.tasks import registry as tasks
from hfprune.measuring import backends
from hfprune.planning import allocation, costs
from hfprune.recovery.losses import registry as losses
from hfprune.scoring import registry as scoring
from hfprune.structure import architectures

REGISTRIES: tuple[dict[str, Any], ...] = (
    allocation._ALLOCATORS,
    architectures._FINDERS,
    architectures._TABLE,
    backends._BACKENDS,
    costs._BUDGETS,
    losses._LOSSES,
    losses._PENALTIES,
    methods._METHODS,
    scoring._SCORERS,
    scoring._STATISTICS,
    tasks._TASKS,
    quantisers._METHODS,
    _TARGETS,
)


@contextmanager
def restored() -> Iterator[None]:
    """Whatever is registered within is forgotten afterwards. The dicts stay the same objects: some have live views."""
    before = [dict(registry) for registry in REGISTRIES]
    try:
        yield
    finally:
        for registry, entries in zip(REGISTRIES, before, strict=True):
            registry.clear()
            registry.update(entries)
