"""Damaged files: flipped bits, truncation, inserted, removed and overwritten bytes; PNGs of any size."""

import os
import resource
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from diffusion.system.errors import DiffctlError

Damage = Callable[[bytes], bytes]


@st.composite
def damages(draw: st.DrawFn) -> Damage:
    """A change of a file's bytes at any place; an empty file only grows."""
    kind = draw(st.sampled_from(["flip", "truncate", "cut out", "put in", "write over"]))
    where, bit = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 7))
    some = draw(st.binary(min_size=1, max_size=24))

    def damaged(data: bytes) -> bytes:
        at = int(where * len(data))
        match kind:
            case "flip" if data:
                return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]
            case "truncate":
                return data[:at]
            case "cut out":
                return data[:at] + data[at + len(some) :]
            case "write over":
                return data[:at] + some + data[at + len(some) :]
        return data[:at] + some + data[at:]

    return damaged


def png(
    width: int, height: int, *, depth: int = 8, kind: int = 2, data: bytes = b"", transparent: bytes = b""
) -> bytes:
    """Return a PNG of that size and colour type (0 grey, 2 RGB, 6 RGBA) with compressed content.

    A `transparent` colour has two bytes a channel.
    """
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    colour = [(b"tRNS", transparent)] if transparent else []
    chunks = [(b"IHDR", header), *colour, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def bounded(call: Callable[[], object], megabytes: int = 512, seconds: int = 60) -> str:
    """Return the message of the call's DiffctlError, else its result as text.

    AssertionError for any other exception, also for more memory, and where it takes longer.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
        os.write(writer, _outcome(call, megabytes).encode("utf-8", "backslashreplace")[:16384])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as stream:
        kind, _, text = stream.read().decode().partition(":")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, f"longer than {seconds} s, or it died: {status}"
    assert kind == "result", text
    return text


def _outcome(call: Callable[[], object], megabytes: int) -> str:
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), resource.RLIM_INFINITY))
        return f"result:{call()}"
    except DiffctlError as error:
        return f"result:{error}"
    except BaseException as error:
        return f"raised:{type(error).__name__}: {error}"
