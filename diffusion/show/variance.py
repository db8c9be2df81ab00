"""Σ_θ of a reverse step between its bounds β̃ and β, as a trained model has learned it (iDDPM eq. 15)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion.images.pixels import to_model, to_nchw
from diffusion.images.store import Images
from diffusion.model.model_file import LoadedModel
from diffusion.process.condition import Condition
from diffusion.process.noise import ImageNoise
from diffusion.process.process_config import ProcessConfig
from diffusion.process.process_registry import build_process
from diffusion.process.time_grid import TimeGrid
from diffusion.protocol.spacing import spaced_timesteps
from diffusion.sample.generate import model_denoiser
from diffusion.show import text_table
from diffusion.system.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_STEPS = 40  # times at which a model is asked, at most
LOG_BELOW = 0.1  # of β̃/β, whose variances then need a logarithmic axis
SHARES = (0.1, 0.5, 0.9)  # of the pixels, whose f are below the three lines that are drawn

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Variance:
    """Of a walk's steps (S,): the `times`, and β̃/β, which is 0 for the step to the image.

    At the steps `seen` (K,) `fractions` (3, K) are the lowest tenth, the median and the highest tenth, of
    all pixels, of what a model says: f of log Σ = f·log β + (1−f)·log β̃. Both are None without a model.
    """

    times: NDArray[np.int64]
    small: NDArray[np.float64]
    seen: NDArray[np.int64] | None = None
    fractions: NDArray[np.float64] | None = None

    @property
    def learned(self) -> NDArray[np.float64] | None:
        """Σ_θ/β (3, K): (β̃/β)^(1−f), where the clipped β̃ stands for that of the step to the image."""
        if self.fractions is None or self.seen is None:
            return None
        small = self.small.copy()
        if len(small) > 1:
            small[0] = np.nan  # log β̃ is infinite there, and no noise is added
        return np.asarray(small[self.seen] ** (1 - self.fractions))

    @property
    def title(self) -> str:
        """What the figure shows."""
        steps = f"{len(self.times)} step{'s' * (len(self.times) != 1)}"
        what = "its bounds" if self.fractions is None else "the learned variance between its bounds"
        return f"The reverse step's variance over β along {steps}: {what}"

    def draw(self) -> "Figure":
        """The variances over β by t, and beside them f, both with the middle of the pixels as a band."""
        from matplotlib.figure import Figure

        from diffusion.show.drawing import DASHED, DOTTED, colour, plain_log, styled

        def fill(figure: Figure) -> None:
            count = 1 if self.fractions is None else 2
            panels = figure.subplots(1, count, squeeze=False)[0]
            x = self.times + self._is_long
            ends: dict[str, Any] = {"linewidth": 1.6}
            panels[0].plot(x, np.ones(len(x)), color=colour(1), linestyle=DASHED, label="β, f = 1", **ends)
            panels[0].plot(x[1:], self.small[1:], color=colour(2), linestyle=DOTTED, label="β̃, f = 0", **ends)
            panels[0].set_ylabel("variance over β")
            if np.nanmin(self.small[1:], initial=1.0) < LOG_BELOW:
                plain_log(panels[0], "y")
            if self.learned is not None and self.fractions is not None:
                self._bands(panels[0], self.learned)
                self._bands(panels[1], self.fractions)
                panels[1].axhline(1, color=colour(1), linestyle=DASHED, **ends)
                panels[1].axhline(0, color=colour(2), linestyle=DOTTED, **ends)
                panels[1].set_ylabel("f")
            for axes in panels:
                axes.set_xlabel("t + 1" if self._is_long else "t")
                if self._is_long:
                    plain_log(axes, "x")
            figure.legend(
                *panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, fontsize=9
            )

        return styled(3.1, fill)

    @property
    def _is_long(self) -> bool:
        """Whether the walk takes so many of the times that small ones need a logarithmic axis to be seen."""
        return len(self.times) > MAX_STEPS

    def _bands(self, axes: "Axes", bands: NDArray[np.float64]) -> None:
        """The median as a line within the middle of the pixels."""
        from diffusion.show.drawing import colour

        at = self.times[self.seen] + self._is_long
        axes.plot(at, bands[1], color=colour(0), linewidth=1.8, label="the model's median")
        axes.fill_between(
            at, bands[0], bands[2], color=colour(0), alpha=0.18, linewidth=0, label="80% of pixels"
        )

    def lines(self, width: int) -> list[str]:
        """The curves, and a table of them at some times."""
        x = (self.times + self._is_long).astype(np.float64)
        curves = {"β": (x, np.ones(len(x))), "β̃": (x[1:], self.small[1:])}
        if self.learned is not None:
            curves["Σ, median"] = (x[self.seen], self.learned[1])
        about = f"variance over β by t{' + 1' * self._is_long}"
        lines = text_table.plot(curves, width, log_x=self._is_long, about=about)
        return [*lines, "", *text_table.columns(self._rows(), 6 if self.fractions is not None else 2)]

    def _rows(self) -> list[list[str]]:
        """The table, with about a dozen of the steps."""
        seen = shown_steps(len(self.times)) if self.seen is None else self.seen
        picked = np.unique(np.linspace(0, len(seen) - 1, 12).round().astype(int))
        heads = ["t", "β̃/β"] + (
            ["Σ/β", "f, lowest 10%", "median", "highest 10%"] if self.seen is not None else []
        )
        rows = [heads]
        for place in picked:
            step = seen[place]
            row = [str(self.times[step]), f"{self.small[step]:.4f}"]
            if self.fractions is not None and self.learned is not None:
                learned = self.learned[1][place]
                row += ["" if np.isnan(learned) else f"{learned:.4f}"]
                row += [f"{value:.3f}" for value in self.fractions[:, place]]
            rows.append(row)
        return rows

    def values(self) -> dict[str, Any]:
        """The bounds by time, and what the model says by the times at which it was asked."""
        made: dict[str, Any] = {"times": self.times.tolist(), "small_over_beta": self.small.tolist()}
        if self.fractions is not None and self.seen is not None:
            names = ("lowest_tenth", "median", "highest_tenth")
            bands = zip(names, self.fractions.tolist(), strict=True)
            made["fraction"] = {"times": self.times[self.seen].tolist(), **dict(bands)}
        return made


def make_grid(config: ProcessConfig, steps: int | None, spacing: str) -> TimeGrid:
    """The grid of that many steps, all of the process's times by default."""
    process = build_process(config)
    return process.grid(spaced_timesteps(spacing, steps or process.timesteps, process.timesteps))


