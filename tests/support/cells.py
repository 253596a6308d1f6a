"""Parameters of tests that run on many model types: which of them `make test` runs, and which only `make test-all`."""

from collections.abc import Iterable

import pytest

from tests.support.tiny import SIZES

#: Types whose layers compute what those of another type do, of which `make test` has the other.
ALIKE = (
    "camembert",
    "data2vec-text",
    "electra",
    "ernie",
    "gemma",
    "granite",
    "layoutlm",
    "marian",
    "mistral",
    "mixtral",
    "olmo3",
    "pegasus",
    "qwen2",
    "smollm3",
    "xlm-roberta",
)


def quick(*cell: str, is_quick: bool):
    """Parameters that `make test` runs, or that only `make test-all` and, of a contract, `make contract` run."""
    return pytest.param(*cell, marks=[] if is_quick else [pytest.mark.slow])


def every_type(types: Iterable[str] = SIZES) -> list:
    """All types, those apart that are like another."""
    return [quick(t, is_quick=t not in ALIKE) for t in sorted(types)]
