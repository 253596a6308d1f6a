"""Put a finished folder in the place of another, so that a failure or a kill leaves the old one or the new one, whole.

Every save writes into a container of its own: a hidden folder beside the place or, where the folder at the place cannot
be exchanged, inside of it. A container holds the draft, `new`; while files are exchanged, what they replace, `old`; and
then a journal of both, by which the exchange can be finished after a kill.
"""

import ctypes
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hfprune.errors import CheckpointError
from hfprune.publishing.contents import CONFIG_FILE, CONTAINER, JOURNAL_FILE
from hfprune.publishing.journals import JOURNAL_DRAFT, LOST_AND_FOUND, NEW, OLD, read_journal, write_journal
from hfprune.publishing.links import is_there, link_all
from hfprune.publishing.locks import lock_folder, lock_patiently, locked, unlock
from hfprune.publishing.verification import placing_problem

logger = logging.getLogger(__name__)

# constants of Linux that Python does not name: the first is in linux/fs.h, the second in fcntl.h
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
#: Links to the files of the new checkpoint, while they are checked before an exchange is finished.
_CHECKED = "checked"
#: The ends of a container's name: of a save that runs or was killed, and of one that failed, whose draft is kept.
_SAVING = ".saving"
_KEPT = ".kept"


#: Says what is wrong with what a killed save would put in a place; None if nothing is.
Judge = Callable[[Path], str | None]


class NotPlacedError(CheckpointError):
    """A finished draft could not be put in its place; the message says where it is."""


def entries_of(place: Path) -> list[str]:
    """The names in a folder that a new one would replace: all but those of containers, and what cannot be moved."""
    names = sorted(path.name for path in place.iterdir())
    return [name for name in names if name != LOST_AND_FOUND and not CONTAINER.fullmatch(name)]


@contextmanager
def draft_for(place: Path, *, judge: Judge = placing_problem) -> Iterator[Path]:
    """An empty folder to write into what shall later be put in a place, by `put`.

    At the end whatever is left of it is removed, also after an error.

    Args:
        place: The place, without links in it.
        judge: As for `finish_interrupted`.

    Yields:
        The folder, on the file system of the place. No other save writes there.

    Raises:
        CheckpointError: Neither the place nor the folder around it can be written to, or the working directory of this
            process is below the place, where it would be removed.
    """
    finish_interrupted(place, judge=judge)
    _check_working_directory(place)
    _clear_leftovers(place)
    container, lock = _container_for(place)
    draft = container / NEW
    try:
        _make_draft(draft, place)
        yield draft
    except NotPlacedError:
        # what is in the container may be the only copy
        raise
    except BaseException as error:
        error.add_note(f"Nothing was written to {place}; the unfinished draft beside it was removed.")
        _remove(container, place)
        raise
    else:
        _remove(container, place)
    finally:
        unlock(lock)


def put(draft: Path, place: Path, *, overwrite: bool) -> None:
    """Put a finished draft in its place, in one atomic step where the system can.

    Args:
        draft: The folder that `draft_for` gave.
        place: The place.
        overwrite: Whether it may take the place of what is there.

    Raises:
        NotPlacedError: It could not. The message says where the draft is: it is kept.
    """
    try:
        _keep_modes(place, draft)
        if not place.exists() and _take_free_place(draft, place):
            return
        with locked(place):
            _replace(draft, place, overwrite=overwrite)
    except OSError as error:
        raise NotPlacedError(_what_is_left(draft.parent, place, error)) from error


@contextmanager
def rewritten(place: Path) -> Iterator[Path]:
    """A draft with all that is in a place, to change some files of it; then it takes the place, as by `put`.

    Args:
        place: A checkpoint's folder, without links in its path. No other save exchanges it meanwhile.

    Yields:
        The draft. Its files are the same as in the place, not copies: replace them, do not write into them.

    Raises:
        CheckpointError: The place cannot be replaced, or another process has it locked.
        NotPlacedError: The draft could not take the place. The message says where the draft is: it is kept.
    """
    with draft_for(place) as draft, locked(place):
        for name in entries_of(place):
            link_all(place / name, draft / name)
        yield draft
        try:
            _keep_modes(place, draft)
            _replace(draft, place, overwrite=True)
        except OSError as error:
            raise NotPlacedError(_what_is_left(draft.parent, place, error)) from error


