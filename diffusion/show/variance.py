"""The variance Σ_θ of reverse steps between its bounds β̃ and β, as a model learned it (iDDPM eq. 15)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import Images
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition
from diffusion.process.discrete import require_discrete
from diffusion.process.noise import ImageNoise
from diffusion.process.process_registry import ProcessConfig, build_process
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.settings import SampleSettings
from diffusion.report.figure_base import DASHED, DOTTED, figure_style, line_colour, log_axis, new_figure
from diffusion.sample.generate import model_denoiser
from diffusion.sample.sampling_steps import sampling_grid
from diffusion.show.figure import FigureData, columns
from diffusion.system.errors import UsageError

MAX_STEPS = 40  # at which the model is evaluated
LOG_BELOW = 0.1  # β̃/β below this needs a logarithmic axis
SHARES = (0.1, 0.5, 0.9)  # quantiles of f over pixels

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Variance(FigureData):
    """The `times` of the steps (S,) and β̃/β, which is 0 for the last step to the image.

    At the steps `seen` (K,), `fractions` (3, K) are the quantiles over all pixels of the model's f, with
    log Σ = f·log β + (1−f)·log β̃; None without a model.
    """

    times: NDArray[np.int64] | NDArray[np.float64]
    small: NDArray[np.float64]
    fractions: NDArray[np.float64] | None = None

    @property
    def seen(self) -> NDArray[np.int64]:
        """The steps at which a model is evaluated."""
        return shown_steps(len(self.times))

    @property
    def learned(self) -> NDArray[np.float64] | None:
        """Σ_θ/β (3, K): (β̃/β)^(1−f); NaN at the last step, where log β̃ is infinite."""
        if self.fractions is None:
            return None
        small = self.small.copy()
        if len(small) > 1:
            small[0] = np.nan  # no noise is added there
        return np.asarray(small[self.seen] ** (1 - self.fractions))

    @figure_style()
    def draw(self) -> Figure:
        """Draw the variances over β by t, and f next to them, with bands of quantiles."""
        figure = new_figure(3.1)
        count = 1 if self.fractions is None else 2
        panels = figure.subplots(1, count, squeeze=False)[0]
        is_long = len(self.times) > MAX_STEPS  # so that early steps need a logarithmic axis
        x = self.times + is_long
        beta: dict[str, Any] = {"color": line_colour(1), "linestyle": DASHED, "linewidth": 1.6}
        small: dict[str, Any] = {"color": line_colour(2), "linestyle": DOTTED, "linewidth": 1.6}
        panels[0].plot(x, np.ones(len(x)), label="β, f = 1", **beta)
        panels[0].plot(x[1:], self.small[1:], label="β̃, f = 0", **small)
        panels[0].set_ylabel("variance over β")
        if np.nanmin(self.small[1:], initial=1.0) < LOG_BELOW:
            log_axis(panels[0], "y")
        if self.learned is not None and self.fractions is not None:
            self._bands(panels[0], x, self.learned)
            self._bands(panels[1], x, self.fractions)
            panels[1].axhline(1, **beta)
            panels[1].axhline(0, **small)
            panels[1].set_ylabel("f")
        for axes in panels:
            axes.set_xlabel("t + 1" if is_long else "t")
            if is_long:
                log_axis(axes, "x")
        handles = panels[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside upper left", ncols=4, fontsize=9)
        return figure

    def _bands(self, axes: Axes, x: NDArray[Any], bands: NDArray[np.float64]) -> None:
        """Draw the median, and the band between the other quantiles."""
        at = x[self.seen]
        axes.plot(at, bands[1], color=line_colour(0), linewidth=1.8, label="the model's median")
        style: dict[str, Any] = {"color": line_colour(0), "alpha": 0.18, "linewidth": 0}
        axes.fill_between(at, bands[0], bands[2], label="80% of pixels", **style)

    def lines(self, width: int) -> list[str]:
        """Return a table with about a dozen of the steps."""
        seen, rows = self.seen, [["t", "β̃/β"]]
        if self.learned is not None:
            rows[0] += ["Σ/β", "f, lowest 10%", "median", "highest 10%"]
        for place in np.unique(np.linspace(0, len(seen) - 1, 12).round().astype(int)):
            row = [f"{self.times[seen[place]]:g}", f"{self.small[seen[place]]:.4f}"]
            if self.fractions is not None and self.learned is not None:
                learned = self.learned[1][place]
                row.append("" if np.isnan(learned) else f"{learned:.4f}")
                row += [f"{value:.3f}" for value in self.fractions[:, place]]
            rows.append(row)
        return columns(rows, len(rows[0]))

    def values(self) -> dict[str, Any]:
        """Return the bounds by time, and the model's f at the evaluated times."""
        made: dict[str, Any] = {"times": self.times.tolist(), "small_over_beta": self.small.tolist()}
        if self.fractions is not None:
            names = ("lowest_tenth", "median", "highest_tenth")
            bands = zip(names, self.fractions.tolist(), strict=True)
            made["fraction"] = {"times": self.times[self.seen].tolist(), **dict(bands)}
        return made


def make_grid(config: ProcessConfig, steps: int | None, spacing: str) -> TimeGrid:
    """Return the grid of `steps` steps, by default of all the process's times."""
    process = build_process(config)
    count = steps or require_discrete(process, "show variance without --steps").timesteps
    return sampling_grid(SampleSettings(steps=count, spacing=spacing), process)


def variance_bounds(grid: TimeGrid, shown: str = "its bounds") -> Variance:
    """Return β̃/β along the grid, without a model. The title names what is `shown`."""
    times, small = grid.times.numpy(), (grid.posterior_variance / grid.betas).numpy()
    steps = f"{len(times)} step{'s' * (len(times) != 1)}"
    return Variance(f"The reverse step's variance over β along {steps}: {shown}", times, small)


def learned_variance(
    loaded: LoadedModel,
    grid: TimeGrid,
    images: Images,
    condition: Condition,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Variance:
    """Return the bounds, and f of a model for images (N, H, W, C) noised at times of the grid.

    Image i's noise depends only on (seed, i). UsageError if the model's variance is fixed.
    """
    if not loaded.artefact.network.learned_variance:
        raise UsageError("this model's variance is fixed: train one with process.variance learned")
    device = next(loaded.network.parameters()).device
    denoiser = model_denoiser(loaded)
    x_0 = to_model(to_nchw(images)).to(device)
    shape = (x_0.shape[1], x_0.shape[2], x_0.shape[3])
    noise = ImageNoise(seed, range(len(images)), shape).draw().to(device)
    seen, found = shown_steps(len(grid)), []
    for done, step in enumerate(seen.tolist(), start=1):
        t = grid.times[step]
        with torch.no_grad():
            prediction = denoiser(denoiser.process.q_sample(x_0, t, noise), t.item(), condition.to(device))
        assert prediction.variance_fraction is not None
        found.append(np.quantile(prediction.variance_fraction.float().cpu().numpy(), SHARES))
        progress(done, len(seen))
    bounds = variance_bounds(grid, "the learned variance between its bounds")
    return replace(bounds, fractions=np.stack(found, axis=1))


def shown_steps(steps: int) -> NDArray[np.int64]:
    """Return the steps to evaluate: all if there are few, else spaced as on a logarithmic axis."""
    spread = np.geomspace(1, steps, MAX_STEPS).round().astype(np.int64) - 1
    return np.arange(steps) if steps <= MAX_STEPS else np.unique(spread)
