"""Journals of saves that exchange files: which are the old ones, and which the new."""

import json
import os
from pathlib import Path

from hfprune.errors import CheckpointError
from hfprune.publishing.contents import CONTAINER
from hfprune.structure.json_text import read_json

#: What a container may hold.
NEW = "new"
OLD = "old"
JOURNAL_DRAFT = "journal.draft"
#: The folder that a file system of Linux has at its root. It cannot be moved, and is part of no checkpoint.
LOST_AND_FOUND = "lost+found"


def write_journal(path: Path, names: dict[str, list[str]]) -> None:
    """Write a journal in one step: a part of one would be worse than none.

    Args:
        path: The file.
        names: The names of the old and of the new files.
    """
    draft = path.with_name(JOURNAL_DRAFT)
    with draft.open("w", encoding="utf-8") as file:
        json.dump(names, file)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)


def read_journal(path: Path) -> dict[str, list[str]]:
    """The names in a journal, which may come from a stranger's folder: each is that of something in it.

    Args:
        path: The file.

    Returns:
        The names of the old and of the new files.

    Raises:
        CheckpointError: It is none.
    """
    advice = f"Nothing was moved. No save of hfprune wrote it: remove the folder {path.parent}."
    try:
        names = read_json(path.read_text(encoding="utf-8"))
        lists = {OLD: names[OLD], NEW: names[NEW]}
    except (KeyError, RecursionError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} is no journal of a save: {type(error).__name__}: {error!s:.150}. {advice}"
        ) from error
    if not all(isinstance(part, list) and all(_is_name(name) for name in part) for part in lists.values()):
        raise CheckpointError(f"{path} is no journal of a save: it has names that are no names of files. {advice}")
    return lists


def _is_name(name: object) -> bool:
    """Whether a value is the name of a file that a save exchanges: no path, and not that of a container."""
    if not isinstance(name, str) or not name or "\0" in name:
        return False
    # the path of "." and of nothing has no name at all
    is_plain = Path(name).name == name and name not in ("..", LOST_AND_FOUND)
    return is_plain and not CONTAINER.fullmatch(name)