def finish_interrupted(place: Path, *, judge: Judge = placing_problem) -> None:
    """Finish a save whose process was killed while it exchanged files: put the new checkpoint in its place.

    Nothing is deleted. Without such a save nothing is done. A stranger may have made up the save, so the new checkpoint
    must pass every check before a file is moved.

    Args:
        place: Where the save was to put its checkpoint.
        judge: Judges what would be put there; by default as a checkpoint.

    Raises:
        CheckpointError: Another process is at it and does not come to an end, or the files cannot be moved, or the new
            checkpoint is not whole, or not one that `save` wrote. Then nothing was moved.
    """
    for container in _containers(place):
        if not _is_interrupted(container, place):
            continue
        try:
            lock = lock_patiently(container)
        except FileNotFoundError:
            # the process that was at it has just finished
            continue
        try:
            # the other process may have finished by now
            if _is_interrupted(container, place):
                _finish(container, place, judge)
                logger.warning("A save to %s was interrupted while it exchanged files; they are all moved now.", place)
        except CheckpointError:
            # it says what to do, and is an OSError too
            raise
        except OSError as error:
            raise CheckpointError(
                f"a save to {place} was interrupted while it exchanged files, and they cannot be moved now: {error}. "
                f"The new checkpoint's are in {container / NEW}, the old one's in {container / OLD}, as far as they "
                f"are not in {place}. Make these folders writable, and load or save again."
            ) from error
        finally:
            unlock(lock)


def _check_working_directory(place: Path) -> None:
    """Refuse to remove the folder that this process works in."""
    try:
        working = Path.cwd().resolve()
    except OSError:
        # it is gone already
        return
    if place in working.parents and place.is_dir():
        raise CheckpointError(
            f"{place} cannot be replaced: the working directory of this process, {working}, is below it. Change to "
            "another folder first."
        )


def _container_for(place: Path) -> tuple[Path, int | None]:
    """A new container, beside the place where a folder there can be exchanged, else inside of it; and its lock."""
    if not _must_stay(place):
        try:
            return _new_container(place.parent, f".{place.name}.")
        except OSError as error:
            beside = error
        if not place.is_dir():
            raise CheckpointError(f"{place} cannot be written: {beside}. Choose another folder.") from beside
    try:
        return _new_container(place, ".")
    except OSError as error:
        raise CheckpointError(
            f"{place} cannot be replaced: neither it nor the folder around it can be written to ({error}). Choose "
            "another folder."
        ) from error


def _must_stay(place: Path) -> bool:
    """Whether a folder has to stay the one it is: the root of a file system, or where this process works."""
    if not place.is_dir():
        return False
    if os.path.ismount(place) or (place / LOST_AND_FOUND).is_dir():
        return True
    with suppress(OSError):
        return place.samefile(".")
    return False


def _new_container(folder: Path, prefix: str) -> tuple[Path, int | None]:
    """Make a container with a name that no other has, and lock it."""
    while True:
        container = folder / f"{prefix}{secrets.token_hex(6)}{_SAVING}"
        # fails if there is anything of that name, also a link to elsewhere
        container.mkdir(mode=0o700)
        try:
            lock = lock_folder(container)
        except (BlockingIOError, FileNotFoundError):
            # a save that clears leftovers was here between both lines
            continue
        if container.is_dir():
            return container, lock
        unlock(lock)


def _make_draft(draft: Path, place: Path) -> None:
    """Make the empty folder of a draft, with the group of the folder that it will replace, which its files inherit."""
    draft.mkdir()
    if place.is_dir():
        status = place.stat()
        # only root may give a folder to another user
        with suppress(AttributeError, OSError):
            os.chown(draft, status.st_uid, status.st_gid)
        draft.chmod(status.st_mode & 0o7777 | 0o700)


def _keep_modes(place: Path, draft: Path) -> None:
    """Give the folder of a draft, and its files, the modes of those that they replace."""
    if not place.is_dir():
        return
    for path in draft.rglob("*"):
        earlier = place / path.relative_to(draft)
        if earlier.exists() and not earlier.is_symlink():
            shutil.copymode(earlier, path)
    shutil.copystat(place, draft)


