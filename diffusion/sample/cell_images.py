"""The images of a sweep's cells, in shards: ranges of image indices, each in its own file.

An image depends on the model, the settings and its index alone. So place, time and order of shards change
nothing. Finished shards survive a kill; a larger grid samples only its new cells.
"""

import gc
import io
import math
import re
import shutil
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from diffusion.images.pixels import to_nhwc
from diffusion.images.store import UNREADABLE, Images, ImageStore, stream_store
from diffusion.model.model_file import LoadedModel, read_artefact
from diffusion.protocol.grid import Cell, cell_settings
from diffusion.protocol.sample_sections import SampleConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import image_condition, mixed_condition
from diffusion.sample.generate import generate, should_compile
from diffusion.sample.guides import NO_GUIDES, Guides
from diffusion.sample.network_files import NetworkArtefacts, NetworkFiles, Recipe, load_network
from diffusion.sample.sampling_card import sampling_card, shards_folder
from diffusion.system.checksums import Corrupted, name_in_folder, read_checksummed, write_checksummed
from diffusion.system.devices import OnWait, acquire_device
from diffusion.system.errors import DiffctlWarning
from diffusion.system.section import brief

SHARD_NAME = re.compile(r"(\d{8,12})-(\d{8,12})\.npy")
HEADER = 4096  # bytes; a .npy file's header is shorter

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

ShardRunner = Callable[
    [Recipe, Sequence[range]],
    Generator[tuple[range, Images], None, None],
]
"""(recipe, shards) → each shard with its images, as they are sampled; DiffctlError if a file was replaced."""


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
                path.replace(path.with_name(f"damaged-{path.name}"))
            else:
                done[shard.start : shard.stop] = True
        left = np.flatnonzero(~done)
        gaps = [gap.tolist() for gap in np.split(left, np.flatnonzero(np.diff(left) > 1) + 1) if len(gap)]
        return [range(start, min(start + size, gap[-1] + 1)) for gap in gaps for start in gap[::size]]

    def save(self, shard: range, images: Images) -> None:
        """Write a shard's images atomically."""
        path = self.folder / f"{shard.start:08d}-{shard.stop:08d}.npy"
        write_checksummed(path, lambda file: np.save(file, images, allow_pickle=False), name_in_folder(path))

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
        named = [(SHARD_NAME.fullmatch(path.name), path) for path in sorted(self.folder.glob("*.npy"))]
        found = [(range(int(match[1]), int(match[2])), path) for match, path in named if match]
        return [(shard, path) for shard, path in found if shard and shard.start < self.total]

    def _read(self, shard: range, path: Path) -> Images:
        shape = (len(shard), *self.shape)
        data = read_checksummed(path, name_in_folder(path), max_bytes=math.prod(shape) + HEADER)
        try:
            images: Images = np.load(io.BytesIO(data), allow_pickle=False)
        except UNREADABLE as error:
            raise Corrupted(f"it holds no array: {brief(error, str)}") from None
        if images.shape != shape or images.dtype != np.uint8:
            raise Corrupted(f"it holds {images.dtype} {images.shape}, want uint8 {shape}")
        return images


def make_cell(
    sample: SampleConfig,
    cell: Cell,
    files: NetworkFiles,
    out: Path,
    progress: Progress | None = None,
    run: ShardRunner | None = None,
    average_of: Path | None = None,
) -> ImageStore:
    """Write a cell's image store at `out`, from finished shards and those that `run` samples.

    Without `run` they are sampled in this process. `average_of` is the training's own model if the cell's is
    another average of its weights.
    """
    recipe, total = Recipe.read(cell_settings(sample, cell), files), sample.num_images
    settings, _, networks = recipe
    artefact = networks.model
    shape = artefact.network.pixel_shape
    shards = CellShards(shards_folder(settings, networks), total, shape)
    missing = shards.missing(sample.batch_size)
    done = total - sum(map(len, missing))
    show = progress or (lambda done, total: None)
    show(done, total)
    with LocalRunner() as local, closing((run or local)(recipe, missing)) as made:
        for shard, images in made:
            shards.save(shard, images)
            done += len(shard)
            show(done, total)
    labels = cell_labels(networks, settings, range(total))
    card = {**sampling_card(settings, networks), "num_images": total}
    lineage = [ancestor.model_dump() for ancestor in artefact.lineage]
    classes = list(networks.labelled.data.classes)
    meta = {"name": cell.name, "classes": classes, "card": card, "lineage": lineage}
    own = read_artefact(average_of) if average_of else artefact
    if training := own.training:
        meta["training"] = training
    if average_of:
        meta["average_of"] = own.model_sha256
    return stream_store(
        out, (total, *shape), shards.images(), None if labels is None else labels.numpy(), meta
    )


