"""Answers that are cut out of a text: the spans that a model means, and how well they fit the right answers."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a model says of one window of a context: a part of it that is short enough for the model.

    Attributes:
        start_logits: `(tokens,)`, how well a token begins the answer.
        end_logits: `(tokens,)`, how well a token ends it.
        offsets: `(tokens, 2)` whole numbers: the characters of the context from which and up to which each token goes;
            −1 for tokens of the question and special tokens.
        no_answer: The token that stands for "there is no answer".
    """

    start_logits: np.ndarray
    end_logits: np.ndarray
    offsets: np.ndarray
    no_answer: int = 0

    @property
    def no_answer_score(self) -> float:
        """The score of saying that there is no answer in this window."""
        return float(self.start_logits[self.no_answer] + self.end_logits[self.no_answer])


@dataclass(frozen=True, order=True)
class Span:
    """A part of a context.

    Attributes:
        score: The sum of the logits of its first and its last token.
        start: Its first character.
        end: The character behind its last.
    """

    score: float
    start: int
    end: int


def best_span(window: Window, *, n_best: int = 20, max_tokens: int = 30) -> Span | None:
    """The span of a window with the highest score.

    It begins with one of the `n_best` likeliest first tokens, and ends with one of the `n_best` likeliest last tokens.

    Args:
        window: What the model says of the window.
        n_best: How many first and how many last tokens are looked at.
        max_tokens: The most tokens of a span.

    Returns:
        The span; None if no pair of them is a span of at most so many tokens.

    Examples:
        >>> offsets = np.array([[-1, -1], [0, 3], [4, 7], [8, 11]])
        >>> start, end = np.array([9.0, 1.0, 4.0, 2.0]), np.array([9.0, 5.0, 0.0, 3.0])
        >>> best_span(Window(start_logits=start, end_logits=end, offsets=offsets))
        Span(score=7.0, start=4, end=11)
    """
    in_context = np.flatnonzero(window.offsets[:, 0] >= 0)
    firsts = _likeliest(window.start_logits, in_context, n_best)
    lasts = _likeliest(window.end_logits, in_context, n_best)
    lengths = lasts[None, :] - firsts[:, None] + 1
    scores = window.start_logits[firsts][:, None].astype(np.float64) + window.end_logits[lasts][None, :]
    scores = np.where((lengths >= 1) & (lengths <= max_tokens), scores, -np.inf)
    if not scores.size or np.isneginf(scores).all():
        return None
    first, last = np.unravel_index(int(scores.argmax()), scores.shape)
    return Span(
        score=float(scores[first, last]),
        start=int(window.offsets[firsts[first], 0]),
        end=int(window.offsets[lasts[last], 1]),
    )


def _likeliest(logits: np.ndarray, tokens: np.ndarray, count: int) -> np.ndarray:
    """The tokens with the highest logits, the highest first; of equal ones the earlier first."""
    order = np.argsort(-logits[tokens], kind="stable")
    return np.asarray(tokens[order[:count]])


def answer_of(
    windows: Sequence[Window],
    context: str,
    *,
    n_best: int = 20,
    max_tokens: int = 30,
    may_be_unanswerable: bool = False,
    threshold: float = 0.0,
) -> str:
    """The answer to a question: the best span of all windows of its context.

    Args:
        windows: What the model says of every window.
        context: The context.
        n_best: As for `best_span`.
        max_tokens: As for `best_span`.
        may_be_unanswerable: Whether the question may have no answer. It is then said to have none where the lowest
            score for that of all windows is above the best span's by more than the threshold, as in BERT's code for
            SQuAD 2.0.
        threshold: See above.

    Returns:
        The answer, without white space around it; empty for none.

    Examples:
        >>> window = Window(
        ...     start_logits=np.array([3.0, 0.0, 2.0]),
        ...     end_logits=np.array([3.0, 0.0, 2.0]),
        ...     offsets=np.array([[-1, -1], [0, 3], [4, 7]]),
        ... )
        >>> answer_of([window], "the cat"), answer_of([window], "the cat", may_be_unanswerable=True)
        ('cat', '')
    """
    spans = []
    for window in windows:
        span = best_span(window, n_best=n_best, max_tokens=max_tokens)
        if span is not None:
            spans.append(span)
    if not spans:
        return ""
    # of spans with one score the first window's counts
    best = max(spans, key=lambda span: span.score)
    if may_be_unanswerable:
        no_answer = min(window.no_answer_score for window in windows)
        if no_answer - best.score > threshold:
            return ""
    return context[best.start : best.end].strip()


