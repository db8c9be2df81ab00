"""Zip archives and npz files of strangers, and the tar of CIFAR. Paths in an archive are never trusted."""

import shutil
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from diffusion.system.errors import DiffctlError, printable
from diffusion.system.files import atomic_folder, disk_errors, write_atomic
from diffusion.system.memory import format_bytes
from diffusion.system.regular_files import open_regular, read_error

HARMLESS_SIZE = 256 << 20  # bytes that any member may unpack to
MAX_RATIO = 100  # of a larger member; images compress to a half, labels to a tenth
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError, IndexError,
    struct.error,
)  # fmt: skip
TAR_DAMAGE = (tarfile.TarError, zlib.error, EOFError, ValueError, KeyError)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open the archive; use `open_member` for its members.

    Errors of a damaged or unreadable archive, also in the block, become a DiffctlError with its path.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except DAMAGE as error:
        why = printable(error)[:200]
        raise DiffctlError(
            f"{printable(path)} is not a complete zip or npz file ({why}): get it again"
        ) from None
    except OSError as error:
        raise read_error(path, error) from None


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> IO[bytes]:
    """Open a member as a stream; an error in DAMAGE if it is encrypted, a bomb or a duplicate."""
    if info.compress_type not in METHODS:
        raise zipfile.BadZipFile(f"{info.filename} has an unsupported compression method")
    if info.file_size > max(HARMLESS_SIZE, MAX_RATIO * info.compress_size):
        size = f"{format_bytes(info.file_size)} from {format_bytes(info.compress_size)}"
        raise zipfile.BadZipFile(f"{info.filename} unpacks to {size}, which no images do")
    if Counter(archive.namelist())[info.filename] > 1:
        raise zipfile.BadZipFile(f"it has {info.filename} twice")
    return archive.open(info)


def zip_names(archive: Path) -> set[str]:
    """Return the names of the files in the zip, without folders; DiffctlError if it is damaged."""
    with open_zip(archive) as opened:
        return {_flat(info.filename) for info in opened.infolist() if not info.is_dir()}


def unpack_zip(archive: Path, names: Collection[str], folder: Path) -> None:
    """Extract those of the named files that the zip has, from any folder, flat into `folder`.

    Existing files stay. DiffctlError for a damaged archive, a bomb, duplicates, or a full disk.
    """
    with open_zip(archive) as opened:
        wanted = [info for info in opened.infolist() if not info.is_dir() and _flat(info.filename) in names]
        counted = Counter(_flat(info.filename) for info in wanted)
        if twice := [name for name, count in counted.items() if count > 1]:
            raise DiffctlError(f"{printable(archive)} has {twice[0]} twice: get it again")
        for info in wanted:
            path = folder / _flat(info.filename)
            if not path.is_file():
                with open_member(opened, info) as source, disk_errors(path):
                    write_atomic(path, partial(shutil.copyfileobj, source))


def unpack_tar(archive: Path, members: Collection[str], folder: Path) -> Path:
    """Extract the named members of a verified gzipped tar into `folder`, flat, completely or not at all.

    Existing files stay. Return the folder. DiffctlError if a member is missing or no regular file, or the
    archive is damaged.
    """
    if all((folder / _flat(name)).is_file() for name in members):
        return folder
    try:
        with tarfile.open(archive) as tar, disk_errors(folder), atomic_folder(folder) as made:
            for name in members:
                content = tar.extractfile(name)
                if content is None:
                    raise KeyError(f"{name} is not a plain file")
                with content, open(made / _flat(name), "wb") as file:
                    shutil.copyfileobj(content, file)
    except TAR_DAMAGE as error:
        raise DiffctlError(
            f"{archive} is damaged ({printable(error)[:200]}): delete it and get it again"
        ) from None
    return folder


def _flat(name: str) -> str:
    return PurePosixPath(name).name
