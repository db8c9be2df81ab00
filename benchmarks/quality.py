"""Quality for the time given: `python -m benchmarks.quality [seconds]`, with the `interop` extra installed.

Fashion-MNIST, 240 s of training from scratch by the profile's own network and settings, its rate's course
fitted to the steps that the time allows; then 2,000 images at 50 DDIM steps, their Fréchet distance to the
test split (fd_effnet_lite0_64). In the same run, diffusers' UNet2DModel of the same shape, as it comes:
float32, AdamW at 1e-3, batch 64, EMA 0.995, DDPMScheduler's defaults. On the GPU where there is one;
DIFFCTL_DEVICE chooses another device. `python -m benchmarks.gpu` measures ours there.

| what | promise on 2 CPU cores |
| --- | --- |
| our distance | at most 450, and half of diffusers' |
| parameters | at most 1.5 million |
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion.config import load
from diffusion.data.prepare import prepare
from diffusion.evaluate.features.extractors import extract, load_extractor
from diffusion.evaluate.scores.torch_fidelity_scores import frechet_distance, statistics
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.images.store import Images, ImageStore, open_store
from diffusion.model.model_file import LoadedModel
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.class_labels import mixed_condition
from diffusion.sample.generate import generate
from diffusion.system.devices import default_device, float64_device
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.gradients import should_compile
from diffusion.train.loop import train
from diffusion.train.observers import Observer
from diffusion.train.plan import TrainPlan, plan_training
from diffusion.train.train_step import TrainState, new_state

CPU = torch.device("cpu")
PROFILES = Path(__file__).parent.parent / "profiles"
PROFILE = PROFILES / "fashion-mnist.yaml"
SECONDS, IMAGES, STEPS, BATCH = 240, 2000, 50, 250
TRIAL_STEPS = 30


class Size(NamedTuple):
    """Seconds of training, and so many images in so many steps of sampling."""

    seconds: float = SECONDS
    images: int = IMAGES
    steps: int = STEPS


class Data(NamedTuple):
    """What is trained on, and what is scored against."""

    train: ImageStore
    test: ImageStore


class Clock(Observer):
    """Notes when steps were done, at the logging that reads the device."""

    def __init__(self) -> None:
        self.at: list[tuple[int, float]] = []

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Note the time."""
        self.at.append((step, time.perf_counter()))


def prepared(profile: Path, folder: Path) -> Data:
    """The profile's data, prepared in the folder."""
    prepare(load(profile).data, folder)
    return Data(open_store(folder / "train"), open_store(folder / "test"))


def trained(plan: TrainPlan, store: ImageStore, device: torch.device) -> tuple[TrainState, float]:
    """The plan's training, and its seconds."""
    began, state = time.perf_counter(), new_state(plan, device)
    train(state, store, ProcessGroup(device), Observer(), lambda state: None, lambda: None)
    return state, time.perf_counter() - began


def steps_in(seconds: float, plan: TrainPlan, store: ImageStore, device: torch.device) -> int:
    """Steps of a training of so many seconds, by a short one; what is done once is among the seconds."""
    changes = {
        "log_every": TRIAL_STEPS // 3,
        "steps": TRIAL_STEPS,
        "compile": should_compile(plan.train, device),
    }
    trial, clock, began = _changed(plan, changes), Clock(), time.perf_counter()
    train(new_state(trial, device), store, ProcessGroup(device), clock, lambda state: None, lambda: None)
    (first, since), (last, until) = clock.at[0], clock.at[-1]
    pace = (until - since) / (last - first)
    return max(1, first + int((seconds - (since - began)) / pace))


def _changed(plan: TrainPlan, changes: dict[str, Any]) -> TrainPlan:
    return plan.model_copy(update={"train": plan.train.model_copy(update=changes)})


