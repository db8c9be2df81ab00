"""Trainings of so many seconds and the Fréchet distance of their images: the parts of `speedrun` and `gpu`.

The learning rate follows the elapsed share of the time as it otherwise follows the share of the steps. So a
training uses its time whole, whatever the machine makes of it.
"""

import copy
import math
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from diffusion.config import Config
from diffusion.data.prepare import prepare
from diffusion.evaluate.features.extractors import extract, load_extractor
from diffusion.evaluate.scores.moments import frechet_distance, statistics
from diffusion.images.pixels import to_nhwc
from diffusion.images.store import Images, ImageStore, open_store
from diffusion.model.model_file import LoadedModel
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import mixed_condition
from diffusion.sample.generate import generate
from diffusion.sample.guides import Guides
from diffusion.system.devices import float64_device
from diffusion.system.errors import Interrupted
from diffusion.system.limits import MAX_COUNT
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.initial_state import new_state
from diffusion.train.loop import train
from diffusion.train.observers import Observer
from diffusion.train.optimizers.lr_schedule import LRSchedule, learning_rate
from diffusion.train.plan import TrainPlan, plan_training
from diffusion.train.train_state import TrainState

PROFILES = Path(__file__).parent.parent / "profiles"
PROFILE = PROFILES / "fashion-mnist.yaml"
EXTRACTOR = "effnet-lite0-64"
SECONDS, IMAGES, STEPS, BATCH = 240, 2000, 50, 250


class Size(NamedTuple):
    """Seconds of training, None by the plan's steps, and so many images in so many steps of sampling."""

    seconds: float | None = SECONDS
    images: int = IMAGES
    steps: int = STEPS


def prepared(config: Config, folder: Path) -> tuple[ImageStore, ImageStore]:
    """Prepare the configuration's data in the folder; return the training and the test images."""
    prepare(config.data, folder)
    return open_store(folder / "train"), open_store(folder / "test")


class OutOfTime(Interrupted):
    """The time of a training is used up."""


class Stopwatch:
    """The elapsed share of a time, from the creation on."""

    def __init__(self, seconds: float = math.inf) -> None:
        self.seconds, self.steps, self._began = seconds, 0, time.perf_counter()

    def elapsed(self) -> float:
        """Return the seconds since the beginning."""
        return time.perf_counter() - self._began

    def share(self) -> float:
        """Return the elapsed share, at most 1."""
        return min(1.0, self.elapsed() / self.seconds)

    def check(self) -> None:
        """Raise OutOfTime if another step, as long as the mean of those before, would not fit."""
        if self.elapsed() * (1 + 1 / max(1, self.steps)) > self.seconds and self.steps:
            raise OutOfTime("the time is used up", 0)
        self.steps += 1


class ElapsedRate:
    """A schedule of `steps` steps by the elapsed share of the time, as the `lr` of a plan."""

    warmup = cooldown = 0  # those of the schedule are in its rate

    def __init__(self, schedule: LRSchedule, steps: int, watch: Stopwatch) -> None:
        self.schedule, self.steps, self.watch = schedule, steps, watch

    def base_rate(self, step: int, steps: int) -> float:
        """Return the rate at the elapsed share; the step has no effect."""
        at = min(int(self.watch.share() * self.steps), self.steps - 1)
        return learning_rate(self.schedule, at, self.steps)


class Trained(NamedTuple):
    """A finished training, its seconds, and the averages of its weights, by name, at its end and before."""

    state: TrainState
    seconds: float
    averages: dict[str, nn.Module]
    snapshots: dict[str, nn.Module]
    snapshot_step: int = 0


def train_for(
    seconds: float | None,
    plan: TrainPlan,
    store: ImageStore,
    device: torch.device,
    snapshot_at: float = 1.0,
) -> Trained:
    """Train for so many seconds, None for the plan's steps; keep the averages at a share of the time."""
    watch = Stopwatch(seconds or math.inf)
    state = new_state(_timed(plan, watch), device)
    kept: list[tuple[int, dict[str, nn.Module]]] = []

    def check() -> None:
        if watch.share() >= snapshot_at and not kept and state.step:
            kept.append((state.step, copy.deepcopy(averages_of(state))))
        watch.check()

    with suppress(OutOfTime):
        train(state, store, ProcessGroup(device), Observer(), check)
    step, snapshots = kept[0] if kept else (state.step, averages_of(state))
    return Trained(state, watch.elapsed(), averages_of(state), snapshots, step)


def _timed(plan: TrainPlan, watch: Stopwatch) -> TrainPlan:
    """The plan without saves; with a time, without an end and with a rate by the clock."""
    train = plan.train
    profiles = getattr(train, "ema_profiles", None)
    changes: dict[str, Any] = {"val_every": None, "save_every": MAX_COUNT}
    if watch.seconds < math.inf:
        changes |= {"steps": MAX_COUNT, "lr": ElapsedRate(train.lr, train.steps, watch)}
    if profiles:
        changes["ema_profiles"] = profiles.model_copy(update={"every": MAX_COUNT})
    return plan.model_copy(update={"train": train.model_copy(update=changes)})


def averages_of(state: TrainState) -> dict[str, nn.Module]:
    """The averages of the weights by name: the EMA and the power-function ones."""
    train = state.plan.train
    named = zip(train.sigma_rels, state.ema_profiles, strict=True)
    return {f"decay {train.ema_decay:g}": state.ema} | {f"σ_rel {width:g}": ema for width, ema in named}


def images_of(
    loaded: LoadedModel,
    settings: SampleSettings,
    count: int,
    device: torch.device,
    guide: LoadedModel | None = None,
) -> Images:
    """So many images of a model, which a guide may guide: uint8 (N, H, W, C)."""
    made = []
    for start in range(0, count, BATCH):
        part = range(start, min(start + BATCH, count))
        condition = mixed_condition(loaded.artefact, settings, part)
        made.append(to_nhwc(generate(loaded, settings, part, condition, device, guides=Guides(guide))))
    return np.concatenate(made)


def ours(config: Config, store: ImageStore, size: Size, device: torch.device) -> tuple[Images, str]:
    """Images of the configuration's training of so many seconds, and what it was."""
    plan = plan_training(config, store.meta, device)
    trained = train_for(size.seconds, plan, store, device)
    loaded, settings = LoadedModel(trained.state.ema, plan), SampleSettings(steps=size.steps)
    images = images_of(loaded, settings, size.images, device)
    count = sum(parameter.numel() for parameter in trained.state.network.parameters())
    steps, batch = trained.state.step, plan.train.batch_size
    return images, f"{count:,} parameters, {steps} steps of batch {batch}, {trained.seconds:.0f} s"


class Judge:
    """The Fréchet distance to a set of images."""

    def __init__(
        self,
        real: Images,
        device: torch.device,
        extractor: str = EXTRACTOR,
        weights: Path | None = None,
        sha256: str | None = None,
    ) -> None:
        self._extractor = load_extractor(extractor, weights, float64_device(device), sha256)
        self._features = self.features(real)
        self._reference = statistics(self._features)

    def part(self, rows: slice) -> "Judge":
        """Return the judge by these rows of the set."""
        other = copy.copy(self)
        other._reference = statistics(self._features[rows])
        return other

    def features(self, images: Images) -> Any:
        """Return the features of images, from which every part computes its distance."""
        return extract(self._extractor, images).features

    def distance(self, features: Any) -> float:
        """Return the distance of images with these features."""
        return frechet_distance(statistics(features), self._reference)

    def __call__(self, images: Images) -> float:
        """Return the distance of images."""
        return self.distance(self.features(images))
