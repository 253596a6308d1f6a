"""Summaries and sentences of research papers: ACLSum (Takeshita et al. 2024), in the package aclsum (MIT)."""

import json
from collections.abc import Iterator
from typing import Any

from datasets import ClassLabel, DatasetDict, Features, List, Value

from hfprune.data.named.splitting import as_splits
from hfprune.data.packages import package_file

_SUMMARIES = Features({"id": Value("string"), "source": Value("string"), "target": Value("string")})
_ASPECTS = ["challenge", "approach", "outcome"]
_SENTENCES = Features({"text": Value("string"), "label": List(ClassLabel(names=_ASPECTS))})
_SECTIONS = ("abstract", "introduction", "conclusion")
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
    for split in _FILE_OF_SPLIT:
        rows[split] = []
        for paper in _papers(split):
            rows[split].extend(_summaries_of(paper))
    return as_splits(rows, _SUMMARIES)


def paper_sentences(seed: int) -> DatasetDict:
    """Sentences of papers, and which of the three things each tells: challenge, approach, outcome. Most tell none.

    People marked the sentences that say what is to be summarised.

    Args:
        seed: Not used: the splits are those of the data.

    Returns:
        The three splits, with the columns `text` and `label`, a list of no, one or two classes.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    del seed
    seen: set[str] = set()
    rows: dict[str, list[dict[str, Any]]] = {}
    # test first: of a sentence that is in two papers, that one stays
    for split in reversed(_FILE_OF_SPLIT):
        rows[split] = []
        for paper in _papers(split):
            for text, label in _marked(paper):
                if text not in seen:
                    seen.add(text)
                    rows[split].append({"text": text, "label": label})
    return as_splits({split: rows[split] for split in _FILE_OF_SPLIT}, _SENTENCES)


def _papers(split: str) -> Iterator[dict[str, Any]]:
    file = package_file("aclsum", f"dataset/{_FILE_OF_SPLIT[split]}.jsonl")
    for line in file.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def _marked(paper: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """The sentences of a paper, with what each tells."""
    for section in _SECTIONS:
        for number, sentence in enumerate(paper["sentences"].get(section) or []):
            label = [aspect for aspect in _ASPECTS if paper["highlights"][aspect][section][number]]
            yield sentence, label


def _summaries_of(paper: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each of the three summaries of a paper."""
    sentences: list[str] = []
    for section in _SECTIONS:
        sentences.extend(paper["sentences"].get(section) or [])
    text = " ".join(sentences)
    rows: list[dict[str, str]] = []
    for aspect, summary in paper["summary"].items():
        row = {"id": f"{paper['id']}-{aspect}", "source": f"{aspect}: {text}", "target": summary}
        rows.append(row)
    return rows
