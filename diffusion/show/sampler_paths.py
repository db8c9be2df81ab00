"""Where each sampler goes: the same noise, by a denoiser that is exact, to a mixture in two dimensions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.analysis.mixture import Mixture, MixtureDenoiser, ring
from diffusion.process.condition import Condition
from diffusion.process.noise import counter_generator
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_config import ProcessConfig
from diffusion.process.process_registry import build_process
from diffusion.protocol.option_values import format_value
from diffusion.protocol.samplers import SAMPLERS, build_sampler
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import spaced_timesteps
from diffusion.sample.sampler import Step, run_sampler
from diffusion.show import text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MIXTURE = ring(5, 0.75, 0.08)
ETAS = (0.0, 1.0)  # of a sampler that takes one
DRAWN = 24  # paths that are drawn; more are walked, for the numbers
EDGE = 2.2  # of the drawn square, in which standard-normal noise mostly lies


class SamplerPaths(NamedTuple):
    """The walks of a sampler: `paths` (S + 1, N, 2) from the noise to the ends, and what an end cost."""

    paths: NDArray[np.float64]
    evaluations: int

    @property
    def ends(self) -> NDArray[np.float64]:
        """(N, 2)."""
        return np.asarray(self.paths[-1])


@dataclass(frozen=True)
class Samplers:
    """`walks` by sampler and η, from the same noise in as many steps, to the `mixture`.

    `exact` (N, 2) is where the flow without steps ends; `data` (N, 2) are points of the mixture itself.
    """

    mixture: Mixture
    steps: int
    walks: dict[str, SamplerPaths]
    exact: NDArray[np.float64]
    data: NDArray[np.float64]

    @property
    def title(self) -> str:
        """What the figure shows."""
        return f"Where {self.steps} steps of each sampler go from the same noise, with an exact denoiser"

    def spread(self, points: NDArray[np.float64]) -> float:
        """The mean distance of points from the nearest centre, in the Gaussians' standard deviation."""
        centres = self.mixture.means.numpy()
        nearest = np.linalg.norm(points[:, None] - centres, axis=2).min(axis=1)
        return float(nearest.mean() / self.mixture.std)

    def off(self, walks: SamplerPaths) -> float:
        """The median distance of the ends from the exact flow's, in the same unit."""
        distances = np.linalg.norm(walks.ends - self.exact, axis=1)
        return float(np.median(distances) / self.mixture.std)

    def draw(self) -> "Figure":
        """A square a sampler: the paths, their ends, and the rings of one and two standard deviations."""
        from matplotlib.figure import Figure

        from diffusion.show.drawing import WIDTH, styled

        def fill(figure: Figure) -> None:
            panels = figure.subplots(1, len(self.walks), sharex=True, sharey=True, squeeze=False)[0]
            for number, (axes, (name, walks)) in enumerate(zip(panels, self.walks.items(), strict=True)):
                axes.set_title(f"{name}\n{walks.evaluations} evaluations", fontsize=9)
                self._panel(axes, walks, number)

        return styled(WIDTH / len(self.walks) + 0.3, fill)

    def _panel(self, axes: "Axes", walks: SamplerPaths, number: int) -> None:
        from matplotlib.patches import Circle

        from diffusion.report.theme import LIGHT
        from diffusion.show.drawing import colour

        for centre in self.mixture.means.tolist():
            for times in (1, 2):
                ring = Circle((centre[0], centre[1]), times * self.mixture.std, fill=False)
                ring.set(edgecolor=LIGHT["muted"], linewidth=0.8)
                axes.add_patch(ring)
        x, y = walks.paths[:, :DRAWN, 0], walks.paths[:, :DRAWN, 1]
        axes.plot(x, y, color=colour(number), linewidth=0.6, alpha=0.5, zorder=1.5)
        axes.plot(x[0], y[0], "o", color=LIGHT["muted"], markersize=1.8)
        axes.plot(x[-1], y[-1], "o", color=colour(number), markersize=2.6)
        axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_visible(True)

    def lines(self, width: int) -> list[str]:
        """A table of the samplers, and the ends of each as a plot."""
        rows = [["sampler", "evaluations", "from exact flow", "from a centre"]]
        for name, walks in self.walks.items():
            noisy = name.endswith("η = 1")
            off = "adds noise" if noisy else f"{self.off(walks):.3f} σ"
            rows.append([name, str(walks.evaluations), off, f"{self.spread(walks.ends):.2f} σ"])
        rows.append(["exact flow", "", "0 σ", f"{self.spread(self.exact):.2f} σ"])
        rows.append(["the mixture itself", "", "", f"{self.spread(self.data):.2f} σ"])
        count = len(self.exact)
        lines = [f"{count} points, {self.steps} steps; σ = {self.mixture.std} is a Gaussian's width", ""]
        lines += [*text_table.columns(rows, 3), ""]
        side = max(24, min(width, 120) // len(self.walks) - 2)
        panels = [self._ends(name, walks, side) for name, walks in self.walks.items()]
        fitting = max(1, width // (side + 2))
        for start in range(0, len(panels), fitting):
            rows_of = zip(*panels[start : start + fitting], strict=True)
            lines += ["  ".join(f"{line:<{side}}" for line in row).rstrip() for row in rows_of]
        return lines

    def _ends(self, name: str, walks: SamplerPaths, side: int) -> list[str]:
        """The ends of a sampler's walks in a square, under its name."""
        cells = text_table.dots(walks.ends, EDGE / 2, side, side // 2)
        return [name, *cells]

    def values(self) -> dict[str, Any]:
        """The mixture, where each sampler's points went, and how far off."""
        return {
            "means": self.mixture.means.tolist(),
            "std": self.mixture.std,
            "steps": self.steps,
            "exact": self.exact.tolist(),
            "walks": {
                name: {
                    "evaluations": walks.evaluations,
                    "from_exact": self.off(walks),
                    "from_centre": self.spread(walks.ends),
                    "paths": walks.paths.tolist(),
                }
                for name, walks in self.walks.items()
            },
        }


def samplers(
    config: ProcessConfig, steps: int, spacing: str = "uniform", count: int = 400, seed: int = 0
) -> Samplers:
    """Every sampler's walk of `steps` from `count` points of noise; UsageError where they do not fit."""
    process = build_process(config)
    source = counter_generator("show samplers", seed)
    start = torch.randn(count, 2, generator=source, dtype=torch.float64)
    times = spaced_timesteps(spacing, steps, process.timesteps)
    walks = {}
    for name, entry in SAMPLERS.items():
        for eta in ETAS if entry.stochastic and steps > 1 else (0.0,):
            label = f"{name}, η = {format_value(eta)}" if entry.stochastic else name
            settings = SampleSettings(sampler=name, steps=steps, eta=eta, clip=False)
            walks[label] = sampler_paths(process, times, settings, start, source)
    best = SampleSettings(sampler="dpm-solver++", steps=process.timesteps, clip=False)
    exact = sampler_paths(process, list(range(process.timesteps)), best, start, source).ends
    return Samplers(MIXTURE, steps, walks, exact, MIXTURE.draw(count, source).numpy())


def sampler_paths(
    process: NoiseProcess, times: list[int], settings: SampleSettings, start: Tensor, source: torch.Generator
) -> SamplerPaths:
    """A sampler's walk from points (N, 2) along the times, with a mixture's own denoiser."""
    passed: list[Step] = []
    shape = (*start.shape, 1, 1)
    noise: Callable[[], Tensor] = lambda: torch.randn(shape, generator=source, dtype=start.dtype)  # noqa: E731
    made = run_sampler(
        build_sampler(settings)(process.grid(times), start.reshape(shape), noise),
        MixtureDenoiser(MIXTURE, process),
        Condition(len(start)),
        passed.append,
    )
    paths = torch.stack([start, *(step.x.flatten(1) for step in passed)])
    return SamplerPaths(paths.numpy(), made.asked)