def variance_bounds(grid: TimeGrid) -> Variance:
    """β̃/β along the grid, with no model."""
    return Variance(grid.times.numpy(), (grid.posterior_variance / grid.betas).numpy())


def learned_variance(
    loaded: LoadedModel,
    grid: TimeGrid,
    images: Images,
    condition: Condition,
    seed: int = 0,
    progress: Progress | None = None,
) -> Variance:
    """The bounds, and f of a model for images (N, H, W, C) that are noised at times of the grid.

    Image i's noise depends on (seed, i) alone and is the same at all times. UsageError where the model's
    variance is fixed.
    """
    if not loaded.artefact.network.learned_variance:
        raise UsageError(
            "this model's variance is fixed: a learned one is trained by process.variance learned"
        )
    device = next(loaded.network.parameters()).device
    denoiser = model_denoiser(loaded)
    x_0 = to_model(to_nchw(images)).to(device)
    shape = (x_0.shape[1], x_0.shape[2], x_0.shape[3])
    noise = ImageNoise(seed, range(len(images)), shape).draw().to(device)
    seen, found = shown_steps(len(grid)), []
    for done, step in enumerate(seen.tolist(), start=1):
        t = grid.times[step]
        with torch.no_grad():
            said = denoiser(denoiser.process.q_sample(x_0, t, noise), int(t), condition.to(device))
        assert said.variance_fraction is not None
        found.append(np.quantile(said.variance_fraction.float().cpu().numpy(), SHARES))
        if progress:
            progress(done, len(seen))
    known = variance_bounds(grid)
    return Variance(known.times, known.small, seen, np.stack(found, axis=1))


def shown_steps(steps: int) -> NDArray[np.int64]:
    """Which of a walk's steps are looked at: all of a few, else more of the first, as on a log axis."""
    spread = np.geomspace(1, steps, MAX_STEPS).round().astype(np.int64) - 1
    return np.arange(steps) if steps <= MAX_STEPS else np.unique(spread)