def cell_labels(networks: NetworkArtefacts, settings: SampleSettings, indices: range) -> Tensor | None:
    """Return the labels of a cell's images: those of the real images that are enlarged, if any."""
    real, labelled = networks.real, networks.labelled
    if real is None or not labelled.network.num_classes:
        return mixed_condition(labelled, settings, indices).labels
    return real.labels(real.rows(indices))


class LocalRunner:
    """A ShardRunner on this machine's first free device, a context.

    It holds the device from its first shard to the end of the block, and loads the weights once for all cells
    of a sweep. `waiting` as in `acquire_device`.
    """

    def __init__(self, waiting: OnWait | None = None) -> None:
        self._waiting, self._held = waiting, ExitStack()
        self._device: torch.device | None = None
        self._loaded: dict[tuple[Path | None, Any], Any] = {}  # by path and model_sha256

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._loaded, device, self._device = {}, self._device, None
        _free_memory(device)
        self._held.close()

    def __call__(
        self, recipe: Recipe, shards: Sequence[range]
    ) -> Generator[tuple[range, Images], None, None]:
        """Yield each shard with its images."""
        if not shards:
            return
        if self._device is None:
            self._device = self._held.enter_context(acquire_device(self._waiting))
        loaded, *others = self._load(recipe, self._device)
        assert loaded is not None, "every cell has a model"
        guides = Guides(*others)
        fast = should_compile(loaded.artefact, recipe.settings, len(shards), self._device)
        for shard in shards:
            yield shard, shard_images(loaded, recipe.settings, shard, self._device, guides, fast=fast)

    def _load(self, recipe: Recipe, device: torch.device) -> list[Any]:
        """Return the networks of a recipe; those of the last call stay loaded if they are used again."""
        wanted = recipe.networks
        keys = [(path, one and one.model_sha256) for path, one in zip(recipe.files, wanted, strict=True)]
        if any(key not in self._loaded for key in keys if key[0] is not None):
            self._loaded = {key: one for key, one in self._loaded.items() if key in keys}
            _free_memory(device)  # before the next one is there
        for kind, key in zip(NetworkFiles._fields, keys, strict=True):
            if key[0] is not None and key not in self._loaded:
                one = load_network(kind, key[0], device)
                self._loaded[key[0], one.model_sha256] = one
        loaded = [self._loaded.get(key) for key in keys]
        wanted.check_loaded(loaded)
        return loaded


def _free_memory(device: torch.device | None) -> None:
    """Free a GPU's memory; a compiled network has reference cycles, so that it needs the collector."""
    if device is not None and device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def shard_images(
    loaded: LoadedModel,
    settings: SampleSettings,
    shard: range,
    device: torch.device,
    guides: Guides = NO_GUIDES,
    *,
    fast: bool = False,
) -> Images:
    """Return the images of a shard, uint8 NHWC; `fast` compiles the networks."""
    condition = image_condition(loaded, settings, shard, guides)
    return to_nhwc(generate(loaded, settings, shard, condition, device, guides=guides, fast=fast))


def drop_other_cells(samples: Path, cells: list[Cell]) -> None:
    """Remove what is not a cell of the grid, so that nothing stale is versioned or read."""
    names = {cell.name for cell in cells}
    for entry in samples.iterdir() if samples.exists() else ():
        if entry.name not in names:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
