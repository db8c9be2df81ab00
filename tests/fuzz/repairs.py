"""Corrected checksums: without them, most broken inputs would be refused for their checksum."""

import json
import struct
from typing import Any

from diffusion.system.checksums import FIELD, add_checksum
from diffusion.system.section import canonical_json


def reseal(data: bytes) -> bytes:
    """Return a JSON object with a right checksum; other data unchanged."""
    try:
        values = json.loads(data)
        return json.dumps(add_checksum(values)).encode() if FIELD in values else data
    except (ValueError, RecursionError, TypeError, AttributeError):
        return data


def reseal_metadata(data: bytes, key: str) -> bytes:
    """Return a safetensors file with a right checksum of the JSON under that metadata key."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header: dict[str, Any] = json.loads(data[8 : 8 + length])
        header["__metadata__"][key] = canonical_json(add_checksum(json.loads(header["__metadata__"][key])))
        made = json.dumps(header).encode()
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError, struct.error):
        return data
    return struct.pack("<Q", len(made)) + made + data[8 + length :]
