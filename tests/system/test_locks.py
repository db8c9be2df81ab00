"""Locks: they end with their holder, and a file system without locks is an error."""

import errno
import fcntl
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import pytest

from diffusion.system.errors import DiffctlError
from diffusion.system.files import atomic_folder, remove_leftovers, write_text
from diffusion.system.locks import LockBusy, file_lock, group_lock, holding_group, is_held
from tests.conftest import start_python


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO], ids=errno.errorcode.get)  # NFS, FUSE
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every flock fail."""

    def flock(file: object, how: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", flock)


def probe(path: Path) -> AbstractContextManager[None]:
    is_held(path)
    raise AssertionError("without locks it cannot be detected")


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(
    "lock", [file_lock, lambda path: file_lock(path, timeout=0), lambda path: group_lock(path, "a"), probe]
)
def test_missing_locks_are_an_error(tmp_path, lock) -> None:
    path = tmp_path / "lock"
    path.touch()
    message = f"^{path} cannot be locked .*: put that folder on a local disk, or"
    with pytest.raises(DiffctlError, match=message), lock(path):
        raise AssertionError("the lock is not held")


@pytest.mark.usefixtures("no_locks")
def test_files_and_folders_are_written_without_locks(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "whole")
    with atomic_folder(tmp_path / "folder") as made:
        remove_leftovers(tmp_path / "folder")
        write_text(made / "file", "whole")
    assert (tmp_path / "folder/file").read_text() == "whole"


def test_group_lock_has_a_name_and_excludes_other_groups(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holding_group(path) is None
    with group_lock(path, "a"), group_lock(path, "a"):
        assert holding_group(path) == "a"
        with pytest.raises(LockBusy, match=r"^not now$"), group_lock(path, "b", busy="not now"):
            raise AssertionError("it is held")
    assert holding_group(path) is None
    with group_lock(path, "b"):
        assert holding_group(path) == "b"


def test_group_lock_is_probed_as_nfs_requires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server locks the bytes of the file: exclusively only for a writer, flock(2)."""
    flock = fcntl.flock

    def flock_of_nfs(file: IO[str], how: int) -> None:
        if how & fcntl.LOCK_EX and fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    with group_lock(tmp_path / "lock", "a"):
        assert holding_group(tmp_path / "lock") == "a"
    assert holding_group(tmp_path / "lock") is None


def test_group_lock_survives_exec(tmp_path: Path) -> None:
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom diffusion.system.locks import group_lock\n"
        "lock = group_lock(Path('lock'), 'a', through_exec=True)\nlock.__enter__()\n"
        "other = 'import time; print(1, flush=True); time.sleep(60)'\n"
        "os.execv(sys.executable, [sys.executable, '-c', other])\n"
    )
    process = start_python(tmp_path, "-c", code)
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    assert holding_group(tmp_path / "lock") == "a"
    process.kill()
    process.communicate()
    assert holding_group(tmp_path / "lock") is None


def test_lock_ends_with_its_holder(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from diffusion.system.locks import file_lock\n"
        "with file_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    assert not is_held(path)
    holder = start_python(tmp_path, "-c", code, str(path))
    assert holder.stdout.readline() == "held\n"
    assert is_held(path)
    with pytest.raises(LockBusy), file_lock(path, timeout=0):
        pass
    holder.kill()
    holder.wait()
    assert not is_held(path)
    with file_lock(path, timeout=0):
        assert is_held(path)
