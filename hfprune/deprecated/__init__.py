"""Import paths of the last release, which still work and warn until the next one.

`from hfprune.measure import measure_size` gives what `hfprune.measuring.size` has, with a DeprecationWarning.
"""

import importlib
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

#: By old module: the modules that its names are in now.
MOVED: dict[str, tuple[str, ...]] = {
    "hfprune.cli_common": ("hfprune.cli.options",),
    "hfprune.cli_publish": ("hfprune.cli.checkpoints", "hfprune.cli.reports"),
    "hfprune.cli_sweep": ("hfprune.cli.sweep",),
    "hfprune.cli_vocabulary": ("hfprune.cli.vocabulary",),
    "hfprune.corpus": ("hfprune.data.corpus",),
    "hfprune.dequantised": ("hfprune.data.gguf",),
    "hfprune.labels": ("hfprune.data.labels",),
    "hfprune.likelihood": ("hfprune.measuring.perplexity",),
    "hfprune.measure": (
        "hfprune.measuring.size",
        "hfprune.measuring.latency",
        "hfprune.structure.anatomy",
        "hfprune.structure.examples",
    ),
    "hfprune.methods": ("hfprune.jobs.methods",),
    "hfprune.metrics": ("hfprune.measuring.metrics",),
    "hfprune.pipeline": ("hfprune.pruning.prune",),
    "hfprune.planner": ("hfprune.pruning.steps",),
    "hfprune.record": ("hfprune.publishing.record",),
    "hfprune.recovery.distillation": (
        "hfprune.recovery.losses.logits",
        "hfprune.recovery.losses.hidden_states",
        "hfprune.recovery.losses.attention_outputs",
    ),
    "hfprune.recovery.least_squares": ("hfprune.reconstruction.least_squares",),
    "hfprune.recovery.partial": ("hfprune.reconstruction.partial",),
    "hfprune.recovery.reconstruction": ("hfprune.reconstruction.reconstruct",),
    "hfprune.recovery.regularisation": ("hfprune.recovery.losses.penalties", "hfprune.recovery.token_dropout"),
    "hfprune.report": ("hfprune.publishing.report", "hfprune.recovery.arguments"),
    "hfprune.structure.entry_text": ("hfprune.structure.discovery.entry_text",),
    "hfprune.structure.kept": ("hfprune.structure.store",),
    "hfprune.structure.proposals": ("hfprune.structure.discovery.proposals",),
    "hfprune.structure.proving": ("hfprune.structure.discovery.proving",),
    "hfprune.structure.streams": ("hfprune.reconstruction.streams",),
    "hfprune.structure.twin": ("hfprune.structure.discovery.twin",),
    "hfprune.structure.vocabulary": ("hfprune.vocabulary.rows",),
    "hfprune.tasks": ("hfprune.jobs.tasks", "hfprune.jobs.settings"),
    "hfprune.tasks.arguments": ("hfprune.jobs.settings", "hfprune.jobs.tasks"),
    "hfprune.tasks.causal_text": ("hfprune.jobs.tasks.causal_text",),
    "hfprune.tasks.masked_text": ("hfprune.jobs.tasks.masked_text",),
    "hfprune.tasks.task": ("hfprune.jobs.tasks.task",),
    "hfprune.tasks.texts": ("hfprune.jobs.tasks.texts",),
    "hfprune.tasks.tokens": ("hfprune.jobs.tasks.tokens",),
    "hfprune.workflow": ("hfprune.jobs.run",),
}


class OldPaths(MetaPathFinder, Loader):
    """Finds modules of the last release: empty ones, whose names are looked up where they are now."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 (the finder's protocol)
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """A spec for an old module; None for any other."""
        if fullname not in MOVED:
            return None
        # `hfprune.tasks` had modules of its own, so it must look like a package
        is_package = any(name.startswith(f"{fullname}.") for name in MOVED)
        return ModuleSpec(fullname, self, is_package=is_package)

    def exec_module(self, module: ModuleType) -> None:
        """Let the module give the names that it had, and say where they are."""
        old = module.__name__
        homes = MOVED[old]
        # importlib's own frames do not count, so this points at the import statement
        warnings.warn(
            f"{old} is now {' and '.join(homes)}; the old path goes with the next release.",
            DeprecationWarning,
            stacklevel=2,
        )

        def look_up(name: str) -> Any:
            for home in homes:
                module_now = importlib.import_module(home)
                if hasattr(module_now, name):
                    return getattr(module_now, name)
            raise AttributeError(f"module {old!r} has no attribute {name!r}, nor have {' and '.join(homes)}")

        module.__dict__["__getattr__"] = look_up
        # what `from ... import *` gives
        public: list[str] = []
        for home in homes:
            public += [name for name in vars(importlib.import_module(home)) if not name.startswith("_")]
        module.__dict__["__all__"] = public
