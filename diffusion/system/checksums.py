"""Seals: a digest that a file or a JSON object carries of all that it says, so that later changes show.

It is of what was meant to be written, made before the disk has it: what a disk makes of it always agrees
with itself. A seal tells damage and edits; whoever wants to deceive can make another one.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from pydantic import TypeAdapter, ValidationError

from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_atomic
from diffusion.system.json_files import Document, JsonObject, read_json
from diffusion.system.section import canonical_json, explain

FIELD = "sha256"  # of a sealed object
CHECKSUM_BYTES = 32  # bytes at a sealed file's end
BLOCK = 2**20  # bytes that are looked at at a time


class Corrupted(ValueError):
    """A seal is missing, or is not of what it closes."""


class _Hashing:
    """A file that is written to through a digest."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._digest = file, hashlib.sha256(f"{name}\n".encode())

    def write(self, data: Any) -> int:
        """Write bytes, or what has a buffer of them."""
        self._digest.update(data)
        return self._file.write(data)

    def close_with_seal(self) -> None:
        """Write the digest of all of it behind it."""
        self._file.write(self._digest.digest())


def write_checksummed(path: Path, write: Callable[[Any], object], name: str | None = None) -> None:
    """Let `write` fill a file, as `write_atomic`, which ends in the SHA-256 of its name and of all before.

    `name` is what the seal calls it, by default what the file is called.
    """

    def fill(file: IO[bytes]) -> None:
        hashing = _Hashing(file, name or path.name)
        write(hashing)
        hashing.close_with_seal()

    write_atomic(path, fill)


def read_checksummed(path: Path, name: str | None = None, most: int | None = None) -> bytes:
    """What was written into a sealed file; Broken where it changed, was renamed or has over `most` bytes."""
    size = path.stat().st_size - CHECKSUM_BYTES
    if size < 0 or (most is not None and size > most):
        raise Corrupted(f"it has {size + CHECKSUM_BYTES:,} bytes")
    with open(path, "rb") as file:
        data, closing = file.read(size), file.read(CHECKSUM_BYTES + 1)
    digest = hashlib.sha256(f"{name or path.name}\n".encode())
    digest.update(data)
    if digest.digest() != closing:
        raise Corrupted("its checksum does not match")
    return data


def open_checksummed(path: Path, name: str | None = None) -> tuple[IO[bytes], int]:
    """A sealed file of any size, open at its beginning, and how many bytes are before its seal.

    They are looked through once, a block at a time, against the seal; Broken as `read_checksummed`.
    """
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        size = os.fstat(file.fileno()).st_size - CHECKSUM_BYTES
        if size < 0:
            raise Corrupted(f"it has {size + CHECKSUM_BYTES:,} bytes")
        digest = hashlib.sha256(f"{name or path.name}\n".encode())
        block, left = memoryview(bytearray(min(BLOCK, size))), size
        while left and (count := file.readinto(block[: min(BLOCK, left)])):
            digest.update(block[:count])
            left -= count
        if left or file.read(CHECKSUM_BYTES + 1) != digest.digest():
            raise Corrupted("its checksum does not match")
        file.seek(0)
        stack.pop_all()
    return file, size


def add_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object's values and, as `sha256`, the digest of them all."""
    rest = {key: value for key, value in values.items() if key != FIELD}
    return {**rest, FIELD: _digest(rest)}


def strip_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a sealed object; Broken where it has no seal or one of other values."""
    rest = {key: value for key, value in values.items() if key != FIELD}
    if FIELD not in values:
        raise Corrupted("it has no checksum")
    if values[FIELD] != _digest(rest):
        raise Corrupted("its checksum does not match")
    return rest


def read_checksummed_json(path: Path, kind: type[Document]) -> Document:
    """A sealed JSON file as that class, or as a type such as `JsonObject`.

    DiffctlError where it is damaged, edited or of another format; FileNotFoundError is the caller's.
    """
    try:
        values = strip_checksum(read_json(path, JsonObject))
        return TypeAdapter(kind).validate_python(values)
    except Corrupted as error:
        raise DiffctlError(f"{path} is damaged or edited ({error})") from None
    except ValidationError as error:
        raise DiffctlError(explain(error, f"{path} is of another format", kind)) from None


def _digest(values: Mapping[str, Any]) -> str:
    try:
        return hashlib.sha256(canonical_json(values).encode()).hexdigest()
    except (ValueError, RecursionError):  # no JSON: infinite numbers, nesting without end
        raise Corrupted("it is no JSON") from None
