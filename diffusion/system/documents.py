"""JSON from a file, as its own class: bounded in size and depth, and whatever is wrong in one sentence.

Numbers too long to be one, nesting without end and NaN are refused by the parser; a size that nobody writes,
before a byte of it is read.
"""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from diffusion.system.errors import DiffctlError
from diffusion.system.section import explain

MOST_BYTES = 64 * 2**20  # of one document; a sweep's scores take some kilobytes a cell

Document = TypeVar("Document")
Values = dict[str, Any]  # where a reader wants an object of any fields


def read_document(path: Path, kind: type[Document], most: int = MOST_BYTES) -> Document:
    """A JSON file as `kind`, a pydantic model or a type such as `Values`.

    DiffctlError names the file and what is wrong with it; FileNotFoundError is the caller's to explain.
    """
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DiffctlError(f"{path} is larger than {most:,} bytes, which is no file of this kind")
    return parse_document(data, kind, str(path))


def parse_document(data: bytes | str, kind: type[Document], origin: str) -> Document:
    """JSON as `kind`; DiffctlError says of `origin` what is wrong with it."""
    try:
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        raise DiffctlError(explain(error, f"{origin} is damaged or of another format", kind)) from None
