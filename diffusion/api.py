"""The library for notebooks and scripts: train a model in memory and sample it, without files and servers.

`fit` trains any network that maps x (B, C, H, W), t (B,) and labels (B,) to the prediction of its process;
`sample` samples it. Models that `diffctl` trained are loaded by `load_model` and sampled by `generate`.
"""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion.model.dit_config import DiTSpec
from diffusion.model.model_file import load_model
from diffusion.model.network_registry import build_network
from diffusion.model.unet_config import UNetSpec
from diffusion.process.denoiser import Condition
from diffusion.process.losses import training_losses
from diffusion.process.noise import ImageNoise, counter_generator
from diffusion.process.noise_process import NetworkDenoiser, NoiseProcess
from diffusion.process.process_registry import ProcessConfig, build_process
from diffusion.process.time_samplers import default_time_sampler
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import generate
from diffusion.sample.guidance import guided
from diffusion.sample.sampler import build_sampler, run_sampler
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.system.devices import float64_device

__all__ = [
    "Condition",
    "DiTSpec",
    "PointNetwork",
    "ProcessConfig",
    "SampleSettings",
    "UNetSpec",
    "build_network",
    "build_process",
    "fit",
    "generate",
    "load_model",
    "sample",
]


class PointNetwork(nn.Module):
    """A network for points, (B, C, 1, 1): Fourier features of position and time, then three linear layers.

    `classes` are the labels that it takes, 0 for none.
    """

    def __init__(self, channels: int = 2, timesteps: int = 1000, classes: int = 0, width: int = 128) -> None:
        super().__init__()
        self.frequencies: Tensor
        self.timesteps = timesteps
        source = counter_generator("points", channels, width)
        self.register_buffer("frequencies", 2 * torch.randn(channels + 1, width // 2, generator=source))
        self.classes = nn.Embedding(classes, width) if classes else None
        layers = [nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, channels))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the prediction (B, C, 1, 1) for x at times t (B,)."""
        waves = torch.cat([x.flatten(1), t[:, None] / self.timesteps], dim=1) @ self.frequencies
        features = torch.cat([waves.sin(), waves.cos()], dim=1)
        if self.classes is not None and labels is not None:
            features = features + self.classes(labels)
        output: Tensor = self.layers(features)
        return output[:, :, None, None]


def fit(
    network: nn.Module,
    process: NoiseProcess,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    steps: int,
    batch_size: int = 128,
    lr: float = 2e-3,
    ema_decay: float = 0.995,
    null_label: int | None = None,
    p_uncond: float = 0.1,
    seed: int = 0,
) -> nn.Module:
    """Train a network by AdamW on its device and return its EMA, in eval mode.

    The rate falls from `lr` to 0 by half a cosine. `images` (N, C, H, W) are in about [−1, 1], `labels` (N,)
    are class numbers. With a `null_label` a share `p_uncond` of the labels is replaced by it, for guidance.
    All draws follow from `seed`.
    """
    device = next(network.parameters()).device
    source = counter_generator("fit", seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema_decay))  # type: ignore[no-untyped-call]
    network.train()
    for _ in range(steps):
        rows = torch.randint(len(images), (batch_size,), generator=source)
        t = _times(process, batch_size, source)
        noise = torch.randn(batch_size, *images.shape[1:], generator=source)
        drawn = None if labels is None else labels[rows]
        if drawn is not None and null_label is not None:
            dropped = torch.rand(batch_size, generator=source) < p_uncond
            drawn = torch.where(dropped, null_label, drawn)
        condition = Condition(batch_size, drawn).to(device)
        t = t.to(float64_device(device))  # where the process has its tables
        x_0, noise = images[rows].to(device), noise.to(device)
        loss = training_losses(network, process, x_0, t, noise, condition)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update_parameters(network)
    averaged: nn.Module = ema.module
    return averaged.eval()


def _times(process: NoiseProcess, count: int, source: torch.Generator) -> Tensor:
    """Return `count` times: any timesteps of a discrete process, else of its default distribution."""
    if process.timesteps is not None:
        return torch.randint(process.timesteps, (count,), generator=source)
    uniforms = torch.rand(count, generator=source, dtype=torch.float64)
    return default_time_sampler(process).times(uniforms)


def sample(
    network: nn.Module,
    process: NoiseProcess,
    count: int,
    shape: tuple[int, int, int],
    settings: SampleSettings | None = None,
    labels: Tensor | None = None,
    null_label: int | None = None,
    guide: nn.Module | None = None,
) -> Tensor:
    """Return `count` images (count, *shape) of a network, float32 on the CPU, by 50 steps of DDIM by default.

    Image i depends on the networks, the settings, its label and i alone. Classifier-free guidance needs
    labels and the `null_label` that the network was trained with; autoguidance needs a `guide`, a worse
    network of the same data, which `settings.guide` names. UsageError for settings that the process does not
    allow.
    """
    settings = settings or SampleSettings()
    device = next(network.parameters()).device
    grid = sampling_grid(settings, process)
    noise = ImageNoise(settings.seed, range(count), shape, grid.initial_noise_scale)
    trajectory = build_sampler(settings)(grid, noise.draw().to(device), lambda: noise.draw().to(device))
    worse = None if guide is None else NetworkDenoiser(guide, process)
    denoiser = guided(NetworkDenoiser(network, process), settings, process, worse)
    condition = Condition(count, labels, null_label).to(device)
    return run_sampler(trajectory, denoiser, condition).x.cpu()
