"""Models as files of other runtimes: the targets, and the proof that a file computes what the model computes."""

from hfprune.deployment import by_transformers, gguf, litert
from hfprune.deployment.proof import Difference, Text
from hfprune.deployment.results import Export
from hfprune.deployment.targets import (
    Generator,
    OpenOptions,
    Runner,
    Target,
    Tolerance,
    WriteOptions,
    get_target,
    known_targets,
    register_target,
)

__all__ = [
    "Difference",
    "Export",
    "Generator",
    "OpenOptions",
    "Runner",
    "Target",
    "Text",
    "Tolerance",
    "WriteOptions",
    "by_transformers",
    "get_target",
    "gguf",
    "known_targets",
    "litert",
    "register_target",
]
