"""Training and sampling on a GPU, by this library and by diffusers, for `python -m benchmarks.gpu`.

Both are in bf16 and compiled, with a UNet2DModel of the same shape. DDIMPipeline supports neither classes nor
a learned variance: its network has the same shape without them, at the same cost.
"""

import itertools
import math
import statistics
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.gpu_measures import Result, Size, Window, flop, peak, synchronize
from diffusion.config import load
from diffusion.images.store import ImageStore, write_store
from diffusion.model.model_file import LoadedModel
from diffusion.model.precision import freeze
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.class_labels import mixed_condition
from diffusion.sample.generate import generate
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.loop import allow_tf32, train
from diffusion.train.lr_schedule import learning_rate
from diffusion.train.observers import Observer
from diffusion.train.plan import TrainPlan, plan_training
from diffusion.train.train_step import new_state

ROOT = Path(__file__).parent.parent
SIZES = {"cifar10": 32, "imagenet64": 64, "imagenet64-adm": 64}
# UNet2DModel lacks a time scale, which costs nothing, and one number of heads for all widths.
SAME_COST = {"time_scale": 1.0, "heads": None, "head_channels": 64}
CLASSES = {"cifar10": 0, "imagenet64": 1000, "imagenet64-adm": 1000}


class Clock(Observer):
    """Notes when every step's work was done, at the logging that reads the device; then has some profiled."""

    def __init__(self, size: Size, device: torch.device) -> None:
        self.at: list[tuple[int, float]] = []
        self.window = Window(device)
        self._size, self._device = size, device

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Note the time."""
        if step <= self._size.warm + self._size.timed:
            self.at.append((step, time.perf_counter()))

    def progress(self, step: int, total: int, values: dict[str, float]) -> None:
        """Profile the steps that are not timed any more."""
        if step == self._size.warm + self._size.timed:
            self.window.open()


@cache
def described(profile: str, size: Size, device: torch.device, folder: Path) -> tuple[TrainPlan, ImageStore]:
    """The profile's training of a few steps, on random images, which are written once."""
    config = load(ROOT / f"profiles/{profile}.yaml")
    pixels, classes = config.data.image_size or SIZES[profile], CLASSES[profile]
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (size.data, pixels, pixels, 3), dtype=np.uint8)
    labels = draw.integers(0, classes, len(images)) if classes else None
    names = [str(number) for number in range(classes)]
    counts = np.bincount(labels, minlength=classes).tolist() if classes else []
    meta = {"name": profile, "classes": names, "counts": counts, "image_size": pixels, "channels": 3}
    store = write_store(folder / profile, images, labels, meta)
    plan = plan_training(config, store.meta, device)
    steps = {
        "batch_size": size.batch(profile),
        "steps": size.warm + size.timed + size.profiled,
        "log_every": size.log_every,
        "microbatch": "auto",
        "compile": size.compile,
    }
    network = plan.network
    if size.small:
        few = {
            "channels": 64,
            "channel_mult": (1, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (pixels // 2,),
        }
        network = UNetSpec(**{**network.model_dump(), **few})
    values = {**plan.train.model_dump(), **steps}
    return plan.model_copy(update={"train": type(plan.train)(**values), "network": network}), store


def train_ours(plan: TrainPlan, store: ImageStore, size: Size, device: torch.device) -> Result:
    """`diffusion.train.loop.train` as `diffctl stage train` calls it, without saves and previews."""
    clock = Clock(size, device)
    with peak(device) as memory:
        state = new_state(plan, device)
        train(state, store, ProcessGroup(device), clock, lambda state: None, lambda: None)
        clock.window.close()
    after = [(step, at) for step, at in clock.at if step >= size.warm]
    windows = [(step - before) / (at - since) for (before, since), (step, at) in itertools.pairwise(after)]
    rate = statistics.median(windows) * plan.train.batch_size
    return Result(rate, memory(), flop(plan.network, backward=True), clock.window.idle, clock.window.top)


def train_diffusers(plan: TrainPlan, store: ImageStore, size: Size, device: torch.device) -> Result:
    """The loop of diffusers' training example: autocast, AdamW, clipping, EMA, reading the loss each step."""
    from diffusers import DDPMScheduler, UNet2DModel
    from diffusers.training_utils import EMAModel

    from diffusion.interop.to_diffusers import unet_config

    config, count = plan.train, plan.train.batch_size
    spec = plan.network.model_copy(update=SAME_COST)
    last = size.warm + size.timed
    with peak(device) as memory:
        network = UNet2DModel(**unet_config(UNet(spec))).to(device).train()
        fast = torch.compile(network, dynamic=False) if size.compile else network
        average = EMAModel(network.parameters(), decay=config.ema_decay, use_ema_warmup=True)
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate(config.lr, 0, last))
        scheduler = DDPMScheduler(plan.process.timesteps)
        loader = torch.utils.data.DataLoader(Images(store), count, shuffle=True, drop_last=True)
        ended: list[float] = []
        while len(ended) < last:
            for images, labels in loader:
                images, labels = images.to(device), labels.to(device)
                noise = torch.randn_like(images)
                t = torch.randint(0, plan.process.timesteps, (count,), device=device)
                noised = scheduler.add_noise(images, noise, t)
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    output = fast(noised, t, labels if plan.network.num_classes else None).sample
                loss = F.mse_loss(output[:, : images.shape[1]].float(), noise)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(network.parameters(), config.grad_clip or math.inf)
                optimizer.step()
                optimizer.zero_grad()
                average.step(network.parameters())
                loss.item()
                ended.append(time.perf_counter())
                if len(ended) == last:
                    break
        synchronize(device)
        times = [b - a for a, b in itertools.pairwise(ended[size.warm - 1 :])]
    return Result(count / statistics.median(times), memory(), flop(plan.network, backward=True))


class Images(torch.utils.data.Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """A store's images in [−1, 1], one at a time, as the example's transforms give them."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        image = torch.from_numpy(np.array(self._store.images[row])).permute(2, 0, 1)
        label = 0 if self._store.labels is None else int(self._store.labels[row])
        return image.float() / 127.5 - 1, torch.tensor(label)


def sample_ours(plan: TrainPlan, eta: float, size: Size, device: torch.device) -> Result:
    """Measure `generate` as the stage `sample` calls it for many images."""
    count, settings = plan.train.batch_size, SampleSettings(steps=size.ddim_steps, eta=eta)
    allow_tf32(True, device)
    model = LoadedModel(freeze(UNet(plan.network).to(device)), plan)
    condition = mixed_condition(plan, settings, range(count))

    def sample() -> None:
        generate(model, settings, range(count), condition, device, fast=size.compile)

    return _timed(sample, count, plan, size, device, window=Window(device))


class InBfloat16(nn.Module):
    """A UNet2DModel in bf16 for a pipeline with float32 images."""

    def __init__(self, network: Any, *, compiled: bool) -> None:
        super().__init__()
        self.config, self.dtype, self.device = network.config, torch.float32, network.device
        network.to(torch.bfloat16)
        self.network = torch.compile(network, dynamic=False) if compiled else network

    def forward(self, x: Tensor, t: Tensor) -> SimpleNamespace:
        """Return the output in float32 as `sample`."""
        return SimpleNamespace(sample=self.network(x.bfloat16(), t).sample.float())


def sample_diffusers(plan: TrainPlan, eta: float, size: Size, device: torch.device) -> Result:
    """Measure DDIMPipeline with its network in bf16 and compiled, with NumPy output."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    from diffusion.interop.to_diffusers import unet_config

    plain = {"num_classes": 0, "null_class": False, "out_channels": plan.network.in_channels}
    spec = plan.network.model_copy(update={**plain, **SAME_COST})
    network = UNet2DModel(**unet_config(UNet(spec))).to(device).eval()
    pipeline = DDIMPipeline(network, DDIMScheduler(plan.process.timesteps))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet = InBfloat16(network, compiled=size.compile)
    count = plan.train.batch_size

    def sample() -> None:
        pipeline(batch_size=count, eta=eta, num_inference_steps=size.ddim_steps, output_type="np")

    return _timed(sample, count, plan, size, device)


def _timed(
    sample: Callable[[], None],
    count: int,
    plan: TrainPlan,
    size: Size,
    device: torch.device,
    window: Window | None = None,
) -> Result:
    """Return the median of several calls, after two for compilation; `window` profiles one more."""
    seconds = []
    with peak(device) as memory:
        for number in range(2 + size.repeats):
            synchronize(device)
            began = time.perf_counter()
            sample()
            synchronize(device)
            if number >= 2:
                seconds.append(time.perf_counter() - began)
        if window is not None:
            window.open()
            sample()
            window.close()
    work = size.ddim_steps * flop(plan.network, backward=False)
    seen = (window.idle, window.top) if window is not None else (None, ())
    return Result(count / statistics.median(seconds), memory(), work, *seen)
