"""Checks of the machine: memory, device and extractor weights."""

from collections.abc import Iterator
from importlib.util import find_spec

from diffusion.check.findings import Finding, Level, Project
from diffusion.downloads.fetch import verify
from diffusion.evaluate.evaluate_config import Space
from diffusion.evaluate.features.extractors import cached_path
from diffusion.evaluate.statistics_file import configured_statistics
from diffusion.model.network_registry import NetworkSpec
from diffusion.protocol.extractors import INSTALL, extractor_spec
from diffusion.system.devices import default_device, device_name
from diffusion.system.errors import DiffctlError, UsageError, printable
from diffusion.system.memory import format_bytes
from diffusion.train.distributed.launch import world_size
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.plan import resolve_precision
from diffusion.train.step_memory import (
    count_parameters,
    device_memory,
    exceeds_memory,
    fitting_microbatch,
    profile_bytes,
    step_bytes,
)
from diffusion.train.train_config import TrainConfig

MEMORY_REMEDY = "lower train.microbatch or train.batch_size"
CHECKPOINTING_REMEDY = ", or set model.gradient_checkpointing: true"
SHARD_REMEDY = "set train.shard: true, with which each process holds a part of the weights"
BF16_SHARE = 0.5  # of the fp32 estimate, for a step in bf16


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
    sharing = here if device.type == "cpu" else 1
    total, free = (size // sharing for size in device_memory(device))
    shards = world if train.shard else 1
    if exceeds_memory(spec, shards * total):
        message = f"over {spec.least_parameters() / 1e6:,.0f} M parameters do not fit {format_bytes(total)}"
        yield Finding("error", "memory", message, "make the model smaller")
        return
    part = BF16_SHARE if resolve_precision(train.precision, device) == "bf16" else 1.0
    fitting = total if device.type == "cpu" or shards > 1 else total / part
    images = share.stop - share.start
    if train.microbatch == "auto":
        left = int(fitting) - profile_bytes(spec, len(train.sigma_rels)) // shards
        images = fitting_microbatch(spec, images, left, shards=shards)
    else:
        images = min(train.microbatch or images, images)
    at_most = _step_bytes(spec, train, images, shards)
    each = f" in each of {here} processes" if here > 1 else ""
    cut = f", in {shards} shards" if shards > 1 else ""
    message = (
        f"{count_parameters(spec) / 1e6:,.1f} M parameters{cut}; a step of {images} images takes about "
        f"{format_bytes(part * at_most)}{each}, {format_bytes(free)} of {format_bytes(total)} are free"
    )
    if part * at_most <= free:
        yield Finding("ok", "memory", message)
        return
    helps = world > shards and part * _step_bytes(spec, train, images, world) <= free
    level: Level = "error" if BF16_SHARE * at_most > total else "warning"
    remedy = MEMORY_REMEDY
    if "gradient_checkpointing" in type(spec).model_fields:
        remedy += CHECKPOINTING_REMEDY
    yield Finding(level, "memory", message, SHARD_REMEDY if helps else remedy)


def _step_bytes(spec: NetworkSpec, train: TrainConfig, images: int, shards: int) -> int:
    """Return the upper bound of a step's memory, with EMA profiles."""
    averages = profile_bytes(spec, len(train.sigma_rels)) // shards
    return step_bytes(spec, images, shards=shards) + averages


def check_device(project: Project) -> Iterator[Finding]:
    """Report the device and the precision."""
    device = default_device()
    precision = resolve_precision(project.config.train.precision, device)
    yield Finding("ok", "device", f"{device_name(device)}, {precision}")


def check_runner(project: Project) -> Iterator[Finding]:
    """Check whether the sampling runner is installed."""
    if project.config.sample.runner == "ray" and find_spec("ray") is None:
        yield Finding("error", "runner", "sample.runner ray needs Ray", "pip install 'diffctl[ray]'")


def check_weights(project: Project) -> Iterator[Finding]:
    """Check whether each extractor's weights exist and have the right checksum."""
    for space in project.config.evaluate.spaces:
        yield from _check_space(space)
        yield from _check_statistics(space)


def _check_statistics(space: Space) -> Iterator[Finding]:
    if space.statistics is None:
        return
    try:
        configured_statistics(space)
        yield Finding("ok", "statistics", f"{printable(space.statistics.file)} fits {space.extractor}")
    except DiffctlError as error:
        yield Finding("error", "statistics", str(error))


def _check_space(space: Space) -> Iterator[Finding]:
    spec = extractor_spec(space.extractor)
    if spec.weights.comes_along:
        yield Finding("ok", "extractor", f"the weights of {spec.name} come with its package")
        return
    if spec.needs and find_spec(spec.needs) is None:
        yield Finding("error", "extractor", f"{spec.name} needs {spec.needs}", INSTALL)
    path = space.weights or cached_path(spec.weights)
    if path.is_file():
        try:
            if not space.weights_sha256 and path.stat().st_size != spec.weights.size:  # without hashing
                raise DiffctlError(f"{path} is not the published file: delete it and run this again")
            verify(path, f"sha256:{space.weights_sha256 or spec.weights.sha256}")
            yield Finding("ok", "extractor", f"the weights of {spec.name} are here and right")
        except DiffctlError as error:
            yield Finding("error", "extractor", str(error))
    elif space.weights is not None:
        message = f"evaluate: there is no file {path} with the weights of {spec.name}"
        yield Finding("error", "extractor", message, "correct the path")
    else:
        size = format_bytes(spec.weights.size)
        message = f"the weights of {spec.name} are not here: {size} will be downloaded"
        yield Finding("warning", "extractor", message, f"without a network, put them at {path}")
