"""Training steps and samples by this library and by diffusers on random images, for other benchmarks.

On a GPU both are in bf16 and compiled. DDIMPipeline supports neither classes nor a learned variance: its
network is without them, at the same cost.
"""

import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ROOT, seconds_of
from diffusion.config import load
from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import ImageStore
from diffusion.interop.to_diffusers import unet_config
from diffusion.model.layers import example_pass
from diffusion.model.model_file import LoadedModel
from diffusion.model.unet import UNet
from diffusion.model.unet_config import UNetSpec
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.conditions import mixed_condition
from diffusion.sample.generate import generate
from diffusion.train.distributed.process_group import ProcessGroup
from diffusion.train.loop import train
from diffusion.train.observers import Observer
from diffusion.train.plan import TrainPlan, plan_training
from diffusion.train.train_state import TrainState

CPU = torch.device("cpu")
SIZES = {"cifar10": 32, "imagenet64": 64}  # of images, by the data's name
# UNet2DModel lacks a time scale, which costs nothing, and one number of heads for all widths.
SAME_COST = {"time_scale": 1.0, "heads": None, "head_channels": 64}


def profile_plan(
    profile: str, device: torch.device, images: int, **changes: Any
) -> tuple[TrainPlan, ImageStore]:
    """Return a profile's training with changes of its section `train`, and so many random images."""
    config = load(ROOT / f"profiles/{profile}.yaml")
    classes = 1000 if config.model.class_cond else 0
    store = random_store(profile, images, SIZES[config.data.name], 3, classes)
    plan = plan_training(config, store.meta, device)
    section = type(plan.train)(**{**plan.train.model_dump(), **changes})
    return plan.model_copy(update={"train": section}), store


def random_store(name: str, images: int, side: int, channels: int, classes: int = 0) -> ImageStore:
    """Return random images in memory, with labels if there are classes."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (images, side, side, channels), dtype=np.uint8)
    labels = draw.integers(0, classes, images) if classes else None
    names = [str(number) for number in range(classes)]
    counts = np.bincount(labels, minlength=classes).tolist() if classes else []
    meta = {"name": name, "classes": names, "counts": counts, "image_size": side, "channels": channels}
    return ImageStore(Path(), pixels, labels, {**meta, "digest": "0"})


class Clock(Observer):
    """Notes the time of each log entry, for which the training loop waits for the device."""

    def __init__(self, log: Callable[[int, dict[str, float]], object]) -> None:
        self.logged: list[tuple[int, float]] = []
        self._log = log

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Log the means and note the time."""
        self._log(step, values)
        self.logged.append((step, time.perf_counter()))


def step_seconds(
    state: TrainState,
    store: ImageStore,
    device: torch.device,
    *,
    warm: int = 1,
    log: Callable[[int, dict[str, float]], object] = lambda step, values: None,
) -> float:
    """Return the median seconds of a step of this library's whole loop, after `warm` steps."""
    clock = Clock(log)
    train(state, store, ProcessGroup(device), clock, lambda: None)
    counted = itertools.pairwise(entry for entry in clock.logged if entry[0] >= warm)
    return statistics.median((at - since) / (step - before) for (before, since), (step, at) in counted)


def our_sample(
    model: LoadedModel, settings: SampleSettings, number: int, device: torch.device, *, fast: bool = False
) -> Callable[[], object]:
    """Return `generate` of so many images, as the stage `sample` calls it."""
    condition = mixed_condition(model.artefact, settings, range(number))
    return lambda: generate(model, settings, range(number), condition, device, fast=fast)


def unet2d(spec: UNetSpec, norm_groups: int | None = None) -> Any:
    """Return diffusers' network of a shape.

    `norm_groups` is another number of groups in each norm, except that of the attention in the middle.
    """
    from diffusers import UNet2DModel

    config = unet_config(UNet(spec))
    return UNet2DModel(**config if norm_groups is None else config | {"norm_num_groups": norm_groups})


