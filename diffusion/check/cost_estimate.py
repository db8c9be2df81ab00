"""The cost of a configuration: operations, images and bytes by counting, hours by measuring."""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import torch

from diffusion.check.findings import Finding, Project
from diffusion.check.machine_checks import MODEL_BYTES, STATE_BYTES, weights_finding
from diffusion.check.timing import TimeRange, matmul_speed, time_extractor, time_sampling, time_steps
from diffusion.model import counted_passes
from diffusion.model.network_registry import NetworkSpec
from diffusion.process.loss_registry import OBJECTIVES
from diffusion.protocol.extractors import extractor_spec
from diffusion.protocol.grid import grid
from diffusion.sample.sampling_card import nfe_fields
from diffusion.show.figure import format_quantity
from diffusion.system.devices import acquire_device, default_device, device_name, float64_device
from diffusion.system.errors import DiffctlError, UsageError, reason
from diffusion.system.memory import format_bytes
from diffusion.train import step_memory
from diffusion.train.distributed.launch import world_size
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.plan import DenoiserPlan, TrainPlan

FLOAT_BYTES = 4
BACKWARD = 2  # a backward pass counts as two: gradients of inputs and of weights

PART_SECONDS = 15.0  # limit for measuring sampling, scoring and each training
MAX_LOAD = 0.1  # of the processors, by other processes
SUBJECT = "time"
HOUR = 3600.0
MIN_MEASURED = 10**15  # FLOPs that take hours on any CPU of today
LONG = 48 * HOUR


def check_cost(project: Project) -> Iterator[Finding]:
    """Yield the cost of training, sweep and scoring from scratch, and the sizes of the results.

    Nothing if the model fits neither data nor machine. FLOPs are of matrix products and convolutions, as
    `show model` counts them: `evaluation_flops` for one image, `step_flops` for a training step.
    `evaluations` counts images through the network in the sweep, `scored` images through each extractor.
    `sizes` are bytes by kind.
    """
    config, plan, (total, _) = project.config, project.plan, step_memory.device_memory(default_device())
    if plan is None or step_memory.exceeds_memory(plan.network, total):
        return
    evaluations, images = network_evaluations(project, plan), count_scored_images(project)
    flops, step = counted_passes.forward_flops(plan.network), step_flops(plan)
    sizes = _sizes(project, plan)
    cost = {
        "evaluation_flops": flops,
        "step_flops": step,
        "training_flops": step * config.train.steps,
        "evaluations": evaluations,
        "sweep_flops": flops * evaluations,
        "scored": images,
        "sizes": sizes,
    }
    cells, text = len(grid(config.sample, config.sweep)), format_quantity
    message = (
        f"the network takes {text(flops)} FLOPs an image and a training step {text(step)}, so "
        f"{config.train.steps:,} steps {text(step * config.train.steps)}; {cells:,} "
        f"{'cell is' if cells == 1 else 'cells are'} {evaluations:,} images through the network, "
        f"{text(flops * evaluations)} FLOPs; {images:,} images are scored"
    )
    yield Finding("ok", "cost", message, values=cost)
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in sizes.items())
    yield Finding("ok", "sizes", listed)
    work = step * config.train.steps + flops * evaluations
    if default_device().type == "cpu" and work > MIN_MEASURED:
        yield from _long_work(work, matmul_speed(plan.precision))


def _long_work(work: int, speed: float) -> Iterator[Finding]:
    """Warn of many FLOPs that take days at a speed in FLOP/s."""
    if work / speed > LONG:
        message = (
            f"training and sweep take about {format_duration(work / speed)} here at the speed of a matrix "
            f"product, {format_quantity(round(speed))} FLOP/s, or longer"
        )
        remedy = "use a GPU, or lower train.steps, sample.num_images or the model's size"
        yield Finding("warning", "cost", message, f"{remedy}; `diffctl check --measure` estimates the hours")


def network_evaluations(project: Project, plan: DenoiserPlan) -> int:
    """Return the number of images that the network processes in the sweep, over all calls.

    A call of the base of a cascade counts by its share of the FLOPs, if the base is here.
    """
    total = 0.0
    for one in project.cells.values():
        with suppress(UsageError):  # reported by check_spacing
            fields = nfe_fields(one, plan, project.base)
            total += fields.get("weighted_nfe", fields["nfe"])
    return round(project.config.sample.num_images * total)


def passes(network: NetworkSpec, loss: str) -> int:
    """Return the passes of a training step per image: forward, backward, recomputed, and further ones."""
    recomputed = bool(getattr(network, "gradient_checkpointing", False))
    return 1 + BACKWARD + recomputed + OBJECTIVES[loss].extra_passes


