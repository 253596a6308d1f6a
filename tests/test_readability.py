"""The package reads as it should: figures per 1,000 code lines within limits, no function too branched."""

from pathlib import Path

import pytest
from radon.complexity import cc_visit

from tests.support.readability import LEAST_COMMENTS, LIMITS, PACKAGE, counts_of, counts_of_files, per_thousand

FILES = sorted(PACKAGE.rglob("*.py"))
#: radon's cyclomatic complexity, which counts comprehensions too.
MOST_COMPLEX = 15


def test_density():
    figures = per_thousand(counts_of_files(FILES))
    for name, most in LIMITS.items():
        assert figures[name] <= most, f"{figures[name]:.1f} {name} in 1,000 code lines, at most {most}"
    assert figures["comment lines"] >= LEAST_COMMENTS


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_function_is_too_branched(path: Path):
    for function in cc_visit(path.read_text(encoding="utf-8")):
        # the complexity of a class is the mean of its methods', which are listed too
        assert function.complexity <= MOST_COMPLEX, f"{function.name} has {function.complexity}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_assignments_of_more_than_two_values_are_not_packed(path: Path):
    assert not counts_of(path.read_text(encoding="utf-8"))["nested ternaries"]
    assert not counts_of(path.read_text(encoding="utf-8"))["wide assignments"]


def test_the_counts_count_what_they_say():
    text = '''"""A docstring, no code."""
# a comment for the reader
a, b = 1, 2  # behind code
c, d, e = 1, 2, 3
f = [x for x in range(3)] if a else b
g = (1 if a else 2) if b else 3
# noqa: an order to a tool
first, second = divmod(7, 2)
'''
    counts = counts_of(text)
    assert counts["code lines"] == 5
    assert counts["ternaries"] == 3
    assert counts["nested ternaries"] == 1
    assert counts["comprehensions"] == 1
    assert counts["packed assignments"] == 2
    assert counts["wide assignments"] == 1
    assert counts["comment lines"] == 1
