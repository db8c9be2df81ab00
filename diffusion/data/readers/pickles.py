"""Pickles of old data sets, restricted to plain containers and NumPy arrays.

A pickle is a program that may call anything. Here `find_class` admits only the names that NumPy and plain
containers need, so that no other code runs. Large arrays stay in the file.
"""

import io
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.data.readers.archives import Array
from diffusion.system.errors import DiffctlError, printable
from diffusion.system.files import read_error, read_regular

MAX_BYTES = 2 << 30  # of a file; a batch of ImageNet at 64×64 has 1.6 GB
LARGE = 1 << 16  # bytes: a larger array is left in the file
HEAD = 4096  # bytes of an array's content that are searched for in the file
DTYPE = re.compile(r"[<>|=]?[biuf][0-9]{1,2}")  # booleans, integers and floats
DAMAGE = (
    pickle.UnpicklingError, ValueError, TypeError, AttributeError, LookupError, EOFError, OverflowError,
    RecursionError, struct.error, ImportError, SystemError,  # the last one by NumPy, for a damaged dtype
)  # fmt: skip


class _Forbidden(Exception):
    """The pickle needs more than data."""


def read_pickle(path: Path) -> Any:
    """Return the containers, numbers, text and arrays of a pickle; large arrays of a dict are mapped.

    Byte strings of Python 2 become text. DiffctlError if the file is missing, damaged or too large, or needs
    a name that is not admitted.
    """
    try:
        content = read_regular(path, MAX_BYTES)
        value = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    except OSError as error:
        raise read_error(path, error) from None
    except _Forbidden as error:
        why = f"it requires {printable(error)[:200]}, which is refused"
        raise DiffctlError(f"{printable(path)} is not a data file: {why}. Delete it") from None
    except MemoryError:
        raise DiffctlError(f"{printable(path)} needs too much memory: is it the right file?") from None
    except DAMAGE as error:
        found = f"{printable(path)} is damaged or not a pickle of arrays ({printable(error)[:200]})"
        raise DiffctlError(f"{found}: get it again") from None
    if not isinstance(value, dict):
        return value
    return {key: _left_in_file(path, content, entry) for key, entry in value.items()}


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


def _plain_dtype(code: Any, *_: Any) -> np.dtype[Any]:
    """Return the dtype of plain numbers; its byte order follows as a state."""
    if not isinstance(code, str) or not DTYPE.fullmatch(code):
        raise _Forbidden(f"an array of {code if isinstance(code, str) else type(code).__name__}")
    return np.dtype(code, copy=True)


def _encode(text: str, encoding: str) -> bytes:
    """Return bytes as Python 3 writes them for Python 2."""
    if encoding != "latin1":
        raise _Forbidden(f"the encoding {encoding}")
    return text.encode(encoding)


_NUMPY_NAMES: dict[str, Any] = {
    "multiarray._reconstruct": np.empty(0).__reduce__()[0],
    "multiarray.scalar": np.int64(0).__reduce__()[0],
    "numeric._frombuffer": np.empty(1).__reduce_ex__(5)[0],
}
_ADMITTED: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": _plain_dtype,
    "_codecs.encode": _encode,
    "collections.OrderedDict": OrderedDict,
    **{
        f"{module}.{kind.__name__}": kind
        for module in ("builtins", "__builtin__")
        for kind in (bytes, bytearray)
    },
    **{f"numpy.{core}.{name}": call for core in ("core", "_core") for name, call in _NUMPY_NAMES.items()},
}


class _Unpickler(pickle.Unpickler):
    """An unpickler that admits the names in `_ADMITTED` alone, and imports nothing."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an admitted object; raise _Forbidden for any other name."""
        try:
            return _ADMITTED[f"{module}.{name}"]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None


def _left_in_file(path: Path, content: bytes, value: Any) -> Any:
    """Return the array mapped from the file, if its bytes are there as they are; else the value itself."""
    if not isinstance(value, np.ndarray) or value.nbytes <= LARGE or not value.flags.c_contiguous:
        return value
    stored = value.reshape(-1).view(np.uint8)
    head = stored[:HEAD].tobytes()  # a search for the whole array would be slow
    at = content.find(head)
    while 0 <= at <= len(content) - stored.size:
        if np.array_equal(np.frombuffer(content, np.uint8, stored.size, at), stored):
            return np.memmap(path, value.dtype, "r", at, value.shape)
        at = content.find(head, at + 1)
    return value
