"""Mutators: broken inputs from valid ones. A mutator returns None for inputs of another format.

The random generator is an argument, so that a seed determines all inputs of a parser without findings.
"""

import json
import random
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

Mutator = Callable[[random.Random, bytes, Sequence[bytes]], bytes | None]  # last: other inputs

MAX_BYTES = 1 << 20  # of one input
EXTREMES = (0, 1, 2, 7, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1)
NUMBERS = (
    *EXTREMES, -1, -2, -(2**31), -(2**63), 2**63, 2**64, 10**30, 1e308, 1e-320, 0.1, -0.5, 3 * 10**8, 10**7,
)  # fmt: skip
TEXTS = (
    "", "x", "../../x", "/etc/passwd", "nan", "0", "a\nb", "\x00", "\ud800", "é" * 200, "x" * 5000, "[]",
)  # fmt: skip
RAW = (  # JSON text that json.dumps cannot produce
    "NaN", "Infinity", "-Infinity", "1e999", "-0", "9" * 5000, "1e" + "9" * 50, "[" * 100_000,
    "[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000, '{"a":1,"a":2}', '"\\ud800"', '"\\u0000"', "",
    "nul", "tru", "[1,]", "'a'", '"' + "a" * 100_000 + '"',
)  # fmt: skip
PROBES = (  # replacements of each value
    "null", "true", "0", "1", "-1", "0.5", "1e308", "NaN", "1e999", "9" * 30, "9" * 5000, '""', '"x"', '"5"',
    "[]", "[0]", '["x"]', "{}", '{"x": 0}', "[[[]]]", "[" * 1000 + "]" * 1000, '"' + "x" * 5000 + '"',
)  # fmt: skip
_HOLE = "\ue000hole\ue000"  # where raw JSON goes


def mutate(
    rng: random.Random, pool: Sequence[bytes], more: Sequence[Mutator] = (), most: int = MAX_BYTES
) -> bytes:
    """Return one of the pool, broken in one to four places."""
    data = rng.choice(pool)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 4))):
        data = _once(rng, data, pool, more)[:most]
    return data


def _once(rng: random.Random, data: bytes, pool: Sequence[bytes], more: Sequence[Mutator]) -> bytes:
    """Mutate once: three times of four by a format's mutator, else by bytes."""
    forms = [*more, mutate_json, mutate_json_lines, mutate_safetensors]
    rng.shuffle(forms)
    for mutator in forms if rng.random() < 0.75 else ():
        if (made := mutator(rng, data, pool)) is not None:
            return made
    return rng.choice(BYTES)(rng, data, pool) or b""


# Bytes


