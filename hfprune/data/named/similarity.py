"""How similar texts are to people: pairs of news texts (Lee et al. 2005), in the test data of the package gensim."""

import itertools

from datasets import DatasetDict, Features, Value

from hfprune.data.named.splitting import as_splits, three_parts
from hfprune.data.packages import package_file

_FEATURES = Features({"sentence1": Value("string"), "sentence2": Value("string"), "score": Value("float64")})


def document_pairs(seed: int) -> DatasetDict:
    """Pairs of news texts of some 80 words, with the mean of what about ten students judged, from 0 to 1.

    There are 50 texts. Test has all pairs of 30 of them, train and validation those of 10 each: it is made to measure
    embeddings, not to learn them.

    Args:
        seed: Of the draw of the texts; no text is in two splits.

    Returns:
        The three splits, with the columns `sentence1`, `sentence2` and `score`.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    texts = _lines("lee.cor")
    similarities = [[float(cell) for cell in line.split()] for line in _lines("similarities0-1.txt")]
    numbers = three_parts(range(len(texts)), validation=0.2, test=0.6, seed=seed)
    rows: dict[str, list[dict[str, str | float]]] = {}
    for split, part in numbers.items():
        rows[split] = []
        for first, second in itertools.combinations(sorted(part), 2):
            # the half below the diagonal may be empty
            score = similarities[first][second]
            rows[split].append({"sentence1": texts[first], "sentence2": texts[second], "score": score})
    return as_splits(rows, _FEATURES)


def _lines(name: str) -> list[str]:
    path = package_file("gensim", f"test/test_data/{name}")
    return [line.strip() for line in path.read_text(encoding="latin-1").splitlines() if line.strip()]
