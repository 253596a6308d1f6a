"""Questions and answers about building in Sweden: Swedish Construction FAQ (Zaragoza AB, CC BY 4.0).

The package zaragoza-construction-faq carries them.
"""

import json
import random
from typing import Any

from datasets import ClassLabel, DatasetDict, Features, List, Value

from hfprune.data.named.splitting import as_splits, three_parts
from hfprune.data.packages import package_file

_CONVERSATIONS = Features({"messages": List({"role": Value("string"), "content": Value("string")})})
_PAIRS = Features(
    {"query": Value("string"), "passage": Value("string"), "label": ClassLabel(names=["no answer", "answer"])}
)
_OTHERS = 4


def construction_faq(seed: int) -> DatasetDict:
    """Conversations of one question and one answer in English, 497 of them.

    Args:
        seed: Of the draw of the splits.

    Returns:
        The three splits, with the column `messages`: a list of `role` (user, assistant) and `content`.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    for split, entries in _entries(seed).items():
        rows[split] = []
        for entry in entries:
            messages = [{"role": "user", "content": entry["q"]}, {"role": "assistant", "content": entry["a"]}]
            rows[split].append({"messages": messages})
    return as_splits(rows, _CONVERSATIONS)


def answer_pairs(seed: int) -> DatasetDict:
    """Questions, each with its answer and with four answers to other questions: what a reranker learns from.

    The others are drawn, from the same subject as far as it has so many. One of them may answer the question in part.

    Args:
        seed: Of the draw of the splits and of the other answers. The splits are those of `construction_faq`.

    Returns:
        The three splits, with the columns `query`, `passage` and `label`; the rows of a question follow each other.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    generator = random.Random(seed)
    rows: dict[str, list[dict[str, str]]] = {}
    for split, entries in _entries(seed).items():
        rows[split] = []
        for entry in entries:
            rows[split].append({"query": entry["q"], "passage": entry["a"], "label": "answer"})
            for other in _others(entry, entries, generator):
                rows[split].append({"query": entry["q"], "passage": other["a"], "label": "no answer"})
    return as_splits(rows, _PAIRS)


def _entries(seed: int) -> dict[str, list[dict[str, str]]]:
    """The questions `q`, answers `a` and subjects `category` of each split; the last answer of a repeated question."""
    file = package_file("zaragoza_construction_faq", "data/faq-en.jsonl")
    entry_of: dict[str, dict[str, str]] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        question = entry["q"].strip()
        entry_of[question] = {"q": question, "a": entry["a"].strip(), "category": entry["category"]}
    return three_parts(list(entry_of.values()), validation=0.1, test=0.2, seed=seed)


def _others(entry: dict[str, str], entries: list[dict[str, str]], generator: random.Random) -> list[dict[str, str]]:
    """Entries with other answers, those of the same subject first, in an order that is drawn."""
    candidates = [other for other in entries if other["a"] != entry["a"]]
    generator.shuffle(candidates)
    candidates.sort(key=lambda other: other["category"] != entry["category"])
    return candidates[:_OTHERS]
