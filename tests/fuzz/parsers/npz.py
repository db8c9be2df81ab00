"""Images in an npz file: a set to score, or a batch of the downsampled ImageNet."""

import io
import random
import struct
import zipfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from diffusion.data.readers.arrays import read_batches
from diffusion.evaluate.adhoc_inputs import open_images
from diffusion.system.errors import DiffctlError
from tests.fuzz.mutators import EXTREMES
from tests.helpers.raw_data import planar, random_images

NAME = "input.npz"
KINDS = ("|u1", "<i8", ">i8", ">u2", "<f4", "|O", "|V8", "|S3", "<U2", "<M8[s]", "|b1", "<c8", "u1,u1", "'")
SHAPES = (
    "()",
    "(4,)",
    "(4, 4, 4, 3)",
    "(10**15,)",
    "(-1,)",
    "(0, 4, 4, 3)",
    "(4, 4.0)",
    "(True,)",
    "[4]",
    "4",
)


@cache
def seeds() -> list[bytes]:
    """Return compressed and uncompressed files, with and without labels."""
    images, labels = random_images(0, 4, 4), np.array([1, 2, 3, 1])
    arrays = [
        {"arr_0": images, "arr_1": labels},
        {"arr_0": images},
        {"arr_0": images, "arr_1": labels.astype(">i4")},
        {"data": planar(images), "labels": labels, "mean": np.zeros(3)},
    ]
    return [_packed(save, one) for one in arrays for save in (np.savez, np.savez_compressed)]


def _packed(save, arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def parse(path: Path) -> None:
    """Open it as a set to score, else read all rows as a batch."""
    try:
        store = open_images(path)
    except DiffctlError:
        split = read_batches([path], "labels", first_label=1, classes=10, shape=(4, 4, 3))
        assert split.reader.job(0, len(split.labels))().images.shape == (len(split.labels), 4, 4, 3)
        return
    assert store.images.ndim == 4
    assert store.labels is None or len(store.labels) == len(store)


def mutate_header(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Mutate an array's header: version, dtype, order, shape or syntax, with right zip checksums."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # a broken input before
        return None
    if not members:
        return None
    name = rng.choice(list(members))
    content = members[name].partition(b"\n")[2]
    members[name] = _header(rng) + content[: rng.choice((None, 0, -1))]
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for each, content in members.items():
            archive.writestr(each, content)
    return made.getvalue()


def _header(rng: random.Random) -> bytes:
    shape, kind, order = rng.choice(SHAPES), rng.choice(KINDS), rng.choice(("False", "True", "0", "None"))
    two = (rng.choice(EXTREMES), rng.choice(EXTREMES))
    text = rng.choice(
        (
            f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': {shape}}}",
            f"{{'descr': {kind!r}, 'fortran_order': {order}, 'shape': {two}}}",
            f"{{'descr': [('a', {kind!r})], 'fortran_order': {order}, 'shape': {shape}}}",
            f"{{'descr': ({kind!r}, (3,)), 'fortran_order': {order}, 'shape': {shape}}}",
            rng.choice(("(", "[", "-", "{'a':", "'''", "__import__('os').system('true')#", "9")) * 2000,
            "",
        )
    )
    written = text.encode() + b"\n"
    version = rng.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    form = "<H" if version == b"\x01\x00" else "<I"
    return b"\x93NUMPY" + version + struct.pack(form, min(len(written), 65535)) + written


def mutate_entry(rng: random.Random, data: bytes, pool: Sequence[bytes]) -> bytes | None:
    """Mutate a member's entry in the zip directory: flag, method, checksum, size, length or offset."""
    at = data.find(b"PK\x01\x02", rng.randrange(len(data) + 1))
    if at < 0:
        return None
    place, size = rng.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (42, 4)))
    value = rng.choice((*EXTREMES, 8, 12, 14, 93, 99)) % 2 ** (8 * size)
    return data[: at + place] + value.to_bytes(size, "little") + data[at + place + size :]


MUTATORS = (mutate_header, mutate_entry)
