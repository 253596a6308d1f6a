"""Saving where a folder cannot simply be exchanged: mounts, read-only surroundings, several saves at once, kills."""

import ctypes
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import hfprune
from hfprune.errors import CheckpointError
from tests.support.plans import uneven_plan
from tests.support.tiny import tiny_model
from tests.support.tiny_data import tiny_tokenizer

IDS = torch.arange(4, 14).reshape(2, 5)
_CLONE_NEWNS = 0x20000
_MS_REC = 0x4000
_MS_PRIVATE = 1 << 18
_MS_BIND = 0x1000
_MS_REMOUNT = 0x20
_MS_RDONLY = 1


def _pruned(model_type, seed):
    model = tiny_model(model_type, seed=seed)
    return hfprune.apply_plan(model, uneven_plan(model))


@pytest.fixture(scope="module")
def old():
    return _pruned("bert", 0)


@pytest.fixture(scope="module")
def new():
    return _pruned("bert", 1)


@pytest.fixture(scope="module")
def other():
    return _pruned("distilbert", 2)


def computes_as(folder, model):
    with torch.no_grad():
        return torch.equal(hfprune.load(folder)(input_ids=IDS).logits, model(input_ids=IDS).logits)


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.endswith((".saving", ".old", ".kept")))


def in_mounts(body):
    """Run a function in a thread with mounts of its own, which are gone afterwards; False where that is forbidden."""
    libc = ctypes.CDLL(None, use_errno=True)
    outcome = {}

    def mount(source, target, kind, flags=0):
        if libc.mount(os.fsencode(source), os.fsencode(target), kind, flags, None):
            raise OSError(ctypes.get_errno(), "mount")

    def work():
        if libc.unshare(_CLONE_NEWNS):
            outcome["forbidden"] = True
            return
        try:
            mount("none", "/", None, _MS_REC | _MS_PRIVATE)
            body(mount)
        except BaseException as error:  # noqa: BLE001 (raised again below)
            outcome["error"] = error

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    if "forbidden" in outcome:
        pytest.skip("this user may not mount")


def refuse_renaming(monkeypatch, place, number):
    """As if the folder at a place were a mount: it can be neither renamed nor exchanged."""
    real = os.rename
    real_exists = os.path.lexists

    def rename(source, target, **options):
        if place in (Path(source), Path(target)) and real_exists(place):
            raise OSError(number, os.strerror(number))
        return real(source, target, **options)

    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())


