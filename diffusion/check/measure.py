"""What a step, an evaluation of the network and an image's features take here, by really doing some of them.

The steps are the trainer's and the walks the sampler's, of weights that nobody trained; nothing of a training
is read or written. A network is not compiled, which would take longer than the measuring.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffusion.check.findings import Project
from diffusion.check.timing import ImageTime, Work, time_work
from diffusion.evaluate.evaluate_config import EvaluateConfig, Space
from diffusion.evaluate.features.extractors import load_extractor
from diffusion.images.store import ImageStore
from diffusion.layout import STARTS
from diffusion.model.model_file import LoadedModel
from diffusion.model.network_registry import build_network
from diffusion.model.precision import freeze
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.cell_images import shard_images
from diffusion.sample.config import SampleConfig
from diffusion.sample.nfe import count_nfe
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.loop import NullObserver, TrainState, new_state, train
from diffusion.train.plan import DenoiserPlan, plan_artefact

SYNTHETIC = 256  # images that stand in for data that are not prepared, of which a batch may take some twice


class _Enough(Exception):
    """As many steps as were asked for are done."""


class _Clock(NullObserver):
    """An observer that times so many steps."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.device, self.steps = device, steps
        self.times: list[float] = []
        self.began = 0.0

    def begin(self) -> None:
        """Called before every step."""
        if len(self.times) == self.steps:
            raise _Enough
        self.began = _now(self.device)

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Called after every step."""
        self.times.append(_now(self.device) - self.began)


def _now(device: torch.device) -> float:
    """Seconds of a clock, all that the device was given being done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def time_steps(
    project: Project, plan: DenoiserPlan, batch: int, seconds: float, device: torch.device
) -> ImageTime:
    """Training steps of up to `batch` images; the state's memory is given back."""
    state, store = new_state(plan, device, project.root / STARTS), store_of(project, plan)
    return time_work(_steps(state, store, device), batch, seconds)


def _steps(state: TrainState, store: ImageStore, device: torch.device) -> Work:
    plan = state.plan

    def work(images: int, count: int) -> Sequence[float]:
        told = {"batch_size": images, "compile": False, "devices": 1}
        state.plan = plan.model_copy(update={"train": plan.train.model_copy(update=told)})
        state.step, clock = 0, _Clock(count, device)
        with suppress(_Enough):
            train(state, store, ProcessGroup(device), clock, lambda state: None, clock.begin)
        return clock.times

    return work


def store_of(project: Project, plan: DenoiserPlan) -> ImageStore:
    """The training images where they are prepared, else noise of their shape and number of classes."""
    if project.is_ready:
        return project.stores["train"]
    spec, draw = plan.network, np.random.default_rng(0)
    shape = (SYNTHETIC, spec.image_size, spec.image_size, spec.in_channels)
    images = draw.integers(0, 256, shape, np.uint8)
    labels = draw.integers(0, spec.num_classes, SYNTHETIC) if spec.num_classes else None
    return ImageStore(Path("synthetic"), images, labels, {})


def time_walks(
    plan: DenoiserPlan,
    walks: dict[str, SampleSettings],
    sample: SampleConfig,
    seconds: float,
    device: torch.device,
) -> dict[str, ImageTime]:
    """By the walk's name the time of one evaluation of the network, an image's, all else of it included."""
    loaded = _untrained(plan, device)
    batch = min(sample.batch_size, sample.num_images)
    return {
        name: _an_evaluation(
            time_work(_walk(loaded, settings, device), batch, seconds / len(walks)),
            count_nfe(settings, plan.process),
        )
        for name, settings in walks.items()
    }


def _untrained(plan: DenoiserPlan, device: torch.device) -> LoadedModel:
    """A model of the plan's shape as a file would give it."""
    with torch.random.fork_rng(devices=[]):
        network = build_network(plan.network)
    return LoadedModel(freeze(network.to(device)), plan_artefact(plan))


def _walk(loaded: LoadedModel, settings: SampleSettings, device: torch.device) -> Work:
    def work(images: int, count: int) -> Sequence[float]:
        return [_timed(lambda: shard_images(loaded, settings, range(images), device)) for _ in range(count)]

    return work


def _an_evaluation(walk: ImageTime, nfe: int) -> ImageTime:
    return ImageTime(images=walk.images, image=walk.image.scaled(1 / nfe))


def time_extractor(
    space: Space, section: EvaluateConfig, shape: tuple[int, int], seconds: float, device: torch.device
) -> ImageTime:
    """An image's features; `shape` is its side and channels. DiffctlError where the weights are not right."""
    extractor = load_extractor(space.extractor, space.weights, device, space.weights_sha256)
    side, channels = shape
    most = section.batch_size or extractor.batch_size
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (most, channels, side, side), np.uint8)
    )

    def work(images: int, count: int) -> Sequence[float]:
        batch: Tensor = pixels[:images].expand(-1, 3, -1, -1)
        return [_timed(lambda: extractor(batch)) for _ in range(count)]

    return time_work(work, most, seconds)


def _timed(work: Callable[[], object]) -> float:
    """Seconds of what leaves its result in the machine's memory."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
