"""The last step of a preparation, killed before each of its file operations."""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffusion.data.data_config import DataConfig
from diffusion.data.prepare import prepare
from diffusion.system.errors import DiffctlError
from tests.helpers.raw_data import random_images, tree, write_numbered

MOVES = {"os.link", "os.rename", "os.remove", "shutil.copyfile", "shutil.rmtree"}  # Python's audit events
KILLED, DONE = -signal.SIGKILL, 0


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    images = random_images(0, 24, 8)
    images[7] = images[3]  # for a list of duplicates
    return write_numbered(tmp_path / "raw", images, "ab")


@pytest.fixture
def another_disk() -> Iterator[Path]:
    """A folder on another disk, to which hard links are impossible."""
    if not os.path.isdir("/dev/shm"):
        pytest.skip("there is no second disk")
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


def killed_before_move(number: int, config: DataConfig, out: Path, work: Path) -> int:
    """Prepare in a process that is killed before that operation of the last step; return its exit code."""

    def run() -> None:
        seen = -1  # no store yet

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event == "tempfile.mkdtemp" and f".{out.name}." in arguments[0]:
                seen = 0
            elif seen >= 0 and event in MOVES:
                if seen == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.addaudithook(watch)
        prepare(config, out, work=work)
        os._exit(DONE)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.slow
def test_killed_last_step_is_repaired(tmp_path: Path, raw: Path) -> None:
    (raw / "a/0.png").write_text("not an image")  # for a list of skipped files
    config = DataConfig(name="image-folder", path=raw, image_size=8, on_bad="skip")
    prepare(config, tmp_path / "whole", work=tmp_path / "work")
    out = tmp_path / "data/prepared"
    number = 0
    while (code := killed_before_move(number, config, out, tmp_path / "work")) != DONE:
        assert code == KILLED
        prepare(config, out, work=tmp_path / "work")
        assert tree(out) == tree(tmp_path / "whole")
        assert os.listdir(out.parent) == ["prepared"]
        assert os.listdir(tmp_path / "work") == []
        shutil.rmtree(out)
        number += 1
    assert number >= 4


def test_space_is_checked_on_both_disks(
    tmp_path: Path, raw: Path, another_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, usage = tmp_path / "data", shutil.disk_usage
    full.mkdir()
    monkeypatch.setattr(
        shutil,
        "disk_usage",
        lambda place: usage(place)._replace(free=100) if Path(place) == full else usage(place),
    )
    config = DataConfig(name="image-folder", path=raw, image_size=8)
    with pytest.raises(DiffctlError, match=f"more in {full}, but only 0.0 MB are free"):
        prepare(config, full / "prepared", work=another_disk / "work")
