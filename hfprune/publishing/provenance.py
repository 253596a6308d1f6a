"""Where a model comes from: versions of packages, the commit on the Hub, and the name that others may know."""

import importlib.metadata
import platform
import re
from functools import cache
from pathlib import Path

from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from transformers import PreTrainedModel

#: The packages whose versions can change a result.
_PACKAGES = ("hfprune", "torch", "transformers", "datasets", "accelerate", "evaluate", "huggingface_hub")
#: The name of a repository on the Hub, with or without its owner. It matches no `./folder`, and no longer path.
_REPOSITORY_NAME = re.compile(r"(?!\.{1,2}/)[\w.-]+(/[\w.-]+)?", re.ASCII)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a result, as far as they are installed."""
    by_name = {"python": platform.python_version()}
    for package in _PACKAGES:
        version = _version(package)
        if version:
            by_name[package] = version
    return by_name


# the metadata of a package is a file, and every record asks for it
@cache
def _version(package: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def revision_of(model: PreTrainedModel) -> str:
    """The commit of the Hub that a model was loaded from.

    Args:
        model: The model.

    Returns:
        The commit; empty if it is not known.
    """
    commit: str | None = getattr(model.config, "_commit_hash", None)
    if commit:
        return commit
    # transformers 5.23 does not keep the commit, so the cache must tell
    name = model.config._name_or_path or ""
    if not name or Path(name).exists():
        return ""
    try:
        repository = Path(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"))
    except HFValidationError:
        # the name is a folder that was removed since
        return ""
    commits = {path.parent.name for path in repository.glob("snapshots/*/config.json")}
    # of several commits any may be the one that was loaded
    if len(commits) != 1:
        return ""
    return commits.pop()


def public_name(name_or_path: str) -> str:
    """The name of a model or data set without the folders of this machine, for what will be published.

    Args:
        name_or_path: The name of a repository, or a path.

    Returns:
        A repository's name as it is; of a file or folder the last part of its path.

    >>> public_name("google-bert/bert-base-uncased")
    'google-bert/bert-base-uncased'
    >>> public_name("/home/me/my model")
    'my-model'
    >>> public_name("./my_bert")  # a folder, although it does not exist here
    'my_bert'
    """
    if not name_or_path:
        return ""
    path = Path(name_or_path)
    is_local = path.is_absolute() or path.exists() or not _REPOSITORY_NAME.fullmatch(name_or_path)
    if not is_local:
        return name_or_path
    # the schema of a record allows these characters in a name
    return re.sub(r"[^A-Za-z0-9_.-]", "-", path.resolve().name)
