"""Second names of files, so that a folder can be shown or rewritten without copying what is in it."""

import os
import shutil
from pathlib import Path


def is_there(path: Path) -> bool:
    """Whether there is anything of that name, also a link to nowhere."""
    return os.path.lexists(path)


def link_all(source: Path, target: Path) -> None:
    """Give a file, or every file in a folder, a second name.

    Args:
        source: The file or folder. A link is taken as it is, and not followed.
        target: The second name.
    """
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=_link)
    else:
        _link(source, target)


def _link(source: str | Path, target: str | Path) -> None:
    """Give a file a second name, or, where the system refuses that, copy it."""
    try:
        os.link(source, target, follow_symlinks=False)
    except (NotImplementedError, OSError):
        shutil.copy2(source, target, follow_symlinks=False)
