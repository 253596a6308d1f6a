"""How near the embeddings of a model are to those of another one: of texts, of pairs, and of a search.

Every function takes matrices of embeddings, `(texts, features)`, whose rows are of the same texts, and compares their
directions: lengths do not count.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor

#: How many neighbours a search returns.
NEIGHBOURS = 10
#: The columns of a file of pairs, as data sets of semantic textual similarity call them.
PAIR_COLUMNS = ("sentence1", "sentence2", "score")


class ScoredPairs(NamedTuple):
    """Pairs of texts with a similarity that people gave them.

    Attributes:
        first: A text of each pair.
        second: The other text.
        scores: Their similarities, on any scale.
    """

    first: list[str]
    second: list[str]
    scores: list[float]


def embedding_metrics(embeddings: Tensor, dense: Tensor) -> dict[str, float]:
    """How near embeddings are to those of the dense model: all measures that need no labels.

    Args:
        embeddings: Embeddings by the model, `(texts, features)`.
        dense: Embeddings of the same texts by the dense model.

    Returns:
        `cosine` and `cosine_5` (the mean over texts of the cosine to the dense embedding, and its 5 % quantile),
        `spearman` (of the similarities of all pairs), `ndcg_10` and `recall_10` (of the dense model's ten nearest
        neighbours of every text).

    Raises:
        ValueError: The texts are not the same, or fewer than three.

    Examples:
        >>> import torch
        >>> from hfprune.measuring.embeddings import embedding_metrics
        >>> dense = torch.eye(4)[[0, 0, 1, 2]] + 0.1
        >>> embedding_metrics(dense, dense)
        {'cosine': 1.0, 'cosine_5': 1.0, 'spearman': 1.0, 'ndcg_10': 1.0, 'recall_10': 1.0}
    """
    _check(embeddings, dense)
    cosines = cosines_to(embeddings, dense)
    found = neighbours_found(embeddings, dense)
    return {
        "cosine": float(cosines.mean()),
        "cosine_5": float(cosines.quantile(0.05)),
        "spearman": similarity_correlation(embeddings, dense),
        **found,
    }


def cosines_to(embeddings: Tensor, dense: Tensor) -> Tensor:
    """The cosine of every embedding to that of the same text by the dense model.

    Args:
        embeddings: Embeddings by the model, `(texts, features)`.
        dense: Embeddings by the dense model, of the same shape.

    Returns:
        `(texts,)` from −1 to 1, float64: a value of one text, as paired statistics want it.
    """
    return F.cosine_similarity(embeddings.double(), dense.double()).clamp(max=1.0)


def similarity_correlation(embeddings: Tensor, dense: Tensor) -> float:
    """Spearman's rank correlation between the similarities of all pairs of texts, by both models.

    Args:
        embeddings: Embeddings by the model, `(texts, features)`.
        dense: Embeddings of the same texts by the dense model.

    Returns:
        From −1 to 1; 1 where both models put all pairs into one order.
    """
    first, second = torch.triu_indices(len(dense), len(dense), offset=1)
    mine = _similarities(embeddings)[first, second]
    theirs = _similarities(dense)[first, second]
    return _spearman(mine, theirs)


def neighbours_found(embeddings: Tensor, dense: Tensor, *, neighbours: int = NEIGHBOURS) -> dict[str, float]:
    """How well a search among texts finds what the dense model finds: every text is a query once.

    Args:
        embeddings: Embeddings by the model, `(texts, features)`.
        dense: Embeddings of the same texts by the dense model.
        neighbours: How many texts a search returns.

    Returns:
        `recall_10`, the share of the dense model's neighbours that are found; and `ndcg_10`, in which a text gains the
        more the nearer it is in the dense model, and the less the later it is found (Järvelin & Kekäläinen 2002). The
        numbers in the names are `neighbours`.
    """
    neighbours = min(neighbours, len(dense) - 1)
    relevant = _nearest(dense, neighbours)
    found = _nearest(embeddings, neighbours)
    # the nearest neighbour gains as many points as there are neighbours, the last one 1, all others 0
    gains = torch.zeros(len(dense), len(dense), dtype=torch.float64, device=dense.device)
    points = torch.arange(neighbours, 0, -1, dtype=torch.float64, device=dense.device).expand(len(dense), -1)
    gains.scatter_(1, relevant, points)
    discounts = 1 / torch.arange(2, neighbours + 2, dtype=torch.float64, device=dense.device).log2()
    gained = (gains.gather(1, found) * discounts).sum(1)
    best = (points * discounts).sum(1)
    recall = (gains.gather(1, found) > 0).double().mean()
    return {f"ndcg_{NEIGHBOURS}": float((gained / best).mean()), f"recall_{NEIGHBOURS}": float(recall)}


def pair_correlation(first: Tensor, second: Tensor, scores: Sequence[float]) -> float:
    """Spearman's rank correlation between the similarities of pairs of texts and those that people gave them.

    Args:
        first: Embeddings of a text of each pair, `(pairs, features)`.
        second: Embeddings of the other text.
        scores: The similarities that people gave.

    Returns:
        From −1 to 1: the measure of benchmarks of semantic textual similarity (STS).
    """
    return _spearman(cosines_to(first, second), torch.tensor(list(scores), dtype=torch.float64, device=first.device))


def read_pairs(path: str | Path) -> ScoredPairs:
    """Read a file of pairs of texts with similarities, as data sets of semantic textual similarity (STS) have them.

    Args:
        path: A csv, or tsv, with the columns `sentence1`, `sentence2` and `score`.

    Returns:
        The pairs.

    Raises:
        ValueError: A column is missing, or a score is no number.
    """
    path = Path(path)
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        rows = list(reader)
        columns = reader.fieldnames or []
    missing = [name for name in PAIR_COLUMNS if name not in columns]
    if missing or not rows:
        raise ValueError(
            f"{path} must have the columns {', '.join(PAIR_COLUMNS)} and at least one row; it has "
            f"{', '.join(columns) or 'none'} and {len(rows)} rows. Rename its columns."
        )
    scores = [_number(row, number, path) for number, row in enumerate(rows, start=2)]
    return ScoredPairs([row["sentence1"] for row in rows], [row["sentence2"] for row in rows], scores)


def _number(row: Mapping[str, str], line: int, path: Path) -> float:
    """The score of a row."""
    try:
        return float(row["score"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}, line {line}: the score {row['score']!r:.50} is no number.") from error


def _check(embeddings: Tensor, dense: Tensor) -> None:
    """Refuse matrices that are not of the same texts."""
    if embeddings.shape == dense.shape and dense.ndim == 2 and len(dense) > 2:
        return
    raise ValueError(
        f"embeddings of the same texts by two models are compared, (texts, features) of at least 3 texts, got "
        f"{tuple(embeddings.shape)} and {tuple(dense.shape)}. Encode the same list of texts by both."
    )


def _similarities(embeddings: Tensor) -> Tensor:
    """Cosines between all texts, `(texts, texts)` float64: ranks are of numbers that are near each other."""
    directions = F.normalize(embeddings.double(), dim=-1)
    return directions @ directions.T


def _nearest(embeddings: Tensor, neighbours: int) -> Tensor:
    """The nearest other texts of every text, the nearest first, `(texts, neighbours)`."""
    similarities = _similarities(embeddings).fill_diagonal_(-torch.inf)
    return similarities.topk(neighbours, dim=1).indices


def _spearman(mine: Tensor, theirs: Tensor) -> float:
    """The rank correlation of two lists of numbers."""
    return float(stats.spearmanr(mine.cpu().numpy(), theirs.cpu().numpy()).statistic)
