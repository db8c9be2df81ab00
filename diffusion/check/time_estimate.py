"""How long training, sweep and scoring take: measured times per image, multiplied by counts."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec

import psutil
import torch

from diffusion.check.cost_estimate import network_evaluations, scored_images
from diffusion.check.findings import Finding, Project
from diffusion.check.timing import (
    CpuClock,
    TimeRange,
    in_sequence,
    time_extractor,
    time_sampling,
    time_steps,
)
from diffusion.evaluate.evaluate_config import Space
from diffusion.evaluate.features.extractors import cached_path
from diffusion.protocol.extractors import extractor_spec
from diffusion.protocol.grid import grid
from diffusion.system.devices import acquire_device, default_device, device_name
from diffusion.system.errors import DiffctlError, reason
from diffusion.train.distributed.launch import world_size
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.plan import DenoiserPlan, TrainPlan

PART_SECONDS = 15.0  # limit for sampling, scoring and each training
MAX_LOAD = 0.1  # of the processors, by other processes
SUBJECT = "time"
HOUR = 3600.0


def check_time(project: Project, log: Callable[[str], object]) -> Iterator[Finding]:
    """Yield the hours of each part and their sum. `log` receives a message before the measurement begins.

    Yields nothing if the model does not fit, which is another finding, and a warning if a measurement fails.
    """
    if project.plan is None:
        return
    name = device_name(default_device())
    seconds = (3 + (project.config.classifier is not None)) * PART_SECONDS
    log(f"measuring on {name}, for about {seconds:.0f} s at most")
    try:
        with acquire_device(log) as device:
            start = CpuClock.now()
            findings, parts = _measure(project, project.plan, device)
            load = CpuClock.now().load_since(start, psutil.cpu_count() or 1)
    except DiffctlError as error:
        yield Finding("warning", SUBJECT, f"not measured: {error}")
        return
    yield from findings
    if load > MAX_LOAD:
        message = f"other processes used {load:.0%} of the processors: the times are upper bounds"
        yield Finding("warning", SUBJECT, message, "measure again when the machine is idle")
    total = in_sequence(parts)
    what = "all parts" if all(one.values for one in findings) else "all other parts"
    yield _finding(f"{what}: {format_range(total)}, on {name}", "all", total)


def _measure(
    project: Project, plan: DenoiserPlan, device: torch.device
) -> tuple[list[Finding], list[TimeRange]]:
    """Measure all parts; DiffctlError if a step of the model's training or sampling fails."""
    config, images = project.config, scored_images(project)
    findings, parts = list[Finding](), list[TimeRange]()

    def add(part: str, what: str, total: TimeRange) -> None:
        parts.append(total)
        findings.append(_finding(f"{what}: {format_range(total)}", part, total))

    def fail(what: str, error: DiffctlError) -> None:
        findings.append(Finding("warning", SUBJECT, f"{what} could not be measured: {reason(error)}"))

    add("training", *_time_training("training", project, plan, device))
    try:
        if project.classifier_plan is not None:
            add("classifier", *_time_training("classifier", project, project.classifier_plan, device))
    except DiffctlError as error:
        fail("the classifier's training", error)
    sweep = time_sampling(plan, config, PART_SECONDS, device).scaled(network_evaluations(config))
    add("sweep", f"{len(grid(config.sample, config.sweep)):,} cells of the sweep", sweep)
    spaces = config.evaluate.spaces
    shape = plan.network.image_size, plan.network.in_channels
    for space in spaces:
        try:
            _require_weights(space)
            timed = time_extractor(space, config.evaluate, shape, PART_SECONDS / len(spaces), device)
        except DiffctlError as error:
            fail(f"scoring by {space.extractor}", error)
        else:
            add("scoring", f"{images:,} images through {space.extractor}", timed.scaled(images))
    return findings, parts


def _time_training(
    name: str, project: Project, plan: TrainPlan, device: torch.device
) -> tuple[str, TimeRange]:
    """Describe and time a training, without previews, validation losses and scores in between."""
    train, (world, _) = plan.train, world_size(plan.train)
    share = ProcessGroup(torch.device("cpu"), world - 1, world).share(train.batch_size)  # the largest
    batch = len(range(train.batch_size)[share])
    step = time_steps(project, plan, batch, PART_SECONDS, device).scaled(batch)
    what = f"{train.steps:,} {name} steps of {train.batch_size:,} images, {format_range(step)} each"
    return what, step.scaled(train.steps)


def _finding(message: str, part: str, total: TimeRange) -> Finding:
    hours = total.scaled(1 / HOUR)._asdict()
    return Finding("ok", SUBJECT, message, values={"part": part, "hours": hours})


def format_range(total: TimeRange) -> str:
    """Format as in 2.1 min (1.9 min to 2.4 min)."""
    return "{} ({} to {})".format(*map(format_duration, total))


def format_duration(seconds: float) -> str:
    """Format with two or three digits and a suitable unit: 35 ms, 12 s, 2.1 min, 14 h, 5.2 days."""
    for unit, size in (("days", 24 * HOUR), ("h", HOUR), ("min", 60.0), ("s", 1.0)):
        if seconds >= 2 * size or (unit == "s" and seconds >= 1):
            return f"{seconds / size:,.{0 if seconds >= 20 * size else 1}f} {unit}"
    return f"{1000 * seconds:.3g} ms"


def _require_weights(space: Space) -> None:
    """Raise DiffctlError if the extractor would be downloaded, or lacks a package."""
    spec = extractor_spec(space.extractor)
    if spec.needs and find_spec(spec.needs) is None:
        raise DiffctlError(f"{spec.needs} is not installed")
    path = space.weights or cached_path(spec.weights)
    if not spec.weights.comes_along and not path.is_file():
        raise DiffctlError(f"its weights are not at {path}")
