"""Checks of the machine: memory, device, extractor weights, and space for what is still to be written."""

import math
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from diffusion.check.findings import Finding, Level, Project
from diffusion.data.prepare import shape_of
from diffusion.downloads.fetch import cache_root, verify
from diffusion.evaluate.evaluate_config import Space
from diffusion.evaluate.features.extractors import cached_path
from diffusion.evaluate.statistics_file import configured_statistics
from diffusion.images.image_size import height_and_width
from diffusion.layout import AVERAGES, CELL_RUNS, EMA_RUNS, MODEL, PREPARE_RUNS, PREPARED, SAMPLES, TRAIN_RUNS
from diffusion.model import counted_passes
from diffusion.process.loss_registry import OBJECTIVES
from diffusion.protocol.extractors import INSTALL, extractor_spec
from diffusion.protocol.grid import grid
from diffusion.system.devices import default_device, device_name
from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.files import disk_usage
from diffusion.system.memory import format_bytes
from diffusion.train import step_memory
from diffusion.train.checkpoint.run_record import SNAPSHOTS
from diffusion.train.distributed.launch import world_size
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.plan import resolve_precision, training_fingerprint

BF16_SHARE = 0.5  # of the fp32 estimate, for a step in bf16

STATE_BYTES = 16  # per parameter of a saved state: weights, EMA and Adam's two moments in fp32
STATES = 3  # two kept and one being written
MODEL_BYTES = 4  # per parameter of a model file

Need = tuple[str, Path, int]
"""Bytes that a part of the work will add at a path: the part, the path, the bytes."""


