"""A griffe extension: the doctests of docstrings become code blocks of the reference.

Outside of an `Examples:` section the parser takes `>>>` for a quotation, and it does not know `Example:`.
"""

import re

import griffe

_PARAGRAPH_OF_EXAMPLES = re.compile(r"^(>>> .*(?:\n(?!\s*$).*)*)", re.MULTILINE)


class ExamplesInDocstrings(griffe.Extension):
    """Rewrites docstrings before they are parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Called for every module, class, function and attribute that was read."""
        if obj.docstring is not None:
            obj.docstring.value = with_code_blocks(obj.docstring.value)


def with_code_blocks(docstring: str) -> str:
    """The docstring with its doctests as the parser knows them."""
    named = re.sub(r"^Example:$", "Examples:", docstring, flags=re.MULTILINE)
    return _PARAGRAPH_OF_EXAMPLES.sub(r"```pycon\n\1\n```", named)
