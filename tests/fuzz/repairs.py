"""Checksums made right again: without that, nearly every broken input would be refused for its checksum."""

import json
import struct
from typing import Any

from diffusion.system.checksums import FIELD, add_checksum
from diffusion.system.section import canonical_json


def reseal(data: bytes) -> bytes:
    """A JSON object with a right seal; what is no object stays as it is."""
    try:
        values = json.loads(data)
        return json.dumps(add_checksum(values)).encode() if FIELD in values else data
    except (ValueError, RecursionError, TypeError, AttributeError):
        return data


def reseal_metadata(data: bytes, key: str) -> bytes:
    """A safetensors file whose JSON text under that key of its metadata has a right seal."""
    try:
        (length,) = struct.unpack("<Q", data[:8])
        header: dict[str, Any] = json.loads(data[8 : 8 + length])
        header["__metadata__"][key] = canonical_json(add_checksum(json.loads(header["__metadata__"][key])))
        made = json.dumps(header).encode()
    except (ValueError, RecursionError, TypeError, AttributeError, KeyError, struct.error):
        return data
    return struct.pack("<Q", len(made)) + made + data[8 + length :]
