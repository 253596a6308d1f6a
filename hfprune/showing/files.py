"""Files that are replaced as a whole."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes) -> Path:
    """Replace a file as a whole: if the process is killed, either the old file or the new one is left.

    Args:
        path: The file; folders are made.
        content: Its new content.

    Returns:
        The file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # in the same folder, because replacing a file in one step works only within one file system
    draft = path.with_name(f".{path.name}.{os.getpid()}.saving")
    try:
        with draft.open("wb") as handle:
            handle.write(content)
            handle.flush()
            # without this, a crash of the machine could leave an empty file under the final name
            os.fsync(handle.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