def _take_free_place(draft: Path, place: Path) -> bool:
    """Put a draft where nothing is; False if something is there by now."""
    try:
        draft.rename(place)
    except OSError:
        if place.is_dir():
            return False
        raise
    return True


def _replace(draft: Path, place: Path, *, overwrite: bool) -> None:
    """Put a draft in the place of a folder: the whole folder at once where that is possible, else file by file."""
    container = draft.parent
    # the place was looked at before the draft was written, and another process may have been faster
    has_something = bool(entries_of(place))
    if has_something and not overwrite:
        raise FileExistsError("meanwhile something else was written there, and overwrite=False")
    if has_something and not (place / CONFIG_FILE).is_file():
        raise FileExistsError("meanwhile something else than a checkpoint was written there")
    if container.parent == place:
        _exchange_contents(container, place)
    elif not _exchange(draft, place) and not _rename_twice(container, place):
        _exchange_contents_of_copy(draft, place)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one system call; False where the system or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    result: int = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return result == 0


def _rename_twice(container: Path, place: Path) -> bool:
    """Move a folder into the container and the draft into its place; False if the folder cannot be moved."""
    old = container / OLD
    try:
        place.rename(old)
    except OSError:
        return False
    try:
        (container / NEW).rename(place)
    except BaseException:
        old.rename(place)
        raise
    return True


def _exchange_contents_of_copy(draft: Path, place: Path) -> None:
    """Exchange the contents of a folder for those of a draft on another file system, or under another mount."""
    container, lock = _new_container(place, ".")
    try:
        shutil.copytree(draft, container / NEW, symlinks=True)
        _exchange_contents(container, place)
    finally:
        _remove(container, place)
        unlock(lock)


def _exchange_contents(container: Path, place: Path) -> None:
    """Move all files of a folder into the container inside of it, and those of the draft into the folder."""
    journal = container / JOURNAL_FILE
    names = {OLD: entries_of(place), NEW: sorted(path.name for path in (container / NEW).iterdir())}
    (container / OLD).mkdir(mode=0o700)
    write_journal(journal, names)
    try:
        _move_on(container, place, names)
    except BaseException:
        _move_back(container, place, names)
        journal.unlink()
        raise
    # from here on the exchange is done, and what is left in the container may be removed
    journal.unlink()


def _move_on(container: Path, place: Path, names: dict[str, list[str]]) -> None:
    """Move the old files out and the new files in, as far as they are not moved yet.

    The config leaves first and comes last, so nobody loads a mixture.
    """
    for name in sorted(names[OLD], key=lambda name: name != CONFIG_FILE):
        if is_there(place / name) and not is_there(container / OLD / name):
            (place / name).rename(container / OLD / name)
    for name in sorted(names[NEW], key=lambda name: name == CONFIG_FILE):
        if is_there(container / NEW / name):
            (container / NEW / name).rename(place / name)


def _move_back(container: Path, place: Path, names: dict[str, list[str]]) -> None:
    """Undo `_move_on`, from any moment of it."""
    for name in sorted(names[NEW], key=lambda name: name != CONFIG_FILE):
        # a file of the same name that has not left yet is an old one
        is_new = name not in names[OLD] or is_there(container / OLD / name)
        if is_new and is_there(place / name) and not is_there(container / NEW / name):
            (place / name).rename(container / NEW / name)
    for name in sorted(names[OLD], key=lambda name: name == CONFIG_FILE):
        if is_there(container / OLD / name):
            (container / OLD / name).rename(place / name)


def _what_is_left(container: Path, place: Path, error: OSError) -> str:
    """Say what became of a draft that could not be put in its place, and keep it from being removed."""
    said = f"the new checkpoint could not be put in the place of {place}: {error}."
    interrupted = [other for other in _containers(place) if _is_interrupted(other, place)]
    if interrupted:
        container = interrupted[0]
        return (
            f"{said} Its files are in {container / NEW}, and those of the old one in {container / OLD}, as far as "
            "they are not in their place. The next hfprune.load or hfprune.save there finishes the exchange."
        )
    kept = container.with_name(container.name.removesuffix(_SAVING) + _KEPT)
    try:
        # the next save removes what has the other name
        container.rename(kept)
    except OSError:
        kept = container
    return (
        f"{said} What is there was left as it was. The new checkpoint is whole, and kept in {kept / NEW}: move it, or "
        "load it from there."
    )


