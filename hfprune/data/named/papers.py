"""Summaries of research papers: ACLSum (Takeshita et al. 2024), in the package aclsum (MIT)."""

import json
from typing import Any

from datasets import DatasetDict, Features, Value

from hfprune.data.named.splitting import as_splits
from hfprune.data.packages import package_file

_FEATURES = Features({"id": Value("string"), "source": Value("string"), "target": Value("string")})
_FILE_OF_SPLIT = {"train": "train", "validation": "val", "test": "test"}


def paper_summaries(seed: int) -> DatasetDict:
    """Papers on language processing, and one sentence each on their challenge, their approach and their outcome.

    People wrote the summaries. The source begins with what it is to be summarised by, as in `outcome: ...`; abstract,
    introduction and conclusion follow, some 1,000 words.

    Args:
        seed: Not used: the splits are those of the data.

    Returns:
        The three splits, with the columns `id`, `source` and `target`: three rows a paper.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    del seed
    rows: dict[str, list[dict[str, Any]]] = {}
    for split, name in _FILE_OF_SPLIT.items():
        lines = package_file("aclsum", f"dataset/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        rows[split] = []
        for line in lines:
            rows[split].extend(_rows_of(json.loads(line)))
    return as_splits(rows, _FEATURES)


def _rows_of(paper: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each of the three summaries of a paper."""
    sentences: list[str] = []
    for section in ("abstract", "introduction", "conclusion"):
        sentences.extend(paper["sentences"].get(section) or [])
    text = " ".join(sentences)
    rows: list[dict[str, str]] = []
    for aspect, summary in paper["summary"].items():
        row = {"id": f"{paper['id']}-{aspect}", "source": f"{aspect}: {text}", "target": summary}
        rows.append(row)
    return rows
