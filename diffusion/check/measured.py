"""Measurements of a configuration on a machine: made once, and kept in the user's cache."""

import os
import platform
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, NamedTuple

import torch
from pydantic import Field

from diffusion.check.findings import Project
from diffusion.check.measure import time_extractor, time_steps, time_walks
from diffusion.check.timing import ImageTime
from diffusion.code_digest import code_digest, module_digests
from diffusion.config import Config
from diffusion.downloads.cache import cache_root
from diffusion.evaluate.evaluate_config import Space
from diffusion.evaluate.features.extractor_weights import cached_path
from diffusion.model.network_registry import MODELS
from diffusion.process.process_registry import PROCESSES
from diffusion.protocol.extractors import extractor_spec
from diffusion.protocol.grid import Cell, cell_settings, grid
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.system.checksums import add_checksum, read_checksummed_json
from diffusion.system.devices import acquire_device, default_device
from diffusion.system.errors import DiffctlError, reason
from diffusion.system.files import write_json
from diffusion.system.section import Section, ShortText, fingerprint
from diffusion.train.distributed.launch import world_size
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.plan import OBSERVATION_FIELDS, DenoiserPlan

FOLDER = "measured"  # in the user's cache
PART_SECONDS = 15.0  # that each of training, sampling and scoring takes at most, where an image takes less
WALK_STEPS = 4  # of a walk that is timed
MAX_TRAJECTORIES = 100  # kinds of walks, more than the samplers have

Walks = Annotated[dict[ShortText, ImageTime], Field(max_length=MAX_TRAJECTORIES)]


class Measured(Section):
    """Seconds an image of a training step, of an evaluation in each kind of walk, of each extractor.

    `batch` is how many images of a step a process has. `missing` says of an extractor why it was not timed.
    """

    machine: ShortText
    batch: Annotated[int, Field(gt=0)]
    step: ImageTime
    walks: Walks
    extractors: Walks
    missing: dict[ShortText, str]


class Outcome(NamedTuple):
    """What was measured, the file that keeps it, and whether it lay there already."""

    measured: Measured
    path: Path
    is_new: bool


def measured(project: Project, plan: DenoiserPlan, say: Callable[[str], object]) -> Outcome:
    """The measurement of the project's configuration on this machine, made where none is kept.

    `say` is told before it begins. DiffctlError where a step or a walk cannot be done.
    """
    device = default_device()
    path = cache_root() / FOLDER / f"{_key(project.config, plan, device)}.json"
    try:
        return Outcome(read_checksummed_json(path, Measured), path, is_new=False)
    except (DiffctlError, OSError):  # damaged, or not there: it is made anew
        pass
    path.parent.mkdir(parents=True, exist_ok=True)
    say(f"measuring on {machine_name(device)}, for about {3 * PART_SECONDS:.0f} s at most")
    with acquire_device(say) as held:
        made = _measure(project, plan, held)
    write_json(path, add_checksum(made.model_dump(mode="json")))
    return Outcome(made, path, is_new=True)


def _measure(project: Project, plan: DenoiserPlan, device: torch.device) -> Measured:
    config, batch = project.config, own_batch(plan)
    shape = plan.network.image_size, plan.network.in_channels
    step = time_steps(project, plan, batch, PART_SECONDS, device)
    walks = time_walks(plan, walks_of(config), config.sample, PART_SECONDS, device)
    extractors: dict[str, ImageTime] = {}
    missing = {space.extractor: why for space in config.evaluate.spaces if (why := _why_not(space))}
    spaces = [space for space in config.evaluate.spaces if space.extractor not in missing]
    for space in spaces:
        share = PART_SECONDS / len(spaces)
        try:
            extractors[space.extractor] = time_extractor(space, config.evaluate, shape, share, device)
        except DiffctlError as error:
            missing[space.extractor] = reason(error)
    return Measured(
        machine=machine_name(device),
        batch=batch,
        step=step,
        walks=walks,
        extractors=extractors,
        missing=missing,
    )


def own_batch(plan: DenoiserPlan) -> int:
    """The images of a step that one process has, of those that have the most."""
    world, _ = world_size(plan.train)
    share = ProcessGroup(torch.device("cpu"), world - 1, world).share(plan.train.batch_size)
    return len(range(plan.train.batch_size)[share])


def walk_name(settings: SampleSettings) -> str:
    """Which walks cost alike for each evaluation: by one sampler, with or without noise and guidance."""
    told = ("noisy" * (settings.eta > 0), "guided" * (settings.guidance > 0))
    return " ".join(filter(None, (settings.sampler, *told)))


def walks_of(config: Config) -> dict[str, SampleSettings]:
    """A short walk of each kind that the sweep has, by its name."""
    found: dict[str, SampleSettings] = {}
    for cell in grid(config.sample, config.sweep):
        settings = cell_settings(config.sample, cell)
        found.setdefault(walk_name(settings), _short(config, cell))
    return found


def _short(config: Config, cell: Cell) -> SampleSettings:
    """A cell's settings for few steps, between which no more than η = 1 may be possible, guided at all."""
    settings = cell_settings(config.sample, cell)
    short = {"steps": min(WALK_STEPS, config.process.timesteps), "eta": min(1.0, settings.eta)}
    return settings.guided_everywhere().model_copy(update=short)


def machine_name(device: torch.device) -> str:
    """The device by the name that its maker gave it, and the threads of a CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    """The CPU's name, as Linux tells it where it does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())[:200]


def _key(config: Config, plan: DenoiserPlan, device: torch.device) -> str:
    """All that the measurement depends on: the machine, what of the configuration costs time, the code."""
    left_out = {"steps", "seed", "lr", *OBSERVATION_FIELDS}
    asked = {
        "network": plan.network.model_dump(mode="json"),
        "process": plan.process.model_dump(mode="json"),
        "train": plan.train.model_dump(mode="json", exclude=left_out),
        "precision": plan.precision,
        "data": [config.data.flip, len(plan.data.classes)],
        "walks": {name: walk.model_dump(mode="json") for name, walk in walks_of(config).items()},
        "sample": min(config.sample.batch_size, config.sample.num_images),
        "spaces": [[space.model_dump(mode="json"), _why_not(space)] for space in config.evaluate.spaces],
        "evaluate": config.evaluate.batch_size,
    }
    machine = [machine_name(device), platform.node(), os.cpu_count(), torch.__version__, own_batch(plan)]
    return fingerprint({"machine": machine, "asked": asked, "code": _code(config, plan)})


def _code(config: Config, plan: DenoiserPlan) -> str:
    """Of what is timed."""
    chosen = [PROCESSES[plan.process.schedule].module, MODELS[plan.network.name].module]
    chosen += sorted({SAMPLERS[settings.sampler].module for settings in walks_of(config).values()})
    spaces = (space for space in config.evaluate.spaces if not _why_not(space))
    chosen += [extractor_spec(space.extractor).module for space in spaces]
    return code_digest(module_digests("diffusion.check.measure", *chosen))


def _why_not(space: Space) -> str:
    """Why an extractor cannot be timed; empty where it can."""
    spec = extractor_spec(space.extractor)
    if spec.needs and find_spec(spec.needs) is None:
        return f"{spec.needs} is not installed"
    path = space.weights or cached_path(spec.weights)
    if spec.weights.comes_along or path.is_file():
        return ""
    return f"its weights are not at {path}"
