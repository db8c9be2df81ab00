"""Untrusted zip archives, npz files included. Zip bombs are refused before they are unpacked."""

import io
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from diffusion.system.errors import DiffctlError, printable
from diffusion.system.regular_files import open_regular, read_error

MAX_READ = 4 << 20  # bytes per read: a directory of 50,000 members takes as many
HARMLESS_SIZE = 256 << 20  # bytes that any member may unpack to
MAX_RATIO = 100  # of a larger member; images compress to a half, labels to a tenth
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError, IndexError,
    struct.error,
)  # fmt: skip


class _BoundedReader(io.BufferedReader):
    """A file with bounded reads, since a length in it may be false."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any file; BadZipFile for more than MAX_READ bytes."""
        if size is not None and size > MAX_READ:
            raise zipfile.BadZipFile("its list of members is too long")
        return super().read(size)

    def __del__(self) -> None:
        """Close the file with the last member that reads from it."""
        self.close()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn errors of a damaged or unreadable archive into a DiffctlError with its path."""
    try:
        yield
    except DAMAGE as error:
        why = printable(error)[:200]
        raise DiffctlError(
            f"{printable(path)} is not a complete zip or npz file ({why}): get it again"
        ) from None
    except OSError as error:
        raise read_error(path, error) from None


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open the archive; use it within `explained`, and `open_member` for its members."""
    return zipfile.ZipFile(_BoundedReader(open_regular(path).detach()))


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open a member as a stream; BadZipFile if it is encrypted, a bomb or a duplicate."""
    if info.flag_bits & 1:
        raise zipfile.BadZipFile(f"{info.filename} is encrypted")
    if info.compress_type not in METHODS:
        raise zipfile.BadZipFile(f"{info.filename} has an unsupported compression method")
    if info.file_size > HARMLESS_SIZE and info.file_size > MAX_RATIO * info.compress_size:
        size = f"{info.file_size / 1e9:,.1f} GB from {info.compress_size / 1e6:,.1f} MB"
        raise zipfile.BadZipFile(f"{info.filename} unpacks to {size}, which no images do")
    if Counter(archive.namelist())[info.filename] > 1:
        raise zipfile.BadZipFile(f"it has {info.filename} twice")
    return archive.open(info)


def read_exactly(stream: IO[bytes], count: int) -> bytes:
    """Read exactly `count` bytes of a member in bounded steps; EOFError if it ends before."""
    parts, missing = [], count
    while missing:
        part = stream.read(min(missing, MAX_READ))
        if not part:
            raise EOFError("it ends too early")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