def normalised(answer: str) -> str:
    """An answer in lower case, without punctuation, articles and further white space, as SQuAD's script compares it.

    Args:
        answer: The answer.

    Returns:
        The same, normalised.

    Examples:
        >>> normalised(" The cat's  tail. ")
        'cats tail'
    """
    text = "".join(character for character in answer.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact_match(answer: str, right_answers: Sequence[str]) -> float:
    """Whether an answer is one of the right answers, once both are normalised.

    Args:
        answer: The answer.
        right_answers: The right answers; none for a question without answer, to which the empty answer is right.

    Returns:
        1 if it is, else 0.

    Examples:
        >>> exact_match("the cat", ["A cat!", "dog"]), exact_match("", []), exact_match("cat", [])
        (1.0, 1.0, 0.0)
    """
    given = normalised(answer)
    return float(any(given == right for right in _to_compare(right_answers)))


def answer_f1(answer: str, right_answers: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of the words of an answer, once both are normalised.

    As in the script of SQuAD 2.0 (Rajpurkar et al. 2018, "Know What You Don't Know").

    Args:
        answer: The answer.
        right_answers: The right answers, of which the one that fits best counts; none for a question without answer.

    Returns:
        The value, from 0 to 1. Without a right answer: 1 for an empty answer, else 0.

    Examples:
        >>> round(answer_f1("the black cat", ["a cat", "cat of the city"]), 3)
        0.667
    """
    given = normalised(answer).split()
    return max(_overlap(given, right.split()) for right in _to_compare(right_answers))


def _to_compare(right_answers: Sequence[str]) -> list[str]:
    """The right answers, normalised. Those of which nothing is left do not count; the empty answer if none is left."""
    rights = [right for right in map(normalised, right_answers) if right]
    return rights or [""]


def _overlap(given: Sequence[str], right: Sequence[str]) -> float:
    if not given or not right:
        return float(given == right)
    common = sum((Counter(given) & Counter(right)).values())
    return 2 * common / (len(given) + len(right))


def answer_metrics(answers: Sequence[str], right_answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """F1 and exact match of answers, from 0 to 1.

    Args:
        answers: An answer for each question, empty for none.
        right_answers: The right answers to each question, none if it has no answer.

    Returns:
        `f1` and `exact_match`, means over all questions. If some questions have answers and others none,
        `has_answer_f1` and `no_answer_f1` too, the means over each of the two.

    Examples:
        >>> answer_metrics(["cat", ""], [["the cat"], []])
        {'f1': 1.0, 'exact_match': 1.0, 'has_answer_f1': 1.0, 'no_answer_f1': 1.0}
    """
    f1: dict[bool, list[float]] = {True: [], False: []}
    matches = []
    for answer, rights in zip(answers, right_answers, strict=True):
        f1[len(rights) > 0].append(answer_f1(answer, rights))
        matches.append(exact_match(answer, rights))
    metrics: dict[str, Any] = {"f1": np.mean(f1[True] + f1[False]), "exact_match": np.mean(matches)}
    if f1[True] and f1[False]:
        metrics["has_answer_f1"] = np.mean(f1[True])
        metrics["no_answer_f1"] = np.mean(f1[False])
    return {name: float(value) for name, value in metrics.items()}
