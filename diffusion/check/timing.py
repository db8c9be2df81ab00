"""Time training steps, sampling and feature extraction on this machine, by running a few of each.

Steps use the trainer, samples the sampler, both with initial weights. No run directory is read or written.
Networks are not compiled, which would take longer than the measurement.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from statistics import median
from typing import NamedTuple

import numpy as np
import torch

from diffusion.check.findings import Project
from diffusion.check.trial import few_steps, random_images, stand_in_guides
from diffusion.config import Config
from diffusion.evaluate.evaluate_config import EvaluateConfig, Space
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.model.model_file import LoadedModel
from diffusion.model.network_registry import build_network
from diffusion.model.precision import Precision, freeze
from diffusion.process.noise_process import build_process
from diffusion.protocol.grid import cell_settings, grid
from diffusion.sample.cell_images import shard_images
from diffusion.sample.sampling_steps import count_nfe
from diffusion.system.errors import UsageError
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.initial_state import new_state
from diffusion.train.loop import train
from diffusion.train.observers import Observer
from diffusion.train.plan import DenoiserPlan, TrainPlan, plan_artefact

REPEATS = 5
GROWTH = 4  # of the number of images from trial to trial
TIMED_STEPS = 4  # of sampling
MATRIX = 1024  # rows and columns of a measured product
SYNTHETIC = 256  # random images if the data are not prepared

Work = Callable[[int, int], Sequence[float]]  # (images, repeats) -> seconds of each repeat


class TimeRange(NamedTuple):
    """Seconds of repeated measurements: median, least and most."""

    median: float
    least: float
    most: float

    def scaled(self, factor: float) -> "TimeRange":
        """Return the range of `factor` such measurements in sequence."""
        return TimeRange(*(factor * value for value in self))


def time_work(work: Work, most: int, seconds: float) -> TimeRange:
    """Return the seconds per image of work on up to `most` images at a time, in about `seconds` seconds.

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
    times = [last, *work(images, repeats)]
    return TimeRange(median(times), min(times), max(times)).scaled(1 / images)


class _Finished(Exception):
    """All steps are timed."""


def time_steps(
    project: Project, plan: TrainPlan, batch: int, seconds: float, device: torch.device
) -> TimeRange:
    """Time training steps of up to `batch` images, of random ones if the data are not prepared."""
    return time_work(step_work(project, plan, device), batch, seconds)


def step_work(project: Project, plan: TrainPlan, device: torch.device) -> Work:
    """Return training steps as work; their images are random if the data are not prepared."""
    state = new_state(plan, device)
    store = project.stores["train"] if project.is_ready else random_images(plan.network, SYNTHETIC)

    def work(images: int, repeats: int) -> Sequence[float]:
        changes = {"batch_size": images, "compile": False, "devices": 1}
        state.plan = plan.model_copy(update={"train": plan.train.model_copy(update=changes)})
        state.step = 0
        stamps: list[float] = []

        def begin_step() -> None:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            stamps.append(time.perf_counter())
            if len(stamps) > repeats:
                raise _Finished

        with suppress(_Finished):
            train(state, store, ProcessGroup(device), Observer(), begin_step)
            begin_step()  # the training has fewer steps
        return [after - before for before, after in pairwise(stamps)]

    return work


def time_sampling(plan: DenoiserPlan, config: Config, seconds: float, device: torch.device) -> TimeRange:
    """Time one call of the network per image, in few steps of the last cell of the sweep.

    UsageError if its guidance rule does not fit the process.
    """
    settings = cell_settings(config.sample, grid(config.sample, config.sweep)[-1])
    uniform = settings.model_copy(update={"spacing": "uniform", "spacing_options": {}})
    few = few_steps(uniform, min(TIMED_STEPS, config.process.max_steps), build_process(plan.process))
    if few is None:
        raise UsageError("the sampling settings do not fit the process: see the errors of `diffctl check`")
    with torch.random.fork_rng(devices=[]):
        network = build_network(plan.network)
    loaded = LoadedModel(freeze(network.to(device)), plan_artefact(plan))

    guides = stand_in_guides(loaded)

    def generate(images: int) -> object:
        return shard_images(loaded, few, range(images), device, guides)

    most = min(config.sample.batch_size, config.sample.num_images)
    return time_work(_repeated(generate), most, seconds).scaled(1 / count_nfe(few, plan.process))


def matmul_speed(precision: Precision) -> float:
    """Return the FLOP/s of the fastest of a few matrix products on the CPU, which no training reaches."""
    factor = torch.ones(MATRIX, MATRIX, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    seconds = _repeated(lambda images: factor @ factor)(1, REPEATS)
    return 2 * MATRIX**3 / min(seconds)


def time_extractor(
    space: Space, section: EvaluateConfig, shape: tuple[int, int, int], seconds: float, device: torch.device
) -> TimeRange:
    """Time feature extraction of images of this shape (C, H, W); errors as `load_extractor`."""
    extractor = load_extractor(space.extractor, space.weights, device, space.weights_sha256)
    most = section.batch_size or extractor.batch_size
    pixels = np.random.default_rng(0).integers(0, 256, (most, *shape), np.uint8)
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