def ours(store: ImageStore, size: Size, device: torch.device, profile: Path = PROFILE) -> tuple[Images, str]:
    """Images of the profile's own training of about so many seconds there, and what it was."""
    plan = plan_training(load(profile), store.meta, device)
    steps = steps_in(size.seconds, plan, store, device)
    changes = {"steps": steps, "compile": should_compile(plan.train, device)}  # as in the trial
    state, took = trained(_changed(plan, changes), store, device)
    settings, model = SampleSettings(steps=size.steps), LoadedModel(state.ema, plan)
    images = np.concatenate(
        [
            to_nhwc(generate(model, settings, part, mixed_condition(plan, settings, part), device))
            for part in _batches(size.images)
        ]
    )
    count = sum(parameter.numel() for parameter in state.network.parameters())
    return images, f"{count:,} parameters, {steps} steps of batch {plan.train.batch_size}, {took:.0f} s"


def _batches(images: int) -> list[range]:
    return [range(start, min(start + BATCH, images)) for start in range(0, images, BATCH)]


class Judge:
    """The Fréchet distance to a set of images."""

    def __init__(self, real: Images, device: torch.device) -> None:
        self._extractor = load_extractor("effnet-lite0-64", device=float64_device(device))
        self._reference = statistics(extract(self._extractor, real).features)

    def __call__(self, images: Images) -> float:
        """That of these images."""
        return frechet_distance(statistics(extract(self._extractor, images).features), self._reference)


def theirs(store: ImageStore, size: Size, device: torch.device) -> tuple[Images, str]:
    """Images of diffusers' training of so many seconds there, and what it was."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    from diffusion.interop.to_diffusers import unet_config

    config = load(PROFILE)
    simple = config.process.model_copy(update={"variance": "small", "loss": "simple", "prediction": "eps"})
    plan = plan_training(config.model_copy(update={"process": simple}), store.meta, CPU)
    torch.manual_seed(0)
    network = UNet2DModel(**unet_config(new_state(plan, CPU).network)).to(device)
    scheduler = DDPMScheduler()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    ema = EMAModel(network.parameters(), decay=0.995)
    began, steps = time.perf_counter(), 0
    while time.perf_counter() - began < size.seconds:
        rows = torch.randint(len(store), (64,)).numpy()
        x_0 = to_model(to_nchw(store.images[rows])).to(device)
        noise, t = torch.randn_like(x_0), torch.randint(1000, (64,), device=device)
        noisy = scheduler.add_noise(x_0, noise, t)  # type: ignore[arg-type]
        output = network(noisy, t, class_labels=torch.from_numpy(store.labels[rows]).to(device)).sample
        torch.nn.functional.mse_loss(output, noise).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        steps += 1
    took = time.perf_counter() - began
    ema.copy_to(network.parameters())
    count = sum(parameter.numel() for parameter in network.parameters())
    return their_images(
        network, size, device
    ), f"{count:,} parameters, {steps} steps of batch 64, {took:.0f} s"


@torch.no_grad()
def their_images(network: torch.nn.Module, size: Size, device: torch.device) -> Images:
    """The images of DDIMScheduler's defaults."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler()
    scheduler.set_timesteps(size.steps)
    parts = []
    for part in _batches(size.images):
        labels = torch.tensor(part, device=device) % 10
        x = torch.randn(len(labels), 1, 28, 28).to(device)
        for t in scheduler.timesteps:
            output = network(x, t.expand(len(x)).to(device), class_labels=labels).sample
            x = scheduler.step(output, t, x).prev_sample
        parts.append(to_nhwc(to_uint8(x).cpu()))
    return np.concatenate(parts)


def main(seconds: float = SECONDS) -> None:
    """Train both, score both, print a table."""
    size, device = Size(seconds), default_device()
    with tempfile.TemporaryDirectory() as name:
        data = prepared(PROFILE, Path(name))
        judge = Judge(data.test.images, device)
        real = np.asarray(data.train.images[:IMAGES])
        makers = {"ours": ours, "diffusers": theirs, "real": lambda *_: (real, "training images")}
        for what, make in makers.items():
            images, how = make(data.train, size, device)
            print(f"{what:<10} fd_effnet_lite0_64 {judge(images):8.1f}   {how}", flush=True)


if __name__ == "__main__":
    main(*map(float, sys.argv[1:]))
