"""Arrays in .npy files, read without trust in what their headers say."""

import hashlib
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.system.checksums import Corrupted
from diffusion.system.section import brief

# What numpy raises for a header that is none, a size that no machine has, an end that comes too early.
UNREADABLE = (ValueError, TypeError, EOFError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError)


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """The array in a file, mapped into memory if asked; Broken where it is none, FileNotFoundError."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except UNREADABLE as error:
        raise Corrupted(f"{path.name}: {brief(error, str)}") from None
    if not isinstance(array, np.ndarray):  # an archive of arrays under this name
        raise Corrupted(f"{path.name} is no array")
    return array


def array_digest(array: NDArray[Any]) -> str:
    """SHA-256 in hex over type, shape and values."""
    digest = hashlib.sha256(f"{array.dtype.str} {list(array.shape)}\n".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
