"""Arrays that lie in files and are read a range of rows at a time, so that their size costs no memory."""

import math
import zipfile
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from diffusion.system.errors import DiffctlError


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
        """Entries `start` to `stop` of the first axis, read from their place."""
        row = math.prod(self.shape[1:])
        offset = self.offset + start * row * self.dtype.itemsize
        values = np.fromfile(self.path, dtype=self.dtype, count=(stop - start) * row, offset=offset)
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
        stream = _stream(self.path, self.key)
        try:
            if start < stream.row:
                _stream.cache_clear()
                stream = _stream(self.path, self.key)
            stream.skip(start)
            return stream.take(stop - start)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            _stream.cache_clear()
            raise DiffctlError(f"{self.path} is damaged ({error}): get it again") from None


def file_array(value: object) -> FileArray:
    """An array as it comes out of a data file, wherever it lies; TypeError for anything else."""
    if isinstance(value, StoredArray | NpzArray):
        return value
    if isinstance(value, np.ndarray) and value.ndim:
        return MemoryArray(value)
    raise TypeError(f"{type(value).__name__} instead of an array")


def integers(value: object) -> NDArray[np.int64]:
    """A list of integers or an array of them, as int64 in memory; TypeError for anything else."""
    if isinstance(value, StoredArray | NpzArray):
        value = value.read(0, value.shape[0])
    array = np.asarray(value)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError("something else instead of a list of integers")
    return array.astype(np.int64)


def open_npz(path: Path, key: str) -> NpzArray:
    """The array `key` of an npz file; DiffctlError when it is not there."""
    try:
        stream = _stream(path, key)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError) as error:
        raise DiffctlError(f"{path} is damaged ({error}): get it again") from None
    except KeyError:
        raise DiffctlError(f"{path} has no array named {key}") from None
    return NpzArray(path, key, stream.shape, stream.dtype)


class _Stream:
    """An array of an npz file, read forwards."""

    def __init__(self, path: Path, key: str) -> None:
        self.file: IO[bytes] = zipfile.ZipFile(path).open(f"{key}.npy")  # noqa: SIM115 (kept open in the cache)
        version = npy.read_magic(self.file)
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        self.shape, fortran, self.dtype = read_header(self.file)
        if fortran or self.dtype.hasobject:
            raise ValueError("its array is not plain numbers in C order")
        self.row = 0
        self.row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize

    def skip(self, row: int) -> None:
        """Go forward to a row."""
        while self.row < row:
            self.take(min(row - self.row, 256))

    def take(self, count: int) -> NDArray[Any]:
        """The next `count` rows."""
        content = self.file.read(count * self.row_bytes)
        if len(content) != count * self.row_bytes:
            raise EOFError("it ends too early")
        self.row += count
        return np.frombuffer(content, dtype=self.dtype).reshape(count, *self.shape[1:])


@lru_cache(maxsize=1)
def _stream(path: Path, key: str) -> _Stream:
    return _Stream(path, key)
