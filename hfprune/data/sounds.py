"""Sounds: decoded to the samples in time that a model takes, without packages beside SciPy for wav files."""

import importlib.util
import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from numpy.typing import NDArray
from scipy import signal
from scipy.io import wavfile

from hfprune.errors import MissingDependencyError

#: What the header of a wav file begins with, and what stands behind its length.
_HEADS = (b"RIFF", b"RIFX", b"RF64")
_KIND = b"WAVE"


def open_sound(stored: Mapping[str, Any], rate: int) -> NDArray[np.float32]:
    """Decode a sound.

    Args:
        stored: A row's sound: its `array` and `sampling_rate`; or the `bytes` of its file, or the `path` of it.
        rate: The samples a second that the model takes. Sounds of another rate are resampled.

    Returns:
        `(N,)`, from −1 to 1: the mean of the channels.

    Raises:
        ValueError: It cannot be decoded, or it is empty.

    Examples:
        >>> wavfile.write("beep.wav", 8000, (1000 * np.sin(np.arange(800))).astype(np.int16))
        >>> open_sound({"path": "beep.wav", "bytes": None}, 16_000).shape
        (1600,)
    """
    if "array" in stored:
        samples = np.asarray(stored["array"], dtype=np.float64)
        own_rate = int(stored["sampling_rate"])
    else:
        own_rate, samples = _decoded(stored)
    if samples.ndim > 1:
        samples = samples.mean(axis=1)
    if not len(samples):
        raise ValueError(f"the sound {_name_of(stored)} is empty: it has no samples.")
    if own_rate != rate:
        divisor = math.gcd(own_rate, rate)
        samples = signal.resample_poly(samples, rate // divisor, own_rate // divisor)
    return samples.astype(np.float32)


def _decoded(stored: Mapping[str, Any]) -> tuple[int, NDArray[np.float64]]:
    """The samples a second of a file, and its samples, `(N,)` or `(N, channels)`, from −1 to 1."""
    content = stored["bytes"]
    if content is None:
        try:
            content = Path(stored["path"]).read_bytes()
        except OSError as error:
            raise ValueError(f"the sound {_name_of(stored)} cannot be read: {error}.") from error
    if _is_wav(content):
        try:
            return _of_wav(content)
        except ValueError as error:
            # SciPy knows no compressed wav files, such as those of telephones
            if importlib.util.find_spec("soundfile") is None:
                raise ValueError(f"the sound {_name_of(stored)} cannot be decoded: {error}.") from error
    _check_soundfile(_name_of(stored))
    import soundfile

    try:
        samples, rate = soundfile.read(io.BytesIO(content), dtype="float64")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"the sound {_name_of(stored)} cannot be decoded: {error}.") from error
    return rate, samples


def _is_wav(content: bytes) -> bool:
    """Whether the beginning of a file is that of a wav file."""
    return content[:4] in _HEADS and content[8:12] == _KIND


def _of_wav(content: bytes) -> tuple[int, NDArray[np.float64]]:
    """As `_decoded`, of a wav file."""
    with warnings.catch_warnings():
        # it says so of every part of a file that is no sound, such as a title
        warnings.simplefilter("ignore", wavfile.WavFileWarning)
        rate, samples = wavfile.read(io.BytesIO(content))
    if samples.dtype == np.uint8:
        return rate, (samples.astype(np.float64) - 128) / 128
    if np.issubdtype(samples.dtype, np.integer):
        # 24 bits come in the upper part of 32
        return rate, samples.astype(np.float64) / -float(np.iinfo(samples.dtype).min)
    return rate, samples.astype(np.float64)


def _check_soundfile(name: str) -> None:
    if importlib.util.find_spec("soundfile") is None:
        raise MissingDependencyError(
            f"{name} is no wav file; flac, ogg, mp3 and opus are decoded by the package soundfile, which is not "
            "installed. Run: pip install 'hfprune[audio]'"
        )


def check_sounds(data: DatasetDict, column: str) -> None:
    """Look at the beginning of every sound that is a file, so that a wrong one is found before a long training.

    Args:
        data: Splits with sounds that are not decoded.
        column: The column with them.

    Raises:
        MissingDependencyError: A file is no wav file, and soundfile is not installed.
        ValueError: A file is no sound.
    """
    for split, rows in data.items():
        # a data set that holds the samples in time has no files
        if isinstance(rows.features[column], dict):
            continue
        for row, stored in enumerate(rows[column]):
            # those in Arrow files would have to be read whole
            if stored["bytes"] is not None:
                continue
            with Path(stored["path"]).open("rb") as file:
                begin = file.read(12)
            if not begin:
                raise ValueError(f"row {row} (from 0) of the {split} split has an empty file: {stored['path']}.")
            if not _is_wav(begin):
                _check_soundfile(stored["path"])


def seconds_of(stored: Mapping[str, Any]) -> float:
    """How long a sound is.

    Args:
        stored: A row's sound, as for `open_sound`.

    Returns:
        Seconds.

    Raises:
        ValueError: It cannot be decoded.

    Examples:
        >>> wavfile.write("beep.wav", 8000, np.zeros(400, dtype=np.int16))
        >>> seconds_of({"path": "beep.wav", "bytes": None}), seconds_of({"array": [0.0] * 50, "sampling_rate": 100})
        (0.05, 0.5)
    """
    if "array" in stored:
        return len(stored["array"]) / float(stored["sampling_rate"])
    rate, samples = _decoded(stored)
    return len(samples) / rate


def _name_of(stored: Mapping[str, Any]) -> str:
    """What a message calls a sound."""
    return repr(stored["path"]) if stored.get("path") else "without a name"
