"""Check the arguments of public functions before they do any work.

A function says above its definition what its arguments must be:

    @checked(samples=whole(least=1), seed=SEED)
    def draw(samples, seed=0): ...

A wrong value is then refused by one sentence, which names the argument, what was expected, and the value.
"""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from numbers import Integral, Real
from os import PathLike
from typing import Any, ParamSpec, TypeVar, get_args

import numpy as np
import torch

from hfprune.structure.specs import AttentionUnit

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What an argument must be.

    Attributes:
        what: In words that follow "must be".
        holds: Whether a value is that.
        hint: What to do about a wrong value, as a sentence; empty if that is plain.
    """

    what: str
    holds: Callable[[Any], bool]
    hint: str = ""

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is something else.

        Args:
            name: The name of the argument.
            value: The value that was given.

        Raises:
            ValueError: It is not what is expected.
        """
        if self.holds(value):
            return
        hint = f" {self.hint}" if self.hint else ""
        raise ValueError(f"{name} must be {self.what}, got {_shown(value)}.{hint}")


def checked(**expected: Expected) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Check arguments whenever a function is called: decorate the function.

    Args:
        **expected: By name of an argument, what it must be. An argument that is left out is not checked.

    Returns:
        The decorator.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        signature = inspect.signature(function)
        unknown = sorted(set(expected) - set(signature.parameters))
        assert not unknown, f"{function.__name__} has no arguments {unknown}"

        @wraps(function)
        def call(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            bound = _bound(signature, args, kwargs)
            if bound is None:
                # refused by Python, whose sentence names the function
                return function(*args, **kwargs)
            given = bound.arguments
            for name, expectation in expected.items():
                if name in given:
                    expectation.check(name, given[name])
                    given[name] = plain(given[name])
            return function(*bound.args, **bound.kwargs)

        return call

    return decorate


def _bound(
    signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> inspect.BoundArguments | None:
    """The arguments of a call by name; None for a call that lacks one, or has one too many or of an unknown name."""
    try:
        return signature.bind(*args, **kwargs)
    except TypeError:
        return None


def plain(value: Any) -> Any:
    """A truth value of NumPy as one of Python, which JSON can hold and `is True` finds; any other value as it is.

    Args:
        value: A value that was checked.

    Returns:
        The value.

    >>> plain(np.bool_(True)), plain(3)
    (True, 3)
    """
    return bool(value) if isinstance(value, np.bool_) else value


def _shown(value: Any) -> str:
    """A value as an error shows it: not too long of it, and of a long one its type."""
    text = repr(value)
    if len(text) <= 100:
        return text
    return f"{text[:80]}... (a {type(value).__name__})"


def whole(*, least: int | None = None, most: int | None = None) -> Expected:
    """A whole number, and no truth value.

    >>> whole(least=1).check("rounds", 0)
    Traceback (most recent call last):
    ValueError: rounds must be a whole number of at least 1, got 0.
    """

    def holds(value: Any) -> bool:
        # bool is a subclass of int, but `True` samples are a mistake
        if isinstance(value, bool) or not isinstance(value, Integral):
            return False
        if least is not None and int(value) < least:
            return False
        return most is None or int(value) <= most

    what = "a whole number"
    if most is not None:
        what += f" from {least} to {most}"
    elif least is not None:
        what += f" of at least {least}"
    return Expected(what=what, holds=holds)


def finite(
    *, above: float | None = None, least: float | None = None, below: float | None = None, most: float | None = None
) -> Expected:
    """A finite number within limits.

    >>> finite(above=0, below=1).check("confidence", float("nan"))
    Traceback (most recent call last):
    ValueError: confidence must be a finite number above 0 and below 1, got nan.
    """

    def holds(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
            return False
        if above is not None and value <= above:
            return False
        if least is not None and value < least:
            return False
        if most is not None and float(value) > most:
            return False
        return below is None or value < below

    limits = []
    if above is not None:
        limits.append(f"above {above:g}")
    if least is not None:
        limits.append(f"of at least {least:g}")
    if below is not None:
        limits.append(f"below {below:g}")
    if most is not None:
        limits.append(f"of at most {most:g}")
    return Expected(what=" ".join(["a finite number", " and ".join(limits)]).strip(), holds=holds)


def choice(names: Iterable[str]) -> Expected:
    """One of some names.

    >>> choice(["group", "query"]).check("attention_unit", "querry")
    Traceback (most recent call last):
    ValueError: attention_unit must be 'group' or 'query', got 'querry'.
    """
    known = list(names)
    return Expected(
        what=" or ".join(repr(name) for name in known), holds=lambda value: isinstance(value, str) and value in known
    )


def instance(what: str, *types: type, hint: str = "") -> Expected:
    """An object of one of some types, which `what` describes in words."""
    return Expected(what=what, holds=lambda value: isinstance(value, types), hint=hint)


def optional(expected: Expected) -> Expected:
    """None, or what is expected."""
    return Expected(
        what=expected.what,
        holds=lambda value: value is None or expected.holds(value),
        hint=expected.hint or "None leaves it out.",
    )


def _are_texts(values: Any) -> bool:
    """Whether values are several texts, and not one, whose letters would be taken for them."""
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        return False
    # what can be read only once is not read here
    if not isinstance(values, (list, tuple, set, frozenset)):
        return True
    return all(isinstance(value, str) for value in values)


def _is_device(value: Any) -> bool:
    """Whether torch takes a value for the name of a device."""
    try:
        torch.device(value)
    except (RuntimeError, TypeError):
        return False
    return True


#: A truth value, of Python or NumPy.
FLAG = instance("True or False", bool, np.bool_)
#: The seed of random draws, as torch and NumPy take it.
SEED = whole(least=0, most=2**32 - 1)
#: A text that is not empty.
TEXT = Expected(what="a text that is not empty", holds=lambda value: isinstance(value, str) and bool(value))
#: Several texts.
TEXTS = Expected(what="a list of texts", holds=_are_texts, hint="Put a single text into a list.")
#: Several numbers.
NUMBERS = Expected(
    what="a list of finite numbers",
    holds=lambda value: isinstance(value, (list, tuple)) and all(finite().holds(item) for item in value),
)
#: A file or folder.
PATH = instance("a path", str, PathLike)
#: Where tensors can be.
DEVICE = Expected(what="a device of torch, such as 'cpu' or 'cuda:0'", holds=_is_device)
#: Something that can be called.
FUNCTION = Expected(what="a function", holds=callable)
#: What units of attention are.
ATTENTION_UNIT = choice(get_args(AttentionUnit))
