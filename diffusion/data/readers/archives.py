"""Zip archives and npz files of strangers, and the tar of CIFAR. Paths in an archive are never trusted."""

import io
import math
import shutil
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from diffusion.system.errors import DiffctlError, printable
from diffusion.system.files import atomic_folder, disk_errors, open_regular, read_error, write_atomic
from diffusion.system.locks import file_lock
from diffusion.system.memory import format_bytes

HARMLESS_SIZE = 256 << 20  # bytes that any member may unpack to
MAX_RATIO = 100  # of a larger member; images compress to a half, labels to a tenth
MAX_HEADER = 10_000  # bytes of an array's header, NumPy's own limit
BLOCK = 4 << 20  # bytes per read
LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
DAMAGE = (
    zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OverflowError, IndexError,
    struct.error,
)  # fmt: skip

Array = NDArray[Any]


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open an archive, for `open_member`; errors of a damaged one in the block become a DiffctlError."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except DAMAGE as error:
        found = f"{printable(path)} is not a complete zip or npz file ({printable(error)[:200]})"
        raise DiffctlError(f"{found}: get it again") from None
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

    Equal files stay. DiffctlError for a damaged archive, a bomb, duplicates, or a full disk.
    """
    with open_zip(archive) as opened:
        wanted = [info for info in opened.infolist() if not info.is_dir() and _flat(info.filename) in names]
        counted = Counter(_flat(info.filename) for info in wanted)
        if twice := [name for name, count in counted.items() if count > 1]:
            raise DiffctlError(f"{printable(archive)} has {twice[0]} twice: get it again")
        for info in wanted:
            path = folder / _flat(info.filename)
            if not _is_copy(path, info):
                with open_member(opened, info) as source, disk_errors(path):
                    write_atomic(path, partial(shutil.copyfileobj, source))


def _is_copy(path: Path, info: zipfile.ZipInfo) -> bool:
    """Whether a file has the size and the CRC-32 of a zip's member."""
    if not path.is_file() or path.stat().st_size != info.file_size:
        return False
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            crc = zlib.crc32(block, crc)
    return crc == info.CRC


def unpack_tar(archive: Path, members: Collection[str], folder: Path) -> Path:
    """Extract the named files of a verified gzipped tar into `folder`, flat, completely or not at all.

    One process unpacks; others wait for it.
    """

    def is_complete() -> bool:
        return all((folder / _flat(name)).is_file() for name in members)

    if is_complete():  # a shared cache may be read-only
        return folder
    with file_lock(folder.with_name(f".{folder.name}.lock")):
        if not is_complete():
            with tarfile.open(archive) as tar, disk_errors(folder), atomic_folder(folder) as made:
                for name in members:
                    content = tar.extractfile(name)
                    assert content is not None, f"{name} is a file in the published archive"
                    (made / _flat(name)).write_bytes(content.read())
    return folder


def npz_keys(path: Path) -> set[str]:
    """Return the names of the arrays in an npz file; DiffctlError if it is damaged."""
    with open_zip(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


def open_npz(path: Path, key: str) -> Array:
    """Return the array `key` of an npz file, mapped; DiffctlError if it is missing or not plain numbers.

    Its checksum is verified. A compressed array is unpacked into a temporary file, so that its size costs no
    memory.
    """
    with open_zip(path) as archive:
        if f"{key}.npy" not in archive.namelist():
            raise DiffctlError(f"{printable(path)} has no array named {key}")
        info = archive.getinfo(f"{key}.npy")
        is_stored = info.compress_type == zipfile.ZIP_STORED
        with open_member(archive, info) as member, tempfile.TemporaryFile() as unpacked:
            shape, dtype = _read_header(member)
            start = member.tell()
            if start + math.prod(shape) * dtype.itemsize != info.file_size:
                raise ValueError(f"its array {key} does not have the size in its header")
            with disk_errors(f"the unpacked {printable(path)} to TMPDIR, {tempfile.gettempdir()}"):
                while block := member.read(BLOCK):  # to the end, where zipfile verifies the checksum
                    is_stored or unpacked.write(block)
                unpacked.flush()
            if not math.prod(shape):
                return np.empty(shape, dtype)
            if is_stored:
                return np.memmap(path, dtype, "r", _data_offset(path, info) + start, shape)
            return np.memmap(unpacked, dtype, "r", 0, shape)


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where a stored member's content begins in the zip."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        name, extra = struct.unpack("<HH", file.read(LOCAL_HEADER)[-4:])
    return info.header_offset + LOCAL_HEADER + int(name) + int(extra)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of an .npy stream; ValueError unless it has plain numbers in C order."""
    start = file.read(8)  # magic string and version
    length_field = file.read(2 if start[6] == 1 else 4)
    if (length := int.from_bytes(length_field, "little")) > MAX_HEADER:
        raise ValueError(f"an array's header has {length:,} bytes")
    head = io.BytesIO(start + length_field + file.read(length))
    try:
        version = npy.read_magic(head)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(head)
    except Exception as error:  # the header is Python syntax, and its parser raises many types
        raise ValueError(f"an array's header cannot be read: {type(error).__name__}") from None
    if dtype.kind not in "biuf" or (fortran and len(shape) > 1):
        raise ValueError("an array is not of plain numbers in C order")
    if min(shape, default=0) < 0:
        raise ValueError("an array has a negative size")
    return shape, dtype


def _flat(name: str) -> str:
    return PurePosixPath(name).name
