"""Real disks of a few kilobytes, to be filled up."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Mount = Callable[..., Path]
"""Takes a folder and a size; mounts a disk in memory of that size there until the test ends."""


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mount disks; the test is skipped where that is not allowed."""
    mounted: list[Path] = []

    def mount(folder: Path, size: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        line = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a disk can be mounted by root only: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def make_room(disk: Path) -> None:
    """Let the mounted disk have 32 MB."""
    subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
