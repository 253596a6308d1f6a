"""How near texts that a model writes are to references: ROUGE by rouge-score, chrF and BLEU by sacrebleu.

ROUGE and `exact_match` are from 0 to 1, chrF and BLEU from 0 to 100, as these packages give them.
"""

import importlib.util
import re
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from hfprune.errors import MissingDependencyError

#: By metric, the module that computes it; None: it is computed here.
WRITTEN_TEXT_METRICS: dict[str, str | None] = {
    "rouge1": "rouge_score",
    "rouge2": "rouge_score",
    "rougeL": "rouge_score",
    "rougeLsum": "rouge_score",
    "chrf": "sacrebleu",
    "chrf++": "sacrebleu",
    "bleu": "sacrebleu",
    "exact_match": None,
}
#: Metrics that give every text a number of its own. BLEU of a single text says little.
METRICS_OF_ONE_TEXT = tuple(name for name in WRITTEN_TEXT_METRICS if name != "bleu")
#: A character of the words that rouge-score counts.
_COUNTED_BY_ROUGE = re.compile(r"[a-z0-9]", re.IGNORECASE)


def check_written_text_metrics(
    names: Sequence[str], references: Sequence[str] = (), *, bleu_tokenizer: str = "13a"
) -> None:
    """Refuse metrics that are unknown, that need a package which is not installed, or that fit the texts badly.

    Args:
        names: Names of metrics.
        references: Texts that a model is to write, where they are known.
        bleu_tokenizer: As for `written_text_metrics`.

    Raises:
        ValueError: There is no such metric or tokenizer, or ROUGE is to compare texts without Latin letters.
        MissingDependencyError: A package is missing; the message has the command that installs it.

    Examples:
        >>> check_written_text_metrics(["exact_match", "meteor"])
        Traceback (most recent call last):
        ...
        ValueError: unknown metric 'meteor' of written texts; there are: rouge1, rouge2, rougeL, rougeLsum, chrf, ...
    """
    missing: list[str] = []
    for name in names:
        if name not in WRITTEN_TEXT_METRICS:
            raise ValueError(f"unknown metric {name!r} of written texts; there are: {', '.join(WRITTEN_TEXT_METRICS)}.")
        module = WRITTEN_TEXT_METRICS[name]
        if module is not None and importlib.util.find_spec(module) is None:
            missing.append(f"{name} by {module.replace('_', '-')}")
    if missing:
        raise MissingDependencyError(
            f"{', '.join(missing)}: not installed here. Run: pip install 'hfprune[text-metrics]'; or choose another "
            "metric, such as exact_match."
        )
    if "bleu" in names:
        _check_bleu_tokenizer(bleu_tokenizer)
    of_rouge = [name for name in names if WRITTEN_TEXT_METRICS[name] == "rouge_score"]
    counted = sum(_COUNTED_BY_ROUGE.search(text) is not None for text in references)
    if of_rouge and references and 2 * counted < len(references):
        raise ValueError(
            f"{of_rouge[0]} counts words of the letters a to z and of digits, and {len(references) - counted} of "
            f"{len(references)} texts to write have none. Measure chrf, which compares characters of any language."
        )


def _check_bleu_tokenizer(name: str) -> None:
    from sacrebleu.metrics import BLEU

    if name not in BLEU.TOKENIZERS:
        raise ValueError(f"bleu_tokenizer={name!r} is none of sacrebleu's: {', '.join(BLEU.TOKENIZERS)}.")
    # those of some languages need a package of their own, and say so
    BLEU(tokenize=name)


def written_text_metrics(
    names: Sequence[str], written: Sequence[str], references: Sequence[str], *, bleu_tokenizer: str = "13a"
) -> dict[str, float]:
    """Compare texts with references, over all texts together.

    - `rouge1`, `rouge2`, `rougeL`: the mean over texts of the F measure of their words, of their pairs of words, and
      of their longest common subsequence, after Porter's stemmer (Lin 2004, "ROUGE"). `rougeLsum` takes line by line.
    - `chrf`, `chrf++`, `bleu`: corpus scores with sacrebleu's settings (Popović 2015, "chrF"; Papineni et al. 2002,
      "BLEU"; Post 2018, "A Call for Clarity in Reporting BLEU Scores").
    - `exact_match`: the share of texts that equal their reference.

    Args:
        names: Names of metrics.
        written: What a model wrote.
        references: For each text the one that it should be.
        bleu_tokenizer: What splits texts into words for BLEU: `13a`, or of sacrebleu's others such as `zh` or `char`.

    Returns:
        By name, the value.

    Raises:
        MissingDependencyError: A package is missing.
        ValueError: There are not as many references as texts.

    Examples:
        >>> written_text_metrics(["exact_match"], ["a cat", "a dog"], ["a cat", "the dog"])
        {'exact_match': 0.5}
    """
    check_written_text_metrics(names, bleu_tokenizer=bleu_tokenizer)
    _check_pairs(written, references)
    results: dict[str, float] = {}
    for name in names:
        if WRITTEN_TEXT_METRICS[name] == "sacrebleu":
            metric = _of_sacrebleu(name, bleu_tokenizer)
            results[name] = float(metric.corpus_score(list(written), [list(references)]).score)
        else:
            results[name] = fmean(scores_of_texts(name, written, references))
    return results


def scores_of_texts(name: str, written: Sequence[str], references: Sequence[str]) -> list[float]:
    """A metric of every single text.

    Args:
        name: One of `METRICS_OF_ONE_TEXT`.
        written: What a model wrote.
        references: For each text the one that it should be.

    Returns:
        A number for each text; higher is better.

    Raises:
        MissingDependencyError: A package is missing.
        ValueError: The metric is of all texts together, or there are not as many references as texts.

    Examples:
        >>> scores_of_texts("exact_match", ["a cat", "a dog "], ["a cat", "a dog"])
        [1.0, 1.0]
    """
    if name not in METRICS_OF_ONE_TEXT:
        raise ValueError(f"{name!r} is no metric of single texts; these are: {', '.join(METRICS_OF_ONE_TEXT)}.")
    check_written_text_metrics([name])
    _check_pairs(written, references)
    score = _score_of_one(name)
    return [score(text, reference) for text, reference in zip(written, references, strict=True)]


def _check_pairs(written: Sequence[str], references: Sequence[str]) -> None:
    if len(written) != len(references) or not written:
        raise ValueError(f"{len(written)} texts and {len(references)} references: expected one reference a text.")


def _score_of_one(name: str) -> Callable[[str, str], float]:
    """The function from a text and its reference to a number."""
    if name == "exact_match":
        return lambda text, reference: float(text.strip() == reference.strip())
    if WRITTEN_TEXT_METRICS[name] == "sacrebleu":
        metric = _of_sacrebleu(name)
        return lambda text, reference: float(metric.sentence_score(text, [reference]).score)
    scorer = _rouge(name)
    return lambda text, reference: float(scorer.score(reference, text)[name].fmeasure)


def _rouge(name: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([name], use_stemmer=True)


def _of_sacrebleu(name: str, bleu_tokenizer: str = "13a") -> Any:
    from sacrebleu.metrics import BLEU, CHRF

    if name == "bleu":
        return BLEU(tokenize=bleu_tokenizer)
    return CHRF(word_order=2 if name == "chrf++" else 0)
