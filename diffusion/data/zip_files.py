"""Zip archives of strangers, npz files among them. Bombs are refused before they unfold."""

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

MAX_AT_ONCE = 4 << 20  # bytes asked of the file at a time: a list of 50,000 members takes as many
HARMLESS = 256 << 20  # bytes that anything may unfold to
MAX_RATIO = 100  # of what is larger; images are packed to a half, labels to a tenth
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError, IndexError,
    struct.error,
)  # fmt: skip


class _Sparing(io.BufferedReader):
    """A file that is read a little at a time, since a length in it may be a lie."""

    def read(self, size: int | None = -1, /) -> bytes:
        """As any file's; BadZipFile where too much is asked for."""
        if size is not None and size > MAX_AT_ONCE:
            raise zipfile.BadZipFile("its list of members is too long")
        return super().read(size)

    def __del__(self) -> None:
        """Close it: it lives as long as the members that are read from it, wherever they are kept."""
        self.close()


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Let a DiffctlError say of the archive what the block meets: damage, or that it cannot be read."""
    try:
        yield
    except DAMAGE as error:
        why = printable(error)[:200]
        raise DiffctlError(f"{printable(path)} is no whole zip or npz file ({why}): get it again") from None
    except OSError as error:
        raise read_error(path, error) from None


def open_zip(path: Path) -> zipfile.ZipFile:
    """The archive, to be used within `explained`; its members are opened by `open_member`."""
    return zipfile.ZipFile(_Sparing(open_regular(path).detach()))


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """A member's content as a stream; BadZipFile for one that is locked or a bomb, or another of its name."""
    if info.flag_bits & 1:
        raise zipfile.BadZipFile(f"{info.filename} is encrypted")
    if info.compress_type not in METHODS:
        raise zipfile.BadZipFile(f"{info.filename} is packed by a method that is not read")
    if info.file_size > HARMLESS and info.file_size > MAX_RATIO * info.compress_size:
        size = f"{info.file_size / 1e9:,.1f} GB from {info.compress_size / 1e6:,.1f} MB"
        raise zipfile.BadZipFile(f"{info.filename} unfolds to {size}, which no images do")
    if Counter(archive.namelist())[info.filename] > 1:
        raise zipfile.BadZipFile(f"it has {info.filename} twice")
    return archive.open(info)


def read_some(stream: IO[bytes], count: int) -> bytes:
    """Exactly `count` bytes of a member, asked for a little at a time; EOFError when it ends before."""
    parts, missing = [], count
    while missing:
        part = stream.read(min(missing, MAX_AT_ONCE))
        if not part:
            raise EOFError("it ends too early")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
