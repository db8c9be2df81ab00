"""How long training, sweep and scoring take: measured times per image, multiplied by counts."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import psutil
import torch

from diffusion.check.cost_estimate import scored_images
from diffusion.check.findings import Finding, Project
from diffusion.check.machine_checks import device_name
from diffusion.check.timing import (
    CpuClock,
    TimeRange,
    in_sequence,
    time_extractor,
    time_sampling,
    time_steps,
)
from diffusion.config import Config
from diffusion.evaluate.evaluate_config import Space
from diffusion.evaluate.features.extractor_weights import cached_path
from diffusion.protocol.extractors import extractor_spec
from diffusion.protocol.grid import Cell, cell_settings, grid
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.devices import acquire_device, default_device
from diffusion.system.errors import DiffctlError, reason
from diffusion.train.distributed.launch import world_size
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.plan import DenoiserPlan

PART_SECONDS = 15.0  # limit for each of training, sampling and scoring
TIMED_STEPS = 4  # sampling steps
MAX_LOAD = 0.1  # of the processors, by other processes
SUBJECT = "time"
HOUR = 3600.0


class Measurement(NamedTuple):
    """Seconds per image of a training step, of a network call of each kind of sampling, of each extractor.

    `batch` is the number of images per step and process. `missing` has the reason for each extractor that was
    not timed. `load` is the share of the processors that other processes used meanwhile.
    """

    batch: int
    step: TimeRange
    sampling: dict[str, TimeRange]
    extractors: dict[str, TimeRange]
    missing: dict[str, str]
    load: float = 0.0


def check_time(project: Project, log: Callable[[str], object]) -> Iterator[Finding]:
    """Yield the hours of each part and their sum. `log` receives a message before the measurement begins.

    Yields nothing if the model does not fit, which is another finding, and a warning if a measurement fails.
    """
    if project.plan is None:
        return
    name = device_name(default_device())
    log(f"measuring on {name}, for about {3 * PART_SECONDS:.0f} s at most")
    try:
        with acquire_device(log) as device:
            found = measure(project, project.plan, device)
    except DiffctlError as error:
        yield Finding("warning", SUBJECT, f"not measured: {error}")
        return
    train, images = project.config.train, scored_images(project)
    step = found.step.scaled(found.batch)
    training = step.scaled(train.steps)  # without previews, validation losses and scores in between
    message = f"{train.steps:,} training steps of {train.batch_size:,} images, {format_range(step)} each"
    yield _finding(f"{message}: {format_range(training)}", "training", training)
    cells = cell_times(project, found)
    sweep = in_sequence(cells.values())
    yield _finding(f"{len(cells):,} cells of the sweep: {format_range(sweep)}", "sweep", sweep)
    parts = [training, sweep]
    for extractor, timed in found.extractors.items():
        parts.append(scoring := timed.scaled(images))
        yield _finding(f"{images:,} images through {extractor}: {format_range(scoring)}", "scoring", scoring)
    for extractor, why in found.missing.items():
        yield Finding("warning", SUBJECT, f"scoring by {extractor} could not be measured: {why}")
    what, total = "all other parts" if found.missing else "all parts", in_sequence(parts)
    yield _finding(f"{what}: {format_range(total)}, on {name}", "all", total, load=found.load)
    if found.load > MAX_LOAD:
        message = f"other processes used {found.load:.0%} of the processors: the times are upper bounds"
        yield Finding("warning", SUBJECT, message, "measure again when the machine is idle")


def cell_times(project: Project, found: Measurement) -> dict[Cell, TimeRange]:
    """Return the time of each cell of the sweep."""
    config, times = project.config, {}
    for cell in grid(config.sample, config.sweep):
        settings = cell_settings(config.sample, cell)
        calls = count_nfe(settings, config.process) * config.sample.num_images
        times[cell] = found.sampling[sampling_kind(settings)].scaled(calls)
    return times


def _finding(message: str, part: str, total: TimeRange, **more: Any) -> Finding:
    hours = total.scaled(1 / HOUR)._asdict()
    return Finding("ok", SUBJECT, message, values={"part": part, "hours": hours, **more})


def format_range(total: TimeRange) -> str:
    """Format as in 2.1 min (1.9 min to 2.4 min)."""
    return "{} ({} to {})".format(*map(format_duration, total))


def format_duration(seconds: float) -> str:
    """Format with two or three digits and a suitable unit: 35 ms, 12 s, 2.1 min, 14 h, 5.2 days."""
    for unit, size in (("days", 24 * HOUR), ("h", HOUR), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * size or (unit == "s" and seconds >= 1):
            return f"{seconds / size:,.{0 if seconds >= 20 * size else 1}f} {unit}"
    return f"{1000 * seconds:.3g} ms"


def measure(project: Project, plan: DenoiserPlan, device: torch.device) -> Measurement:
    """Measure all parts; DiffctlError if a training step or sampling fails."""
    config, extractors = project.config, dict[str, TimeRange]()
    world, _ = world_size(plan.train)
    share = ProcessGroup(torch.device("cpu"), world - 1, world).share(plan.train.batch_size)  # the largest
    batch, start = len(range(plan.train.batch_size)[share]), CpuClock.now()
    step = time_steps(project, plan, batch, PART_SECONDS, device)
    sampling = time_sampling(plan, sampling_kinds(config), config.sample, PART_SECONDS, device)
    missing = {space.extractor: why for space in config.evaluate.spaces if (why := _missing(space))}
    spaces = [space for space in config.evaluate.spaces if space.extractor not in missing]
    shape = plan.network.image_size, plan.network.in_channels
    for space in spaces:
        seconds = PART_SECONDS / len(spaces)
        try:
            extractors[space.extractor] = time_extractor(space, config.evaluate, shape, seconds, device)
        except DiffctlError as error:
            missing[space.extractor] = reason(error)
    load = CpuClock.now().load_since(start, psutil.cpu_count() or 1)
    return Measurement(batch, step, sampling, extractors, missing, load)


def sampling_kind(settings: SampleSettings) -> str:
    """Return the name of a kind of sampling with equal cost per network call."""
    suffixes = ("noisy" * (settings.eta > 0), "guided" * (settings.guidance > 0))
    return " ".join(filter(None, (settings.sampler, *suffixes)))


def sampling_kinds(config: Config) -> dict[str, SampleSettings]:
    """Return settings with few steps for each kind of sampling in the sweep, by name."""
    found: dict[str, SampleSettings] = {}
    for cell in grid(config.sample, config.sweep):
        settings = cell_settings(config.sample, cell)
        steps = min(TIMED_STEPS, config.process.max_steps)
        few = {"steps": steps, "eta": min(1.0, settings.eta), "classifier": None}  # whose time is unknown
        found.setdefault(sampling_kind(settings), settings.guided_everywhere().model_copy(update=few))
    return found


def _missing(space: Space) -> str:
    """Return why an extractor cannot be timed; empty if it can."""
    spec = extractor_spec(space.extractor)
    if spec.needs and find_spec(spec.needs) is None:
        return f"{spec.needs} is not installed"
    path = space.weights or cached_path(spec.weights)
    return "" if spec.weights.comes_along or path.is_file() else f"its weights are not at {path}"
