"""Models as files of other runtimes: the targets, and the proof that a file computes what the model computes."""

from hfprune.deployment.targets import (
    Generator,
    OpenOptions,
    Runner,
    Target,
    Tolerance,
    WriteOptions,
    get_target,
    register_target,
    targets,
)

__all__ = [
    "Generator",
    "OpenOptions",
    "Runner",
    "Target",
    "Tolerance",
    "WriteOptions",
    "get_target",
    "register_target",
    "targets",
]
