"""Files from outside, opened so that nothing waits for ever: what is no plain file is refused.

A pipe, a device or a socket in a file's place would hold whoever opens it, or never end.
"""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from diffusion.system.errors import DiffctlError, printable

MAX_TEXT = 32 << 20  # bytes of a list that is read at once; ImageNet's take a few MB
NO_WAIT = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY

AnyPath = Path | bytes


def open_regular(path: AnyPath) -> BufferedReader:
    """The file, or the one that a link leads to, for reading; OSError also for what is no plain file."""
    _refuse_other(path, os.stat(path))  # before it is opened, since opening a device may do something
    handle = os.open(path, NO_WAIT)
    try:
        _refuse_other(path, os.fstat(handle))
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def read_regular(path: AnyPath, most: int) -> bytes:
    """The whole content, what a writer adds meanwhile left out; OSError, also for more than `most` bytes."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"larger than {most >> 20} MB", path)
        return file.read(size)


def read_regular_text(path: Path, most: int = MAX_TEXT) -> str:
    """Text in UTF-8; DiffctlError names the file and says what is wrong with it."""
    try:
        return read_regular(path, most).decode("utf-8-sig")
    except OSError as error:
        raise read_error(path, error) from None
    except UnicodeDecodeError as error:
        raise DiffctlError(f"{printable(path)} is not text in UTF-8 ({error}): get it again") from None


def read_error(path: Path, error: OSError) -> DiffctlError:
    """What is said of a file that cannot be read at all."""
    why = error.strerror or error
    return DiffctlError(f"{printable(path)} cannot be read ({why}): give access to it, or get it again")


def _refuse_other(path: AnyPath, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a plain file", path)
