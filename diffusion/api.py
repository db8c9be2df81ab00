"""The library for notebooks and scripts: train a model in memory and sample it, without files and servers.

`fit` trains any network that maps x (B, C, H, W), t (B,) and labels (B,) to the prediction of its process;
`sample` samples it, and `save_model` writes a network of `build_network` as a model file. Models that
`diffctl` trained are loaded by `load_model` and sampled by `generate`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.model.dit_config import DiTSpec
from diffusion.model.model_file import Artefact, DataCard, load_model, save_artefact
from diffusion.model.network_registry import NetworkSpec, build_network
from diffusion.model.unet_config import UNetSpec
from diffusion.process.denoiser import Condition
from diffusion.process.noise import ImageNoise, counter_generator
from diffusion.process.noise_process import NetworkDenoiser, NoiseProcess, build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings, completed
from diffusion.sample.generate import generate
from diffusion.sample.guidance import guided
from diffusion.sample.sampler import build_sampler, run_sampler
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.system.errors import UsageError
from diffusion.system.output_paths import write_output
from diffusion.train.fit import FitStep, fit, print_progress

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

    Image i depends on the networks, the settings, its label and i alone; the networks are in eval mode during
    the call. Classifier-free guidance needs labels and the `null_label` that the network was trained with;
    autoguidance needs a `guide`, a worse network of the same data, which `settings.guide` names. UsageError
    for settings that the process does not allow, and for those of further networks.
    """
    settings = completed(settings or SampleSettings(), process.config.schedule)
    for name in ("classifier", "base", "cond_noise"):
        if getattr(settings, name):
            raise UsageError(f"sample: {name} is an option of model files: use `generate`, or leave it out")
    if guide is not None and not settings.needs_guide:
        raise UsageError("sample: the guide has no effect: name it, and give guidance, in SampleSettings")
    device = next(network.parameters()).device
    grid = sampling_grid(settings, process)
    noise = ImageNoise(settings.seed, range(count), shape, grid.initial_noise_scale)
    trajectory = build_sampler(settings)(grid, noise.draw().to(device), lambda: noise.draw().to(device))
    worse = None if guide is None else NetworkDenoiser(guide, process)
    denoiser = guided(NetworkDenoiser(network, process), settings, process, worse)
    condition = Condition(count, labels, null_label).to(device)
    with _eval_mode([network] if guide is None else [network, guide]):
        return run_sampler(trajectory, denoiser, condition).x.cpu()


@contextmanager
def _eval_mode(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Put the networks into eval mode; each module returns to its own mode afterwards."""
    modes = {module: module.training for network in networks for module in network.modules()}
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, is_training in modes.items():
            module.training = is_training


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
