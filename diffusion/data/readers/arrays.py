"""Arrays in npz files and pickles of strangers, mapped from the disk."""

import io
import math
import struct
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from diffusion.data.readers.archives import open_member, open_zip
from diffusion.system.errors import DiffctlError, printable
from diffusion.system.files import disk_errors

MAX_HEADER = 10_000  # bytes, NumPy's own limit
BLOCK = 4 << 20  # bytes per read
LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name

Array = NDArray[Any]


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


def plain_array(value: object, what: str) -> Array:
    """Return an array out of a data file; DiffctlError for anything else."""
    if isinstance(value, np.ndarray) and value.ndim:
        return value
    raise DiffctlError(f"{what} is {type(value).__name__} instead of an array: get the file again")


def integers(value: object, what: str) -> NDArray[np.int64]:
    """Return a list or array of integers as int64; DiffctlError for anything else."""
    # Nested lists never reach NumPy: it would expand a list that contains itself.
    if isinstance(value, list | tuple) and all(type(number) is int for number in value):
        with suppress(OverflowError):
            return np.array(value, dtype=np.int64)
    elif isinstance(value, np.ndarray) and value.ndim == 1 and (not value.size or value.dtype.kind in "iu"):
        return np.array(value, dtype=np.int64)
    raise DiffctlError(f"{what} is not a list of integers: get the file again")


def entry(batch: Any, key: str, path: Path) -> Any:
    """Return a value of a batch with text or bytes as keys; DiffctlError if it is missing."""
    for spelling in (key, key.encode()):
        if isinstance(batch, dict) and spelling in batch:
            return batch[spelling]
    raise DiffctlError(f"{printable(path)} has no {key}: it is not a file of this set")
