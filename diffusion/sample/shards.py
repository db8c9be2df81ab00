"""Shards of a cell: ranges of image indices, each a file of its own once it is made.

An image depends on the model, the settings and its index alone, so where, when and in which order shards are
made changes nothing, and those that are finished are never made again.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from diffusion.images.store import Images
from diffusion.layout import CELL_RUNS
from diffusion.system.files import write_atomic


def cells_folder(model_sha256: str) -> Path:
    """Where the shards of a model's cells lie, a folder for each cell by its card and its code."""
    return CELL_RUNS / model_sha256[:16]


def missing_shards(folder: Path, total: int, size: int) -> list[range]:
    """The shards of at most `size` images that are left of the first `total`."""
    done = np.zeros(total, dtype=bool)
    for start, stop, _ in _finished(folder):
        done[start:stop] = True
    shards, start = [], 0
    while start < total:
        stop = start + 1
        if not done[start]:
            while stop < min(start + size, total) and not done[stop]:
                stop += 1
            shards.append(range(start, stop))
        start = stop
    return shards


def save_shard(folder: Path, shard: range, images: Images) -> None:
    """Keep a shard's images, whole or not at all."""
    path = folder / f"{shard.start:08d}-{shard.stop:08d}.npy"
    write_atomic(path, lambda file: np.save(file, images, allow_pickle=False))


def stored_images(folder: Path, total: int) -> Iterator[Images]:
    """The first `total` images in order, a file at a time; the finished shards must cover them."""
    at = 0
    for start, stop, path in _finished(folder):
        if start <= at < min(stop, total):
            yield np.load(path, allow_pickle=False)[at - start : total - start]
            at = min(stop, total)
    assert at == total, "every shard is made before they are read"


def _finished(folder: Path) -> list[tuple[int, int, Path]]:
    """(start, stop, file) of each finished shard, in the order of the indices."""
    return [(*map(int, path.stem.split("-")), path) for path in sorted(folder.glob("*.npy"))]  # type: ignore[misc]
