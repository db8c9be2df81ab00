"""A shard of a cell: images of an index range."""

import warnings
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from diffusion.sample.shards import CellShards
from diffusion.system.checksums import CHECKSUM_BYTES
from diffusion.system.errors import DiffctlError

COUNT, SHAPE = 4, (2, 2, 1)
CELL, FILE = "cell", "00000000-00000004.npy"


@cache
def seeds() -> list[bytes]:
    """Return the only shard of a cell."""
    with TemporaryDirectory() as folder:
        shards = CellShards(Path(folder) / CELL, COUNT, SHAPE)
        shards.save(range(COUNT), np.arange(16, dtype=np.uint8).reshape(COUNT, *SHAPE))
        return [(shards.folder / FILE).read_bytes()]


def repair(data: bytes) -> bytes:
    """Correct the checksum."""
    content = data[:-CHECKSUM_BYTES]
    return content + sha256(f"{CELL}/{FILE}\n".encode() + content).digest()


def parse(path: Path) -> None:
    """Read it as a shard of a cell."""
    shards = CellShards(path.parent / CELL, COUNT, SHAPE)
    shards.folder.mkdir()
    path.rename(shards.folder / FILE)
    with warnings.catch_warnings(record=True) as messages:
        warnings.simplefilter("always")
        if shards.missing(COUNT):
            raise DiffctlError(str(messages[0].message).replace(str(path.parent), ""))
    (images,) = shards.images()
    assert images.shape == (COUNT, *SHAPE)
