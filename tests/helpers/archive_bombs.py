"""Small files that claim to be large or expand to much, built without the expanded data."""

import struct
import zlib
from pathlib import Path

BLOCK = 1 << 20  # bytes


def png(width: int, height: int, *, depth: int = 8, kind: int = 2, data: bytes = b"") -> bytes:
    """Return a PNG of that size and colour type (0 grey, 2 RGB, 6 RGBA) with compressed content."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )


def packed_zeros(count: int, wbits: int = 15) -> bytes:
    """Return `count` zeros, compressed by zlib."""
    packer = zlib.compressobj(9, wbits=wbits)
    return packer.compress(bytes(count)) + packer.flush()


def many_zeros(blocks: int) -> bytes:
    """Return so many MB of zeros, compressed without a header."""
    packer = zlib.compressobj(9, wbits=-15)
    one = packer.compress(bytes(BLOCK)) + packer.flush(zlib.Z_FULL_FLUSH)
    return one * blocks + b"\x03\x00"


def write_gzip_bomb(path: Path, beginning: bytes, blocks: int) -> None:
    """Return a gzip file of a prefix and so many MB of zeros."""
    packer = zlib.compressobj(9, wbits=-15)
    head = packer.compress(beginning) + packer.flush(zlib.Z_FULL_FLUSH)
    size = (len(beginning) + blocks * BLOCK) % 2**32
    trailer = struct.pack("<II", 0, size)
    path.write_bytes(b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + head + many_zeros(blocks) + trailer)


def write_zip_bomb(path: Path, name: str, beginning: bytes, blocks: int) -> None:
    """Return a zip with one member: a prefix and so many MB of zeros."""
    packer = zlib.compressobj(9, wbits=-15)
    packed = packer.compress(beginning) + packer.flush(zlib.Z_FULL_FLUSH) + many_zeros(blocks)
    size, encoded = len(beginning) + blocks * BLOCK, name.encode()
    sizes = struct.pack("<III", 0, len(packed), size)
    local = struct.pack("<IHHHI", 0x04034B50, 20, 0, 8, 0) + sizes + struct.pack("<HH", len(encoded), 0)
    body = local + encoded + packed
    listed = struct.pack("<IHHHHI", 0x02014B50, 20, 20, 0, 8, 0) + sizes
    listed += struct.pack("<HHHHHII", len(encoded), 0, 0, 0, 0, 0, 0) + encoded
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(listed), len(body), 0)
    path.write_bytes(body + listed + end)
