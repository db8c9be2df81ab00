"""Servers in the background: recorded, found again, stopped; another process with their id never."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffusion.system.errors import DiffctlError
from flows.background import FOLDER, Background, log_of, recorded, running, start
from tests.helpers.waiting import wait_until

SLEEP = [sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"]
WITH_CHILD = [
    sys.executable,
    "-c",
    f"import subprocess, time; subprocess.Popen({SLEEP}); print('parent', flush=True); time.sleep(60)",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("one", "two"):
        if (left := recorded(name)) is not None:
            left.stop()


def said(name: str) -> str:
    return log_of(name).read_text()


def test_it_is_found_again_in_a_session_of_its_own_and_stopped() -> None:
    made = start("one", SLEEP, {}, 4200)
    assert recorded("one") == running("one") == made
    assert os.getsid(made.pid) == made.pid
    made.stop()
    assert (recorded("one"), running("one"), made.alive) == (None, None, False)


@pytest.mark.slow
def test_what_it_started_goes_with_it_also_when_it_was_killed_itself() -> None:
    for name, killed in (("one", False), ("two", True)):
        made = start(name, WITH_CHILD, {}, 4200)
        wait_until(lambda name=name: {"parent", "on"} <= set(said(name).split()))
        _, child = sorted(made.processes(), key=lambda process: process.pid != made.pid)
        if killed:
            os.kill(made.pid, 9)
            os.waitpid(made.pid, 0)
        made.stop()
        assert not child.is_running()


def test_another_process_with_its_id_is_left_alone() -> None:
    made = start("one", SLEEP, {}, 4200)
    other = Background(name="two", pid=made.pid, start="another moment", port=4200)
    assert not other.alive
    other.stop()
    assert made.alive


def test_a_record_that_is_damaged_is_told_by_its_place() -> None:
    FOLDER.mkdir(parents=True)
    (FOLDER / "one.json").write_text('{"pid": 1}')
    with pytest.raises(DiffctlError, match=r"runs/servers/one\.json is damaged"):
        recorded("one")
    (FOLDER / "one.json").unlink()
