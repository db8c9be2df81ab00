"""Arrays that lie in files and are read a range of rows at a time, so that their size costs no memory."""

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

from diffusion.data.zip_files import explained, open_member, open_zip, read_some
from diffusion.system.errors import DiffctlError, printable
from diffusion.system.regular_files import read_error

MAX_HEADER = 10_000  # bytes, as NumPy has it


class FileArray(Protocol):
    """An array in a file. It is small itself, so it can be sent to another process."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one number."""
        ...

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Entries `start` to `stop` of the first axis."""
        ...


@dataclass(frozen=True)
class MemoryArray:
    """A small array that is in memory already."""

    values: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return self.values.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of one number."""
        return self.values.dtype

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Entries `start` to `stop` of the first axis."""
        return self.values[start:stop]


@dataclass(frozen=True)
class StoredArray:
    """An array that lies in a file as it is, C-contiguous from `offset`."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Entries `start` to `stop` of the first axis, read from their place.

        DiffctlError when the file went away or became shorter.
        """
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
    """An array inside an npz file, compressed or not. Reading in ascending order unpacks it once."""

    path: Path
    key: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Entries `start` to `stop` of the first axis; DiffctlError for a damaged file."""
        try:
            with explained(self.path):
                stream = _stream(self.path, self.key)
                if start < stream.row:
                    _kept_stream.cache_clear()
                    stream = _stream(self.path, self.key)
                if (stream.shape, stream.dtype) != (self.shape, self.dtype):
                    raise ValueError("it changed since it was opened")
                stream.skip(start)
                return stream.take(stop - start)
        except DiffctlError:
            _kept_stream.cache_clear()
            raise


def file_array(value: object) -> FileArray:
    """An array as it comes out of a data file, wherever it lies; TypeError for anything else."""
    if isinstance(value, StoredArray | NpzArray):
        return value
    if isinstance(value, np.ndarray) and value.ndim:
        return MemoryArray(value)
    raise TypeError(f"{type(value).__name__} instead of an array")


def integers(value: object) -> NDArray[np.int64]:
    """A list of integers or an array of them, as int64 in memory; TypeError for anything else."""
    if isinstance(value, StoredArray | NpzArray) and len(value.shape) == 1:
        value = value.read(0, value.shape[0])
    # Lists in lists are not handed to NumPy, which would unfold one that holds itself many times over.
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
    """The array `key` of an npz file, left there; DiffctlError when it is not there or not plain numbers."""
    with explained(path):
        stream = _stream(path, key)
    return NpzArray(path, key, stream.shape, stream.dtype)


def npz_keys(path: Path) -> set[str]:
    """The names of the arrays in an npz file; DiffctlError for a damaged one."""
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
            raise ValueError(f"its array {key} is not as large as it says")

    def skip(self, row: int) -> None:
        """Go forward to a row."""
        while self.row < row:
            self.take(min(row - self.row, 256))

    def take(self, count: int) -> NDArray[Any]:
        """The next `count` rows."""
        content = read_some(self.file, count * self.row_bytes)
        self.row += count
        return np.frombuffer(content, dtype=self.dtype).reshape(count, *self.shape[1:])


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and dtype at the head of an array; ValueError unless it is of plain numbers in C order."""
    start = read_some(file, 8)  # what it is, its version, and how long it is
    said = read_some(file, 2 if start[6] == 1 else 4)
    if (length := int.from_bytes(said, "little")) > MAX_HEADER:
        raise ValueError(f"an array's header has {length:,} bytes")
    head = io.BytesIO(start + said + read_some(file, length))
    try:
        version = npy.read_magic(head)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(head)
    except Exception as error:  # it is Python's syntax, whose parsers raise all kinds
        raise ValueError(f"an array's header cannot be read: {type(error).__name__}") from None
    if dtype.kind not in "biuf" or (fortran and len(shape) > 1):
        raise ValueError("an array is not of plain numbers in C order")
    if min(shape, default=0) < 0:
        raise ValueError("an array has a negative size")
    return shape, dtype


def _stream(path: Path, key: str) -> _Stream:
    """The stream that is kept for the next rows, unless another file has come in its place."""
    status = os.stat(path)
    return _kept_stream(path, key, (status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=1)
def _kept_stream(path: Path, key: str, identity: tuple[int, ...]) -> _Stream:
    return _Stream(path, key)
