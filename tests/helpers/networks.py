"""Small networks with random weights; a newly initialised UNet outputs zero."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion.config import Config, load
from diffusion.images.store import Images, open_store
from diffusion.layout import MODEL, SAMPLES
from diffusion.model.classifier import Classifier, ClassifierArtefact
from diffusion.model.model_file import Artefact, DataCard, LoadedModel, save_artefact
from diffusion.model.network_registry import NetworkSpec, build_network
from diffusion.model.unet_config import UNetSpec
from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.grid import grid
from tests.conftest import write_params
from tests.helpers import papers


def spec_of(**changes: Any) -> UNetSpec:
    """Return a conditional 8×8 network with learned variance and the given changes."""
    values: dict[str, Any] = {
        "channels": 8,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "attention_resolutions": (4,),
        "head_channels": 8,
        "image_size": 8,
        "in_channels": 1,
        "out_channels": 2,
        "num_classes": 10,
        "null_class": True,
    }
    return UNetSpec(**{**values, **changes})


def randomise(network: torch.nn.Module, seed: int = 0, scale: float = 1.0) -> None:
    """Set weights of variance about 1/fan-in and biases of 0.1 from the seed, in place."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.copy_(torch.randn(parameter.shape, generator=source) * scale / fan_in**0.5)
        for module in network.modules():
            if isinstance(module, torch.nn.GroupNorm):
                module.weight += 1


def network_of(spec: NetworkSpec, seed: int = 0) -> Any:
    """Return a network of this spec with random weights, in eval mode."""
    network = build_network(spec)
    randomise(network, seed)
    return network.eval().requires_grad_(False)


def artefact_of(spec: NetworkSpec, timesteps: int = 100, **changes: Any) -> Artefact:
    """Return the metadata of a model file with this network."""
    learned = spec.learned_variance
    process = ProcessConfig(
        timesteps=timesteps,
        variance="learned" if learned else "small",
        loss="hybrid" if learned else "simple",
    )
    classes = tuple(f"class{i}" for i in range(spec.num_classes))
    counts = tuple(range(1, spec.num_classes + 1))
    values: dict[str, Any] = {
        "network": spec,
        "process": process,
        "train": {"p_uncond": 0.1 if spec.null_class else 0.0},
        "data": DataCard(name="test", classes=classes, counts=counts, digest="0"),
        "step": 1,
        "precision": "fp32",
    }
    return Artefact(**{**values, **changes})


def loaded_model(seed: int = 0, process: dict[str, Any] | None = None, **changes: Any) -> LoadedModel:
    """Return a model with random weights, with changes to `spec_of` and to the process of `artefact_of`."""
    spec = spec_of(**changes)
    artefact = artefact_of(spec)
    section = artefact.process.model_copy(update=process or {})
    return LoadedModel(network_of(spec, seed), artefact.model_copy(update={"process": section}))


def counting(model: LoadedModel, rows: list[int]) -> LoadedModel:
    """Return the model with a network that appends the rows of each forward pass to `rows`."""

    def network(
        x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None, **further: torch.Tensor
    ) -> torch.Tensor:
        rows.append(len(x))
        output: torch.Tensor = model.network(x, t, labels, **further)
        return output

    network.state_dict = model.network.state_dict  # type: ignore[attr-defined]
    return model._replace(network=network)  # type: ignore[arg-type]


def loaded_classifier(**changes: Any) -> LoadedModel:
    """Return a classifier of ten classes with random weights."""
    spec = spec_of(**{"out_channels": 10, "null_class": False, **changes})
    network = Classifier(spec)
    randomise(network)
    artefact = artefact_of(spec.model_copy(update={"out_channels": spec.in_channels}))
    process = ProcessConfig(timesteps=100)
    values = {**artefact.model_dump(), "network": spec, "kind": "classifier", "process": process}
    return LoadedModel(network.eval().requires_grad_(False), ClassifierArtefact(**values))


def optimal_log_variance(data: papers.GaussianData, grid: TimeGrid, i: int) -> torch.Tensor:
    """Return log Σ of the true reverse process q(x_{t−1}|x_t) from the grid's time `i` for Gaussian data."""
    alpha_bar = grid.alphas_cumprod[i]
    of_x0 = grid.alpha_prev[i] * grid.betas[i] / (1 - alpha_bar)
    return (grid.posterior_variance[i] + of_x0**2 * data.x0_variance(alpha_bar)).log()


class OptimalNetwork(torch.nn.Module):
    """The exact reverse process for pixels from N(mean, std²), one mean per label: ε, and v of its variance.

    The variance is that of the process with all timesteps (iDDPM eq. 15).
    """

    def __init__(self, process: ProcessConfig, std: float, means: Sequence[float] = (0.0,)) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1), requires_grad=False)  # determines its device
        self.grid = build_process(process).full_grid()
        self.means, self.std = torch.tensor(means, dtype=torch.float64), std

    def forward(self, x: torch.Tensor, t: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        grid, i = self.grid, int(t[0])
        means = self.means[:1] if labels is None else self.means[labels]
        data = papers.GaussianData(means.reshape(-1, 1, 1, 1), self.std)
        small, large = grid.posterior_log_variance_clipped[i], grid.betas[i].log()
        v = 2 * (optimal_log_variance(data, grid, i) - small) / (large - small) - 1
        eps = data.eps(x.double(), grid.alphas_cumprod[i])
        return torch.cat([eps, torch.full_like(eps, float(v))], 1).float()


def small_model(path: Path, seed: int = 0, **shape: Any) -> Path:
    """Write a model file of this shape with random weights from the seed."""
    spec = spec_of(**shape)
    save_artefact(path, network_of(spec, seed).state_dict(), artefact_of(spec))
    return path


def edm_model(path: Path) -> Path:
    """Write a model file of process edm with random weights."""
    spec, process = spec_of(out_channels=1), ProcessConfig(schedule="edm")
    save_artefact(path, network_of(spec).state_dict(), artefact_of(spec, process=process))
    return path


def with_model(folder: Path, **sections: dict[str, Any]) -> Config:
    """Write params.yaml and a model into the folder; returns the config."""
    write_params(folder, **sections)
    small_model(folder / MODEL)
    return load(folder / "params.yaml")


def cell_images(folder: Path) -> dict[str, Images]:
    """Return the images of every cell of the folder's grid."""
    config = load(folder / "params.yaml")
    cells = grid(config.sample, config.sweep)
    return {cell.name: np.array(open_store(folder / SAMPLES / cell.name).images) for cell in cells}


def assert_equal_but_for_rounding(images: Images, wanted: Images) -> None:
    """Assert a difference of at most one grey level on under 0.1% of the pixels."""
    difference = np.abs(images.astype(int) - wanted.astype(int))
    assert images.shape == wanted.shape
    assert difference.max() <= 1
    assert np.count_nonzero(difference) < 0.001 * difference.size
