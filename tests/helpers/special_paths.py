"""Everything that can be at the end of a path."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

Place = Callable[[Path, str], str]
"""Takes an empty folder and a file name, makes the place there and returns its path, as a user types it."""


def nothing(folder: Path, name: str) -> str:
    return str(folder / name)


def below_nothing(folder: Path, name: str) -> str:
    return str(folder / "new" / "newer" / name)


def file(folder: Path, name: str) -> str:
    (folder / name).write_bytes(b"before")
    return str(folder / name)


def a_folder(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return str(folder / name)


def below_a_file(folder: Path, name: str) -> str:
    (folder / "f").touch()
    return str(folder / "f" / name)


def a_fifo(folder: Path, name: str) -> str:
    os.mkfifo(folder / name)
    return str(folder / name)


def a_socket(folder: Path, name: str) -> str:
    here = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:  # by a short name, since a socket's path is short
        listener.bind(f"/proc/self/fd/{here}/s")
    os.close(here)
    (folder / "s").rename(folder / name)
    return str(folder / name)


def in_proc(folder: Path, name: str) -> str:
    return f"/proc/{name}"


def a_loop(folder: Path, name: str) -> str:
    (folder / name).symlink_to(name)
    return str(folder / name)


def symlink(target: str) -> Place:
    """A link with this target."""

    def link(folder: Path, name: str) -> str:
        (folder / name).symlink_to(target)
        return str(folder / name)

    return link


a_dangling_link, an_endless_device, the_null_device = map(symlink, ("gone", "/dev/zero", "/dev/null"))
ENDS = (nothing, below_nothing, file, a_folder, below_a_file, a_fifo, in_proc, the_null_device)


def linked(end: Place) -> Place:
    """A link to a place."""

    def link(folder: Path, name: str) -> str:
        (folder / "end").mkdir()
        target = end(folder / "end", name)
        (folder / name).symlink_to(
            os.path.relpath(target, folder) if target.startswith(str(folder)) else target
        )
        return str(folder / name)

    return link


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return every file and link to one below the folder: kind, inode and size."""
    found = {}
    for root, _, files in os.walk(folder):
        for name in files:
            status = os.lstat(os.path.join(root, name))
            found[os.path.join(root, name)] = (status.st_mode, status.st_ino, status.st_size)
    return found
