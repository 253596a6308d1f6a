"""Read JSON that comes from strangers."""

import json
from collections.abc import Callable
from typing import Any

#: The deepest that values may stand within each other. The files of a checkpoint need about ten levels.
DEEPEST = 64


def read_json(
    text: str,
    *,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    parse_constant: Callable[[str], Any] | None = None,
) -> Any:
    """The values of a JSON text, unless they stand so deep within each other that a later step could not follow.

    Args:
        text: JSON.
        object_pairs_hook: As for `json.loads`.
        parse_constant: As for `json.loads`.

    Returns:
        Dictionaries, lists, texts, numbers, truth values and None.

    Raises:
        ValueError: The text is no JSON, or is nested more than 64 levels deep.

    >>> read_json('{"a": [1, 2]}')
    {'a': [1, 2]}
    """
    too_deep = f"values stand more than {DEEPEST} levels deep within each other"
    try:
        content = json.loads(text, object_pairs_hook=object_pairs_hook, parse_constant=parse_constant)
    except RecursionError as error:
        raise ValueError(too_deep) from error
    level = [content]
    for _ in range(DEEPEST):
        level = _inner(level)
        if not level:
            return content
    raise ValueError(too_deep)


def _inner(values: list[Any]) -> list[Any]:
    """All that stands directly within dictionaries and lists."""
    inner: list[Any] = []
    for value in values:
        if isinstance(value, dict):
            inner.extend(value.values())
        elif isinstance(value, list):
            inner.extend(value)
    return inner
