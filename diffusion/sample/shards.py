"""Shards of a cell: ranges of image indices, each in its own file.

An image depends on the model, the settings and its index alone. So place, time and order of shards change
nothing, and finished shards are never sampled again.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion.images.store import UNREADABLE, Images
from diffusion.layout import CELL_RUNS
from diffusion.system.checksums import Corrupted, read_checksummed, write_checksummed
from diffusion.system.errors import DiffctlWarning
from diffusion.system.section import brief

NAME = re.compile(r"(\d{8,12})-(\d{8,12})\.npy")
DAMAGED_PREFIX = "damaged-"
HEADER = 4096  # bytes; a .npy file's header is shorter


def cells_folder(model_sha256: str) -> Path:
    """Return the folder of a model's cells; each cell has a folder named by its card and code."""
    return CELL_RUNS / model_sha256[:16]


@dataclass(frozen=True)
class CellShards:
    """The shards in `folder` of a cell of `total` images of `shape` (H, W, C).

    Each file's checksum covers the names of folder and file, so that it is valid for no other range or cell.
    A changed file, or one of another shape, is renamed to `damaged-…` with a warning and counts as missing.
    """

    folder: Path
    total: int
    shape: tuple[int, int, int]

    def missing(self, size: int) -> list[range]:
        """Check all finished shards; return the missing ones, of at most `size` images."""
        done = np.zeros(self.total, dtype=bool)
        for shard, path in self._files():
            try:
                self._read(shard, path)
            except (Corrupted, OSError) as error:
                message = f"{path} is damaged ({error}): it is renamed, and its images are sampled again"
                warnings.warn(message, DiffctlWarning, stacklevel=2)
                path.replace(path.with_name(DAMAGED_PREFIX + path.name))
            else:
                done[shard.start : shard.stop] = True
        left = np.flatnonzero(~done)
        gaps = [gap.tolist() for gap in np.split(left, np.flatnonzero(np.diff(left) > 1) + 1) if len(gap)]
        return [range(start, min(start + size, gap[-1] + 1)) for gap in gaps for start in gap[::size]]

    def save(self, shard: range, images: Images) -> None:
        """Write a shard's images atomically."""
        path = self.folder / f"{shard.start:08d}-{shard.stop:08d}.npy"
        write_checksummed(path, lambda file: np.save(file, images, allow_pickle=False), _name(path))

    def images(self) -> Iterator[Images]:
        """Return all images in order, a file at a time; the finished shards must cover them."""
        at = 0
        for shard, path in self._files():
            if shard.start <= at < min(shard.stop, self.total):
                yield self._read(shard, path)[at - shard.start : self.total - shard.start]
                at = min(shard.stop, self.total)
        assert at == self.total, "every shard is made before they are read"

    def _files(self) -> list[tuple[range, Path]]:
        """Return each finished shard of these images with its file, in the order of indices."""
        named = [(NAME.fullmatch(path.name), path) for path in sorted(self.folder.glob("*.npy"))]
        found = [(range(int(match[1]), int(match[2])), path) for match, path in named if match]
        return [(shard, path) for shard, path in found if shard and shard.start < self.total]

    def _read(self, shard: range, path: Path) -> Images:
        shape = (len(shard), *self.shape)
        data = read_checksummed(path, _name(path), max_bytes=math.prod(shape) + HEADER)
        try:
            images: Images = np.load(io.BytesIO(data), allow_pickle=False)
        except UNREADABLE as error:
            raise Corrupted(f"it holds no array: {brief(error, str)}") from None
        if images.shape != shape or images.dtype != np.uint8:
            raise Corrupted(f"it holds {images.dtype} {images.shape}, want uint8 {shape}")
        return images


def _name(path: Path) -> str:
    """Return the name in a file's checksum; a folder's name is the fingerprint of the card and the code."""
    return f"{path.parent.name}/{path.name}"
