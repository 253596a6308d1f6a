"""Backends: how a model is run where its latency is measured. One function each."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from hfprune.structure.arguments import TEXT, TEXTS, checked
from hfprune.structure.batches import Batch
from hfprune.structure.registration import check_same

#: Runs a model on a batch. What it returns is not looked at.
Run = Callable[[Batch], object]
#: From a model in evaluation mode, and a batch of the shape that it will get, to what runs it.
BackendFunction = Callable[[nn.Module, Batch], Run]


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A registered backend.

    Attributes:
        name: The name in `measure_latency_table(backend=...)`.
        prepare: From a model and a batch of the shape that it will get to a function that runs it on such a batch.
        packages: Packages whose versions change the times, beside torch and transformers.
    """

    name: str
    prepare: BackendFunction
    packages: tuple[str, ...] = ()


_BACKENDS: dict[str, Backend] = {}
#: Backends that `hfprune.deployment.backends` registers when it is imported.
_OF_DEPLOYMENT = ("onnx", "openvino")
#: The names of all backends, a live view.
BACKEND_NAMES = _BACKENDS.keys()


@checked(name=TEXT, packages=TEXTS)
def register_backend(name: str, *, packages: tuple[str, ...] = ()) -> Callable[[BackendFunction], BackendFunction]:
    """Add a backend: decorate a function from a model and an example batch to a function that runs the model.

    Args:
        name: The name in `measure_latency_table(backend=...)`.
        packages: Packages whose versions change the times, beside torch and transformers.

    Returns:
        The decorator.

    Raises:
        ValueError: Another function has that name. A function of the same module and name is replaced.

    Examples:
        >>> import torch
        >>> from hfprune.measuring.backends import register_backend
        >>> @register_backend("traced")
        ... def traced(model, batch):
        ...     frozen = torch.jit.trace(model, example_kwarg_inputs=batch, strict=False)
        ...     return lambda batch: frozen(**batch)
    """

    def add(function: BackendFunction) -> BackendFunction:
        if name in _BACKENDS:
            check_same("a backend", name, function, _BACKENDS[name].prepare)
        _BACKENDS[name] = Backend(name=name, prepare=function, packages=tuple(packages))
        return function

    return add


def known_backends() -> Mapping[str, Backend]:
    """All backends that are registered now, by name.

    Returns:
        A copy; changing it registers nothing.

    Examples:
        >>> from hfprune.measuring.backends import known_backends
        >>> list(known_backends())[:2]
        ['eager', 'compile']
    """
    return dict(_BACKENDS)


def get_backend(name: str) -> Backend:
    """Look up a backend.

    Args:
        name: Its name.

    Returns:
        The backend.

    Raises:
        ValueError: No backend has that name; the message lists the known ones.
    """
    if name not in list(_BACKENDS):
        hint = ""
        if name in _OF_DEPLOYMENT:
            hint = " `import hfprune.deployment` adds onnx and openvino."
        raise ValueError(f"backend must be one of {', '.join(_BACKENDS)}, got {name!r}.{hint}")
    return _BACKENDS[name]


@register_backend("eager")
def eager(model: nn.Module, batch: Batch) -> Run:  # noqa: ARG001 (the same for all shapes)
    """The model as PyTorch runs it, one operation after the other."""
    return lambda batch: model(**batch)


@register_backend("compile")
def compiled(model: nn.Module, batch: Batch) -> Run:
    """The model in `torch.compile`, for one shape of batches."""
    # A compiled function belongs to the class of the model, and PyTorch keeps eight versions of it. Many models of one
    # class are timed here, each of which needs a version of its own.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 1000)
    torch._dynamo.config.accumulated_recompile_limit = max(torch._dynamo.config.accumulated_recompile_limit, 1000)
    run = torch.compile(model, dynamic=False)
    # compiled at the first call, which is no part of what is timed
    run(**batch)
    return lambda batch: run(**batch)