def ddim_pipeline(network: nn.Module) -> Any:
    from diffusers import DDIMPipeline, DDIMScheduler

    pipeline = DDIMPipeline(network.eval(), DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def epsilon_loss(
    network: Callable[..., Any], scheduler: Any, images: Tensor, labels: Tensor | None = None
) -> Tensor:
    """Return the mean squared error of ε̂ at random timesteps, as in diffusers' examples."""
    noise, t = torch.randn_like(images), torch.randint(1000, (len(images),), device=images.device)
    output = network(scheduler.add_noise(images, noise, t), t, labels).sample
    return F.mse_loss(output[:, : images.shape[1]].float(), noise)


def trainer(
    network: nn.Module, loss: Callable[[], Tensor], ema: Any = None, lr: float = 1e-4
) -> Callable[[], object]:
    """Return a step as the peers' own examples write it, with diffusers' `ema` if there is one."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)

    def step() -> float:
        network.train()
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.step(network.parameters())
        return value.item()

    return step


def diffusers_step(
    plan: TrainPlan, store: ImageStore, device: torch.device, *, compiled: bool
) -> Callable[[], object]:
    """Return a GPU's step of diffusers' training example: with a loader, autocast and EMA."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    network, scheduler = unet2d(plan.network.model_copy(update=SAME_COST)).to(device), DDPMScheduler()
    forward = torch.compile(network, dynamic=False) if compiled else network
    labels = np.zeros(len(store), np.int64) if store.labels is None else store.labels
    data = TensorDataset(to_model(to_nchw(store.images)), torch.from_numpy(labels))
    loader = DataLoader(data, plan.train.batch_size, shuffle=True, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))

    def loss() -> Tensor:
        images, classes = (part.to(device) for part in next(batches))
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return epsilon_loss(forward, scheduler, images, classes if plan.network.num_classes else None)

    return trainer(network, loss, EMAModel(network.parameters(), use_ema_warmup=True))


def diffusers_sample(
    plan: TrainPlan, settings: SampleSettings, device: torch.device, *, compiled: bool
) -> Callable[[], object]:
    """Return a GPU's DDIMPipeline for a batch of the plan, with NumPy output."""
    plain = {"num_classes": 0, "null_class": False, "out_channels": plan.network.in_channels}
    network = unet2d(plan.network.model_copy(update={**plain, **SAME_COST})).to(device)
    pipeline = ddim_pipeline(network)
    pipeline.unet = InBfloat16(network, compiled=compiled)
    options = {"num_inference_steps": settings.steps, "eta": settings.eta, "output_type": "np"}
    return lambda: pipeline(batch_size=plan.train.batch_size, **options)


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


def finished_seconds(call: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a call until the device's work is done."""

    def finish() -> None:
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return seconds_of(finish)


def images_per_second(
    call: Callable[[], object], plan: TrainPlan, warm: int, timed: int, device: torch.device
) -> float:
    """Return the median rate of calls of a batch each, after `warm` ones that are not counted."""
    seconds = [finished_seconds(call, device) for _ in range(warm + timed)]
    return plan.train.batch_size / statistics.median(seconds[warm:])


def flop(spec: UNetSpec, *, backward: bool) -> int:
    """Return the floating-point operations of one image's forward pass; `backward` adds the backward pass."""
    network = UNet(spec).to("meta")
    with torch.device("meta"), torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        output = example_pass(network, spec).sum()
        if backward:
            output.backward()
    return counter.get_total_flops()


def matrix_rate(device: torch.device, size: int) -> float:
    """Return FLOP/s of a bf16 matrix product, the best of several runs: an upper bound of any network's."""
    a = torch.randn(size, size, dtype=torch.bfloat16, device=device)
    return 2 * size**3 / min(finished_seconds(lambda: a @ a, device) for _ in range(20))
