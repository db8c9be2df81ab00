"""Files and folders written atomically, and files of strangers read without blocking.

The first are written to a temporary name, fsynced and renamed. A link at the path is replaced, not followed:
DVC may have made it, and it leads into its cache. `output_paths` writes the files that a user names. Of the
second, pipes, devices and sockets are refused.
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

from diffusion.system.errors import DiffctlError, printable
from diffusion.system.memory import format_bytes

# Of a file name in its temporary name, which is 14 bytes longer: most file systems allow 255.
MAX_PREFIX_BYTES = 200
MAX_TEXT = 32 << 20  # bytes of an untrusted text file; ImageNet's lists have a few MB

AnyPath = Path | bytes
Fill = Callable[[IO[bytes]], object]
Write = Callable[[Path, Fill], None]
"""Writes a file: takes its path and the function that fills it."""


def write_atomic(path: Path, write: Fill) -> None:
    """Let `write` fill a file that replaces `path` as a whole or not at all; OSError names `path`."""
    with _temporary(path) as made:
        with open(made, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)


def copy_file(source: Path, path: Path) -> None:
    """Copy a file to `path` atomically; FileNotFoundError if the source is missing."""
    with open(source, "rb") as file:
        write_atomic(path, lambda copy: shutil.copyfileobj(file, copy))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, values: Any) -> None:
    """Write indented JSON with sorted keys atomically: equal values give equal bytes."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `path` if the block ends without an exception."""
    remove_leftovers(path)
    with _temporary(path) as made, ExitStack() as stack:
        made.mkdir()
        with suppress(OSError):  # its disk has no locks, so that leftovers stay
            stack.enter_context(_folder_lock(made, fcntl.LOCK_EX))
        yield made
        for entry in [*made.rglob("*"), made]:
            sync_path(entry)
        _remove(path)
        os.replace(made, path)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a temporary name next to `path`; after an exception nothing is left there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.parent / f"{_prefix(path)}{secrets.token_hex(4)}.tmp"
    try:
        yield made
    except BaseException as error:
        with suppress(OSError):
            _remove(made)
        if isinstance(error, OSError) and error.errno and str(error.filename or made).startswith(str(made)):
            error.filename = str(path)
            del error.filename2  # None would be printed as `-> None`
        raise
    sync_path(path.parent)


def _prefix(path: Path) -> str:
    """Return the prefix of the temporary names for `path`."""
    return f".{os.fsencode(path.name)[:MAX_PREFIX_BYTES].decode(errors='ignore')}."


def _remove(path: Path) -> None:
    """Remove a file, folder or link, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes left of `atomic_folder(path)`, but nothing of running ones."""
    for made in path.parent.glob(f"{glob.escape(_prefix(path))}*.tmp"):
        with suppress(OSError), _folder_lock(made, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _folder_lock(folder: Path, how: int) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


@contextmanager
def disk_errors(what: object) -> Iterator[None]:
    """Raise DiffctlError for an OSError in the block that writes `what`; others, without errno, pass."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise DiffctlError(
            f"cannot write {what} ({error.strerror}): make room or give access, then run it again to resume"
        ) from error


def sync_path(path: Path) -> None:
    """Flush a written file, or a folder's entries, to disk: a rename then survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """Return the file's SHA-256 in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_usage(folder: Path) -> int:
    """Return the disk space of the files below a folder in bytes."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def open_regular(path: AnyPath) -> BufferedReader:
    """Open a regular file, or a link to one, for reading; OSError for anything else."""
    more = os.O_NONBLOCK | os.O_NOCTTY
    file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | more))  # noqa: SIM115 (the caller's)
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "not a regular file", path)
    return file


def read_regular(path: AnyPath, max_bytes: int) -> bytes:
    """Return the whole content, without later additions; OSError, also for more than `max_bytes`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {format_bytes(max_bytes)}", path)
        return file.read(size)


def read_regular_text(path: Path, max_bytes: int = MAX_TEXT) -> str:
    """Return UTF-8 text; DiffctlError names the file and the problem."""
    with _utf8_errors(path):
        try:
            return read_regular(path, max_bytes).decode("utf-8-sig")
        except OSError as error:
            raise read_error(path, error) from None


def read_text(path: Path) -> str:
    """Return the UTF-8 text of a project's file, with Unix line ends; DiffctlError for other bytes."""
    with _utf8_errors(path):
        return path.read_text(encoding="utf-8")


@contextmanager
def _utf8_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        what = f"{printable(path)} is not text in UTF-8 ({error})"
        raise DiffctlError(f"{what}: save it in UTF-8, or get it again") from None


def read_error(path: Path, error: OSError) -> DiffctlError:
    """Return the error for a file that cannot be read."""
    why = error.strerror or error
    return DiffctlError(f"{printable(path)} cannot be read ({why}): give access to it, or get it again")