def _flip(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    broken = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        broken[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(broken)


def _truncate(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _cut(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    start, stop = _span(rng, data)
    return data[:start] + data[stop:]


def _repeat(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    start, stop = _span(rng, data)
    return data[:stop] + data[start:stop] * rng.choice((1, 2, 50)) + data[stop:]


def _insert(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((rng.randbytes(rng.randrange(1, 40)), b"\0" * 16, b"\xff" * 8)) + data[at:]


def _splice(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    other = rng.choice(pool)
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def _extreme(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes:
    """Replace an integer of 1, 2, 4 or 8 bytes at any place."""
    size, at = rng.choice((1, 2, 4, 8)), rng.randrange(len(data) + 1)
    value = rng.choice((*EXTREMES, len(data), -1)) % 2 ** (8 * size)
    return data[:at] + value.to_bytes(size, rng.choice(("little", "big"))) + data[at + size :]


def _digits(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Replace a number in decimal digits."""
    places = list(re.finditer(rb"-?\d+(\.\d+)?", data[: 1 << 16]))
    if not places:
        return None
    place = rng.choice(places)
    written = rng.choice(("9" * 5000, "nan", "-1", *map(repr, NUMBERS)))
    return data[: place.start()] + written.encode() + data[place.end() :]


def _span(rng: random.Random, data: bytes) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 4, 16, 64, 1024)))


BYTES: tuple[Mutator, ...] = (_flip, _truncate, _cut, _repeat, _insert, _splice, _extreme, _digits)


# JSON


def mutate_json(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Replace a value, type, key or depth in a JSON document."""
    if data[:1] not in (b"{", b"["):
        return None
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return broken_json(rng, tree).encode("utf-8", "surrogatepass")


def mutate_json_lines(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Mutate one of several lines of JSON."""
    lines = data.splitlines(keepends=True)
    if len(lines) < 2 or data[:1] != b"{":
        return None
    at = rng.randrange(len(lines))
    made = mutate_json(rng, lines[at].strip(), pool)
    return None if made is None else b"".join([*lines[:at], made + b"\n", *lines[at + 1 :]])


def broken_json(rng: random.Random, tree: Any) -> str:
    """Return the text of a tree broken in one place, also in JSON within its strings."""
    if not (isinstance(tree, dict | list) and tree):
        return rng.choice(RAW)
    holder, key = _place(rng, tree)
    raw = None
    if rng.random() < 0.25:
        raw = rng.choice(RAW)
        holder[key] = _HOLE
    else:
        rng.choice((_other_value, _other_value, _other_key, _drop, _deepen, _many, _inner))(rng, holder, key)
    text = json.dumps(tree, allow_nan=True)
    return text if raw is None else text.replace(json.dumps(_HOLE), raw)


def _place(rng: random.Random, tree: Any) -> tuple[Any, Any]:
    """Return a (holder, key) in a tree that is not empty, by a random walk from its root."""
    while True:
        key = rng.choice(list(tree)) if isinstance(tree, dict) else rng.randrange(len(tree))
        below = tree[key]
        if not (isinstance(below, dict | list) and below) or rng.random() < 0.3:
            return tree, key
        tree = below


def _other_value(rng: random.Random, holder: Any, key: Any) -> None:
    value = holder[key]
    some = [None, True, False, [], {}, [value], {"a": value}, str(value)[:100], [value] * 3]
    holder[key] = rng.choice((rng.choice(NUMBERS), rng.choice(TEXTS), rng.choice(some)))


def _other_key(rng: random.Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[rng.choice((*TEXTS, f"{key}x"))] = holder[key]


def _drop(rng: random.Random, holder: Any, key: Any) -> None:
    del holder[key]


def _deepen(rng: random.Random, holder: Any, key: Any) -> None:
    for _ in range(rng.choice((1, 5, 100, 300))):
        holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}


def _many(rng: random.Random, holder: Any, key: Any) -> None:
    fit = MAX_BYTES // (len(json.dumps(holder[key])) + 1)
    holder[key] = [holder[key]] * min(rng.choice((2, 2, 2, 2, 100, 100, 100, 10_000)), fit)


def _inner(rng: random.Random, holder: Any, key: Any) -> None:
    """Break JSON within a string, or copy a value from elsewhere."""
    value = holder[key]
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            holder[key] = broken_json(rng, json.loads(value))
            return
        except (ValueError, RecursionError):
            pass
    other, its_key = _place(rng, holder)
    holder[key] = json.loads(json.dumps(other[its_key]))


def each_value_swapped(data: bytes) -> Iterator[bytes]:
    """Yield the input with every JSON value replaced by each probe, or removed."""
    for tree, written in _trees(data):
        for holder, key in _places(tree):
            whole = holder[key]
            for probe in PROBES:
                holder[key] = _HOLE
                yield written(json.dumps(tree).replace(json.dumps(_HOLE), probe))
            holder[key] = whole
            if isinstance(holder, dict):
                del holder[key]
                yield written(json.dumps(tree))
                holder[key] = whole


def _trees(data: bytes) -> Iterator[tuple[Any, Callable[[str], bytes]]]:
    """Yield each JSON tree in an input, with a function that writes its text back."""
    with suppress(ValueError, RecursionError):
        if data[8:9] == b"{" and data[:1] != b"{":
            yield from _trees_of_header(data)
            return
        lines = data.splitlines(keepends=True)
        if data[:1] == b"{" and len(lines) > 1:
            for at, line in enumerate(lines):
                rest = (b"".join(lines[:at]), b"".join(lines[at + 1 :]))
                yield json.loads(line), lambda text, rest=rest: rest[0] + text.encode() + b"\n" + rest[1]
        else:
            yield json.loads(data), str.encode


def _trees_of_header(data: bytes) -> Iterator[tuple[Any, Callable[[str], bytes]]]:
    """Yield the first tensors in a safetensors header, and its metadata."""
    (length,) = struct.unpack("<Q", data[:8])
    header, payload = json.loads(data[8 : 8 + length]), data[8 + length :]
    metadata = header.get("__metadata__", {})
    few = {name: header[name] for name in list(header)[:4]}

    def file(values: dict[str, Any]) -> bytes:
        made = json.dumps(values).encode()
        return struct.pack("<Q", len(made)) + made + payload

    def raw(text: str) -> bytes:
        made = (json.dumps(header)[:-1] + ", " + text[1:]).encode()  # the later of equal names counts
        return struct.pack("<Q", len(made)) + made + payload

    yield few, raw
    for key, message in metadata.items():
        yield (
            json.loads(message),
            lambda text, key=key: file({**header, "__metadata__": {**metadata, key: text}}),
        )


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every (holder, key) in a tree; of a list the first two."""
    keys = (
        list(tree) if isinstance(tree, dict) else range(min(2, len(tree))) if isinstance(tree, list) else ()
    )
    for key in keys:
        yield tree, key
        yield from _places(tree[key])


# Containers


def mutate_safetensors(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Mutate a safetensors header: its metadata, names, types, shapes and offsets."""
    if len(data) < 10 or data[8:9] != b"{":
        return None
    (length,) = struct.unpack("<Q", data[:8])
    header, payload = data[8 : 8 + length], data[8 + length :]
    try:
        tree = json.loads(header)
    except (ValueError, RecursionError):
        return None
    metadata = tree.get("__metadata__") if isinstance(tree, dict) else None
    holds = isinstance(metadata, dict) and metadata
    if holds and rng.random() < 0.7:  # the whole description is one string
        key = rng.choice(list(metadata))
        try:
            metadata[key] = broken_json(rng, json.loads(metadata[key]))
        except (ValueError, RecursionError, TypeError):
            metadata[key] = rng.choice(TEXTS)
        written = json.dumps(tree)
    else:
        written = broken_json(rng, tree)
    made = written.encode("utf-8", "surrogatepass")
    message = len(made) if rng.random() < 0.95 else rng.choice((*EXTREMES, 100_000_000))
    return struct.pack("<Q", message) + made + payload
