"""A name in a registry: an earlier version of the same function gives it up, any other function does not."""

from functools import partial

import pytest

from hfprune.structure.registration import check_same


def version():
    """A function that a cell of a notebook defines."""
    return 1


first_version = version


def version():
    """The same function, when the cell is run again."""
    return 2


def made(number):
    """Make functions that have one name and do different things."""

    def inner(block):
        return number * block

    return inner


class Power:
    """Callable objects of one class that do different things."""

    def __init__(self, number):
        self.number = number

    def __call__(self, block):
        return block**self.number

    def of(self, block):
        """As above, as a method."""
        return block**self.number


def test_the_same_function_written_anew():
    assert first_version() != version()
    check_same("a scorer", "mine", version, first_version)


@pytest.mark.parametrize(
    ("function", "earlier"),
    [
        (lambda block: block, lambda block: 2 * block),
        (made(1), made(2)),
        (Power(1), Power(2)),
        (Power(1).of, Power(2).of),
        (partial(version), partial(made)),
        (made, version),
    ],
    ids=["lambdas", "closures", "objects", "methods", "partials", "names"],
)
def test_other_functions_are_refused(function, earlier):
    with pytest.raises(ValueError, match="a scorer named 'mine' is registered already"):
        check_same("a scorer", "mine", function, earlier)
