"""The folder of an export: what is in it, and whether it may be replaced."""

from pathlib import Path

from hfprune.errors import CheckpointError
from hfprune.publishing.contents import irregular
from hfprune.publishing.replacement import entries_of
from hfprune.structure.json_text import read_json

#: What an export says of itself. transformers writes a file `export.json` of its own.
EXPORT_FILE = "hfprune_export.json"
#: How many names of files a message has.
_NAMED = 8


def check_replaceable(place: Path, *, overwrite: bool) -> None:
    """Refuse a place that an export may not take.

    Args:
        place: The folder that is to be written.
        overwrite: Whether an export there may be replaced.

    Raises:
        CheckpointError: The place is a file, or a folder that is not to be replaced; the message says why.
    """
    if not place.exists():
        return
    if not place.is_dir():
        raise CheckpointError(f"{place} is a file; an export is a folder.")
    if not entries_of(place):
        return
    if not overwrite:
        raise CheckpointError(f"{place} exists and is not empty. Choose another folder, or allow to overwrite it.")
    # replacing removes the whole folder, so one mistyped path could cost somebody's work
    if not (place / EXPORT_FILE).is_file():
        raise CheckpointError(
            f"{place} holds something else than an export; it is not replaced. Choose another folder."
        )
    foreign = sorted(files_in(place) - _written_files(place))
    if foreign:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        raise CheckpointError(
            f"{place} holds files that the export did not write: {', '.join(foreign[:_NAMED])}{more}. Replacing would "
            "remove them. Move them, or choose another folder."
        )


def export_problem(folder: Path) -> str | None:
    """Why what a killed export would put in its place is none.

    Args:
        folder: The folder that it wrote. Nothing in it is run.

    Returns:
        The first problem; None if there is none.
    """
    written = _written_files(folder)
    if not written:
        return f"it has no {EXPORT_FILE} with a list of its files"
    present = files_in(folder)
    for name in sorted(written ^ present):
        return f"{name} is missing" if name in written else f"{name} is none of its files"
    return next(irregular(folder, sorted(present)), None)


def files_in(folder: Path) -> set[str]:
    """The names of all files of an export's folder.

    Args:
        folder: The folder.

    Returns:
        Names relative to it, with `/` between folders.
    """
    names = set()
    for entry in entries_of(folder):
        path = folder / entry
        inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else [path]
        for file in inside:
            if file.is_symlink() or not file.is_dir():
                names.add(file.relative_to(folder).as_posix())
    return names


def _written_files(place: Path) -> set[str]:
    """The names that the report of an export lists; none if it cannot be read."""
    try:
        return set(read_json((place / EXPORT_FILE).read_text(encoding="utf-8"))["files"])
    except (KeyError, OSError, TypeError, ValueError):
        return set()
