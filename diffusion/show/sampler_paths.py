"""Trajectories of the samplers in two dimensions, from the same noise, with an exact denoiser."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import NDArray
from torch import Tensor

from diffusion.analysis.mixture import Mixture, MixtureDenoiser, ring
from diffusion.process.denoiser import Condition
from diffusion.process.noise import counter_generator
from diffusion.process.noise_process import NoiseProcess, build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.options import format_value
from diffusion.protocol.samplers import SAMPLERS
from diffusion.protocol.settings import SampleSettings
from diffusion.report.figure_base import WIDTH, figure_style, line_colour, new_figure
from diffusion.report.theme import LIGHT
from diffusion.sample.sampler import Step, build_sampler, run_sampler
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.show.figure import FigureData, columns

MIXTURE = ring(5, 0.75, 0.08)
ETAS = (0.0, 1.0)  # of samplers that use eta
DRAWN = 7  # drawn paths; more are computed for the numbers
MAX_COLUMNS = 4
OPTIONS = {"heun": {"path": "straight"}}  # so that it follows long steps from large noise
EXACT = SampleSettings(sampler="unipc", spacing="log-snr", steps=500, clip=False)
EDGES = 2.2, 5.0  # least and largest half width of a square: the noise of EDM is far larger than its data


class SamplerPaths(NamedTuple):
    """The paths (S + 1, N, 2) of a sampler from noise to the ends, its NFE, and whether it drew noise."""

    paths: NDArray[np.float64]
    nfe: int
    is_noisy: bool

    @property
    def ends(self) -> NDArray[np.float64]:
        """The ends (N, 2)."""
        return np.asarray(self.paths[-1])


@dataclass(frozen=True)
class Samplers(FigureData):
    """The paths by sampler and η, from the same noise with equal steps, to the `mixture`.

    `exact` (N, 2) are the ends of the exact flow; `data` (N, 2) are points of the mixture.
    """

    mixture: Mixture
    steps: int
    paths_by_sampler: dict[str, SamplerPaths]
    exact: NDArray[np.float64]
    data: NDArray[np.float64]

    def spread(self, points: NDArray[np.float64]) -> float:
        """Return the mean distance from the nearest centre, in standard deviations of the Gaussians."""
        centres = self.mixture.means.numpy()
        nearest = np.linalg.norm(points[:, None] - centres, axis=2).min(axis=1)
        return float(nearest.mean() / self.mixture.std)

    def off(self, paths: SamplerPaths) -> float:
        """Return the median distance of the ends from the exact flow's, in the same unit."""
        distances = np.linalg.norm(paths.ends - self.exact, axis=1)
        return float(np.median(distances) / self.mixture.std)

    @figure_style()
    def draw(self) -> Figure:
        """Draw a square per sampler: paths, ends, and rings of two standard deviations."""
        count = len(self.paths_by_sampler)
        columns = min(count, MAX_COLUMNS)
        rows = math.ceil(count / columns)
        figure = new_figure(rows * (WIDTH / columns + 0.3))
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flatten()
        drawn = [np.abs(paths.paths[:, :DRAWN]).max() for paths in self.paths_by_sampler.values()]
        edge = np.clip(1.05 * max(drawn), *EDGES)
        for number, (name, paths) in enumerate(self.paths_by_sampler.items()):
            panels[number].set_title(f"{name}\nNFE {paths.nfe}", fontsize=9)
            self._panel(panels[number], paths, number, edge)
        for axes in panels[count:]:
            axes.set_visible(False)
        return figure

    def _panel(self, axes: Axes, paths: SamplerPaths, number: int, edge: float) -> None:
        for centre in self.mixture.means.tolist():
            ring = Circle((centre[0], centre[1]), 2 * self.mixture.std, fill=False)
            ring.set(edgecolor=LIGHT["muted"], linewidth=0.8)
            axes.add_patch(ring)
        x, y = paths.paths[:, :DRAWN, 0], paths.paths[:, :DRAWN, 1]
        axes.plot(x, y, color=line_colour(number), linewidth=0.6, alpha=0.5, zorder=1.5)
        axes.plot(x[0], y[0], "o", color=LIGHT["muted"], markersize=1.8)
        axes.plot(x[-1], y[-1], "o", color=line_colour(number), markersize=2.6)
        axes.set(xlim=(-edge, edge), ylim=(-edge, edge), xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_visible(True)

    def lines(self, width: int) -> list[str]:
        """Return a table of the samplers' errors."""
        rows = [["sampler", "nfe", "from exact flow", "from a centre"]]
        for name, paths in self.paths_by_sampler.items():
            error = "adds noise" if paths.is_noisy else f"{self.off(paths):.3f} σ"
            rows.append([name, str(paths.nfe), error, f"{self.spread(paths.ends):.2f} σ"])
        rows.append(["exact flow", "", "0 σ", f"{self.spread(self.exact):.2f} σ"])
        rows.append(["the mixture itself", "", "", f"{self.spread(self.data):.2f} σ"])
        points = f"{len(self.exact)} points, {self.steps} steps"
        return [f"{points}; σ = {self.mixture.std} is a Gaussian's width", "", *columns(rows, 3)]

    def values(self) -> dict[str, Any]:
        """Return the mixture, and each sampler's paths and errors."""
        return {
            "means": self.mixture.means.tolist(),
            "std": self.mixture.std,
            "steps": self.steps,
            "exact": self.exact.tolist(),
            "samplers": {
                name: {
                    "nfe": paths.nfe,
                    "from_exact": self.off(paths),
                    "from_centre": self.spread(paths.ends),
                    "paths": paths.paths.tolist(),
                }
                for name, paths in self.paths_by_sampler.items()
            },
        }


def samplers(
    config: ProcessConfig, steps: int, spacing: str = "uniform", count: int = 400, seed: int = 0
) -> Samplers:
    """Run every sampler of denoisers for `steps` steps from `count` points; UsageError for too many steps."""
    process = build_process(config)
    source = counter_generator("show samplers", seed)
    start = torch.randn(count, 2, generator=source, dtype=torch.float64)
    paths_by_sampler = {}
    for name, entry in SAMPLERS.items():
        if entry.for_consistency:
            continue
        for eta in ETAS if entry.uses_eta and steps > 1 else (0.0,):
            label = f"{name}, η = {format_value(eta)}" if entry.uses_eta else name
            own: dict[str, Any] = {"sampler_options": OPTIONS.get(name, {}), "spacing": spacing}
            settings = SampleSettings(sampler=name, steps=steps, eta=eta, clip=False, **own)
            paths_by_sampler[label] = sampler_paths(process, settings, start, source)
    exact = sampler_paths(process, EXACT, start, source).ends
    title = f"Paths of each sampler in {steps} steps from the same noise, with an exact denoiser"
    return Samplers(title, MIXTURE, steps, paths_by_sampler, exact, MIXTURE.draw(count, source).numpy())


def sampler_paths(
    process: NoiseProcess, settings: SampleSettings, start: Tensor, source: torch.Generator
) -> SamplerPaths:
    """Run a sampler from standard-normal points (N, 2), with the mixture's exact denoiser."""
    visited: list[Step] = []
    shape, grid = (*start.shape, 1, 1), sampling_grid(settings, process)
    start = grid.initial_noise_scale * start
    draws: list[Tensor] = []

    def noise() -> Tensor:
        draws.append(torch.randn(shape, generator=source, dtype=start.dtype))
        return draws[-1]

    trajectory = build_sampler(settings)(grid, start.reshape(shape), noise)
    made = run_sampler(trajectory, MixtureDenoiser(MIXTURE, process), Condition(len(start)), visited.append)
    paths = torch.stack([start, *(step.x.flatten(1) for step in visited)])
    return SamplerPaths(paths.numpy(), made.nfe, bool(draws))
