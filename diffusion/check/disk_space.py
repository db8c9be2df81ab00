"""Free space on each disk for everything that is still to be written."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from diffusion.check.findings import Finding, Project, format_bytes
from diffusion.data.prepare import shape_of
from diffusion.downloads.cache import cache_root
from diffusion.layout import AVERAGES, CELL_RUNS, EMA_RUNS, MODEL, PREPARE_RUNS, PREPARED, SAMPLES, TRAIN_RUNS
from diffusion.model.model_file import read_artefact
from diffusion.protocol.grid import Cell, cell_settings, grid
from diffusion.sample.cell_images import shards_folder
from diffusion.sample.ema_models import existing_ema_models
from diffusion.system.devices import default_device
from diffusion.system.files import disk_usage
from diffusion.train.checkpoint.ema_snapshots import FOLDER
from diffusion.train.plan import training_fingerprint
from diffusion.train.step_memory import count_parameters, device_memory, exceeds_memory, profile_bytes

STATE_BYTES = 16  # per parameter of a saved state: weights, EMA and Adam's two moments in fp32
STATES = 3  # two kept and one being written
MODEL_BYTES = 4  # per parameter of a model file


class Need(NamedTuple):
    """Bytes that a part of the work will add at a path."""

    part: str
    place: Path
    size: int


def check_disk(project: Project) -> Iterator[Finding]:
    """Check the space for data, training states, model, samples and DVC's copies."""
    remedy = "make room, or lower data.image_size or sample.num_images"
    yield from _compared([*_data(project), *_training(project), *_samples(project)], remedy)


def check_training_disk(project: Project) -> Iterator[Finding]:
    """Check the space for the states and the model of the training."""
    yield from _compared(_training(project), "make room, or make the model smaller")


def _compared(needs: Sequence[Need], remedy: str) -> Iterator[Finding]:
    """Yield a finding per disk."""
    disks: dict[int, list[Need]] = {}
    for need in needs:
        disks.setdefault(_there(need.place).stat().st_dev, []).append(need)
    for on_disk in disks.values():
        parts: dict[str, int] = {}
        for need in on_disk:
            parts[need.part] = parts.get(need.part, 0) + need.size
        folder = _there(on_disk[0].place)
        needed, free = sum(parts.values()), shutil.disk_usage(folder).free
        listed = ", ".join(f"{part} {format_bytes(size)}" for part, size in parts.items())
        message = f"about {format_bytes(needed)} more are needed ({listed}), {format_bytes(free)} are free"
        if len(disks) > 1:
            message += f" in {folder}"
        if needed > free:
            yield Finding("error", "disk", message, remedy)
        else:
            yield Finding("ok", "disk", message)


def _data(project: Project) -> list[Need]:
    """Return the space for downloads (packed and unpacked), prepared images and DVC's copy.

    On one disk the work folder is renamed, not copied. Empty if the data are prepared.
    """
    if project.is_ready:
        return []
    info, work, out = project.info, project.root / PREPARE_RUNS, project.root / PREPARED
    size, _, channels = shape_of(project.config.data, info.shape)
    images = info.images * size * size * channels
    copies = 1 if _there(work).stat().st_dev == _there(out).stat().st_dev else 2
    return [
        Need("data", cache_root(), 2 * info.download),
        Need("data", work, max(0, images - disk_usage(work))),
        Need("data", out, copies * images),
    ]


def _training(project: Project) -> list[Need]:
    """Return the space for states, models and snapshots with DVC's copies; empty for an impossible model."""
    plan = project.plan
    if plan is None or exceeds_memory(plan.network, device_memory(default_device())[0]):
        return []  # reported by check_fit or check_memory
    root, parameters = project.root, count_parameters(plan.network)
    folder = root / TRAIN_RUNS / training_fingerprint(plan)
    states = sum(path.stat().st_size for path in folder.glob("state-*.sealed"))
    profiles = profile_bytes(plan.network, len(plan.train.sigma_rels))
    snapshots = profiles * len(plan.train.snapshot_steps())
    models = MODEL_BYTES * parameters * len(project.config.sweep.sigma_rels)
    needs = [
        Need("training", folder, max(0, STATES * (STATE_BYTES * parameters + profiles) - states)),
        Need("training", root / MODEL, 2 * MODEL_BYTES * parameters),
        Need("averages", folder, max(0, snapshots - disk_usage(folder / FOLDER))),
        Need("averages", root / AVERAGES, 2 * snapshots),
        Need("averages", root / EMA_RUNS, max(0, models - disk_usage(root / EMA_RUNS))),
    ]
    return [need for need in needs if need.size or need.part == "training"]


def _samples(project: Project) -> list[Need]:
    """Return the space for shards, stores and DVC's copies of all cells."""
    config, meta = project.config, project.train_meta()
    cells, samples = grid(config.sample, config.sweep), project.root / SAMPLES
    size = config.sample.num_images * int(meta["image_size"]) ** 2 * int(meta["channels"])
    shards = _shards(project, cells)
    stores = [disk_usage(samples / cell.name) for cell in cells]
    is_done = bool(shards) and all(stores)
    return [
        Need("samples", project.root / CELL_RUNS, sum(max(0, size - shards.get(cell, 0)) for cell in cells)),
        Need("samples", samples, sum(max(0, size - store) for store in stores)),
        Need("samples", samples, 0 if is_done else size * len(cells)),
    ]


def _shards(project: Project, cells: Sequence[Cell]) -> dict[Cell, int]:
    """Return the bytes of each cell's finished shards; empty if the model does not fit the configuration."""
    if not project.is_trained:
        return {}
    sample, root = project.config.sample, project.root
    made = existing_ema_models(
        root / MODEL, project.config.sweep.sigma_rels, root / AVERAGES, root / EMA_RUNS
    )
    models = {width: read_artefact(file) for width, file in made.items()}
    models[None] = read_artefact(root / MODEL)
    folders = {
        cell: shards_folder(cell_settings(sample, cell), models[cell.ema])
        for cell in cells
        if cell.ema in models
    }
    return {cell: disk_usage(project.root / folder) for cell, folder in folders.items()}


def _there(path: Path) -> Path:
    """Return the path, or its nearest existing parent."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
