"""Files that a reader may see: written beside their place, fsynced and renamed, so never half there."""

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any


def write_atomic(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file that appears at `path` whole or not at all; a failure leaves no trace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.filename:
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_atomic(path, lambda file: file.write(text.encode()))


def write_json(path: Path, values: Any) -> None:
    """Write indented JSON with sorted keys atomically: the same values give the same bytes."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends without an exception.

    What killed processes have left of it is removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    drop_leftovers(path)
    with _new_folder(path) as made:
        try:
            yield made
            for entry in [*made.rglob("*"), made]:
                sync_folder(entry) if entry.is_dir() else sync_file(entry)
            os.chmod(made, 0o777 & ~_umask())
            if path.exists():
                shutil.rmtree(path)
            os.replace(made, path)
        except BaseException:
            shutil.rmtree(made, ignore_errors=True)
            raise
    sync_folder(path.parent)


def drop_leftovers(path: Path) -> None:
    """Remove what killed processes have left of `atomic_folder(path)`; what a living one makes stays."""
    for made in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError), _folder_lock(made, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`, locked as long as the block runs and this process lives."""
    while True:
        made = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
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


def bytes_below(folder: Path) -> int:
    """What the files below a folder take on their disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
