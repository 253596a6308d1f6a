"""Questions and answers about building in Sweden: Swedish Construction FAQ (Zaragoza AB, CC BY 4.0).

The package zaragoza-construction-faq carries them.
"""

import json
from typing import Any

from datasets import DatasetDict, Features, List, Value

from hfprune.data.named.splitting import as_splits, three_parts
from hfprune.data.packages import package_file

_FEATURES = Features({"messages": List({"role": Value("string"), "content": Value("string")})})


def construction_faq(seed: int) -> DatasetDict:
    """Conversations of one question and one answer in English, 503 of them.

    Args:
        seed: Of the draw of the splits.

    Returns:
        The three splits, with the column `messages`: a list of `role` (user, assistant) and `content`.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    file = package_file("zaragoza_construction_faq", "data/faq-en.jsonl")
    answer_of: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        answer_of[pair["q"].strip()] = pair["a"].strip()
    rows: list[dict[str, Any]] = []
    for question, answer in answer_of.items():
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        rows.append({"messages": messages})
    return as_splits(three_parts(rows, validation=0.1, test=0.2, seed=seed), _FEATURES)
