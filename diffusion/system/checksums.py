"""JSON files as validated classes, and files and JSON objects with their own checksum.

A checksum is of the data in memory, before it is written: a checksum of the file could not detect a bad
write. It detects damage and edits, not forgery.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_atomic
from diffusion.system.section import canonical_json, explain

FIELD = "sha256"  # of a checksummed object
CHECKSUM_BYTES = 32  # bytes at the end of a checksummed file
BLOCK = 2**20  # bytes per read
MAX_BYTES = 512 * 2**20  # of a JSON document: scores take 0.2 MB a cell and space with 1,000 classes

Document = TypeVar("Document")
JsonObject = dict[str, Any]  # an object with any fields


class Corrupted(ValueError):
    """A checksum is missing or does not match."""


class _Hashing:
    """A file wrapper that hashes what is written."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self.sha256 = file, hashlib.sha256(f"{name}\n".encode())

    def write(self, data: Any) -> int:
        """Write bytes, or an object with a buffer."""
        self.sha256.update(data)
        return self._file.write(data)


def name_in_folder(path: Path) -> str:
    """Return a file's name with that of its folder: a checksum of both is valid in no other folder."""
    return f"{path.parent.name}/{path.name}"


def write_checksummed(path: Path, write: Callable[[Any], object], name: str | None = None) -> None:
    """Let `write` fill a file, atomically; append the SHA-256 of its name and content.

    `name` replaces the file name in the checksum.
    """

    def fill(file: IO[bytes]) -> None:
        hashing = _Hashing(file, name or path.name)
        write(hashing)
        file.write(hashing.sha256.digest())

    write_atomic(path, fill)


def read_checksummed(path: Path, name: str | None = None, max_bytes: int | None = None) -> bytes:
    """Return the content of a checksummed file; Corrupted if changed, renamed or over `max_bytes`."""
    file, size = open_checksummed(path, name, max_bytes)
    with file:
        return file.read(size)


def open_checksummed(
    path: Path, name: str | None = None, max_bytes: int | None = None
) -> tuple[IO[bytes], int]:
    """Open a verified file; return it and its number of content bytes; Corrupted as `read_checksummed`."""
    with ExitStack() as stack:
        file = stack.enter_context(open(path, "rb"))
        size = os.fstat(file.fileno()).st_size - CHECKSUM_BYTES
        if size < 0 or (max_bytes is not None and size > max_bytes):
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


def read_json(path: Path, kind: type[Document], max_bytes: int = MAX_BYTES) -> Document:
    """Read a JSON file as `kind`, a pydantic model or a type such as `JsonObject`.

    DiffctlError names the file and the problem; FileNotFoundError is left to the caller.
    """
    with open(path, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise DiffctlError(f"{path} is larger than {max_bytes:,} bytes: it is not a file of this kind")
    return parse_json(data, kind, str(path))


def parse_json(data: bytes | str, kind: type[Document], origin: str) -> Document:
    """Parse JSON as `kind`; DiffctlError names `origin` and the problem."""
    try:
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        raise DiffctlError(explain(error, f"{origin} is damaged or of another format", kind)) from None


def add_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a JSON object's values with their digest as `sha256`."""
    rest = {key: value for key, value in values.items() if key != FIELD}
    return {**rest, FIELD: _digest(rest)}


def strip_checksum(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a checksummed object; Corrupted if the checksum is missing or wrong."""
    rest = {key: value for key, value in values.items() if key != FIELD}
    if FIELD not in values:
        raise Corrupted("it has no checksum")
    if values[FIELD] != _digest(rest):
        raise Corrupted("its checksum does not match")
    return rest


def read_checksummed_json(path: Path, kind: type[Document]) -> Document:
    """Return a checksummed JSON file as `kind`; DiffctlError if damaged, edited or of another format."""
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
    except (ValueError, RecursionError):  # not JSON: non-finite numbers or circular references
        raise Corrupted("it is not JSON") from None
