"""A file lock: it ends with its holder, survives deletion of its file, and follows no link."""

import subprocess
import sys

import pytest

from diffusion.system import locks
from diffusion.system.errors import DiffctlError
from diffusion.system.locks import LockBusy, file_lock, is_held


def test_lock_ends_with_its_holder(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from diffusion.system.locks import file_lock\n"
        "with file_lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    assert not is_held(path)
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    assert is_held(path)
    with pytest.raises(LockBusy), file_lock(path, timeout=0):
        pass
    holder.kill()
    holder.wait()
    assert not is_held(path)
    with file_lock(path, timeout=0):
        assert is_held(path)


def test_waiter_takes_the_new_file_when_the_lock_file_is_deleted(tmp_path, monkeypatch):
    path = tmp_path / "lock"
    first, between = file_lock(path), file_lock(path, timeout=5)
    first.__enter__()

    def delete(seconds):  # while the last one waits
        monkeypatch.undo()
        path.unlink()
        between.__enter__()
        first.__exit__(None, None, None)

    monkeypatch.setattr(locks.time, "sleep", delete)
    with pytest.raises(LockBusy), file_lock(path, timeout=0):
        pass
    path.unlink()
    between.__exit__(None, None, None)
    with file_lock(path, timeout=0):
        assert is_held(path)


def test_link_as_lock_file_is_refused(tmp_path):
    (tmp_path / "lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DiffctlError), file_lock(tmp_path / "lock"):
        pass
    assert not (tmp_path / "elsewhere").exists()
