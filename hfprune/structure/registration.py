"""When a name in a registry is taken: by another function, but not by an earlier version of the same one."""

from collections.abc import Callable
from types import FunctionType
from typing import Any


def check_same(what: str, name: str, function: Callable[..., Any], earlier: Callable[..., Any]) -> None:
    """Refuse a name that another function has.

    A function of the same module and the same qualified name is the same function, written anew: a cell of a notebook
    that registers it can be run again. Lambdas, functions that are made inside of others, methods and callable objects
    have no name that tells them apart, so each is a function of its own.

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
    name_of_function = _name_of(function)
    if name_of_function is None or name_of_function != _name_of(earlier):
        raise ValueError(f"{what} named {name!r} is registered already.")


def _name_of(function: Callable[..., Any]) -> tuple[str, str] | None:
    """The module and the qualified name of a function or class; None if they may be those of several functions."""
    # the methods of two objects have the same name, and so have all lambdas of a module, and what a function makes
    if not isinstance(function, FunctionType | type) or "<" in function.__qualname__:
        return None
    return function.__module__, function.__qualname__
