"""Errors of a score as a scores document holds them: float32 in base64, in lines."""

import base64
import math
import struct
import textwrap
from collections.abc import Iterable, Sequence

LINE = 100  # characters of a line in a document


def pack(errors: Iterable[float]) -> list[str]:
    """The lines of these errors."""
    values = list(map(float, errors))
    return textwrap.wrap(base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode(), LINE)


def unpack(lines: Sequence[str]) -> tuple[float, ...]:
    """The errors in these lines; ValueError where that is not finite float32 in base64."""
    data = base64.b64decode("".join(lines), validate=True)
    if len(data) % 4:
        raise ValueError(f"{len(data)} bytes are no float32 numbers")
    errors = struct.unpack(f"<{len(data) // 4}f", data)
    if not all(map(math.isfinite, errors)):
        raise ValueError("one of the numbers is not finite")
    return errors
