"""What the folder of a checkpoint may hold: closed lists of files and of settings.

Whatever is not in the lists, or is of an unexpected type, is a problem; nothing is passed over. Files are read as data.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hfprune.publishing.encoder_files import encoder_settings, is_of_encoder, module_problems, names_foreign_code
from hfprune.publishing.probe import PROBE_FILE
from hfprune.structure import modeling_pruned
from hfprune.structure.json_text import read_json

PLAN_FILE = "pruning_plan.json"
RECORD_FILE = "pruning_record.json"
CONFIG_FILE = "config.json"
ADAPTER_FILE = "adapter_config.json"
LOADER_FILE = Path(modeling_pruned.__file__).name

#: JSON files that transformers reads, and that could name code or files elsewhere.
SETTINGS_FILES = frozenset(
    {
        CONFIG_FILE,
        "generation_config.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "preprocessor_config.json",
        "processor_config.json",
        "video_preprocessor_config.json",
        "chat_template.json",
    }
)
#: Files of tokenizers, by name, beside those with settings.
_OF_TOKENIZERS = re.compile(
    r"tokenizer\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|[\w.-]+\.(model|codes|tiktoken|spm)"
    r"|(emoji|normalizer|entity_vocab|phonemes|vocab-src|vocab-tgt|target_vocab|byte_maps)\.json|dict\.txt"
    r"|word_(shape|pronunciation)\.json|prophetnet\.tokenizer|chat_template\.jinja"
)
#: Their files with settings.
_SETTINGS_OF_TOKENIZERS = frozenset({"tokenizer_config.json", "special_tokens_map.json", "chat_template.json"})
#: The other files that `save` and `Trainer` write, by name.
_FILES = re.compile(
    r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json"
    rf"|{re.escape(PLAN_FILE)}|{re.escape(RECORD_FILE)}|{re.escape(PROBE_FILE)}|{re.escape(LOADER_FILE)}"
    rf"|{_OF_TOKENIZERS.pattern}"
)
#: What Trainer, our scripts and `hfprune.quantize` put beside a model; from_pretrained reads none of it.
_OF_TRAINING = re.compile(
    r"(trainer_state|results|hfprune_export|(all|train|eval|predict|test)_results)\.json|training_args\.bin"
    r"|(optimizer|scheduler|scaler)\.(pt|bin)|rng_state(_\d+)?\.pth"
)
#: Endings of weights in other formats. Nothing reads them where there are safetensors, but they are not ours either.
_OTHER_WEIGHTS = frozenset({".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ot"})
#: Endings of documents, which nothing reads as settings and nothing runs.
_DOCUMENTS = frozenset({".md", ".txt", ".csv", ".png", ".jpg", ".svg", ".log", ".pdf"})
_DOCUMENTS_BY_NAME = re.compile(r"(LICEN[CS]E|NOTICE)[\w.-]*|\.gitattributes|\.gitignore")
#: The one folder whose files transformers reads: a tokenizer's further chat templates.
_TEMPLATES = re.compile(r"additional_chat_templates/[\w.-]+\.jinja")
#: Folders of `save`, for the time that it exchanges the files of a checkpoint, or for a draft that it could not place.
CONTAINER = re.compile(r"\.[0-9a-f]{12}\.(saving|kept)")
#: The file in such a folder that says which files its save was exchanging.
JOURNAL_FILE = "journal.json"
#: Folders that are not looked into: transformers reads nothing below them.
_IGNORED_FOLDERS = re.compile(
    r"\.git|\.cache|runs|logs|onnx|openvino|coreml|(last-)?checkpoint(-\d+)?"
    # at the root of a file system
    rf"|lost\+found|{CONTAINER.pattern}"
)
#: The classes that `auto_map` in config.json may name.
_LOADER_CLASS = re.compile(r"modeling_pruned\.Pruned\w+")
#: Settings that make transformers run code, or read another file. hfprune writes none of them.
_NEVER_SET = frozenset(
    {"custom_pipelines", "custom_generate", "configuration_files", "peft_type", "use_pretrained_backbone"}
)
#: Names of settings that say where something else is to be read: in a repository, a folder, a file or a server.
_PLACES = re.compile(r"(.+_)?(name_or_path|name_or_paths|repo|repo_id|repo_name|path|paths|url)")
#: Where a model or a tokenizer came from, which transformers writes (the last, of a GGUF file), and nothing reads when
#: it is loaded.
_ORIGINS = frozenset({"name_or_path", "_name_or_path", "_model_name_or_path"})


def may_hold(name: str) -> bool:
    """Whether a checkpoint may hold a file.

    Args:
        name: Its path in the checkpoint's folder, with forward slashes.

    Returns:
        Whether it is in the list.

    >>> may_hold("config.json"), may_hold("notes.txt"), may_hold("additional_chat_templates/tools.jinja")
    (True, True, True)
    >>> may_hold("custom_generate/generate.py"), may_hold("more.json")
    (False, False)
    """
    if is_of_encoder(name):
        return True
    folder, _, rest = name.partition("/")
    if rest:
        return bool(_IGNORED_FOLDERS.fullmatch(folder) or _TEMPLATES.fullmatch(name))
    is_document = Path(name).suffix in _DOCUMENTS | _OTHER_WEIGHTS or _DOCUMENTS_BY_NAME.fullmatch(name)
    is_listed = name in SETTINGS_FILES or _FILES.fullmatch(name) or _OF_TRAINING.fullmatch(name)
    return bool(is_listed or is_document)


def is_covered(name: str) -> bool:
    """Whether a record has the digest of a file: everything that is read when the checkpoint is loaded.

    A card and its pictures may be edited, and what `Trainer` leaves beside a model is none of its files.

    >>> is_covered("tokenizer.json"), is_covered("README.md")
    (True, False)
    """
    if name == RECORD_FILE or _OF_TRAINING.fullmatch(name):
        # a record cannot hold its own digest
        return False
    if Path(name).suffix in _OTHER_WEIGHTS:
        return True
    is_listed = name in SETTINGS_FILES or is_of_encoder(name)
    return is_listed or bool(_FILES.fullmatch(name) or _TEMPLATES.fullmatch(name))


def digest_problems(folder: Path, digests: Mapping[str, str]) -> Iterator[str]:
    """Files that are not those whose SHA-256 a record holds, or that it does not hold.

    Args:
        folder: A checkpoint's folder.
        digests: SHA-256 by the name of the file.

    Yields:
        One line for each.
    """
    for name, digest in sorted(digests.items()):
        if not (folder / name).is_file():
            yield f"{name} is missing. Download or save the checkpoint again"
        elif sha256(folder / name) != digest:
            yield f"{name} is not the file that was saved: its SHA-256 differs"
    for name in names_in(folder):
        if name not in digests and is_covered(name):
            yield f"{name} is not part of what was saved. {_advice_on_added(name)}"


def _advice_on_added(name: str) -> str:
    """What to do about a file that was added; one of a tokenizer may be from its own `save_pretrained`."""
    is_of_tokenizer = name in _SETTINGS_OF_TOKENIZERS or _OF_TOKENIZERS.fullmatch(name) or _TEMPLATES.fullmatch(name)
    if not is_of_tokenizer:
        return "Remove it"
    return (
        "If tokenizer.save_pretrained wrote it, save both at once, which records its digest: "
        "hfprune.save(model, folder, tokenizer=tokenizer, overwrite=True). If not, remove it"
    )


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def names_in(folder: Path) -> list[str]:
    """The names of all files in a checkpoint's folder, at any depth, in order; without those of ignored folders."""
    names: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and _IGNORED_FOLDERS.fullmatch(path.name):
            continue
        if not _is_folder(path):
            names.append(path.name)
            continue
        for inner in sorted(path.rglob("*")):
            if not _is_folder(inner):
                names.append(inner.relative_to(folder).as_posix())
    return names


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder itself. A link to one is not looked into: it could lead to the whole disk."""
    return path.is_dir() and not path.is_symlink()


def name_problems(names: Iterable[str]) -> Iterator[str]:
    """Files that are not in the list.

    Args:
        names: Paths in a checkpoint's folder, or in its repository on the Hub.

    Yields:
        One line for each.
    """
    for name in names:
        if may_hold(name):
            continue
        if name == ADAPTER_FILE:
            yield f"{name} leads to weights elsewhere. hfprune writes none: merge the adapter, or remove it"
        elif name.endswith(".py"):
            yield f"{name} is code that hfprune does not write; it was not run. Remove it, or do not trust this"
        else:
            yield f"{name} is no file that a checkpoint of hfprune may hold. Remove it, or do not trust this"


def file_problems(folder: Path) -> Iterator[str]:
    """Entries of a checkpoint's folder that are not in the list, are no regular files, or lead out of the folder.

    Args:
        folder: The folder.

    Yields:
        One line for each.
    """
    if not folder.is_dir():
        return
    names = names_in(folder)
    yield from name_problems(names)
    yield from irregular(folder, names)


def irregular(folder: Path, names: Iterable[str]) -> Iterator[str]:
    """Entries of a folder that are no regular files, such as a pipe or a device, or that lead out of the folder.

    Args:
        folder: The folder.
        names: Paths in it.

    Yields:
        One line for each.
    """
    for name in names:
        if not (folder / name).is_file():
            yield f"{name} is no regular file, so it was not opened. Remove it"
        elif leads_out(folder / name, folder):
            yield f"{name} is a link that leads out of the folder. Put the file itself there"


def pending_problems(folder: Path) -> Iterator[str]:
    """Exchanges of files that a killed save left, or a stranger put there: `load` would move their files in.

    Args:
        folder: A checkpoint's folder.

    Yields:
        One line for each.
    """
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if CONTAINER.fullmatch(path.name) and os.path.lexists(path / JOURNAL_FILE):
            yield (
                f"{path.name} is of a save that was interrupted while it exchanged files, so what is here may not be "
                "what stays. If the save was yours, hfprune.load finishes it; else remove that folder"
            )


def leads_out(path: Path, folder: Path) -> bool:
    """Whether a file is a link to another place than its folder, or the blobs of the Hub's cache."""
    if not path.is_symlink():
        return False
    target = path.resolve()
    homes = [folder.resolve()]
    # the cache of the Hub keeps the files of all commits in one folder, and links to them
    if folder.parent.name == "snapshots":
        homes.append((folder.parent.parent / "blobs").resolve())
    return not any(target.is_relative_to(home) for home in homes)


