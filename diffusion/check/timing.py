"""Time training steps, sampling and feature extraction on this machine, by running a few of each.

Steps use the trainer, samples the sampler, both with initial weights. No run directory is read or written.
Networks are not compiled, which would take longer than the measurement.
"""

import platform
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Annotated, Self

import numpy as np
import torch
from pydantic import Field

from diffusion.check.findings import Project
from diffusion.evaluate.evaluate_config import EvaluateConfig, Space
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.images.store import ImageStore
from diffusion.layout import STARTS
from diffusion.model.model_file import LoadedModel
from diffusion.model.network_registry import build_network
from diffusion.model.precision import freeze
from diffusion.protocol.sample_sections import SampleConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.cell_images import shard_images
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.section import Section
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.loop import train
from diffusion.train.observers import NullObserver
from diffusion.train.plan import DenoiserPlan, plan_artefact
from diffusion.train.train_step import new_state

REPEATS = 5
GROWTH = 4  # of the number of images from trial to trial
SYNTHETIC = 256  # random images if the data are not prepared

Seconds = Annotated[float, Field(ge=0, le=1e12)]
Work = Callable[[int, int], Sequence[float]]  # (images, repeats) -> seconds of each repeat


class TimeRange(Section):
    """Seconds of repeated measurements: median, least and most."""

    median: Seconds
    least: Seconds
    most: Seconds

    @classmethod
    def of(cls, times: Sequence[float]) -> Self:
        """Return the range of some times."""
        return cls(median=median(times), least=min(times), most=max(times))

    def scaled(self, factor: float) -> "TimeRange":
        """Return the range of `factor` such measurements in sequence."""
        return TimeRange(median=factor * self.median, least=factor * self.least, most=factor * self.most)

    def __add__(self, other: "TimeRange") -> "TimeRange":
        least, most = self.least + other.least, self.most + other.most
        return TimeRange(median=self.median + other.median, least=least, most=most)


class ImageTime(Section):
    """Seconds per image, measured with batches of `images` images."""

    images: Annotated[int, Field(gt=0)]
    image: TimeRange


def machine_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the CPU with its number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    processor = next(names, platform.processor() or platform.machine())[:200]
    return f"{processor}, {torch.get_num_threads()} threads"


def time_work(work: Work, most: int, seconds: float) -> ImageTime:
    """Time work on up to `most` images at a time, in about `seconds` seconds.

    The batch grows as long as two trials of the next size are expected to fit. The first call is a warm-up.
    Work that takes longer even for one image runs three times.
    """
    images, spent = 1, work(1, 1)[0]
    last = work(1, 1)[0]
    spent += last
    while images < most:
        larger = min(most, GROWTH * images)
        if spent + 2 * last * larger / images > seconds:
            break
        images, last = larger, work(larger, 1)[0]
        spent += last
    repeats = min(REPEATS, 1 + int(max(0.0, seconds - spent) / max(last, 1e-9)))
    return ImageTime(images=images, image=TimeRange.of([last, *work(images, repeats)]).scaled(1 / images))


class _Finished(Exception):
    """All steps are timed."""


class _StepTimer(NullObserver):
    """A training observer that times a number of steps."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.device, self.steps = device, steps
        self.times: list[float] = []
        self.started = 0.0

    def begin(self) -> None:
        """Start the clock before a step; raise _Finished after the last one."""
        if len(self.times) == self.steps:
            raise _Finished
        self.started = self._now()

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Stop the clock after a step."""
        self.times.append(self._now() - self.started)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def time_steps(
    project: Project, plan: DenoiserPlan, batch: int, seconds: float, device: torch.device
) -> ImageTime:
    """Time training steps of up to `batch` images."""
    state, store = new_state(plan, device, project.root / STARTS), _training_images(project, plan)

    def work(images: int, repeats: int) -> Sequence[float]:
        changes = {"batch_size": images, "compile": False, "devices": 1}
        state.plan = plan.model_copy(update={"train": plan.train.model_copy(update=changes)})
        state.step, timer = 0, _StepTimer(repeats, device)
        with suppress(_Finished):
            train(state, store, ProcessGroup(device), timer, lambda state: None, timer.begin)
        return timer.times

    return time_work(work, batch, seconds)


def _training_images(project: Project, plan: DenoiserPlan) -> ImageStore:
    """Return the prepared training images, or random images of their shape."""
    if project.is_ready:
        return project.stores["train"]
    spec, random = plan.network, np.random.default_rng(0)
    shape = (SYNTHETIC, spec.image_size, spec.image_size, spec.in_channels)
    images = random.integers(0, 256, shape, np.uint8)
    labels = random.integers(0, spec.num_classes, SYNTHETIC) if spec.num_classes else None
    return ImageStore(Path("synthetic"), images, labels, {})


def time_sampling(
    plan: DenoiserPlan,
    kinds: dict[str, SampleSettings],
    sample: SampleConfig,
    seconds: float,
    device: torch.device,
) -> dict[str, ImageTime]:
    """Time one call of the network per image, for each kind of sampling by name."""
    with torch.random.fork_rng(devices=[]):
        network = build_network(plan.network)
    loaded = LoadedModel(freeze(network.to(device)), plan_artefact(plan))
    batch, times = min(sample.batch_size, sample.num_images), {}
    for name, settings in kinds.items():

        def generate(images: int, settings: SampleSettings = settings) -> object:
            return shard_images(loaded, settings, range(images), device)

        found = time_work(_repeated(generate), batch, seconds / len(kinds))
        scaled = found.image.scaled(1 / count_nfe(settings, plan.process))
        times[name] = ImageTime(images=found.images, image=scaled)
    return times


def time_extractor(
    space: Space, section: EvaluateConfig, shape: tuple[int, int], seconds: float, device: torch.device
) -> ImageTime:
    """Time feature extraction of images with this side and channels; errors as `load_extractor`."""
    extractor = load_extractor(space.extractor, space.weights, device, space.weights_sha256)
    most, (side, channels) = section.batch_size or extractor.batch_size, shape
    pixels = np.random.default_rng(0).integers(0, 256, (most, channels, side, side), np.uint8)
    batch = torch.from_numpy(pixels).expand(-1, 3, -1, -1)
    return time_work(_repeated(lambda images: extractor(batch[:images])), most, seconds)


def _repeated(run: Callable[[int], object]) -> Work:
    """Return work that times calls of `run`, which must leave its result in the machine's memory."""

    def work(images: int, repeats: int) -> Sequence[float]:
        times = []
        for _ in range(repeats):
            started = time.perf_counter()
            run(images)
            times.append(time.perf_counter() - started)
        return times

    return work
