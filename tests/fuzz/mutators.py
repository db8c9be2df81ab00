"""Parsers of outside files, and mutators, which return None for inputs of another format.

`rng` is drawn by Hypothesis, so that failing inputs are made smaller and repeated.
"""

import io
import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from diffusion.system.checksums import FIELD, add_checksum
from diffusion.system.section import canonical_json

Mutator = Callable[[random.Random, bytes, Sequence[bytes]], bytes | None]  # last: other inputs

MAX_BYTES = 1 << 20  # of one input
MAX_LIST_BYTES = 1 << 17  # of a repeated value; longer lists are slow and show no other fault
EXTREMES = (0, 1, 2, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1)
NUMBERS = (
    *EXTREMES, -1, -2, -(2**31), -(2**63), 2**63, 2**64, 10**30, 1e308, 1e-320, 0.1, -0.5, 3 * 10**8, 10**7,
)  # fmt: skip
TEXTS = (
    "", "x", "../../x", "auto", "none", "ddim", "image-folder", "adm-64", "/etc/passwd", "nan",
    "0", "a\nb", "\x00", "\ud800", "é" * 200, "x" * 5000, "[]",
)  # fmt: skip
RAW = (  # JSON text that json.dumps cannot produce
    "NaN", "-Infinity", "1e999", "-0", "9" * 5000, "1e" + "9" * 50, "[" * 100_000, "[" * 2000 + "]" * 2000,
    '{"a":' * 2000 + "1" + "}" * 2000, '{"a":1,"a":2}', '"\\ud800"', '"\\u0000"', "", "nul", "[1,]", "'a'",
    '"' + "a" * 100_000 + '"',
)  # fmt: skip
HOLE = "\ue000hole\ue000"  # where raw JSON goes


def mutate(rng: random.Random, pool: Sequence[bytes], more: Sequence[Mutator] = ()) -> bytes:
    """Return one of the pool, broken in one to four places."""
    data = rng.choice(pool)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 4))):
        data = _once(rng, data, pool, more)[:MAX_BYTES]
    return data


def _once(rng: random.Random, data: bytes, pool: Sequence[bytes], more: Sequence[Mutator]) -> bytes:
    """Mutate once: three times of four by a format's mutator, else by bytes."""
    forms = [*more, mutate_json, mutate_safetensors] if rng.randrange(4) else []
    rng.shuffle(forms)
    for form in forms:
        if (made := form(rng, data, pool)) is not None:
            return made
    return mutate_bytes(rng, data, pool)


def mutate_bytes(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Flip bits, truncate, cut, repeat, insert, splice with another input, or replace a number."""
    at = rng.randrange(len(data) + 1)
    end = min(len(data), at + rng.choice((1, 2, 4, 16, 64, 1024)))
    how = rng.randrange(8)
    if how == 0 and data:
        broken = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(broken)
    if how == 1:
        return data[:at]
    if how == 2:
        return data[:at] + data[end:]
    if how == 3:
        return data[:end] + data[at:end] * rng.choice((1, 2, 50)) + data[end:]
    if how == 4:
        other = rng.choice(pool)
        return data[:at] + other[rng.randrange(len(other) + 1) :]
    if how == 5 and (places := list(re.finditer(rb"-?\d+(\.\d+)?", data[: 1 << 16]))):
        place = rng.choice(places)
        written = rng.choice(("9" * 5000, "nan", *map(repr, NUMBERS)))
        return data[: place.start()] + written.encode() + data[place.end() :]
    if how == 6:
        size = rng.choice((1, 2, 4, 8))
        value = rng.choice((*EXTREMES, len(data), -1)) % 2 ** (8 * size)
        return data[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]
    return data[:at] + rng.choice((rng.randbytes(rng.randrange(1, 40)), b"\0" * 16, b"\xff" * 8)) + data[at:]


def mutate_json(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Replace a value, type, key or depth in a JSON document."""
    if data[:1] not in (b"{", b"["):
        return None
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return broken_json(rng, tree).encode("utf-8", "surrogatepass")


def broken_json(rng: random.Random, tree: Any) -> str:
    """Return the text of a tree broken in one place, also in JSON within its strings."""
    if not (isinstance(tree, dict | list) and tree):
        return rng.choice(RAW)
    holder, key = random_place(rng, tree)
    value, raw, how = holder[key], None, rng.randrange(7)
    if how == 0:
        raw, holder[key] = rng.choice(RAW), HOLE
    elif how == 1 and isinstance(holder, dict):
        holder[rng.choice((*TEXTS, f"{key}x"))] = value
    elif how == 2:
        del holder[key]
    elif how == 3:
        for _ in range(rng.choice((1, 5, 300))):
            holder[key] = rng.choice(([holder[key]], {"a": holder[key]}))
    elif how == 4:
        count = MAX_LIST_BYTES // (len(json.dumps(value)) + 1)
        holder[key] = [value] * min(rng.choice((2, 100, 10_000)), count)
    elif how == 5 and isinstance(value, str) and value[:1] in ("{", "["):
        holder[key] = broken_json(rng, json.loads(value))
    else:
        others = [None, True, [], {}, [value], {"a": value}, str(value)[:100]]
        holder[key] = rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS), rng.choice(others)))
    text = json.dumps(tree, allow_nan=True)
    return text if raw is None else text.replace(json.dumps(HOLE), raw)


def random_place(rng: random.Random, tree: Any) -> tuple[Any, Any]:
    """Return a (holder, key) in a tree that is not empty, by a random walk from its root."""
    while True:
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        below = tree[key]
        if not (isinstance(below, dict | list) and below) or not rng.randrange(3):
            return tree, key
        tree = below


def mutate_safetensors(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Mutate a safetensors header: its metadata, names, types, shapes and offsets."""
    if len(data) < 10 or data[8:9] != b"{":
        return None
    (length,) = struct.unpack("<Q", data[:8])
    try:
        tree = json.loads(data[8 : 8 + length])
        metadata = tree.get("__metadata__")
        if metadata and rng.randrange(3):  # the whole description is one string
            key = rng.choice(list(metadata))
            metadata[key] = broken_json(rng, json.loads(metadata[key]))
            written = json.dumps(tree)
        else:
            written = broken_json(rng, tree)
    except (ValueError, RecursionError, TypeError, AttributeError):
        return None
    made = written.encode("utf-8", "surrogatepass")
    stated = len(made) if rng.randrange(20) else rng.choice((*EXTREMES, 100_000_000))
    return struct.pack("<Q", stated) + made + data[8 + length :]


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
