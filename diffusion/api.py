"""The library for notebooks and scripts: train a model in memory and sample it, without files and servers.

`fit` trains any network that maps x (B, C, H, W), t (B,) and labels (B,) to the prediction of its process;
`sample` samples it, and `save_model` writes a network of `build_network` as a model file. Models that
`diffctl` trained are loaded by `load_model` and sampled by `generate`.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from diffusion.model.dit_config import DiTSpec
from diffusion.model.model_file import Artefact, DataCard, load_model, save_artefact
from diffusion.model.network_registry import NetworkSpec, build_network
from diffusion.model.unet_config import UNetSpec
from diffusion.process.denoiser import Condition
from diffusion.process.noise import ImageNoise, counter_generator
from diffusion.process.noise_process import NetworkDenoiser, NoiseProcess, build_process
from diffusion.process.objective import Batch, TrainedNetwork, build_objective
from diffusion.process.process_registry import ProcessConfig
from diffusion.process.time_samplers import build_time_sampler
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import generate
from diffusion.sample.guidance import guided
from diffusion.sample.sampler import build_sampler, run_sampler
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.system.devices import float64_device
from diffusion.system.errors import UsageError
from diffusion.system.output_paths import write_output
from diffusion.train.batch import stratified_uniforms

__all__ = [
    "Condition",
    "DiTSpec",
    "FitStep",
    "PointNetwork",
    "ProcessConfig",
    "SampleSettings",
    "UNetSpec",
    "build_network",
    "build_process",
    "fit",
    "generate",
    "load_model",
    "print_progress",
    "sample",
    "save_model",
]


def __dir__() -> list[str]:
    """Return the names that are meant for scripts, for completion."""
    return __all__


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


class FitStep(NamedTuple):
    """What `fit` reports after a step: its number from 1, of `steps`, its mean losses, the EMA so far."""

    step: int
    steps: int
    losses: dict[str, float]
    ema: nn.Module


def print_progress(done: FitStep) -> None:
    """Print the losses on stderr, ten times in a training: a callback of `fit`."""
    if done.step * 10 // done.steps > (done.step - 1) * 10 // done.steps:
        losses = ", ".join(f"{name} {value:.4f}" for name, value in done.losses.items())
        print(f"step {done.step:,} of {done.steps:,}: {losses}", file=sys.stderr, flush=True)


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
    p_uncond: float | None = None,
    seed: int = 0,
    callback: Callable[[FitStep], object] | None = None,
) -> nn.Module:
    """Train a network by AdamW on its device and return its EMA, in eval mode.

    The rate falls from `lr` to 0 by half a cosine. `images` (N, C, H, W) are in about [−1, 1], `labels` (N,)
    are class numbers. With a `null_label` a share `p_uncond` (0.1) of the labels is replaced by it, for
    guidance. All draws follow from `seed`. `callback` is called after each step. UsageError for a setting
    that would have no effect, and for a process whose section depends on the images.
    """
    if null_label is not None and labels is None:
        raise UsageError(f"fit: null_label {null_label} has no effect without labels: give labels too")
    if p_uncond is not None and null_label is None:
        raise UsageError(f"fit: p_uncond {p_uncond} has no effect without a null_label: give one too")
    _check_resolved(process, images)
    device = next(network.parameters()).device
    source, time_sampler = counter_generator("fit", seed), build_time_sampler(process)
    objective = build_objective(process)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    ema = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(ema_decay)).eval()  # type: ignore[no-untyped-call]
    network.train()
    for step in range(1, steps + 1):
        rows = torch.randint(len(images), (batch_size,), generator=source)
        uniforms = torch.rand(batch_size, generator=source, dtype=torch.float64)
        if process.config.stratified:
            uniforms = stratified_uniforms(("fit", seed, step), range(batch_size), batch_size)
        t, weights = time_sampler.draw(uniforms)
        noise = torch.randn(batch_size, *images.shape[1:], generator=source)
        drawn = None if labels is None else labels[rows].to(device)
        if drawn is not None and null_label is not None:
            dropped = torch.rand(batch_size, generator=source) < (0.1 if p_uncond is None else p_uncond)
            drawn = torch.where(dropped.to(device), null_label, drawn)
        times = t.to(float64_device(device))  # where the process has its tables
        batch = Batch(images[rows].to(device), drawn, times, weights.to(device), noise.to(device))
        losses = objective(TrainedNetwork(network, process), batch, step - 1)
        means = {name: (value * batch.weights).mean() for name, value in losses.items()}
        optimizer.zero_grad()
        means["loss"].backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        ema.update_parameters(network)
        if time_sampler.learns:
            time_sampler.update(t, losses["loss"].detach().cpu())
        if callback is not None:
            callback(FitStep(step, steps, {name: mean.item() for name, mean in means.items()}, ema.module))
    averaged: nn.Module = ema.module
    return averaged


def _check_resolved(process: NoiseProcess, images: Tensor) -> None:
    """Raise UsageError for a process with a setting that is to follow from the images."""
    channels, height, width = images.shape[1:]
    resolved = process.config.resolve((channels, height, width), float(images.std()))
    for name, value in resolved:
        if value != getattr(process.config, name):
            how = f"set {name}, or use process.config.resolve(images.shape[1:], float(images.std()))"
            raise UsageError(f"fit: process.{name} is to follow from the images: {how}")


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


def save_model(
    path: Path | str,
    network: nn.Module,
    process: NoiseProcess,
    *,
    name: str = "script",
    classes: Sequence[str] | None = None,
) -> None:
    """Write a network of `build_network` as a model file, for `load_model` and `diffctl sample --model`.

    `name` is that of the data, `classes` are those of the labels in order, by default their numbers.
    UsageError for another network: a model file describes an entry of model.name.
    """
    spec = getattr(network, "spec", None)
    if not isinstance(spec, NetworkSpec):
        kind = type(network).__name__
        raise UsageError(f"save_model: {kind} has no spec: use a network of build_network, or a plugin's")
    classes = tuple(map(str, range(spec.num_classes)) if classes is None else classes)
    data = DataCard(name=name, classes=classes, digest="script")
    artefact = Artefact(
        network=spec, process=process.config, data=data, train={}, step=0, precision="fp32"
    )  # step 0: unknown
    save_artefact(Path(path), network.state_dict(), artefact, write_output)
