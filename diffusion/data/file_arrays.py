"""Arrays in files, read in ranges of rows, so that their size costs no memory."""

import io
import math
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from diffusion.data.zip_files import explained, open_member, open_zip, read_exactly
from diffusion.system.errors import DiffctlError, printable
from diffusion.system.regular_files import read_error

MAX_HEADER = 10_000  # bytes, NumPy's own limit


class FileArray(Protocol):
    """An array in a file. The object itself is small, so that it can be sent to another process."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one number."""
        ...

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows `start` to `stop`."""
        ...


@dataclass(frozen=True)
class MemoryArray:
    """An array that is in memory already."""

    values: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of one number."""
        return self.values.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows `start` to `stop`."""
        return self.values[start:stop]


@dataclass(frozen=True)
class StoredArray:
    """An array whose bytes are in a file, C-contiguous from `offset`."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows `start` to `stop`; DiffctlError if the file was removed or became shorter."""
        row = math.prod(self.shape[1:])
        offset, count = self.offset + start * row * self.dtype.itemsize, (stop - start) * row
        try:
            values = np.fromfile(self.path, dtype=self.dtype, count=count, offset=offset)
        except OSError as error:
            raise read_error(self.path, error) from None
        if len(values) != count:
            raise DiffctlError(f"{printable(self.path)} became shorter while it was read: get it again")
        return values.reshape(stop - start, *self.shape[1:])


@dataclass(frozen=True)
class NpzArray:
    """An array in an npz file, compressed or not. Reading in ascending order unpacks it once."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows `start` to `stop`; DiffctlError if the file is damaged."""
        try:
            with explained(self.path):
                stream = _stream(self.path, self.key)
                if start < stream.row:
                    _cached_stream.cache_clear()
                    stream = _stream(self.path, self.key)
                if (stream.shape, stream.dtype) != (self.shape, self.dtype):
                    raise ValueError("it changed since it was opened")
                stream.skip_to(start)
                return stream.take(stop - start)
        except DiffctlError:
            _cached_stream.cache_clear()
            raise


def file_array(value: object) -> FileArray:
    """Return an array out of a data file as a FileArray; TypeError for anything else."""
    if isinstance(value, StoredArray | NpzArray):
        return value
    if isinstance(value, np.ndarray) and value.ndim:
        return MemoryArray(value)
    raise TypeError(f"{type(value).__name__} instead of an array")


def integers(value: object) -> NDArray[np.int64]:
    """Return a list or array of integers as int64 in memory; TypeError for anything else."""
    if isinstance(value, StoredArray | NpzArray) and len(value.shape) == 1:
        value = value.read(0, value.shape[0])
    # Nested lists never reach NumPy: it would expand a list that contains itself.
    are_numbers = isinstance(value, list | tuple) and all(type(number) is int for number in value)
    if are_numbers:
        try:
            return np.array(value, dtype=np.int64)
        except OverflowError:
            raise TypeError("integers that are too large") from None
    if not isinstance(value, np.ndarray) or value.ndim != 1 or (value.size and value.dtype.kind not in "iu"):
        raise TypeError("something else instead of a list of integers")
    return value.astype(np.int64)


def open_npz(path: Path, key: str) -> NpzArray:
    """Return the array `key` of an npz file, unread; DiffctlError if it is missing or not plain numbers."""
    with explained(path):
        stream = _stream(path, key)
    return NpzArray(path, key, stream.shape, stream.dtype)


def npz_keys(path: Path) -> set[str]:
    """Return the names of the arrays in an npz file; DiffctlError if it is damaged."""
    with explained(path), open_zip(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}


class _Stream:
    """An array of an npz file, read forwards."""

    def __init__(self, path: Path, key: str) -> None:
        archive = open_zip(path)
        if f"{key}.npy" not in archive.namelist():
            raise DiffctlError(f"{printable(path)} has no array named {key}")
        info = archive.getinfo(f"{key}.npy")
        self.file = open_member(archive, info)
        self.shape, self.dtype = _read_header(self.file)
        self.row = 0
        self.row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        if self.file.tell() + math.prod(self.shape) * self.dtype.itemsize != info.file_size:
            raise ValueError(f"its array {key} does not have the size in its header")

    def skip_to(self, row: int) -> None:
        """Skip forward to a row."""
        while self.row < row:
            self.take(min(row - self.row, 256))

    def take(self, count: int) -> NDArray[Any]:
        """Return the next `count` rows."""
        content = read_exactly(self.file, count * self.row_bytes)
        self.row += count
        return np.frombuffer(content, dtype=self.dtype).reshape(count, *self.shape[1:])


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape and dtype of an .npy stream; ValueError unless it has plain numbers in C order."""
    start = read_exactly(file, 8)  # magic string and version
    length_field = read_exactly(file, 2 if start[6] == 1 else 4)
    if (length := int.from_bytes(length_field, "little")) > MAX_HEADER:
        raise ValueError(f"an array's header has {length:,} bytes")
    head = io.BytesIO(start + length_field + read_exactly(file, length))
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


def _stream(path: Path, key: str) -> _Stream:
    """Return the cached stream, or a new one if the file was replaced."""
    status = os.stat(path)
    return _cached_stream(path, key, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=1)
def _cached_stream(path: Path, key: str, identity: tuple[int, ...]) -> _Stream:
    return _Stream(path, key)
