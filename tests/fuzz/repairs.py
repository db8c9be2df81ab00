"""Correct checksums, since otherwise most broken inputs would be refused for a wrong checksum."""

import json
import struct
from typing import Any

from diffusion.system.checksums import FIELD, add_checksum
from diffusion.system.section import canonical_json


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
