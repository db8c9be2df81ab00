"""Reading untrusted files without blocking: pipes, devices and sockets are refused."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from diffusion.system.errors import DiffctlError, printable
from diffusion.system.memory import format_bytes

MAX_TEXT = 32 << 20  # bytes of a text file; ImageNet's lists have a few MB
NO_WAIT = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY

AnyPath = Path | bytes


def open_regular(path: AnyPath) -> BufferedReader:
    """Open a regular file, or a link to one, for reading; OSError for anything else."""
    _refuse_other(path, os.stat(path))  # before opening, which has effects on some devices
    handle = os.open(path, NO_WAIT)
    try:
        _refuse_other(path, os.fstat(handle))
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_regular(path: AnyPath, max_bytes: int) -> bytes:
    """Return the whole content, without later additions; OSError, also for more than `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise OSError(errno.EFBIG, f"larger than {format_bytes(max_bytes)}", path)
        return file.read(size)


def read_regular_text(path: Path, max_bytes: int = MAX_TEXT) -> str:
    """Return UTF-8 text; DiffctlError names the file and the problem."""
    try:
        return read_regular(path, max_bytes).decode("utf-8-sig")
    except OSError as error:
        raise read_error(path, error) from None
    except UnicodeDecodeError as error:
        raise DiffctlError(f"{printable(path)} is not text in UTF-8 ({error}): get it again") from None


def read_error(path: Path, error: OSError) -> DiffctlError:
    """Return the error for a file that cannot be read."""
    why = error.strerror or error
    return DiffctlError(f"{printable(path)} cannot be read ({why}): give access to it, or get it again")


def _refuse_other(path: AnyPath, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", path)