def _containers(place: Path) -> list[Path]:
    """The containers of saves to a place that are there, of running saves and of killed ones."""
    found: list[Path] = []
    for folder, prefix in ((place.parent, f".{place.name}"), (place, "")):
        # a place that is not there yet, or that nobody may look at
        with suppress(OSError):
            for path in sorted(folder.iterdir()):
                name = path.name.removeprefix(prefix)
                is_named = path.name.startswith(prefix) and name.endswith(_SAVING) and CONTAINER.fullmatch(name)
                if is_named and _is_ours(path):
                    found.append(path)
    return found


def _is_ours(container: Path) -> bool:
    """Whether something with the name of a container is one, and no link or folder of somebody else."""
    parts = {NEW, OLD, _CHECKED}
    files = {JOURNAL_FILE, JOURNAL_DRAFT}
    if container.is_symlink() or not container.is_dir():
        return False
    for path in container.iterdir():
        is_folder = path.is_dir() and not path.is_symlink()
        if path.is_symlink() or path.name not in (parts if is_folder else files):
            return False
    return True


def _is_interrupted(container: Path, place: Path) -> bool:
    """Whether a container holds files that belong into the place."""
    try:
        if container.parent == place:
            return (container / JOURNAL_FILE).is_file()
        between_renamings = (container / OLD).is_dir() and (container / NEW).is_dir()
        return between_renamings and not is_there(place)
    except OSError:
        return False


def _finish(container: Path, place: Path, judge: Judge) -> None:
    """Finish an exchange from any moment of it, if the new checkpoint is whole."""
    if container.parent != place:
        _refuse_unless_whole(container / NEW, container, place, judge)
        # the second renaming of two
        (container / NEW).rename(place)
        return
    journal = container / JOURNAL_FILE
    names = read_journal(journal)
    view = container / _CHECKED
    try:
        _link_new(view, container, place, names)
        _refuse_unless_whole(view, container, place, judge)
    finally:
        shutil.rmtree(view, ignore_errors=True)
    _move_on(container, place, names)
    journal.unlink()


def _refuse_unless_whole(new: Path, container: Path, place: Path, judge: Judge) -> None:
    """Refuse to put something in a place that is not, in every file, what the save would have written."""
    problem = judge(new)
    if problem is None:
        return
    raise CheckpointError(
        f"{container} says that a save to {place} was interrupted while it exchanged files, but what it would put "
        f"there is no whole checkpoint: {problem}. Nothing was moved. If the save was yours, the files of the old "
        f"checkpoint are in {container / OLD}, as far as they are not in {place}: move them there. Then, or if the "
        f"save was not yours, remove {container}."
    )


def _link_new(view: Path, container: Path, place: Path, names: dict[str, list[str]]) -> None:
    """Fill a folder with links to all files of the new checkpoint, those that were moved already and those to move."""
    shutil.rmtree(view, ignore_errors=True)
    view.mkdir(mode=0o700)
    for name in names[NEW]:
        source = container / NEW / name
        # a file of the same name that has not left yet is an old one
        has_left = name not in names[OLD] or is_there(container / OLD / name)
        if has_left and is_there(source) and is_there(place / name):
            raise CheckpointError(
                f"{container / JOURNAL_FILE} is no journal of a save: {name!r} would take the place of a file that is "
                f"to stay. Nothing was moved. No save of hfprune wrote it: remove {container}."
            )
        if has_left and not is_there(source):
            source = place / name
        if is_there(source):
            link_all(source, view / name)


def _clear_leftovers(place: Path) -> None:
    """Remove what killed saves left, but nothing that a running save works on."""
    for container in _containers(place):
        try:
            lock = lock_folder(container)
        except OSError:
            continue
        # without locks nobody knows whether its save still runs
        if lock is not None:
            _remove(container, place)
        unlock(lock)


def _remove(container: Path, place: Path) -> None:
    """Remove a container, unless it holds files that belong into the place."""
    if not _is_interrupted(container, place):
        shutil.rmtree(container, ignore_errors=True)