def setting_problems(folder: Path) -> Iterator[str]:
    """Settings that could make transformers run code, or read weights or code from elsewhere, in any JSON file.

    Args:
        folder: A checkpoint's folder.

    Yields:
        One line for each.
    """
    yield from module_problems(folder)
    of_encoder = encoder_settings(folder)
    for name in (*sorted(SETTINGS_FILES), *of_encoder):
        path = folder / name
        if not path.is_file():
            continue
        try:
            settings = _settings(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            yield f"{name} cannot be read: {type(error).__name__}: {error!s:.150}"
            continue
        for key, value in settings:
            problem = _problem_of(key, value, name)
            if name in of_encoder and names_foreign_code(key, value):
                problem = f"{name} names code that hfprune does not write: {value!r:.150}. It was not run"
            if problem is not None:
                yield problem


def _settings(text: str) -> list[tuple[str, Any]]:
    """All pairs of a name and a value in a JSON object and in the objects within it, innermost first.

    A name that stands twice in one object is listed twice, although Python's JSON keeps the last value only.
    """
    settings: list[tuple[str, Any]] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        settings.extend(pairs)
        return dict(pairs)

    content = read_json(text, object_pairs_hook=collect)
    if not isinstance(content, dict):
        raise ValueError(f"expected names and values, got {content!r:.50}")
    return settings


def _problem_of(key: str, value: Any, file: str) -> str | None:
    """What is wrong with one setting."""
    shown = f"{value!r:.150}"
    if key == "auto_map":
        # only the config names the loader; a tokenizer has no code of hfprune's
        is_ours = file == CONFIG_FILE and _names_loader_only(value)
        if not is_ours and value not in (None, {}):
            return f"auto_map in {file} names code that hfprune does not write: {shown}. It was not run"
    elif key in _NEVER_SET or _is_place(key, value):
        # an empty setting names nothing
        if value not in (None, {}, [], "", False):
            return f"{file} sets {key} to {shown}, which leads elsewhere. Remove it"
    elif key.endswith("_implementation"):
        # kernels with a slash in their name are code in a repository of the Hub
        if "/" in str(value):
            return f"{file} sets {key} to {shown}, which leads elsewhere. Remove it"
    elif key == "transformers_weights" and value not in (None, modeling_pruned.STOCK_CLASSES):
        return f"{file} sets {key} to {shown}, which leads elsewhere. Remove it"
    return None


def _is_place(key: str, value: Any) -> bool:
    """Whether a setting says where something else is to be read. A number or a truth value leads nowhere."""
    return key not in _ORIGINS and bool(_PLACES.fullmatch(key)) and not isinstance(value, (int, float))


def _names_loader_only(auto_map: Any) -> bool:
    """Whether a value is a mapping whose every class is one of the loader's."""
    if not isinstance(auto_map, Mapping):
        return False
    return all(isinstance(name, str) and _LOADER_CLASS.fullmatch(name) for name in auto_map.values())
