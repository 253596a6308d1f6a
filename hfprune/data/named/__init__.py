"""Data sets that can be named: real ones for each task, in installed packages or fetched by `make data`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from datasets import DatasetDict

from hfprune.data.named.bible import basic_bible
from hfprune.data.named.brown import brown_names, brown_tags
from hfprune.data.named.dialogues import movie_replies
from hfprune.data.named.faq import answer_pairs, construction_faq
from hfprune.data.named.handwriting import digits, mnist
from hfprune.data.named.labelled_texts import labelled_splits, movie_reviews, sms_spam, trec
from hfprune.data.named.news import news_cloze
from hfprune.data.named.papers import paper_sentences, paper_summaries
from hfprune.data.named.prompts import phone_prompts, prompt_languages
from hfprune.data.named.pronunciations import pronunciations
from hfprune.data.named.similarity import document_pairs


@dataclass(frozen=True)
class NamedDataset:
    """A data set that can be named.

    Attributes:
        task: What it is for.
        splits: A function of a seed that returns its splits, `train` and `test` at least.
    """

    task: str
    splits: Callable[[int], DatasetDict]


@dataclass(frozen=True)
class _LabelledTexts:
    """Labelled texts without splits.

    Attributes:
        read: A function without arguments that returns the texts and the name of the class of each.
        test_size: The number of examples in the test split.
    """

    read: Callable[[], tuple[list[str], list[str]]]
    test_size: int

    def splits(self, seed: int) -> DatasetDict:
        """The splits `train` and `test`."""
        texts, labels = self.read()
        return labelled_splits(texts, labels, test_size=self.test_size, seed=seed)


_LABELLED_TEXTS: Mapping[str, _LabelledTexts] = {
    "trec": _LabelledTexts(trec, test_size=1000),
    "movie_reviews": _LabelledTexts(movie_reviews, test_size=2000),
    "sms_spam": _LabelledTexts(sms_spam, test_size=1000),
}
_OF_TEXTS = {name: NamedDataset("text classification", texts.splits) for name, texts in _LABELLED_TEXTS.items()}

#: The data sets by name.
NAMED_DATASETS: Mapping[str, NamedDataset] = _OF_TEXTS | {
    "paper_sentences": NamedDataset("text classification", paper_sentences),
    "answer_pairs": NamedDataset("text classification", answer_pairs),
    "brown_names": NamedDataset("token classification", brown_names),
    "brown_tags": NamedDataset("token classification", brown_tags),
    "news_cloze": NamedDataset("question answering", news_cloze),
    "paper_summaries": NamedDataset("summarisation", paper_summaries),
    "basic_bible": NamedDataset("translation", basic_bible),
    "pronunciations": NamedDataset("translation", pronunciations),
    "movie_replies": NamedDataset("multiple choice", movie_replies),
    "construction_faq": NamedDataset("chat", construction_faq),
    "document_pairs": NamedDataset("sentence similarity", document_pairs),
    "digits": NamedDataset("image classification", digits),
    "mnist": NamedDataset("image classification", mnist),
    "phone_prompts": NamedDataset("speech recognition", phone_prompts),
    "prompt_languages": NamedDataset("audio classification", prompt_languages),
}


def is_named_dataset(name: str) -> bool:
    """Whether a name is that of a data set in an installed package, or of one that `make data` fetches.

    >>> is_named_dataset("trec"), is_named_dataset("stanfordnlp/sst2")
    (True, False)
    """
    return name in NAMED_DATASETS


def named_splits(name: str, seed: int) -> DatasetDict:
    """The splits of a data set that can be named.

    Args:
        name: One of `NAMED_DATASETS`.
        seed: Seed of the draw of the splits.

    Returns:
        The splits: `train` and `test`, and `validation` of all but the labelled texts.

    Raises:
        FileNotFoundError: Its package is not installed, or it was not fetched; the message has the command.
    """
    return NAMED_DATASETS[name].splits(seed)


def named_texts(name: str, columns: Sequence[str] = ("text",)) -> list[str]:
    """All texts of a data set that can be named.

    Args:
        name: One of `NAMED_DATASETS`.
        columns: Where its texts are; the labelled texts have one column.

    Returns:
        The texts, split after split, and in each column after column.

    Raises:
        FileNotFoundError: As for `named_splits`.
        ValueError: There is no such column of texts.
    """
    if name in _LABELLED_TEXTS:
        texts, _ = _LABELLED_TEXTS[name].read()
        return texts
    found: list[str] = []
    for split in named_splits(name, seed=0).values():
        for column in columns:
            if column not in split.column_names or getattr(split.features[column], "dtype", None) != "string":
                raise ValueError(
                    f"the data set {name!r} has no texts in a column {column!r}; its columns are "
                    f"{', '.join(split.column_names)}."
                )
            found.extend(split[column])
    return found