class TestMounts:
    def test_onto_a_mount(self, old, new, tmp_path):
        """The kernel of the fault: OSError 16, and the draft was deleted."""
        place = tmp_path / "mounted"
        place.mkdir()

        def body(mount):
            mount("none", place, b"tmpfs")
            hfprune.save(old, place, tokenizer=tiny_tokenizer())
            assert computes_as(place, old)
            hfprune.save(new, place, overwrite=True)
            assert computes_as(place, new)
            assert not (place / "tokenizer.json").exists(), "the old one was replaced whole"
            assert leftovers(place) == leftovers(tmp_path) == []

        in_mounts(body)

    def test_onto_a_folder_that_is_mounted_from_the_same_disk(self, old, new, tmp_path):
        place = tmp_path / "mounted"
        place.mkdir()
        (tmp_path / "source").mkdir()

        def body(mount):
            mount(tmp_path / "source", place, None, _MS_BIND)
            hfprune.save(old, place)
            hfprune.save(new, place, overwrite=True)
            assert computes_as(place, new)
            assert leftovers(place) == leftovers(tmp_path) == []

        in_mounts(body)

    def test_below_a_read_only_folder(self, old, new, tmp_path):
        around = tmp_path / "around"
        place = around / "small"
        place.mkdir(parents=True)
        (tmp_path / "source").mkdir()

        def body(mount):
            mount(tmp_path / "source", place, None, _MS_BIND)
            mount(around, around, None, _MS_BIND)
            mount(tmp_path / "source", place, None, _MS_BIND)
            mount("none", around, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY)
            with pytest.raises(CheckpointError, match="new-one cannot be written: .*Read-only file system"):
                hfprune.save(old, around / "new-one")
            hfprune.save(old, place)
            hfprune.save(new, place, overwrite=True)
            assert computes_as(place, new)
            assert leftovers(place) == []

        in_mounts(body)

    def test_lost_and_found_is_nothing_to_replace(self, old, new, tmp_path):
        (tmp_path / "lost+found").mkdir()
        hfprune.save(old, tmp_path)
        hfprune.save(new, tmp_path, overwrite=True)
        assert (tmp_path / "lost+found").is_dir()
        assert computes_as(tmp_path, new)

    @pytest.mark.parametrize("number", [errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EROFS])
    def test_a_folder_that_cannot_be_renamed(self, number, old, other, tmp_path, monkeypatch):
        place = hfprune.save(old, tmp_path / "small")
        with monkeypatch.context() as patch:
            refuse_renaming(patch, place, number)
            hfprune.save(other, place, overwrite=True)
        assert computes_as(place, other)
        assert leftovers(tmp_path) == leftovers(place) == []

    def test_a_folder_around_that_cannot_be_written(self, old, new, tmp_path, monkeypatch):
        place = hfprune.save(old, tmp_path / "small")
        real = os.mkdir

        def mkdir(path, *args, **options):
            if Path(path).parent == tmp_path:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return real(path, *args, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", mkdir)
            hfprune.save(new, place, overwrite=True)
            with pytest.raises(CheckpointError, match="elsewhere cannot be written: .*Choose another folder"):
                hfprune.save(new, tmp_path / "elsewhere")
        assert computes_as(place, new)


class TestThePlaceStaysWhatItIs:
    @pytest.mark.parametrize("mode", [0o2775, 0o750, 0o777])
    def test_its_mode(self, mode, old, new, tmp_path):
        place = hfprune.save(old, tmp_path / "small")
        place.chmod(mode)
        (place / "config.json").chmod(0o664)
        hfprune.save(new, place, overwrite=True)
        assert stat.S_IMODE(place.stat().st_mode) == mode
        assert stat.S_IMODE((place / "config.json").stat().st_mode) == 0o664
        assert computes_as(place, new)

    def test_an_empty_folders_mode(self, old, tmp_path):
        place = tmp_path / "small"
        place.mkdir()
        place.chmod(0o2775)
        hfprune.save(old, place)
        assert stat.S_IMODE(place.stat().st_mode) == 0o2775

    def test_the_working_directory(self, old, new, tmp_path, monkeypatch):
        place = hfprune.save(old, tmp_path / "small")
        monkeypatch.chdir(place)
        hfprune.save(new, ".", overwrite=True)
        assert Path("config.json").is_file()
        assert Path.cwd() == place
        assert computes_as(".", new)
        (place / "runs").mkdir()
        monkeypatch.chdir("runs")
        with pytest.raises(CheckpointError, match="the working directory of this process, .*runs, is below it"):
            hfprune.save(old, "..", overwrite=True)
        assert computes_as(place, new)


class TestErrors:
    def test_a_draft_that_has_no_place_is_kept(self, old, new, tmp_path, monkeypatch):
        """Neither the folder nor its files can be moved: the old checkpoint stays, and the message names the draft."""
        place = hfprune.save(old, tmp_path / "small")
        real = os.rename

        def rename(source, target, **options):
            if place in (Path(source), Path(target), Path(source).parent):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
            return real(source, target, **options)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            patch.setattr(ctypes, "CDLL", lambda *_, **__: object())
            with pytest.raises(CheckpointError, match="What is there was left as it was.* kept in") as error:
                hfprune.save(new, place, overwrite=True)
        assert computes_as(place, old)
        draft = Path(str(error.value).partition("kept in ")[2].partition(": move it")[0])
        assert computes_as(draft, new)
        hfprune.save(old, place, overwrite=True)
        assert computes_as(draft, new), "the next save does not clear it"

    def test_half_of_the_files_moved_back(self, old, new, tmp_path, monkeypatch):
        place = hfprune.save(old, tmp_path / "small")
        (tmp_path / "small" / "lost+found").mkdir()
        real = os.rename

        def rename(source, target, **options):
            if Path(source).name == "model.safetensors" and Path(source).parent.name == "new":
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(source, target, **options)

        before = sorted(path.name for path in place.iterdir())
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            with pytest.raises(CheckpointError, match="No space left on device.* What is there was left as it was"):
                hfprune.save(new, place, overwrite=True)
        assert computes_as(place, old)
        assert sorted(path.name for path in place.iterdir() if not path.name.endswith(".kept")) == before

    def test_a_failure_while_writing_leaves_no_draft(self, old, new, tmp_path, monkeypatch):
        place = hfprune.save(old, tmp_path / "small")
        monkeypatch.setattr("hfprune.publishing.checkpoint.write_card", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError) as error:
            hfprune.save(new, place, overwrite=True)
        assert "Nothing was written to" in error.value.__notes__[0]
        assert leftovers(tmp_path) == []


class TestSeveralAtOnce:
    def test_two_saves_of_two_models(self, old, new, tmp_path):
        """Fifteen of forty-five such pairs left a mixture, and both reported success."""
        place = hfprune.save(old, tmp_path / "small")
        errors = []

        def save_often(model):
            try:
                for _ in range(4):
                    hfprune.save(model, place, overwrite=True)
            except BaseException as error:  # noqa: BLE001 (shown below)
                errors.append(error)

        threads = [threading.Thread(target=save_often, args=(model,)) for model in (old, new)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert computes_as(place, old) or computes_as(place, new)
        assert leftovers(tmp_path) == []

    @pytest.mark.parametrize("way", ["exchange", "rename twice", "file by file"])
    def test_the_draft_of_a_running_save_is_left_alone(self, way, old, new, other, tmp_path, monkeypatch):
        """A second save begins and ends while the first one writes."""
        place = hfprune.save(old, tmp_path / "small")
        if way == "file by file":
            (place / "lost+found").mkdir()
        if way == "rename twice":
            monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
        from hfprune.publishing import checkpoint

        real = checkpoint.write_card

        def write_card(model, folder, **options):
            real(model, folder, **options)
            if model is new:
                hfprune.save(other, place, overwrite=True)
                assert computes_as(place, other)

        monkeypatch.setattr(checkpoint, "write_card", write_card)
        hfprune.save(new, place, overwrite=True)
        assert computes_as(place, new)
        assert leftovers(tmp_path) == leftovers(place) == []

    def test_without_overwrite_the_second_is_refused_and_kept(self, new, other, tmp_path, monkeypatch):
        place = tmp_path / "small"
        from hfprune.publishing import checkpoint

        real = checkpoint.write_card

        def write_card(model, folder, **options):
            real(model, folder, **options)
            if model is new:
                hfprune.save(other, place)

        monkeypatch.setattr(checkpoint, "write_card", write_card)
        with pytest.raises(CheckpointError, match="meanwhile something else was written there, and overwrite=False"):
            hfprune.save(new, place)
        assert computes_as(place, other)

    def test_a_planted_link_is_not_followed(self, old, new, tmp_path):
        precious = tmp_path / "precious"
        precious.mkdir()
        (precious / "letter.txt").write_text("dear")
        for name in (".small.saving", ".small.0123456789ab.saving"):
            (tmp_path / name).symlink_to(precious)
        place = hfprune.save(old, tmp_path / "small")
        hfprune.save(new, place, overwrite=True)
        assert [path.name for path in precious.iterdir()] == ["letter.txt"]
        assert computes_as(place, new)

    @pytest.mark.parametrize("name", [".a.saving", ".a.old", ".a.0123456789ab.saving", ".a.0123456789ab.kept"])
    def test_a_checkpoint_with_the_name_of_a_draft(self, name, old, new, tmp_path, monkeypatch):
        precious = hfprune.save(old, tmp_path / name)
        monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
        hfprune.save(new, tmp_path / "a")
        hfprune.save(old, tmp_path / "a", overwrite=True)
        assert computes_as(precious, old)


def _kill_at(step, new, place):
    """Save in a child that is killed at its n-th renaming below a folder; whether it was."""
    child = os.fork()
    if child == 0:
        real = os.rename
        count = 0

        def rename(source, target, **options):
            nonlocal count
            if "journal.draft" not in str(source) and {"new", "old"} & {*Path(source).parts, *Path(target).parts}:
                count += 1
                if count > step:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(source, target, **options)

        os.rename = rename
        ctypes.CDLL = lambda *_, **__: object()
        hfprune.save(new, place, overwrite=True)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


KILLER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
import hfprune
from hfprune.publishing import card
from tests import test_save_in_place as steps
card.can_draw = lambda: False
old, new = steps._pruned("bert", 0), steps._pruned("bert", 1)
place = Path(sys.argv[1])
hfprune.save(old, place)
if sys.argv[3] == "file by file":
    (place / "lost+found").mkdir()
killed = 0
for step in range(60):
    was_killed = steps._kill_at(step, new, place)
    killed += was_killed
    # whatever the kill left, it is the old checkpoint or the new one, and nothing of the other
    assert steps.computes_as(place, old) or steps.computes_as(place, new), step
    if not was_killed:
        break
    hfprune.save(old, place, overwrite=True)
    assert steps.computes_as(place, old), step
    assert steps.leftovers(place) == steps.leftovers(place.parent) == [], step
print("killed", killed)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("way", "kills"), [("rename twice", 2), ("file by file", 14)])
def test_kills_between_any_two_renamings(way, kills, tmp_path):
    root = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", KILLER, str(tmp_path / "small"), root, way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= kills


class TestFinishing:
    def _interrupted(self, old, new, folder):
        """A folder whose save was killed after half of the files had left."""
        place = hfprune.save(old, folder / "small")
        draft = hfprune.save(new, folder / "draft")
        container = place / ".0123456789ab.saving"
        (container / "old").mkdir(parents=True)
        names = sorted(path.name for path in place.iterdir() if path != container)
        draft.rename(container / "new")
        quoted = str(names).replace("'", '"')
        (container / "journal.json").write_text(f'{{"old": {quoted}, "new": {quoted}}}')
        for name in ["config.json", "model.safetensors"]:
            (place / name).rename(container / "old" / name)
        return place, container

    def test_load_finishes_and_deletes_nothing(self, old, new, tmp_path):
        place, container = self._interrupted(old, new, tmp_path)
        with pytest.raises((OSError, ValueError)):  # plain transformers finds no config
            AutoModelForSequenceClassification.from_pretrained(place)
        assert computes_as(place, new)
        assert (container / "old" / "model.safetensors").is_file()
        hfprune.save(old, place, overwrite=True)
        assert not container.exists()

    def test_a_strangers_journal_moves_nothing_from_elsewhere(self, old, new, tmp_path):
        place, container = self._interrupted(old, new, tmp_path)
        (tmp_path / "secret.txt").write_text("secret")
        (container / "journal.json").write_text('{"old": ["../secret.txt"], "new": []}')
        with pytest.raises(
            CheckpointError, match="journal.json is no journal of a save: it has names that are no names"
        ):
            hfprune.load(place)
        assert (tmp_path / "secret.txt").is_file()

    def test_without_an_exchange_in_one_step_the_old_one_is_found_again(self, old, new, tmp_path):
        """Killed between the two renamings: nothing is at the place, and both checkpoints are beside it."""
        container = tmp_path / ".small.0123456789ab.saving"
        container.mkdir()
        hfprune.save(old, container / "old")
        hfprune.save(new, container / "new")
        assert computes_as(tmp_path / "small", new)
        assert (container / "old" / "model.safetensors").is_file()