def step_flops(plan: TrainPlan) -> int:
    """Return the FLOPs of a training step, without the optimiser's."""
    each = passes(plan.network, plan.process.loss)
    return counted_passes.forward_flops(plan.network) * each * plan.train.batch_size


def count_scored_images(project: Project) -> int:
    """Return the number of images through an extractor: all cells and both real splits."""
    config, real = project.config, _real_images(project)
    if limit := config.evaluate.reference_images:
        real = min(real, 2 * limit)
    return len(grid(config.sample, config.sweep)) * config.sample.num_images + real


def _real_images(project: Project) -> int:
    """Return the number of prepared images, or those to be prepared; 0 if unknown."""
    if project.is_ready:
        return sum(len(store) for store in project.stores.values())
    return project.info.images


def _sizes(project: Project, plan: DenoiserPlan) -> dict[str, int]:
    """Return the bytes of each kind of result, without DVC's copies."""
    config, parameters = project.config, counted_passes.count_parameters(plan.network)
    profiles = step_memory.profile_bytes(plan.network, len(plan.train.sigma_rels))
    reconstructed = len(config.sweep.sigma_rels)
    images, pixels = _real_images(project), math.prod(plan.network.shape)
    numbers = sum(extractor_spec(space.extractor).features for space in config.evaluate.spaces)
    sizes = {
        "data": images * pixels,
        "state": STATE_BYTES * parameters + profiles,
        "model": MODEL_BYTES * parameters,
        "ema_profiles": profiles * len(plan.train.snapshot_steps())
        + reconstructed * MODEL_BYTES * parameters,
        "samples": len(grid(config.sample, config.sweep)) * config.sample.num_images * pixels,
        "features": FLOAT_BYTES * images * numbers,
    }
    return {name: size for name, size in sizes.items() if size}


def check_time(project: Project, log: Callable[[str], object]) -> Iterator[Finding]:
    """Yield the hours of each part, measured times per image multiplied by counts, and their sum.

    `log` receives a message before the measurement begins. Yields nothing if the model does not fit, which is
    another finding, and a warning if a measurement fails.
    """
    if project.plan is None:
        return
    name = device_name(default_device())
    seconds = (3 + (project.config.classifier is not None)) * PART_SECONDS
    log(f"measuring on {name}, for about {seconds:.0f} s at most")
    try:
        with acquire_device(log) as device:
            process = psutil.Process()
            _load_of_others(process)
            findings, parts = _measure(project, project.plan, device)
            load = _load_of_others(process)
    except DiffctlError as error:
        yield Finding("warning", SUBJECT, f"not measured: {error}")
        return
    yield from findings
    if load > MAX_LOAD:
        message = f"other processes used {load:.0%} of the processors: the times are upper bounds"
        yield Finding("warning", SUBJECT, message, "measure again when the machine is idle")
    what = "all parts" if all(one.values for one in findings) else "all other parts"
    total = TimeRange(*(sum(values) for values in zip(*parts, strict=True)))
    yield _finding(f"{what}: {format_range(total)}, on {name}", "all", total)


def _load_of_others(process: psutil.Process) -> float:
    """Return the share of the processors that other processes used since the last call."""
    return (psutil.cpu_percent() - process.cpu_percent() / (psutil.cpu_count() or 1)) / 100


def _measure(
    project: Project, plan: DenoiserPlan, device: torch.device
) -> tuple[list[Finding], list[TimeRange]]:
    """Measure all parts; DiffctlError if a step of the model's training or sampling fails."""
    config, images = project.config, count_scored_images(project)
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
    sweep = time_sampling(plan, config, PART_SECONDS, device).scaled(network_evaluations(project, plan))
    add("sweep", f"{len(grid(config.sample, config.sweep)):,} cells of the sweep", sweep)
    spaces, shape = config.evaluate.spaces, plan.network.shape
    for space in spaces:
        try:
            if (weights := weights_finding(space)).level != "ok":
                raise DiffctlError(weights.message)
            timed = time_extractor(
                space, config.evaluate, shape, PART_SECONDS / len(spaces), float64_device(device)
            )
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
    units = ("years", 365 * 24 * HOUR), ("days", 24 * HOUR), ("h", HOUR), ("min", 60.0), ("s", 1.0)
    for unit, size in units:
        if seconds >= 2 * size or (unit == "s" and seconds >= 1):
            return f"{seconds / size:,.{0 if seconds >= 20 * size else 1}f} {unit}"
    return f"{1000 * seconds:.3g} ms"
