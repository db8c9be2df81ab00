"""Generated output paths: everything that can be at the end of a path."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

Place = Callable[[Path, str], str]
"""Takes an empty folder and a file name, makes the place there and returns its path, as a user types it."""

LETTERS = st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"])


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
ENDS = (nothing, below_nothing, file, a_folder, below_a_file, a_fifo, in_proc)


def linked(end: Place) -> Place:
    """A link to a place."""

    def link(folder: Path, name: str) -> str:
        (folder / "end").mkdir()
        target = end(folder / "end", name)
        (folder / name).symlink_to(os.path.relpath(target, folder) if target.startswith("/tmp") else target)
        return str(folder / name)

    link.__name__ = f"a link to {end.__name__}"
    return link


places: st.SearchStrategy[Place] = st.recursive(
    st.sampled_from((*ENDS, the_null_device)),
    lambda inner: st.builds(linked, inner),
    max_leaves=3,
)


@st.composite
def names(draw: st.DrawFn, suffix: str) -> str:
    """File names that end in `suffix`: any letters, undecodable bytes, and lengths beyond the maximum."""
    stem = draw(
        st.text(LETTERS, min_size=1, max_size=8) | st.sampled_from(["a\nb", "-", "\udcff", " ", "$(x)"])
    )
    stem *= draw(st.sampled_from([1, 1, 1, 30]))
    room = draw(st.sampled_from([40, 40, 248, 249, 254, 255, 256, 300]))
    fill = max(0, room - len(os.fsencode(stem + suffix))) if room > 40 else 0
    return "x" * fill + stem + suffix


def tree(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return every file and link to one below the folder: kind, inode and size."""
    found = {}
    for root, _, files in os.walk(folder):
        for name in files:
            status = os.lstat(os.path.join(root, name))
            found[os.path.join(root, name)] = (status.st_mode, status.st_ino, status.st_size)
    return found
