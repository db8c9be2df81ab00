"""Files that a reader may see: written beside their place, fsynced and renamed, so never half there.

A link in their place is replaced itself: DVC may have put it there, and what it leads to is in its cache.
What a person names is for `outputs` to write.
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# Of a name, in a hidden one beside it, which has 14 bytes more: most file systems allow 255.
KEPT_BYTES = 200

Fill = Callable[[IO[bytes]], object]
Write = Callable[[Path, Fill], None]
"""Takes where a file is to be and what fills it."""


def write_atomic(path: Path, write: Fill) -> None:
    """Let `write` fill a file that appears at `path` whole or not at all; a failure leaves no trace.

    A file or link that is there is replaced. OSError, which names `path`, where something else is.
    """
    with _speaking_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _refuse_special(path)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_beginning(path), suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def copy_file(source: Path, path: Path) -> None:
    """Bring a file to `path`, whole or not at all; FileNotFoundError where there is none."""
    with open(source, "rb") as file:
        write_atomic(path, lambda copy: shutil.copyfileobj(file, copy))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, values: Any) -> None:
    """Write indented JSON with sorted keys atomically: the same values give the same bytes."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends without an exception.

    What killed processes have left of it is removed first. OSErrors as `write_atomic`.
    """
    with _speaking_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        with _new_folder(path) as made:
            try:
                yield made
                for entry in [*made.rglob("*"), made]:
                    sync_folder(entry) if entry.is_dir() else sync_file(entry)
                os.chmod(made, 0o777 & ~_umask())
                _remove(path)
                os.replace(made, path)
            except BaseException:
                shutil.rmtree(made, ignore_errors=True)
                raise
        sync_folder(path.parent)


@contextmanager
def _speaking_of(path: Path) -> Iterator[None]:
    """Let an OSError of the block that names nothing, or what is beside `path`, name `path`."""
    beside = os.path.abspath(path.parent / _beginning(path))
    try:
        yield
    except OSError as error:
        named = error.filename
        if error.errno and (named is None or os.path.abspath(os.fsdecode(named)).startswith(beside)):
            error.filename, error.filename2 = str(path), None
        raise


def _beginning(path: Path) -> str:
    """How the hidden names of what becomes `path` begin."""
    return f".{os.fsencode(path.name)[:KEPT_BYTES].decode(errors='ignore')}."


def _refuse_special(path: Path) -> None:
    """OSError where something lies that is neither file nor link: a rename would put a device away."""
    mode = path.lstat().st_mode if os.path.lexists(path) else stat.S_IFREG
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
        raise FileExistsError(errno.EEXIST, "Not a regular file", str(path))


def _remove(path: Path) -> None:
    """Remove what is at `path`; of a link the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        _refuse_special(path)
        path.unlink()


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes have left of `atomic_folder(path)`; what a living one makes stays."""
    for made in path.parent.glob(f"{glob.escape(_beginning(path))}*.tmp"):
        with suppress(OSError), _folder_lock(made, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, locked as long as the block runs and this process lives."""
    while True:
        made = Path(tempfile.mkdtemp(dir=path.parent, prefix=_beginning(path), suffix=".tmp"))
        with ExitStack() as stack:
            with suppress(OSError):  # it is gone, or its disk has no locks, so that leftovers stay there
                stack.enter_context(_folder_lock(made, fcntl.LOCK_EX))
            if made.exists():  # nobody took it for a leftover before it was locked
                yield made
                return


@contextmanager
def _folder_lock(folder: Path, how: int) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, how)
        yield
    finally:
        os.close(handle)


def sync_file(path: Path) -> None:
    """Flush a written file to the disk."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Flush a folder's entries to the disk, so that a rename outlives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: Path) -> str:
    """The file's SHA-256 in hex, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def disk_usage(folder: Path) -> int:
    """What the files below a folder take on their disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
