"""The grid of a sweep and its cells: finished ranges survive a kill, a grown grid costs its new cells."""

import functools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.checkpoint import Artefact, LoadedModel, load_model
from diffusion.config import Config, SampleSettings, fingerprint
from diffusion.data.store import Images, ImageStore, write_store
from diffusion.files import sha256_file, write_atomic
from diffusion.generate import generate, labels_of
from diffusion.images import to_nhwc
from diffusion.layout import CELL_RUNS
from diffusion.precision import default_device

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    steps: int
    eta: float

    @property
    def name(self) -> str:
        """The cell's folder in samples/ and its name everywhere."""
        return f"steps{self.steps}-eta{self.eta:g}"


def grid(config: Config) -> list[Cell]:
    """Every cell, in the order of the config: by step count, then by eta."""
    return [Cell(steps, eta) for steps in config.sweep.steps for eta in config.sweep.eta]


def cell_settings(config: Config, cell: Cell) -> SampleSettings:
    """What decides the cell's images beside the model."""
    shared = config.sample.model_dump(exclude={"num_images", "batch_size"})
    return SampleSettings(**shared, steps=cell.steps, eta=cell.eta)


def sampling_card(settings: SampleSettings, model_sha256: str, artefact: Artefact) -> dict[str, Any]:
    """The sampling half of the protocol card, without the number of images: a flat JSON dict."""
    card = settings_card(settings)
    return {"model_sha256": model_sha256, "ema": True, "precision": artefact.precision, **card}


def settings_card(settings: SampleSettings) -> dict[str, Any]:
    """The settings as they stand in a card; SampleSettings reads its own fields back from it.

    An explicit list of timesteps is written as `0,10,99` and takes the place of the spacing; a classifier's
    scale stands there when there is one.
    """
    values = settings.model_dump(mode="json", exclude={"timesteps"})
    if not settings.classifier_scale:
        del values["classifier_scale"]
    if settings.timesteps is not None:
        del values["spacing"]
        values["timesteps"] = ",".join(map(str, settings.timesteps))
    return values


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
