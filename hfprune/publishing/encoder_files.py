"""What sentence-transformers puts beside a model, and what of it a checkpoint may hold.

The folder of a `SentenceTransformer` is that of its body, with `modules.json` and a folder for each module behind it.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hfprune.structure.json_text import read_json

#: Lists the modules, with their classes and folders.
MODULES_FILE = "modules.json"
#: Prompts, the similarity, and which class the folder is of.
ENCODER_FILE = "config_sentence_transformers.json"
#: Files of an encoder beside its body that hold names and values.
_SETTINGS = (ENCODER_FILE, "sentence_bert_config.json")
#: A folder of a module behind the body.
MODULE_FOLDER = re.compile(r"\d+_[A-Za-z]\w*")
_MODULE_FILES = re.compile(rf"{MODULE_FOLDER.pattern}/(config\.json|model\.safetensors)")
#: The classes that `modules.json` may name: those of the package itself.
_MODULE_CLASS = re.compile(r"sentence_transformers(\.\w+)+")
#: The functions that a module may name: activations of torch.
_ACTIVATION = re.compile(r"torch\.nn\.modules\.\w+\.\w+")
#: Settings that name a class or a method, and the values that they may have.
_NAMES_OF_CODE = {
    "activation_function": _ACTIVATION,
    "activation_fn": _ACTIVATION,
    "method": re.compile("forward"),
}
#: What the Hub calls the tasks of the classes of encoders.
PIPELINES = {"SentenceTransformer": "sentence-similarity", "CrossEncoder": "text-ranking"}


def is_of_encoder(name: str) -> bool:
    """Whether a file is one that sentence-transformers puts beside a model.

    Args:
        name: Its path in the folder, with forward slashes.

    Returns:
        Whether it is.

    >>> is_of_encoder("modules.json"), is_of_encoder("1_Pooling/config.json"), is_of_encoder("1_Pooling/run.py")
    (True, True, False)
    """
    return name == MODULES_FILE or name in _SETTINGS or bool(_MODULE_FILES.fullmatch(name))


def encoder_settings(folder: Path) -> list[str]:
    """The JSON files of an encoder in a folder that hold names and values.

    Args:
        folder: A checkpoint's folder.

    Returns:
        Their paths in it.
    """
    names = [name for name in _SETTINGS if (folder / name).is_file()]
    for path in sorted(folder.glob("*/config.json")):
        name = path.relative_to(folder).as_posix()
        if _MODULE_FILES.fullmatch(name):
            names.append(name)
    return names


def names_foreign_code(key: str, value: Any) -> bool:
    """Whether a setting of an encoder names something to run that sentence-transformers does not put there itself.

    Args:
        key: The name of the setting.
        value: Its value.

    Returns:
        Whether it does.

    >>> names_foreign_code("activation_function", "torch.nn.modules.activation.Tanh")
    False
    >>> names_foreign_code("activation_function", "os.system")
    True
    """
    expected = _NAMES_OF_CODE.get(key)
    return expected is not None and value is not None and not expected.fullmatch(str(value))


def module_problems(folder: Path) -> Iterator[str]:
    """Modules of an encoder that would bring code, or be read from elsewhere.

    Args:
        folder: A checkpoint's folder.

    Yields:
        One line for each.
    """
    path = folder / MODULES_FILE
    if not path.is_file():
        return
    try:
        modules = read_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        yield f"{MODULES_FILE} cannot be read: {type(error).__name__}: {error!s:.150}"
        return
    are_listed = isinstance(modules, list) and all(isinstance(module, Mapping) for module in modules)
    if not are_listed:
        yield f"{MODULES_FILE} holds {modules!r:.50} where a list of modules is expected"
        return
    for module in modules:
        class_name = str(module.get("type"))
        place = str(module.get("path"))
        if not _MODULE_CLASS.fullmatch(class_name):
            yield f"{MODULES_FILE} names code that hfprune does not write: {class_name!r:.150}. It was not run"
        elif place and not MODULE_FOLDER.fullmatch(place):
            yield f"{MODULES_FILE} leads to {place!r:.150}, which is no folder of a module. Remove it"


def encoder_class_in(folder: Path) -> str | None:
    """The class of sentence-transformers that a folder is of.

    Args:
        folder: A checkpoint's folder.

    Returns:
        Its name, `SentenceTransformer` or `CrossEncoder`; None if it is a model of transformers alone.
    """
    path = folder / ENCODER_FILE
    if not (folder / MODULES_FILE).is_file() or not path.is_file():
        return None
    name = read_json(path.read_text(encoding="utf-8")).get("model_type", "SentenceTransformer")
    return name if name in PIPELINES else None
