"""Atomic folders: leftovers of killed processes are removed, folders in progress are not."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from diffusion.system.files import atomic_folder, remove_leftovers


def killed_while_making(path: Path) -> None:
    """Start a folder in a process that is killed."""

    def make() -> None:
        with atomic_folder(path) as made:
            (made / "half").write_text("of it")
            os.kill(os.getpid(), signal.SIGKILL)

    process = multiprocessing.get_context("fork").Process(target=make)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    path, other = tmp_path / "made", tmp_path / "made-otherwise"
    killed_while_making(path)
    killed_while_making(other)
    assert len(list(tmp_path.iterdir())) == 2
    with atomic_folder(path) as made:
        (made / "whole").write_text("it is")
    assert (path / "whole").read_text() == "it is"
    assert [entry.name.startswith(".made-otherwise.") for entry in tmp_path.iterdir() if entry != path] == [
        True
    ]
    remove_leftovers(other)
    assert list(tmp_path.iterdir()) == [path]


def test_folder_in_progress_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "made"
    with atomic_folder(path) as first:
        (first / "by").write_text("first")
        remove_leftovers(path)
        with atomic_folder(path) as second:
            (second / "by").write_text("second")
        assert (path / "by").read_text() == "second"
        assert (first / "by").read_text() == "first"
    assert (path / "by").read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_failure_keeps_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "made"
    path.mkdir()

    def make() -> None:
        with atomic_folder(path) as made:
            (made / "half").write_text("of it")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        make()
    assert list(tmp_path.rglob("*")) == [path]
