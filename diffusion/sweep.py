"""The cells of a sweep: finished ranges survive a kill, a grown grid costs its new cells."""

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.checkpoint import Artefact, LoadedModel, load_model
from diffusion.config import Config, fingerprint
from diffusion.data.store import Images, ImageStore, write_store
from diffusion.files import sha256_file, write_atomic
from diffusion.generate import generate, labels_of
from diffusion.grid import Cell, cell_settings, settings_card
from diffusion.images import to_nhwc
from diffusion.layout import CELL_RUNS
from diffusion.precision import default_device
from diffusion.settings import SampleSettings

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def sampling_card(settings: SampleSettings, model_sha256: str, artefact: Artefact) -> dict[str, Any]:
    """The sampling half of the protocol card, without the number of images: a flat JSON dict."""
    card = settings_card(settings)
    return {"model_sha256": model_sha256, "ema": True, "precision": artefact.precision, **card}


def make_cell(
    config: Config, cell: Cell, model_path: Path, out: Path, progress: Progress | None = None
) -> ImageStore:
    """Make a cell's image store at `out`, going on from the ranges that are already there."""
    device, sha256 = default_device(), sha256_file(model_path)
    network, artefact = _model(model_path, sha256, device)
    settings = cell_settings(config, cell)
    card = sampling_card(settings, sha256, artefact)
    ranges = CELL_RUNS / card["model_sha256"][:16] / fingerprint(card)
    total = config.sample.num_images
    for start, stop in missing_ranges(ranges, total, config.sample.batch_size):
        if progress:
            progress(start, total)
        indices = range(start, stop)
        wanted = labels_of(artefact, settings, indices)
        images = generate(network, artefact, settings, indices, wanted, device)
        _save_range(ranges, start, to_nhwc(images))
    if progress:
        progress(total, total)
    labels = labels_of(artefact, settings, range(total))
    meta = {"name": cell.name, "classes": list(artefact.data.classes), "card": {**card, "num_images": total}}
    return write_store(out, _gather(ranges, total), None if labels is None else labels.numpy(), meta)


@functools.lru_cache(maxsize=1)
def _model(path: Path, sha256: str, device: torch.device) -> LoadedModel:
    """The model of the cell before, when it is the same file: a sweep loads its weights once."""
    return load_model(path, device)


def missing_ranges(folder: Path, total: int, size: int) -> Iterator[tuple[int, int]]:
    """The (start, stop) of at most `size` images each that no finished range in `folder` covers."""
    done = np.zeros(total, dtype=bool)
    for start, stop, _ in _finished(folder):
        done[start:stop] = True
    start = 0
    while start < total:
        stop = start + 1
        if not done[start]:
            while stop < min(start + size, total) and not done[stop]:
                stop += 1
            yield start, stop
        start = stop


def drop_other_cells(samples: Path, cells: list[Cell]) -> None:
    """Remove what is not a cell of the grid, so that nothing stale is versioned or read."""
    names = {cell.name for cell in cells}
    for entry in samples.iterdir() if samples.exists() else ():
        if entry.name not in names:
            shutil.rmtree(entry)


def _save_range(folder: Path, start: int, images: Images) -> None:
    path = folder / f"{start:08d}-{start + len(images):08d}.npy"
    write_atomic(path, lambda file: np.save(file, images, allow_pickle=False))


def _finished(folder: Path) -> list[tuple[int, int, Path]]:
    """(start, stop, file) of each range that was written whole."""
    return [(*map(int, path.stem.split("-")), path) for path in sorted(folder.glob("*.npy"))]  # type: ignore[misc]


def _gather(folder: Path, total: int) -> Images:
    """The first `total` images of the finished ranges, which cover them."""
    images: Images | None = None
    for start, stop, path in _finished(folder):
        part = np.load(path, mmap_mode="r")
        if images is None:
            images = np.empty((total, *part.shape[1:]), dtype=np.uint8)
        images[start:stop] = part[: max(0, total - start)]
    assert images is not None, "a cell has at least two images"
    return images
