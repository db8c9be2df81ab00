"""Raw data to stores: the body of the data stage. Equal raw files and config give equal bytes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from diffusion.config import DataConfig
from diffusion.data.pixels import fit, transforms
from diffusion.data.source import RawData, Split
from diffusion.data.sources import SOURCES
from diffusion.data.store import write_store

Progress = Callable[[int, int], None]  # images done, images in all
RANGE = 1024


def prepare(config: DataConfig, out: Path, progress: Progress | None = None) -> None:
    """Write the data set's stores out/train and out/test; DiffctlError names what is missing."""
    raw = SOURCES[config.name].open(config)
    done, total = 0, len(raw.train.reader) + len(raw.test.reader)
    for name, split in (("train", raw.train), ("test", raw.test)):
        native = split.reader.read(0, 1).images.shape[1:]
        size = config.image_size or native[0]
        images = np.empty((len(split.reader), size, size, native[2]), dtype=np.uint8)
        for start in range(0, len(images), RANGE):
            rows = split.reader.read(start, min(start + RANGE, len(images))).images
            images[start : start + RANGE] = fit(rows, size)
            done += len(rows)
            if progress is not None:
                progress(done, total)
        write_store(
            Path(out) / name, images, split.labels, _meta(config, name, raw, split, images.shape, native)
        )


def _meta(
    config: DataConfig, name: str, raw: RawData, split: Split, shape: tuple[int, ...], native: tuple[int, ...]
) -> dict[str, Any]:
    labels = split.labels
    return {
        "name": config.name,
        "split": name,
        "classes": list(raw.classes),
        "counts": [] if labels is None else np.bincount(labels, minlength=len(raw.classes)).tolist(),
        "image_size": shape[1],
        "channels": shape[3],
        "sources": dict(raw.sources),
        "transforms": transforms(native, shape[1:]),
    }
