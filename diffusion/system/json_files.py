"""JSON files as validated classes, with limits of size and depth and one-sentence errors."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from diffusion.system.errors import DiffctlError
from diffusion.system.section import explain

MAX_BYTES = 64 * 2**20  # of one document; a sweep's scores take some kilobytes a cell

Document = TypeVar("Document")
JsonObject = dict[str, Any]  # an object with any fields


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
