"""Sampling on a GPU, by this library and by diffusers' DDIMPipeline, for `python -m benchmarks.gpu`.

Both are compiled and in bf16, at the same number of DDIM steps. The pipeline supports neither classes nor a
learned variance: its network has the same shape without them, at the same cost.
"""

import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu_measures import Result, Size, Window, flop, peak, synchronize
from diffusion.model.model_file import LoadedModel
from diffusion.model.precision import freeze
from diffusion.model.unet import UNet
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.class_labels import mixed_condition
from diffusion.sample.generate import generate
from diffusion.train.loop import allow_tf32
from diffusion.train.plan import TrainPlan


def ours(plan: TrainPlan, eta: float, size: Size, device: torch.device) -> Result:
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


def diffusers(plan: TrainPlan, eta: float, size: Size, device: torch.device) -> Result:
    """Measure DDIMPipeline with its network in bf16 and compiled, with NumPy output."""
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    from diffusion.interop.to_diffusers import unet_config

    plain = {"num_classes": 0, "null_class": False, "out_channels": plan.network.in_channels}
    same = {"time_scale": 1.0, "heads": None, "head_channels": 64}
    spec = plan.network.model_copy(update={**plain, **same})
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
