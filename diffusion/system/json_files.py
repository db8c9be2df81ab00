"""JSON from a file, as its own class: bounded in size and depth, and whatever is wrong in one sentence.

Numbers too long to be one, nesting without end and NaN are refused by the parser; a size that nobody writes,
before a byte of it is read.
"""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import to_json

from diffusion.system.errors import DiffctlError
from diffusion.system.renamed import DocumentKind, translate
from diffusion.system.section import explain

MAX_BYTES = 64 * 2**20  # of one document; a sweep's scores take some kilobytes a cell

Document = TypeVar("Document")
JsonObject = dict[str, Any]  # where a reader wants an object of any fields


def read_json(
    path: Path, kind: type[Document], most: int = MAX_BYTES, stored_as: DocumentKind | None = None
) -> Document:
    """Read a JSON file as `kind`, a pydantic model or a type such as `JsonObject`.

    With `stored_as`, keys that an earlier version wrote get today's names first.

    DiffctlError names the file and what is wrong with it; FileNotFoundError is the caller's to explain.
    """
    with open(path, "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise DiffctlError(f"{path} is larger than {most:,} bytes, which is no file of this kind")
    return parse_json(data, kind, str(path), stored_as)


def parse_json(
    data: bytes | str, kind: type[Document], origin: str, stored_as: DocumentKind | None = None
) -> Document:
    """Parse JSON as `kind`; DiffctlError names `origin` and what is wrong with it."""
    if stored_as is not None:
        data = to_json(translate(stored_as, parse_json(data, JsonObject, origin)))
    try:
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        raise DiffctlError(explain(error, f"{origin} is damaged or of another format", kind)) from None
