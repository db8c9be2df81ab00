"""Reading untrusted files without blocking: pipes, devices and sockets are refused."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

from diffusion.system.errors import DiffctlError, printable
from diffusion.system.memory import format_bytes

MAX_TEXT = 32 << 20  # bytes of a text file; ImageNet's lists have a few MB

AnyPath = Path | bytes


def _open_now(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NONBLOCK | os.O_NOCTTY)


def open_regular(path: AnyPath) -> BufferedReader:
    """Open a regular file, or a link to one, for reading; OSError for anything else."""
    file = open(path, "rb", opener=_open_now)  # noqa: SIM115 (the caller's)
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
