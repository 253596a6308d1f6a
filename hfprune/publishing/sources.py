"""Whether a name that a user gives leads to a pruned checkpoint, and its checks before anything of it is read."""

from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from hfprune.errors import CheckpointError
from hfprune.publishing.contents import CONFIG_FILE, PLAN_FILE, RECORD_FILE, irregular
from hfprune.publishing.encoder_files import MODULES_FILE
from hfprune.publishing.hub import fetch
from hfprune.publishing.probe import PROBE_FILE
from hfprune.publishing.verification import check_loadable
from hfprune.structure.json_text import read_json

#: What only a pruned checkpoint has. One without its plan is damaged, and no dense model.
_MARKS = (PLAN_FILE, RECORD_FILE, PROBE_FILE)


def is_pruned(source: str | Path, *, revision: str | None = None) -> bool:
    """Whether a folder or repository is a pruned checkpoint, whole or damaged. No object of its config is made.

    Args:
        source: Folder or repository.
        revision: Branch, tag or commit of a repository.

    Returns:
        Whether it has a file of a pruned checkpoint, or a config that says so.

    Raises:
        CheckpointError: The config is no regular file.
    """
    folder = Path(source)
    if folder.is_dir():
        if any((folder / name).exists() for name in _MARKS):
            return True
        config_file = folder / CONFIG_FILE
        if not config_file.exists():
            return False
        for problem in irregular(folder, [CONFIG_FILE]):
            raise CheckpointError(f"{folder}: {problem}")
        return _says_pruned(config_file)
    for name in _MARKS:
        if _of_the_hub(source, name, revision) is not None:
            return True
    found = _of_the_hub(source, CONFIG_FILE, revision)
    return found is not None and _says_pruned(Path(found))


def check_source(source: str | Path, *, revision: str | None = None) -> None:
    """Check a pruned checkpoint as `load` does, before its config or tokenizer is read; pass over any other model.

    The config of a dense model is the user's own choice. One of a pruned checkpoint could ask for sizes that its
    weights do not have, and transformers would build them.

    Args:
        source: Folder or repository.
        revision: Branch, tag or commit of a repository.

    Raises:
        CheckpointError: It is pruned, and `load` would refuse it.
    """
    if is_pruned(source, revision=revision):
        check_loadable(fetch(source, revision=revision))


def is_of_sentence_transformers(source: str | Path, *, revision: str | None = None) -> bool:
    """Whether a folder or repository is that of a `SentenceTransformer`.

    Args:
        source: Folder or repository.
        revision: Branch, tag or commit of a repository.

    Returns:
        Whether it has the file that lists the modules of one.
    """
    folder = Path(source)
    if folder.is_dir():
        return (folder / MODULES_FILE).is_file()
    return _of_the_hub(source, MODULES_FILE, revision) is not None


def _of_the_hub(source: str | Path, name: str, revision: str | None) -> str | None:
    """A file of a repository; None if it has none of that name."""
    found: str | None = cached_file(source, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    return found


def _says_pruned(config_file: Path) -> bool:
    """Whether a config, read as plain JSON, is that of a pruned model."""
    try:
        config: Any = read_json(config_file.read_text(encoding="utf-8"))
    except ValueError:
        # transformers says what is wrong with it
        return False
    if not isinstance(config, dict):
        return False
    architectures = config.get("architectures")
    names = architectures if isinstance(architectures, list) else []
    has_class = any(str(name).startswith("Pruned") for name in names)
    has_type = str(config.get("model_type")).startswith("pruned_")
    return has_class or has_type or config.get("pruning_config") is not None
