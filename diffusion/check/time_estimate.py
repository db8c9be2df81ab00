"""How long training, sweep and scoring take: measured times per image, multiplied by counts.

Measurements are stored in the user's cache, by machine, configuration and code.
"""

import os
import platform
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field

from diffusion.check.cost_estimate import scored_images
from diffusion.check.findings import Finding, Project
from diffusion.check.timing import (
    ImageTime,
    TimeRange,
    machine_name,
    time_extractor,
    time_sampling,
    time_steps,
)
from diffusion.code_digest import code_digest, module_digests
from diffusion.config import Config
from diffusion.downloads.cache import cache_root
from diffusion.evaluate.evaluate_config import Space
from diffusion.evaluate.features.extractor_weights import cached_path
from diffusion.model.network_registry import MODELS
from diffusion.process.process_registry import PROCESSES
from diffusion.protocol.extractors import extractor_spec
from diffusion.protocol.grid import Cell, cell_settings, grid
from diffusion.protocol.option_values import format_value
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.devices import acquire_device, default_device
from diffusion.system.errors import DiffctlError, reason
from diffusion.system.files import write_json
from diffusion.system.section import Section, ShortText, fingerprint
from diffusion.train.distributed.launch import world_size
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.plan import OBSERVATION_FIELDS, DenoiserPlan

FOLDER = "measured"  # in the user's cache
PART_SECONDS = 15.0  # limit for each of training, sampling and scoring
TIMED_STEPS = 4  # sampling steps
MAX_LISTED = 12  # values of an axis in a message
SUBJECT = "time"
HOUR = 3600.0
ZERO = TimeRange(median=0, least=0, most=0)

Times = Annotated[dict[ShortText, ImageTime], Field(max_length=100)]


class Measurement(Section):
    """Seconds per image of a training step, of a network call of each kind of sampling, of each extractor.

    `batch` is the number of images per step and process. `missing` has the reason for each extractor that was
    not timed.
    """

    machine: ShortText
    batch: Annotated[int, Field(gt=0)]
    step: ImageTime
    sampling: Times
    extractors: Times
    missing: dict[ShortText, str]


class StoredMeasurement(NamedTuple):
    """A measurement, its file in the cache, and whether it was made now."""

    values: Measurement
    path: Path
    is_new: bool


def check_time(project: Project, log: Callable[[str], object]) -> Iterator[Finding]:
    """Yield the hours of each part and their sum. `log` receives a message before a measurement begins.

    Yields nothing if the model does not fit, which is another finding, and a warning if a measurement fails.
    """
    plan = project.plan
    if plan is None:
        return
    try:
        stored = measure_once(project, plan, log)
    except DiffctlError as error:
        yield Finding("warning", SUBJECT, f"not measured: {error}")
        return
    found, train, images = stored.values, project.config.train, scored_images(project)
    step = found.step.image.scaled(found.batch)
    training = step.scaled(train.steps)  # without previews, validation losses and scores in between
    batches = (
        "" if found.step.images == found.batch else f", timed with steps of {found.step.images:,} images"
    )
    message = f"{train.steps:,} training steps of {train.batch_size:,} images, {format_range(step)} each: "
    yield _finding(f"{message}{format_range(training)}{batches}", "training", training)
    cells = cell_times(project, found)
    sweep = sum(cells.values(), ZERO)
    yield _sweep_finding(cells, sweep)
    total = training + sweep
    for name, timed in found.extractors.items():
        scoring = timed.image.scaled(images)
        total += scoring
        yield _finding(f"{images:,} images through {name}: {format_range(scoring)}", "scoring", scoring)
    for name, why in found.missing.items():
        yield Finding("warning", SUBJECT, f"scoring by {name} could not be measured: {why}")
    when = "measured now" if stored.is_new else "measured before"
    what = "all other parts" if found.missing else "all parts"
    message = f"{what}: {format_range(total)}, on {found.machine}, {when} ({stored.path})"
    yield _finding(message, "all", total)


def cell_times(project: Project, found: Measurement) -> dict[Cell, TimeRange]:
    """Return the time of each cell of the sweep."""
    config, times = project.config, {}
    for cell in grid(config.sample, config.sweep):
        settings = cell_settings(config.sample, cell)
        calls = count_nfe(settings, config.process) * config.sample.num_images
        times[cell] = found.sampling[sampling_kind(settings)].image.scaled(calls)
    return times


def by_axis(cells: dict[Cell, TimeRange]) -> dict[str, dict[str, TimeRange]]:
    """Return the times by value of each axis with several values; `-` is for cells without the axis."""
    axes = list(dict.fromkeys(axis for cell in cells for axis in cell.axes))
    sums: dict[str, dict[str, TimeRange]] = {axis: {} for axis in axes}
    for cell, duration in cells.items():
        for axis, values in sums.items():
            value = format_value(cell.axes[axis]) if axis in cell.axes else "-"
            values[value] = values.get(value, ZERO) + duration
    return {axis: values for axis, values in sums.items() if len(values) > 1}


def _sweep_finding(cells: dict[Cell, TimeRange], total: TimeRange) -> Finding:
    axes, message = by_axis(cells), f"{len(cells):,} cells of the sweep: {format_range(total)}"
    for axis, values in axes.items():
        if len(values) <= MAX_LISTED:
            listed = (f"{value}: {format_duration(one.median)}" for value, one in values.items())
            message += f"; by {axis} {', '.join(listed)}"
    hours = {axis: {value: _hours(one) for value, one in values.items()} for axis, values in axes.items()}
    return _finding(message, "sweep", total, by_axis=hours)


