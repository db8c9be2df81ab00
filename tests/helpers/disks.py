"""Real disks of a few kilobytes, to be filled up."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Mount = Callable[..., Path]
"""Takes a folder and the options of `mount`; mounts a disk there until the test ends."""


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Mount disks; the test is skipped where that is not allowed."""
    mounted: list[Path] = []

    def mount(folder: Path, *options: str) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a disk can be mounted by root only: {done.stderr.strip()}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in reversed(mounted):
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def memory_disk(size: str, more: str = "") -> list[str]:
    """The options of a disk in memory of that size."""
    return ["-t", "tmpfs", "-o", f"size={size}{more}", "tmpfs"]


def make_room(disk: Path, size: str = "32m") -> None:
    """Let the mounted disk have more room."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)
