"""Speech: what telephone systems say, recorded for Asterisk in four languages, one speaker each (CC BY-SA 3.0).

Debian's packages asterisk-core-sounds-en-wav and the like carry the sounds, asterisk-core-sounds-en their texts.
"""

import gzip
import re
import wave
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from numpy.typing import NDArray

from hfprune.data.fetched import data_folder
from hfprune.data.named.splitting import three_parts

#: Values a second of what is returned: as speech models expect.
SAMPLING_RATE = 16_000
_SOUND = {"array": List(Value("float32")), "sampling_rate": Value("int64")}
_FOLDER_OF_LANGUAGE = {
    "English": "en_US_f_Allison",
    "French": "fr_CA_f_June",
    "Italian": "it_IT_m_Carlo",
    "Russian": "ru_RU_f_IvrvoiceRU",
}
#: Longer prompts are left out where they are written down, and cut where their language is asked for.
_LONGEST_TO_WRITE = 12.0
_LONGEST_TO_TELL = 2.0
_SHORTEST = 0.3
#: Not speech: tones, and silence.
_NO_SPEECH = re.compile(r"silence/|beep|tone|tt-monkeys$")
_DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
_LARGEST_SAMPLE = 1 << 15


def phone_prompts(seed: int) -> DatasetDict:
    """Prompts in English by one speaker, with what she says: some 500, 20 minutes.

    Args:
        seed: Of the draw of the splits.

    Returns:
        The three splits, with the columns `audio` (`array`, `sampling_rate`) and `text`, in small letters without
        punctuation.

    Raises:
        FileNotFoundError: The sounds were not fetched.
    """
    folder = _sounds("English")
    listed = gzip.decompress((_root() / "doc/asterisk-core-sounds-en/core-sounds-en.txt.gz").read_bytes())
    sound_of_text: dict[str, NDArray[np.float32]] = {}
    for line in listed.decode("utf-8").splitlines():
        name, _, written = line.partition(":")
        text = spoken(written)
        file = folder / f"{name}.wav"
        if not text or _NO_SPEECH.search(name) or not file.is_file():
            continue
        sound = _read(file)
        if _SHORTEST <= len(sound) / SAMPLING_RATE <= _LONGEST_TO_WRITE:
            sound_of_text[text] = sound
    splits = DatasetDict()
    for split, part in three_parts(list(sound_of_text), validation=0.05, test=0.15, seed=seed).items():
        splits[split] = _rows([sound_of_text[text] for text in part], "text", part, Value("string"))
    return splits


def prompt_languages(seed: int) -> DatasetDict:
    """The first two seconds of prompts in English, French, Italian and Russian, some 560 each.

    There is one speaker a language, so a model may tell the voice instead of the language.

    Args:
        seed: Of the draw of the splits; a prompt is in the same split in all languages.

    Returns:
        The three splits, with the columns `audio` (`array`, `sampling_rate`) and `label`, the language.

    Raises:
        FileNotFoundError: The sounds were not fetched.
    """
    names: set[str] = set()
    for language in _FOLDER_OF_LANGUAGE:
        folder = _sounds(language)
        for file in folder.rglob("*.wav"):
            names.add(file.relative_to(folder).as_posix())
    splits = DatasetDict()
    for split, part in three_parts(sorted(names), validation=0.05, test=0.2, seed=seed).items():
        sounds: list[NDArray[np.float32]] = []
        labels: list[int] = []
        for name in part:
            if _NO_SPEECH.search(name.removesuffix(".wav")):
                continue
            for label, sound in _in_all_languages(name):
                labels.append(label)
                sounds.append(sound)
        splits[split] = _rows(sounds, "label", labels, ClassLabel(names=list(_FOLDER_OF_LANGUAGE)))
    return splits


def _in_all_languages(name: str) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The beginning of a prompt in each language that has it, with the number of the language."""
    for label, language in enumerate(_FOLDER_OF_LANGUAGE):
        file = _sounds(language) / name
        if not file.is_file():
            continue
        sound = _read(file, at_most=_LONGEST_TO_TELL)
        if len(sound) >= _SHORTEST * SAMPLING_RATE:
            yield label, sound


def _rows(
    sounds: Sequence[NDArray[np.float32]], column: str, values: Sequence[Any], kind: Value | ClassLabel
) -> Dataset:
    """Sounds with a further column.

    They are handed over as the one array that they are stored as: of lists, Python would make a number of each value.
    """
    ends = np.cumsum([0, *(len(sound) for sound in sounds)], dtype=np.int32)
    numbers = np.concatenate([np.empty(0, dtype=np.float32), *sounds])
    arrays = pa.ListArray.from_arrays(ends, numbers)
    rates = pa.array([SAMPLING_RATE] * len(sounds), pa.int64())
    audio = pa.StructArray.from_arrays([arrays, rates], names=list(_SOUND))
    features = Features({"audio": _SOUND, column: kind})
    table = pa.table([audio, pa.array(values)], names=["audio", column])
    return Dataset(table.cast(features.arrow_schema))


def _root() -> Path:
    return data_folder("asterisk-sounds/usr/share")


def _sounds(language: str) -> Path:
    return data_folder(f"asterisk-sounds/usr/share/asterisk/sounds/{_FOLDER_OF_LANGUAGE[language]}")


def _read(file: Path, at_most: float = np.inf) -> NDArray[np.float32]:
    """The sound in a wav file of 16-bit numbers and one channel, from −1 to 1, or its first seconds."""
    with wave.open(str(file)) as sound:
        rate = sound.getframerate()
        wanted = min(sound.getnframes(), at_most * rate)
        samples = np.frombuffer(sound.readframes(int(wanted)), dtype="<i2")
    return resampled(samples / _LARGEST_SAMPLE, rate)


def resampled(values: NDArray[np.float64], rate: int) -> NDArray[np.float32]:
    """A sound with another number of values a second: the same tones, without those that are too high for it.

    Args:
        values: The sound, `(N,)`.
        rate: Its values a second.

    Returns:
        The sound at `SAMPLING_RATE`.

    Examples:
        >>> tone = np.sin(np.arange(800) * 2 * np.pi / 80)
        >>> twice = resampled(tone, rate=8000)
        >>> len(twice), bool(np.allclose(twice[::2], tone, atol=1e-6))
        (1600, True)
    """
    # silence up to the next whole tenth of a second: the transform is fast for such lengths
    tenth = rate // 10
    padded = np.pad(values, (0, tenth - len(values) % tenth))
    spectrum = np.fft.rfft(padded)
    length = len(padded) * SAMPLING_RATE // rate
    heard = np.fft.irfft(spectrum, n=length) * (SAMPLING_RATE / rate)
    return heard[: len(values) * SAMPLING_RATE // rate].astype(np.float32)


def spoken(written: str) -> str:
    """What a speaker says, in the letters that a recogniser writes.

    Args:
        written: The text of the list of prompts.

    Returns:
        Small letters, apostrophes and spaces; empty where the text is no plain speech: remarks in brackets, and
        numbers of several digits, which are read in several ways.

    Examples:
        >>> spoken("Press 1, or the pound key..."), spoken("[ascending tones]"), spoken("dial 500")
        ('press one or the pound key', '', '')
    """
    if "[" in written or re.search(r"\d\d|\d[A-Za-z]", written):
        return ""
    text = re.sub(r"\d", lambda match: _DIGITS[int(match.group())], written.lower())
    text = re.sub(r"[^a-z' ]", " ", text)
    return " ".join(text.split())
