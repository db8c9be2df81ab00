"""Files and folders that a person names: tried before the work, written after it.

Other than with a stage's outs (`files`), a link is followed, and what is at its end replaced or made; devices
and pipes are written to. A link into DVC's cache is replaced itself: what lies there is other commits', too.
"""

import errno
import io
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from diffusion.system.errors import DiffctlError, UsageError, is_disk_full, printable
from diffusion.system.files import Fill, write_atomic

REFUSED = {stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a disk"}
DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/|/\.dvc/cache/")


def resolve_output(path: Path) -> Path:
    """Where what is written to `path` comes to lie: links are followed, also to what is not there yet.

    OSError for links in a circle.
    """
    place = Path(os.path.realpath(path))
    if place.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if DVC_CACHE.search(str(place)) and path.is_symlink():
        return Path(os.path.realpath(path.parent)) / path.name
    return place


def write_output(path: Path, write: Fill) -> None:
    """Let `write` fill the file that a person named: whole or not at all, but for a device or a pipe.

    OSError, which names `path`; DiffctlError where who reads a pipe went away.
    """
    with _named(path):
        if not _is_stream(path):
            return write_atomic(resolve_output(path), write)
        whole = io.BytesIO()  # a format may go back and forth in its file, which no pipe can
        write(whole)
        try:
            with _stream(path) as stream:
                stream.write(whole.getbuffer())
        except BrokenPipeError:
            raise DiffctlError(
                f"who read {printable(path)} went away before its end: read it whole"
            ) from None


def write_output_text(path: Path, text: str) -> None:
    """As `write_output`, UTF-8 text; what is none (in a file's name) is written as an escape."""
    write_output(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def check_output(path: Path, flag: str) -> None:
    """Find before the work what `write_output` would fail of; nothing is left of the trial.

    UsageError names the flag and the path; OSError for a full disk.
    """
    with _refusing(path, flag, "file"):
        status = _status(path)
        kind = stat.S_IFMT(status.st_mode) if status else stat.S_IFREG
        if kind in REFUSED:
            raise UsageError(f"{flag} {printable(path)} is {REFUSED[kind]}: name a file")
        place = resolve_output(path) if kind == stat.S_IFREG else path
        if status and not os.access(place, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if kind == stat.S_IFREG and not _is_stream(path):
            _try_beside(place)


def check_output_folder(path: Path, flag: str) -> None:
    """As `check_output`, for a folder to be made: UsageError where anything but an empty one is there."""
    with _refusing(path, flag, "folder"):
        place = resolve_output(path)
        if os.path.lexists(place) and not place.is_dir():
            raise UsageError(f"{flag} {printable(path)} is no folder: give a new folder")
        if place.is_dir() and any(place.iterdir()):
            raise UsageError(f"{flag} {printable(path)} is not empty: give a new folder")
        if place.is_dir() and (place == Path.cwd().resolve() or place.is_mount()):
            raise UsageError(f"{flag} {printable(path)} is in use and cannot be replaced: give a new folder")
        _try_beside(place)


@contextmanager
def _refusing(path: Path, flag: str, kind: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            error.filename, error.filename2 = str(path), None
            raise
        raise UsageError(
            f"{flag} {printable(path)} cannot be written ({error.strerror}): name another {kind}"
        ) from None


def _try_beside(place: Path) -> None:
    """Make a file of that name where it troubles nobody: in a new folder beside its place."""
    made = _missing_folders(place.parent)
    try:
        for folder in made:
            folder.mkdir()
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".diffctl-") as probe:
            (Path(probe) / place.name).touch()
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # it was never made, or another process uses it by now
                folder.rmdir()


def _missing_folders(folder: Path) -> list[Path]:
    """The folder and those above it that are not there, from the top down."""
    missing = [above for above in (folder, *folder.parents) if not os.path.lexists(above)]
    return missing[::-1]


def _status(path: Path) -> os.stat_result | None:
    """Of what is at the path, or at the end of its link; None where nothing is."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_stream(path: Path) -> bool:
    """Whether what is there is written to as it is: a device, a pipe, standard output, a mounted file."""
    status = _status(path)
    if status is None:
        return False
    is_pipe = stat.S_ISCHR(status.st_mode) or stat.S_ISFIFO(status.st_mode)
    return is_pipe or _is_stdout(status) or os.path.ismount(os.path.realpath(path))


def _is_stdout(status: os.stat_result) -> bool:
    with suppress(OSError):  # it is closed
        return os.path.samestat(status, os.fstat(1))
    return False


def _stream(path: Path) -> IO[bytes]:
    """What is at the path, opened for writing; standard output goes on where it is."""
    if _is_stdout(path.stat()):
        sys.stdout.flush()
        return open(os.dup(1), "wb")
    return open(path, "wb")


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Let every OSError of the block name the path that the person gave."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
