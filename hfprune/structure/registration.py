"""When a name in a registry is taken: by another function, but not by an earlier version of the same one."""

from collections.abc import Callable
from typing import Any


def check_same(what: str, name: str, function: Callable[..., Any], earlier: Callable[..., Any]) -> None:
    """Refuse a name that another function has.

    A function of the same module and the same qualified name is the same function, written anew: a cell of a notebook
    that registers it can be run again.

    >>> def mine(block): ...
    >>> earlier = mine
    >>> def mine(block): ...
    >>> check_same("a scorer", "mine", mine, earlier)

    Args:
        what: What is registered, with its article.
        name: The name.
        function: The function that shall have it.
        earlier: The function that has it now.

    Raises:
        ValueError: They are not the same function.
    """
    if _identity(earlier) != _identity(function):
        raise ValueError(f"{what} named {name!r} is registered already.")


def _identity(function: Callable[..., Any]) -> tuple[str, str]:
    """The module and the qualified name of a function; of a callable object, those of its class."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return named.__module__, named.__qualname__