def _finding(message: str, part: str, total: TimeRange, **more: Any) -> Finding:
    return Finding("ok", SUBJECT, message, values={"part": part, "hours": _hours(total), **more})


def _hours(total: TimeRange) -> dict[str, float]:
    return total.scaled(1 / HOUR).model_dump()


def format_range(total: TimeRange) -> str:
    """Format as in 2.1 min (1.9 min to 2.4 min)."""
    ends = format_duration(total.least), format_duration(total.most)
    return f"{format_duration(total.median)} ({ends[0]} to {ends[1]})"


def format_duration(seconds: float) -> str:
    """Format with two or three digits and a suitable unit: 35 ms, 12 s, 2.1 min, 14 h, 5.2 days."""
    for unit, size in (("days", 24 * HOUR), ("h", HOUR), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * size or (unit == "s" and seconds >= 1):
            return f"{seconds / size:,.{0 if seconds >= 20 * size else 1}f} {unit}"
    return f"{1000 * seconds:.3g} ms"


def measure_once(project: Project, plan: DenoiserPlan, log: Callable[[str], object]) -> StoredMeasurement:
    """Return the stored measurement of this configuration and machine, or measure now.

    DiffctlError if a training step or sampling fails.
    """
    device = default_device()
    path = cache_root() / FOLDER / f"{_key(project.config, plan, device)}.json"
    try:
        return StoredMeasurement(read_checksummed_json(path, Measurement), path, is_new=False)
    except (DiffctlError, OSError):  # damaged or missing
        path.parent.mkdir(parents=True, exist_ok=True)
    log(f"measuring on {machine_name(device)}, for about {3 * PART_SECONDS:.0f} s at most")
    with acquire_device(log) as acquired:
        made = _measure(project, plan, acquired)
    write_json(path, add_checksum(made.model_dump(mode="json")))
    return StoredMeasurement(made, path, is_new=True)


def _measure(project: Project, plan: DenoiserPlan, device: torch.device) -> Measurement:
    config, batch, extractors = project.config, images_per_process(plan), dict[str, ImageTime]()
    shape = plan.network.image_size, plan.network.in_channels
    step = time_steps(project, plan, batch, PART_SECONDS, device)
    sampling = time_sampling(plan, sampling_kinds(config), config.sample, PART_SECONDS, device)
    missing = {space.extractor: why for space in config.evaluate.spaces if (why := _missing(space))}
    spaces = [space for space in config.evaluate.spaces if space.extractor not in missing]
    for space in spaces:
        seconds = PART_SECONDS / len(spaces)
        try:
            extractors[space.extractor] = time_extractor(space, config.evaluate, shape, seconds, device)
        except DiffctlError as error:
            missing[space.extractor] = reason(error)
    return Measurement(
        machine=machine_name(device),
        batch=batch,
        step=step,
        sampling=sampling,
        extractors=extractors,
        missing=missing,
    )


def images_per_process(plan: DenoiserPlan) -> int:
    """Return the largest number of images of a step in one process."""
    world, _ = world_size(plan.train)
    share = ProcessGroup(torch.device("cpu"), world - 1, world).share(plan.train.batch_size)
    return len(range(plan.train.batch_size)[share])


def sampling_kind(settings: SampleSettings) -> str:
    """Return the name of a kind of sampling with equal cost per network call."""
    suffixes = ("noisy" * (settings.eta > 0), "guided" * (settings.guidance > 0))
    return " ".join(filter(None, (settings.sampler, *suffixes)))


def sampling_kinds(config: Config) -> dict[str, SampleSettings]:
    """Return settings with few steps for each kind of sampling in the sweep, by name."""
    found: dict[str, SampleSettings] = {}
    for cell in grid(config.sample, config.sweep):
        settings = cell_settings(config.sample, cell)
        few = {"steps": min(TIMED_STEPS, config.process.timesteps), "eta": min(1.0, settings.eta)}
        short = settings.guided_everywhere().model_copy(update=few)
        found.setdefault(sampling_kind(settings), short)
    return found


def _key(config: Config, plan: DenoiserPlan, device: torch.device) -> str:
    """Return the fingerprint of machine, configuration and code. Counts that only multiply are left out."""
    kinds, spaces = sampling_kinds(config), config.evaluate.spaces
    modules = [PROCESSES[plan.process.schedule].module, MODELS[plan.network.name].module]
    modules += sorted({SAMPLERS[settings.sampler].module for settings in kinds.values()})
    modules += [extractor_spec(space.extractor).module for space in spaces if not _missing(space)]
    train = plan.train.model_dump(mode="json", exclude={"steps", "seed", "lr", *OBSERVATION_FIELDS})
    values = {
        "machine": [machine_name(device), platform.node(), os.cpu_count(), torch.__version__],
        "network": plan.network.model_dump(mode="json"),
        "process": plan.process.model_dump(mode="json"),
        "train": [train, plan.precision, config.data.flip, len(plan.data.classes), images_per_process(plan)],
        "sampling": {name: settings.model_dump(mode="json") for name, settings in kinds.items()},
        "batches": [min(config.sample.batch_size, config.sample.num_images), config.evaluate.batch_size],
        "spaces": [[space.model_dump(mode="json"), _missing(space)] for space in spaces],
        "code": code_digest(module_digests("diffusion.check.timing", *modules)),
    }
    return fingerprint(values)


def _missing(space: Space) -> str:
    """Return why an extractor cannot be timed; empty if it can."""
    spec = extractor_spec(space.extractor)
    if spec.needs and find_spec(spec.needs) is None:
        return f"{spec.needs} is not installed"
    path = space.weights or cached_path(spec.weights)
    return "" if spec.weights.comes_along or path.is_file() else f"its weights are not at {path}"
