"""Files and folders that a user names: checked before the work, written after it.

Unlike a stage's outputs (`files`), a link is followed, and devices and pipes are written to. A link into
DVC's cache is replaced itself, since the cache belongs to other commits too.
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

REFUSED_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket", stat.S_IFBLK: "a disk"}
DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/|/\.dvc/cache/")


def resolve_output(path: Path) -> Path:
    """Return the file to write for `path`, with links followed, also dangling ones; OSError for a circle."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if DVC_CACHE.search(str(target)) and path.is_symlink():
        return Path(os.path.realpath(path.parent)) / path.name
    return target


def write_output(path: Path, write: Fill) -> None:
    """Let `write` fill the file that the user named: atomically, unless it is a device or a pipe.

    OSError names `path`. DiffctlError if the reader of a pipe closed it.
    """
    with _naming(path):
        if not _is_stream(path):
            return write_atomic(resolve_output(path), write)
        content = io.BytesIO()  # some formats seek in their file, which a pipe cannot
        write(content)
        try:
            with _open_stream(path) as stream:
                stream.write(content.getbuffer())
        except BrokenPipeError:
            raise DiffctlError(
                f"the reader of {printable(path)} closed it early: read it completely"
            ) from None


def write_output_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_output`; unencodable characters (of a file name) are escaped."""
    write_output(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def check_output(path: Path, flag: str) -> None:
    """Raise UsageError, with the flag and the path, if `write_output` would fail; leave no file behind.

    OSError for a full disk.
    """
    with _refusing(path, flag, "file"):
        status = _status(path)
        kind = stat.S_IFMT(status.st_mode) if status else stat.S_IFREG
        if kind in REFUSED_KINDS:
            raise UsageError(f"{flag} {printable(path)} is {REFUSED_KINDS[kind]}: name a file")
        target = resolve_output(path) if kind == stat.S_IFREG else path
        if status and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if kind == stat.S_IFREG and not _is_stream(path):
            _probe(target)


def check_output_folder(path: Path, flag: str) -> None:
    """Check a folder to create, as `check_output`: nothing or an empty folder may be there."""
    with _refusing(path, flag, "folder"):
        target = resolve_output(path)
        if os.path.lexists(target) and not target.is_dir():
            raise UsageError(f"{flag} {printable(path)} is not a folder: give a new folder")
        if target.is_dir() and any(target.iterdir()):
            raise UsageError(f"{flag} {printable(path)} is not empty: give a new folder")
        if target.is_dir() and (target == Path.cwd().resolve() or target.is_mount()):
            raise UsageError(f"{flag} {printable(path)} is in use and cannot be replaced: give a new folder")
        _probe(target)


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


def _probe(target: Path) -> None:
    """Create a file of that name in a temporary folder next to the target, then remove both."""
    created = [folder for folder in (target.parent, *target.parent.parents) if not os.path.lexists(folder)]
    try:
        for folder in reversed(created):
            folder.mkdir()
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".diffctl-") as probe:
            (Path(probe) / target.name).touch()
    finally:
        for folder in created:
            with suppress(OSError):  # never created, or in use by another process by now
                folder.rmdir()


def _status(path: Path) -> os.stat_result | None:
    """Return the status of the path, links followed; None if nothing is there."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _is_stream(path: Path) -> bool:
    """Return whether it must be written in place: a device, a pipe, standard output, a mounted file."""
    status = _status(path)
    if status is None:
        return False
    is_pipe = stat.S_ISCHR(status.st_mode) or stat.S_ISFIFO(status.st_mode)
    return is_pipe or _is_stdout(status) or os.path.ismount(os.path.realpath(path))


def _is_stdout(status: os.stat_result) -> bool:
    with suppress(OSError):  # standard output is closed
        return os.path.samestat(status, os.fstat(1))
    return False


def _open_stream(path: Path) -> IO[bytes]:
    """Open the path for writing; standard output continues at its position."""
    if _is_stdout(path.stat()):
        sys.stdout.flush()
        return open(os.dup(1), "wb")
    return open(path, "wb")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Make every OSError in the block name the path that the user gave."""
    try:
        yield
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise
