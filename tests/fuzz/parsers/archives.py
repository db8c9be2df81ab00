"""Archives of data sets: CIFAR's gzipped tar, the zips of the downsampled ImageNet."""

import gzip
import io
import random
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from diffusion.data.readers.archives import unpack_tar, unpack_zip, zip_names
from diffusion.system.errors import DiffctlError
from tests.fuzz.mutators import BYTES, EXTREMES, MAX_BYTES
from tests.fuzz.parsers.npz import mutate_entry

MEMBERS = ("set/one", "set/two")
HERE = ("one", "two")
EXPECTED = ("os.remove: one", "os.remove: two")  # of a folder that is given up, by names below its handle
GZIP = b"\x1f\x8b"
FIELDS = (  # where they begin in a header, and their length
    (0, 100), (100, 8), (108, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155), (482, 30),
)  # fmt: skip
TEXTS = (
    b"set/one", b"set/two", b"../../x", b"/etc/x", b"set/../../x", b"", b"\xff" * 100, b"00000000777\0",
    b"-0000000001\0", b"77777777777\0", b"9" * 12, b"./set/one",
)  # fmt: skip
PAX = (
    b"30 mtime=9999999999999999999999\n", b"25 size=99999999999999999\n", b"11 size=-1\n", b"0 a=b\n",
    b"20 path=../../../x\n", b"99999999999 path=x\n", b"26 GNU.sparse.realsize=99\n", b"12 path=\xff\n\n",
)  # fmt: skip
KINDS = b"0123456LKxgSVD\0"


@cache
def seeds() -> list[bytes]:
    """Return tars in three formats, and zips with folders."""
    tars = [_tar(form) for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)]
    return [*tars, *(_zip(method) for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))]


def _tar(form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name in ("set/" + "x" * 80 + "/" + "y" * 90, *MEMBERS):
            info = tarfile.TarInfo(name)
            info.size = 600
            tar.addfile(info, io.BytesIO(bytes(600)))
    return gzip.compress(file.getvalue(), 1, mtime=0)


def _zip(method: int) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as packed:
        for name in ("folder/one", "two", "../other"):
            packed.writestr(name, bytes(300))
    return file.getvalue()


def parse(path: Path) -> None:
    """Unpack it; only the wanted files may appear next to it."""
    out, refused = path.parent / "out", None
    try:
        if path.read_bytes().startswith(GZIP):
            unpack_tar(path, MEMBERS, out)
        else:
            zip_names(path)
            unpack_zip(path, HERE, out)
    except DiffctlError as error:
        refused = error
    assert {entry.name for entry in path.parent.iterdir()} <= {path.name, "out"}
    made = list(out.iterdir()) if out.exists() else []
    assert all(one.name in HERE and one.is_file() and not one.is_symlink() for one in made)
    if refused is not None:
        raise refused


def mutate_gzip(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Mutate the content of a gzip file and compress it again."""
    if data[:2] != b"\x1f\x8b":
        return None
    try:
        content = zlib.decompressobj(31).decompress(data, MAX_BYTES)
    except zlib.error:
        return None
    return gzip.compress(rng.choice(BYTES)(rng, content, [content]) or b"", 1, mtime=0)


def mutate_tar(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Mutate or add a tar header: name, size, kind or target, with a right checksum."""
    if data[:2] != GZIP:
        return None
    try:
        whole = gzip.decompress(data)[: 1 << 20]
    except Exception:  # a broken input before
        return None
    heads = [at for at in range(0, len(whole) - 511, 512) if whole[at + 257 : at + 262] == b"ustar"]
    if not heads:
        return None
    at = rng.choice(heads)
    head, rest = bytearray(whole[at : at + 512]), whole[at + 512 :]
    if rng.random() < 0.25:  # a header of a kind that describes the next one
        body = rng.choice((*PAX, *TEXTS)).ljust(512, b"\0")
        rest = body + whole[at:]
        head[156:157] = rng.choice((b"x", b"g", b"L", b"K", b"S"))
        head[124:136] = b"%011o\0" % rng.choice((len(body.rstrip(b"\0")), *EXTREMES[:8]))
    else:
        start, length = rng.choice(FIELDS)
        head[start : start + length] = _field(rng, length)
    return gzip.compress(whole[:at] + _checked(head) * rng.choice((1, 1, 1, 1, 2, 1500)) + rest, 1, mtime=0)


def _field(rng: random.Random, length: int) -> bytes:
    if length == 1:
        return bytes([rng.choice(KINDS)])
    if rng.random() < 0.4:  # in base 256, as numbers that are large or negative are written
        value = rng.choice((*EXTREMES, -1, -512, -1024, -(2**31), -(2**60)))
        return b"\x80"[: value >= 0] + (value % 2 ** (8 * length)).to_bytes(length, "big")[value >= 0 :]
    return rng.choice(TEXTS)[:length].ljust(length, b"\0")


def _checked(head: bytearray) -> bytes:
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


MUTATORS = (mutate_tar, mutate_gzip, mutate_entry)
