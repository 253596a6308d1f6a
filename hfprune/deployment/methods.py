"""The registry of methods that quantise the weights of a checkpoint in PyTorch, each with how far it may be off."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedModel

from hfprune.deployment.targets import Tolerance
from hfprune.structure.arguments import TEXT, checked
from hfprune.structure.registration import check_same

#: What the user may ask for, and why it is not there.
_NOT_HERE = MappingProxyType(
    {
        "quanto": "quanto has no weights that can be written into a checkpoint: take int8-weights",
        "hqq": "checkpoints of HQQ are not in the closed list of those that are loaded: take int8-weights",
        "int4": "torchao keeps 4-bit weights of a CPU in bytes, which saves nothing: take bitsandbytes-4bit",
        "4bit": "say whose: take bitsandbytes-4bit",
        "8bit": "say whose: take bitsandbytes-8bit, or int8",
    }
)


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to quantise the weights of a checkpoint that PyTorch loads.

    Attributes:
        name: The name in `hfprune.quantize(method=...)`, such as `int8`.
        does: What it does: a line of help.
        package: The package that computes with such weights. `hfprune[quantize]` installs it.
        config: From the names of modules that stay as they are, beside those that transformers leaves, to the
            `quantization_config` of `from_pretrained`.
        tolerance: How far the quantised model may be from the one before.
        refusal: Says why a model cannot be quantised, before any work, and names the way out; None if it can.
        left: Names of modules that stay as they are.
    """

    name: str
    does: str
    package: str
    config: Callable[[Sequence[str]], Any]
    tolerance: Tolerance
    refusal: Callable[[PreTrainedModel], str | None]
    left: Callable[[PreTrainedModel], Sequence[str]]


_METHODS: dict[str, Method] = {}


def register_method(method: Method) -> None:
    """Add a method that quantises checkpoints.

    Args:
        method: The method. What it writes must be in the closed lists of `hfprune.publishing.quantized`, as others are
            refused when they are loaded.

    Raises:
        ValueError: Another method has that name. One whose `config` is a function of the same module and name is
            replaced.

    Examples:
        >>> from dataclasses import replace
        >>> from hfprune.deployment import get_method, known_methods, register_method
        >>> register_method(replace(get_method("int8"), name="int8-of-mine"))
        >>> "int8-of-mine" in known_methods()
        True
    """
    if method.name in _METHODS:
        check_same("a method", method.name, method.config, _METHODS[method.name].config)
    _METHODS[method.name] = method


def known_methods() -> Mapping[str, Method]:
    """All methods that are registered now, by name.

    Returns:
        A copy; changing it registers nothing.

    Examples:
        >>> from hfprune.deployment import known_methods
        >>> known_methods()["int8"].package
        'torchao'
    """
    return dict(_METHODS)


@checked(name=TEXT)
def get_method(name: str) -> Method:
    """Look up a method.

    Args:
        name: Its name.

    Returns:
        The method.

    Raises:
        ValueError: No method has that name; the message lists the known ones.

    Examples:
        >>> from hfprune.deployment import get_method
        >>> get_method("bitsandbytes-4bit").package
        'bitsandbytes'
    """
    if name not in _METHODS:
        hint = _NOT_HERE.get(name.lower())
        more = f" {hint[0].upper()}{hint[1:]}." if hint else ""
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {name!r}.{more}")
    return _METHODS[name]
