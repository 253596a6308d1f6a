"""Talk to the Hub: fetch a checkpoint whole, find out whether one could be pushed."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError

from hfprune.errors import CheckpointError, HfpruneError

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

_RETRIES = 2
#: Other formats in a repository, and what could be unpickled, stay there.
_LEFT = ["*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.gguf", "*.ot"]


def fetch(name_or_path: str | Path, *, revision: str | None = None, subfolder: str = "", **hub: Any) -> Path:
    """The folder of a checkpoint: as it is, or downloaded whole into the cache of the Hub.

    Args:
        name_or_path: A folder, or a repository.
        revision: A branch, tag or commit of the repository.
        subfolder: Where in it the checkpoint is.
        **hub: `cache_dir`, `force_download`, `local_files_only` and `token`, as in huggingface_hub.

    Returns:
        The folder.

    Raises:
        CheckpointError: There is no such folder, and it can be no repository, or the Hub does not give it.
    """
    if Path(name_or_path).exists():
        return Path(name_or_path) / subfolder
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    try:
        folder = patiently(
            lambda: snapshot_download(
                str(name_or_path),
                revision=revision,
                allow_patterns=[f"{prefix}*"],
                ignore_patterns=[f"{prefix}*/*", *_LEFT],
                **{name: value for name, value in hub.items() if value is not None},
            )
        )
    except HFValidationError as error:
        raise CheckpointError(f"there is no folder {name_or_path}, and no repository can have that name.") from error
    except OSError as error:
        raise CheckpointError(
            f"there is no folder {name_or_path}, and the Hub does not give a repository of that name: {error}"
        ) from error
    return Path(folder) / subfolder


def patiently(request: Callable[[], Answer]) -> Answer:
    """Ask the Hub, and up to twice more where it answers that it failed itself.

    Args:
        request: Asks it; asking twice must do what asking once does.

    Returns:
        What it gave.
    """
    for attempt in range(_RETRIES):
        try:
            return request()
        except HfHubHTTPError as error:
            if error.response.status_code < 500:
                raise
            logger.warning("The Hub answered with status %s; trying again.", error.response.status_code)
            time.sleep(2**attempt)
    return request()


def check_login(token: str | None = None) -> None:
    """Find out before a long run whether its result could be pushed.

    Args:
        token: A token, by default the one that is stored.

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
