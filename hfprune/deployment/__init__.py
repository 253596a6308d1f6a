"""Models as files of other runtimes: the targets, and the proof that a file computes what the model computes."""

from hfprune.deployment import backends, by_quantizers, by_transformers, gguf, litert
from hfprune.deployment.methods import Method, get_method, known_methods, register_method
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
    "Method",
    "OpenOptions",
    "Runner",
    "Target",
    "Text",
    "Tolerance",
    "WriteOptions",
    "backends",
    "by_quantizers",
    "by_transformers",
    "get_method",
    "get_target",
    "gguf",
    "known_methods",
    "known_targets",
    "litert",
    "register_method",
    "register_target",
]
