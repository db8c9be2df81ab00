"""The same network in this library and in its peers, each with its default settings.

| contender | what runs |
| --- | --- |
| auto | this library with `precision: auto` and `compile: auto` |
| fp32 | this library in float32, not compiled |
| diffusers | UNet2DModel of the very same shape (what `diffctl export diffusers` writes), DDIMPipeline |
| ddpm-pytorch | denoising-diffusion-pytorch's Unet and GaussianDiffusion, its own blocks at this width |
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

CPU = torch.device("cpu")
STEPS = 10  # of DDIM
CONTENDERS = ("auto", "fp32", "diffusers", "ddpm-pytorch")


class Shape(NamedTuple):
    """A network and a batch: `model` is params.yaml's section, images are `channels` × 32 × 32."""

    model: dict[str, Any]
    channels: int
    batch: int


SHAPES = {
    "S": Shape(
        {
            "channels": 32,
            "channel_mult": [1, 2, 2],
            "num_res_blocks": 1,
            "attention_resolutions": [8],
            "heads": 4,
        },
        1,
        64,
    ),
    "M": Shape(
        {
            "channels": 64,
            "channel_mult": [1, 2, 2, 2],
            "num_res_blocks": 2,
            "attention_resolutions": [16, 8],
            "heads": 4,
        },
        3,
        16,
    ),
}


class Work(NamedTuple):
    """One training step of a batch, one DDIM sample of a batch, and the number of parameters."""

    train: Callable[[], object]
    sample: Callable[[], object]
    parameters: int


def build(contender: str, shape: Shape) -> Work:
    """The contender's two loops over random images, with newly initialised weights."""
    torch.manual_seed(0)
    if contender == "diffusers":
        return diffusers(shape)
    if contender == "ddpm-pytorch":
        return ddpm_pytorch(shape)
    return ours("auto" if contender == "auto" else "fp32", shape)


def ours(precision: str, shape: Shape) -> Work:
    """All of a training step: drawing the batch, loss, backward, clipping, AdamW, EMA."""
    from diffusion.images.store import ImageStore
    from diffusion.model.model_file import LoadedModel
    from diffusion.protocol.settings import SampleSettings
    from diffusion.sample.class_labels import labels_condition
    from diffusion.sample.generate import generate
    from diffusion.train.batch import ImageLoader, draw_batch
    from diffusion.train.distributed.process_group import ProcessGroup
    from diffusion.train.gradients import GradientAccumulator
    from diffusion.train.train_step import new_state, train_step

    plan, meta = described(precision, shape)
    images = np.random.default_rng(0).integers(0, 256, (256, 32, 32, shape.channels), dtype=np.uint8)
    store = ImageStore(Path(), images, None, meta)
    state = new_state(plan, CPU)
    gradients, data = GradientAccumulator(plan, state.network, ProcessGroup(CPU)), ImageLoader(store, CPU)

    def train() -> object:
        return train_step(state, gradients, draw_batch(plan, state.time_sampler, data, state.step))

    def sample() -> object:
        settings, condition = SampleSettings(steps=STEPS), labels_condition(plan, None, shape.batch)
        return generate(LoadedModel(state.ema, plan), settings, range(shape.batch), condition, CPU)

    return Work(train, sample, count(state.network))


def described(precision: str, shape: Shape) -> tuple[Any, dict[str, Any]]:
    """Return our plan with the peers' settings (ε, L_simple, fixed variance) and the data's metadata."""
    from diffusion.config import parse
    from diffusion.train.plan import plan_training

    meta = {
        "name": "digits", "classes": [], "counts": [], "channels": shape.channels, "image_size": 32,
        "digest": "0",
    }  # fmt: skip
    values = {
        "data": {"name": "digits"},
        "model": {**shape.model, "class_cond": False},
        "process": {"schedule": "linear", "variance": "small", "loss": "simple"},
        "train": {"steps": 1000, "batch_size": shape.batch, "lr": 1e-4, "precision": precision},
        "sample": {"num_images": 2},
        "sweep": {"steps": [STEPS], "eta": [0.0]},
        "evaluate": {},
    }
    return plan_training(parse(values, "benchmark"), meta, CPU), meta


def diffusers(shape: Shape) -> Work:
    """The loop of diffusers' training examples and its DDIMPipeline."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    from diffusion.interop.to_diffusers import unet_config
    from diffusion.model.unet import UNet

    plan, _ = described("fp32", shape)
    network = UNet2DModel(**unet_config(UNet(plan.network)))
    scheduler = DDIMScheduler()
    images = random_images(shape)

    def loss() -> torch.Tensor:
        noise = torch.randn_like(images)
        t = torch.randint(0, 1000, (len(images),))
        return F.mse_loss(network(scheduler.add_noise(images, noise, t), t).sample, noise)

    pipeline = DDIMPipeline(network, scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def sample() -> object:
        network.eval()
        return pipeline(batch_size=shape.batch, num_inference_steps=STEPS, output_type="np")

    return Work(trainer(network, loss), sample, count(network))


def ddpm_pytorch(shape: Shape) -> Work:
    """GaussianDiffusion: a call computes a batch's loss, `sample` is DDIM for fewer steps."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    model = shape.model
    network = Unet(dim=model["channels"], dim_mults=tuple(model["channel_mult"]), channels=shape.channels)
    diffusion = GaussianDiffusion(network, image_size=32, timesteps=1000, sampling_timesteps=STEPS)
    images = random_images(shape).add(1).div(2)

    def sample() -> object:
        network.eval()
        return diffusion.sample(batch_size=shape.batch)

    return Work(trainer(network, lambda: diffusion(images)), sample, count(network))


def trainer(network: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
    """A step as the peers' own examples write it."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> object:
        network.train()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return None

    return step


def random_images(shape: Shape) -> torch.Tensor:
    """(B, C, 32, 32) in [−1, 1]."""
    return torch.rand(shape.batch, shape.channels, 32, 32) * 2 - 1


def count(network: torch.nn.Module) -> int:
    """The number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())
