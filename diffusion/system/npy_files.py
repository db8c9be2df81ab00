"""Arrays in .npy files, read without trust in their headers."""

import hashlib
import tokenize
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.system.checksums import Corrupted
from diffusion.system.section import brief

# What NumPy raises for an invalid header, an impossible size, or a truncated file.
UNREADABLE = (ValueError, TypeError, EOFError, OverflowError, MemoryError, SyntaxError, tokenize.TokenError)


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Return the array in a file, memory-mapped if requested; raise Corrupted or FileNotFoundError."""
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except UNREADABLE as error:
        raise Corrupted(f"{path.name}: {brief(error, str)}") from None
    if not isinstance(array, np.ndarray):  # an npz archive with this name
        raise Corrupted(f"{path.name} is not an array")
    return array


def array_digest(array: NDArray[Any]) -> str:
    """Return the SHA-256 in hex of type, shape and values."""
    digest = hashlib.sha256(f"{array.dtype.str} {list(array.shape)}\n".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