def check_memory(project: Project) -> Iterator[Finding]:
    """Compare a process's training step with the memory of its GPU, or its share of the machine's.

    It is an error only if the step would not fit in bf16 either, since the estimate is an upper bound.
    """
    if project.plan is None:
        return  # reported by check_fit
    spec, train, device = project.plan.network, project.config.train, default_device()
    try:
        world, here = world_size(train)
        share = ProcessGroup(device, world - 1, world).share(train.batch_size)  # the largest share
    except UsageError as error:
        yield Finding("error", "devices", str(error))
        return
    loss = project.config.process.loss
    if (whole_batch := OBJECTIVES[loss].whole_batch) and world > 1:
        message = f"process.loss {loss} needs the whole batch, and there are {world} processes"
        yield Finding("error", "devices", message, "set train.devices to 1")
        return
    sharing = here if device.type == "cpu" else 1
    total, free = (size // sharing for size in step_memory.device_memory(device))
    shards = world if train.shard else 1
    if step_memory.exceeds_memory(spec, shards * total):
        message = f"over {spec.least_parameters() / 1e6:,.0f} M parameters do not fit {format_bytes(total)}"
        yield Finding("error", "memory", message, "make the model smaller")
        return
    profiles = step_memory.profile_bytes(spec, len(train.sigma_rels))
    part = BF16_SHARE if resolve_precision(train.precision, device) == "bf16" else 1.0
    fitting = int(total if device.type == "cpu" or shards > 1 else total / part)
    images = step_memory.initial_microbatch(
        project.plan, share.stop - share.start, fitting, shards, whole_batch=whole_batch
    )

    def at_most(parts: int) -> int:
        return step_memory.step_bytes(spec, images, shards=parts) + profiles // parts

    needed = part * at_most(shards)
    each = f" in each of {here} processes" if here > 1 else ""
    cut = f", in {shards} shards" if shards > 1 else ""
    message = (
        f"{counted_passes.count_parameters(spec) / 1e6:,.1f} M parameters{cut}; a step of {images} images "
        f"takes about {format_bytes(needed)}{each}, {format_bytes(free)} of {format_bytes(total)} are free"
    )
    if needed <= free:
        yield Finding("ok", "memory", message)
        return
    level: Level = "error" if BF16_SHARE * at_most(shards) > total else "warning"
    remedy = "lower train.batch_size" if whole_batch else "lower train.microbatch or train.batch_size"
    if "gradient_checkpointing" in type(spec).model_fields:
        remedy += ", or set model.gradient_checkpointing: true"
    if world > shards and part * at_most(world) <= free:
        remedy = "set train.shard: true, with which each process holds a part of the weights"
    yield Finding(level, "memory", message, remedy)


def check_device(project: Project) -> Iterator[Finding]:
    """Report the device and the precision, and a runner that is not installed."""
    device = default_device()
    precision = resolve_precision(project.config.train.precision, device)
    yield Finding("ok", "device", f"{device_name(device)}, {precision}")
    if project.config.sample.runner == "ray" and find_spec("ray") is None:
        yield Finding("error", "runner", "sample.runner ray needs Ray", "pip install 'diffctl[ray]'")


def check_precision(project: Project) -> Iterator[Finding]:
    """Check that the training of a consistency model resolves small differences of x̂_0."""
    train, device, loss = project.config.train, default_device(), project.config.process.loss
    precision: str = resolve_precision(train.precision, device)
    if precision == "fp32" and train.tf32 and device.type == "cuda":
        precision = "tf32"
    if OBJECTIVES[loss].is_consistency and precision != "fp32":
        message = f"{precision} rounds the differences that process.loss {loss} learns from"
        yield Finding("warning", "precision", message, "set train.precision: fp32 and train.tf32: false")


def check_weights(project: Project) -> Iterator[Finding]:
    """Check each extractor's weights by their checksum, and published statistics."""
    for space in project.config.evaluate.spaces:
        try:
            yield weights_finding(space)
        except DiffctlError as error:
            yield Finding("error", "extractor", str(error))
        if space.statistics is not None:
            try:
                configured_statistics(space)
                fits = f"{printable(space.statistics.file)} fits {space.extractor}"
                yield Finding("ok", "statistics", fits)
            except DiffctlError as error:
                yield Finding("error", "statistics", str(error))


def weights_finding(space: Space) -> Finding:
    """Return the finding of an extractor; DiffctlError for a file that is not the published one."""
    spec = extractor_spec(space.extractor)
    if spec.needs and find_spec(spec.needs) is None:
        return Finding("error", "extractor", f"{spec.name} needs {spec.needs}", INSTALL)
    if not spec.weights.url:
        if space.weights or space.weights_sha256:
            message = f"{spec.name} has bundled weights, so weights and weights_sha256 have no effect on it"
            return Finding("error", "extractor", message, "remove both from the section evaluate")
        return Finding("ok", "extractor", f"the weights of {spec.name} come with its package")
    path = space.weights or cached_path(spec.weights)
    if path.is_file():
        if not space.weights_sha256 and path.stat().st_size != spec.weights.size:  # without hashing
            raise DiffctlError(f"{path} is not the published file: delete it and run this again")
        verify(path, f"sha256:{space.weights_sha256 or spec.weights.sha256}")
        return Finding("ok", "extractor", f"the weights of {spec.name} are here and right")
    if space.weights is not None:
        message = f"evaluate: there is no file {path} with the weights of {spec.name}"
        return Finding("error", "extractor", message, "correct the path")
    if (sha256 := space.weights_sha256) is not None and sha256 != spec.weights.sha256:
        given = f"evaluate: weights_sha256 {sha256[:16]}…"
        message = f"{given} is not that of the published file of {spec.name}, which would be downloaded"
        return Finding("error", "extractor", message, "name your file in weights, or remove weights_sha256")
    size = format_bytes(spec.weights.size)
    message = f"the weights of {spec.name} are not here: {size} will be downloaded"
    return Finding("warning", "extractor", message, f"without a network, put them at {path}")


def check_disk(project: Project) -> Iterator[Finding]:
    """Check the space for data, training states, model, samples and DVC's copies."""
    remedy = "make room, or lower data.image_size or sample.num_images"
    yield from _compared([*_data(project), *_training(project), *_samples(project)], remedy)


def check_states(project: Project) -> Iterator[Finding]:
    """Check the space for the states and the model of the training."""
    yield from _compared(_training(project), "make room, or make the model smaller")


def _compared(needs: Sequence[Need], remedy: str) -> Iterator[Finding]:
    """Yield a finding per disk."""
    disks: dict[int, tuple[Path, Counter[str]]] = {}
    for part, place, size in needs:
        folder = _there(place)
        disks.setdefault(folder.stat().st_dev, (folder, Counter[str]()))[1][part] += size
    for folder, parts in disks.values():
        needed, free = parts.total(), shutil.disk_usage(folder).free
        listed = ", ".join(f"{part} {format_bytes(size)}" for part, size in parts.items())
        message = f"about {format_bytes(needed)} more are needed ({listed}), {format_bytes(free)} are free"
        message += f" in {folder}" if len(disks) > 1 else ""
        yield Finding("error", "disk", message, remedy) if needed > free else Finding("ok", "disk", message)


def _data(project: Project) -> list[Need]:
    """Return the space for downloads (packed and unpacked), prepared images and DVC's copy.

    On one disk the work folder is renamed, not copied. Empty if the data are prepared.
    """
    if project.is_ready:
        return []
    info, work, out = project.info, PREPARE_RUNS, PREPARED
    images = info.images * math.prod(shape_of(project.config.data, info.shape))
    copies = 1 if _there(work).stat().st_dev == _there(out).stat().st_dev else 2
    return [
        ("data", cache_root(), 2 * info.download),
        ("data", work, max(0, images - disk_usage(work))),
        ("data", out, copies * images),
    ]


def _training(project: Project) -> list[Need]:
    """Return the space for states, models and snapshots with DVC's copies; empty for an impossible model."""
    plan, (total, _) = project.plan, step_memory.device_memory(default_device())
    if plan is None or step_memory.exceeds_memory(plan.network, total):
        return []  # reported by check_fit or check_memory
    parameters = counted_passes.count_parameters(plan.network)
    folder = TRAIN_RUNS / training_fingerprint(plan)
    states = sum(path.stat().st_size for path in folder.glob("state-*.sealed"))
    profiles = step_memory.profile_bytes(plan.network, len(plan.train.sigma_rels))
    snapshots = profiles * len(plan.train.snapshot_steps())
    models = MODEL_BYTES * parameters * len(project.config.sweep.sigma_rels)
    needs = [
        ("training", folder, max(0, STATES * (STATE_BYTES * parameters + profiles) - states)),
        ("training", MODEL, 2 * MODEL_BYTES * parameters),
        ("EMA profiles", folder, max(0, snapshots - disk_usage(folder / SNAPSHOTS))),
        ("EMA profiles", AVERAGES, 2 * snapshots),
        ("EMA profiles", EMA_RUNS, max(0, models - disk_usage(EMA_RUNS))),
    ]
    return [(part, place, size) for part, place, size in needs if size or part == "training"]


def _samples(project: Project) -> list[Need]:
    """Return the space for shards, stores and DVC's copies of the cells that are not sampled."""
    config, meta = project.config, project.train_meta()
    cells = grid(config.sample, config.sweep)
    left = sum(not (project.is_trained and (SAMPLES / cell.name).is_dir()) for cell in cells)
    pixels = math.prod(height_and_width(meta["image_size"])) * int(meta["channels"])
    size = left * config.sample.num_images * pixels
    return [("samples", CELL_RUNS, size), ("samples", SAMPLES, 2 * size)]


def _there(path: Path) -> Path:
    """Return the path, or its nearest existing parent."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
