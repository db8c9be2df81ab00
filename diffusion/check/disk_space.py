"""Free space on each disk for everything that is still to be written."""

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffusion.check.findings import Finding, Project
from diffusion.data.prepare import shape_of
from diffusion.downloads.fetch import cache_root
from diffusion.layout import AVERAGES, CELL_RUNS, EMA_RUNS, MODEL, PREPARE_RUNS, PREPARED, SAMPLES, TRAIN_RUNS
from diffusion.protocol.grid import grid
from diffusion.system.devices import default_device
from diffusion.system.files import disk_usage
from diffusion.system.memory import format_bytes
from diffusion.train.checkpoint.run_record import SNAPSHOTS
from diffusion.train.plan import training_fingerprint
from diffusion.train.step_memory import count_parameters, device_memory, exceeds_memory, profile_bytes

STATE_BYTES = 16  # per parameter of a saved state: weights, EMA and Adam's two moments in fp32
STATES = 3  # two kept and one being written
MODEL_BYTES = 4  # per parameter of a model file


Need = tuple[str, Path, int]
"""Bytes that a part of the work will add at a path: the part, the path, the bytes."""


def check_disk(project: Project) -> Iterator[Finding]:
    """Check the space for data, training states, model, samples and DVC's copies."""
    remedy = "make room, or lower data.image_size or sample.num_images"
    yield from _compared([*_data(project), *_training(project), *_samples(project)], remedy)


def check_training_disk(project: Project) -> Iterator[Finding]:
    """Check the space for the states and the model of the training."""
    yield from _compared(_training(project), "make room, or make the model smaller")


def _compared(needs: Sequence[Need], remedy: str) -> Iterator[Finding]:
    """Yield a finding per disk."""
    disks: dict[int, Counter[str]] = {}
    folders: dict[int, Path] = {}
    for part, place, size in needs:
        folder = _there(place)
        disk = folder.stat().st_dev
        folders.setdefault(disk, folder)
        disks.setdefault(disk, Counter())[part] += size
    for disk, parts in disks.items():
        folder, needed = folders[disk], parts.total()
        free = shutil.disk_usage(folder).free
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
        ("data", cache_root(), 2 * info.download),
        ("data", work, max(0, images - disk_usage(work))),
        ("data", out, copies * images),
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
        ("training", folder, max(0, STATES * (STATE_BYTES * parameters + profiles) - states)),
        ("training", root / MODEL, 2 * MODEL_BYTES * parameters),
        ("averages", folder, max(0, snapshots - disk_usage(folder / SNAPSHOTS))),
        ("averages", root / AVERAGES, 2 * snapshots),
        ("averages", root / EMA_RUNS, max(0, models - disk_usage(root / EMA_RUNS))),
    ]
    return [(part, place, size) for part, place, size in needs if size or part == "training"]


def _samples(project: Project) -> list[Need]:
    """Return the space for shards, stores and DVC's copies of the cells that are not sampled."""
    config, meta = project.config, project.train_meta()
    samples = project.root / SAMPLES
    cells = [
        cell
        for cell in grid(config.sample, config.sweep)
        if not (project.is_trained and (samples / cell.name).is_dir())
    ]
    size = len(cells) * config.sample.num_images * int(meta["image_size"]) ** 2 * int(meta["channels"])
    return [("samples", project.root / CELL_RUNS, size), ("samples", samples, 2 * size)]


def _there(path: Path) -> Path:
    """Return the path, or its nearest existing parent."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
