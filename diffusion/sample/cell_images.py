"""The cells of a sweep: finished shards survive a kill, a grown grid costs its new cells."""

import gc
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, Self

import torch

from diffusion.code_digest import ModuleDigests, code_digest, module_digests, torch_version
from diffusion.images.pixels import to_nhwc
from diffusion.images.store import Images, ImageStore, stream_store
from diffusion.model.model_file import Artefact, LoadedModel, ModelDescription, load_model, read_artefact
from diffusion.model.network_registry import MODELS
from diffusion.process.process_registry import PROCESSES
from diffusion.protocol.grid import Cell, cell_settings, settings_card
from diffusion.protocol.sample_sections import SampleConfig
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.class_labels import mixed_condition
from diffusion.sample.generate import generate, should_compile
from diffusion.sample.sampling_steps import count_nfe
from diffusion.sample.shards import CellShards, cells_folder
from diffusion.system.devices import OnWait, acquire_device
from diffusion.system.files import sha256_file
from diffusion.system.section import fingerprint

Progress = Callable[[int, int], None]
"""Called with (done, total)."""

ShardRunner = Callable[[Path, SampleSettings, Sequence[range]], Generator[tuple[range, Images], None, None]]
"""Given a model's file, the settings and shards: each shard with its images, as they are made."""


def sampling_card(settings: SampleSettings, artefact: Artefact) -> dict[str, Any]:
    """The sampling half of the protocol card, without the number of images: a flat JSON dict."""
    return {
        "model_sha256": artefact.model_sha256,
        "ema": artefact.ema_sigma_rel or True,
        "precision": artefact.precision,
        **settings_card(settings),
        "nfe": count_nfe(settings, artefact.process),
        "sampling_torch": torch_version(),
    }


def sampling_code(settings: SampleSettings, artefact: ModelDescription) -> ModuleDigests:
    """The modules that such a model's images by these settings come from."""
    process, network = PROCESSES[artefact.process.schedule], MODELS[artefact.network.name]
    chosen = SAMPLERS[settings.sampler].module, process.module, network.module
    return module_digests("diffusion.sample.generate", "diffusion.sample.class_labels", *chosen)


def shards_folder(settings: SampleSettings, artefact: Artefact) -> Path:
    """Where a cell's finished shards lie: by its card and by the code that made them.

    The card has a version that is raised by hand; by other code that gives the same images it stays the same.
    """
    code = code_digest(sampling_code(settings, artefact))
    made_by = {"card": sampling_card(settings, artefact), "code": code}
    return cells_folder(artefact.model_sha256) / fingerprint(made_by)


def make_cell(
    sample: SampleConfig,
    cell: Cell,
    model: Path,
    out: Path,
    progress: Progress | None = None,
    run: ShardRunner | None = None,
    average_of: Path | None = None,
) -> ImageStore:
    """Make a cell's image store at `out`, going on from the shards that are already there.

    `run` makes the others: in this process unless it is given. `average_of` is the training's own model where
    `model` is another average of its weights.
    """
    artefact = read_artefact(model)
    settings, total = cell_settings(sample, cell), sample.num_images
    spec = artefact.network
    shape = (spec.image_size, spec.image_size, spec.in_channels)
    shards = CellShards(shards_folder(settings, artefact), total, shape)
    missing = shards.missing(sample.batch_size)
    done = total - sum(map(len, missing))
    show = progress or (lambda done, total: None)
    show(done, total)
    with closing((run or run_locally)(model, settings, missing)) as made:
        for shard, images in made:
            shards.save(shard, images)
            done += len(shard)
            show(done, total)
    labels = mixed_condition(artefact, settings, range(total)).labels
    card = {**sampling_card(settings, artefact), "num_images": total}
    lineage = [ancestor.model_dump() for ancestor in artefact.lineage]
    meta = {"name": cell.name, "classes": list(artefact.data.classes), "card": card, "lineage": lineage}
    own = read_artefact(average_of) if average_of else artefact
    if training := own.training:
        meta["training"] = training
    if average_of:
        meta["average_of"] = own.model_sha256
    return stream_store(
        out, (total, *shape), shards.images(), None if labels is None else labels.numpy(), meta
    )


class LocalRunner:
    """A Runner on this machine's first free device, a context: shards are made within it.

    From its first shard until the block ends it holds the device, as long as the weights lie there: they are
    loaded once for all cells of a sweep. `waiting` as in `held_device`.
    """

    def __init__(self, waiting: OnWait | None = None) -> None:
        self._waiting, self._held = waiting, ExitStack()
        self._device: torch.device | None = None
        self._loaded: tuple[str, LoadedModel] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._loaded, device, self._device = None, self._device, None
        _let_go(device)
        self._held.close()

    def __call__(
        self, model: Path, settings: SampleSettings, shards: Sequence[range]
    ) -> Generator[tuple[range, Images], None, None]:
        """The shards of a cell, each with its images, as a Runner."""
        if not shards:
            return
        if self._device is None:
            self._device = self._held.enter_context(acquire_device(self._waiting))
        sha256 = sha256_file(model)
        if self._loaded is None or self._loaded[0] != sha256:
            self._loaded = None
            _let_go(self._device)  # before the next one is there
            self._loaded = sha256, load_model(model, self._device)
        fast = should_compile(self._loaded[1].artefact, settings, len(shards), self._device)
        for shard in shards:
            yield shard, shard_images(self._loaded[1], settings, shard, self._device, fast=fast)


def _let_go(device: torch.device | None) -> None:
    """Have a GPU's memory free again; a compiled network refers to itself, so that it is looked for."""
    if device is not None and device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def run_locally(
    model: Path, settings: SampleSettings, shards: Sequence[range]
) -> Generator[tuple[range, Images], None, None]:
    """A Runner of a single cell on this machine's first free device."""
    with LocalRunner() as run:
        yield from run(model, settings, shards)


def shard_images(
    loaded: LoadedModel, settings: SampleSettings, shard: range, device: torch.device, *, fast: bool = False
) -> Images:
    """The images of a shard, uint8 NHWC; `fast` has the network compiled."""
    condition = mixed_condition(loaded.artefact, settings, shard)
    return to_nhwc(generate(loaded, settings, shard, condition, device, fast=fast))


def drop_other_cells(samples: Path, cells: list[Cell]) -> None:
    """Remove what is not a cell of the grid, so that nothing stale is versioned or read."""
    names = {cell.name for cell in cells}
    for entry in samples.iterdir() if samples.exists() else ():
        if entry.name not in names:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
