"""Requests to the Hub: download a whole checkpoint, and check the login before a run that ends with a push."""

import glob
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from hfprune.errors import CheckpointError, HfpruneError
from hfprune.publishing.contents import is_covered, name_problems

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

#: How often a request is repeated after an error of the server.
_RETRIES = 2
#: Weights in other formats, some of which run code when they are read: a checkpoint is loaded without them.
_NOT_FETCHED = ["*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot"]


def fetch(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    subfolder: str = "",
    only_ours: bool = True,
    **hub: Any,
) -> Path:
    """The folder of a checkpoint. A repository is downloaded into the cache of the Hub, without what no loading reads.

    Args:
        name_or_path: A folder, or the name of a repository.
        revision: A branch, tag or commit of the repository.
        subfolder: The folder of the checkpoint within the folder or repository.
        only_ours: Whether to refuse a repository with files that no checkpoint of hfprune has, at any depth: code there
            could run in another library, though it is never downloaded here.
        **hub: `cache_dir`, `force_download`, `local_files_only` and `token`, as in huggingface_hub.

    Returns:
        The folder.

    Raises:
        CheckpointError: There is no such folder, and the name cannot be that of a repository, or the Hub does not
            deliver the repository, or it has foreign files.
    """
    if Path(name_or_path).exists():
        return Path(name_or_path) / subfolder
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    # None would take the place of the library's own default
    hub = {name: value for name, value in hub.items() if value is not None}

    names = _names_on_the_hub(str(name_or_path), revision, prefix, hub)
    if only_ours:
        for problem in name_problems(names):
            raise CheckpointError(f"{name_or_path}: {problem}")
    # names are taken for patterns
    wanted = [glob.escape(prefix + name) for name in names if "/" not in name or is_covered(name)]

    def download() -> str:
        folder: str = snapshot_download(
            str(name_or_path),
            revision=revision,
            allow_patterns=wanted or f"{prefix}*",
            ignore_patterns=_NOT_FETCHED,
            **hub,
        )
        return folder

    try:
        downloaded = patiently(download)
    except HFValidationError as error:
        raise CheckpointError(f"there is no folder {name_or_path}, and no repository can have that name.") from error
    except OSError as error:
        raise CheckpointError(
            f"there is no folder {name_or_path}, and the Hub does not give a repository of that name: {error}"
        ) from error
    return Path(downloaded) / subfolder


def _names_on_the_hub(repo: str, revision: str | None, prefix: str, hub: Mapping[str, Any]) -> list[str]:
    """The names of all files below a prefix in a repository; none where the Hub cannot be asked."""
    if hub.get("local_files_only"):
        return []
    try:
        names = HfApi(token=hub.get("token")).list_repo_files(repo, revision=revision)
    except (HFValidationError, OSError):
        # what is in the cache will have to do, and its names are checked there
        return []
    return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]


def patiently(request: Callable[[], Answer]) -> Answer:
    """Send a request to the Hub, and repeat it up to twice after an error of the server.

    Args:
        request: Sends the request. It must be idempotent: to send it twice does the same as to send it once.

    Returns:
        The result of the request.
    """
    for attempt in range(_RETRIES):
        try:
            return request()
        except HfHubHTTPError as error:
            status = error.response.status_code
            # below 500 the request is wrong, and would be wrong again
            if status < 500:
                raise
            logger.warning("The Hub answered with status %s; trying again.", status)
            time.sleep(2**attempt)
    return request()


def check_login(token: str | None = None) -> None:
    """Check, before a long run, that its result can be pushed afterwards.

    Args:
        token: An access token, by default the stored one.

    Raises:
        HfpruneError: The Hub cannot be reached, or does not know the token.
    """
    try:
        HfApi(token=token).whoami()
    except OSError as error:
        raise HfpruneError(
            f"push_to_hub was asked for, but the Hub does not let us in: {error} Log in with `hf auth login`, pass "
            "--hub_token, or leave push_to_hub out."
        ) from error
