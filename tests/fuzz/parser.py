"""What a parser of outside files consists of, and corrected checksums."""

import io
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diffusion.system.checksums import FIELD, add_checksum
from diffusion.system.section import canonical_json
from tests.fuzz.mutators import Mutator


class Parser(NamedTuple):
    """`seeds` returns valid inputs of a few kilobytes; `parse` reads one file as the product does.

    `repair` corrects checksums, so that more than these are tested.
    """

    seeds: Callable[[], list[bytes]]
    parse: Callable[[Path], object]
    name: str = "input"
    mutators: Sequence[Mutator] = ()
    repair: Callable[[bytes], bytes] = bytes


def saved(save: Callable[..., object], *values: Any, **named: Any) -> bytes:
    """Return what a function that saves to a file writes."""
    file = io.BytesIO()
    save(file, *values, **named)
    return file.getvalue()


def as_json(*values: Any) -> list[bytes]:
    """Return each value as a JSON document."""
    return [json.dumps(one).encode() for one in values]


def npy(values: np.ndarray) -> bytes:
    """Return an .npy file."""
    return saved(np.save, values)


def correct_checksum(data: bytes) -> bytes:
    """Return a JSON object with a correct checksum, and other data unchanged."""
    try:
        values = json.loads(data)
        return json.dumps(add_checksum(values)).encode() if FIELD in values else data
    except (ValueError, RecursionError, TypeError, AttributeError):
        return data


def correct_metadata_checksum(data: bytes, key: str) -> bytes:
    """Return a safetensors file with a correct checksum of the JSON under that metadata key."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header: dict[str, Any] = json.loads(data[8 : 8 + length])
        header["__metadata__"][key] = canonical_json(add_checksum(json.loads(header["__metadata__"][key])))
        made = json.dumps(header).encode()
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError, struct.error):
        return data
    return struct.pack("<Q", len(made)) + made + data[8 + length :]
