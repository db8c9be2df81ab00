"""The times of each spacing, by time and by noise level."""

from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diffusion.process.noise_process import build_process
from diffusion.process.process_registry import ProcessConfig
from diffusion.protocol.settings import SampleSettings
from diffusion.protocol.spacing import SPACINGS
from diffusion.report.figure_base import figure_style, line_colour, new_figure
from diffusion.sample.sampling_steps import max_eta, spaced_times
from diffusion.show.figure import FigureData
from diffusion.system.errors import UsageError

INDENT: Any = {"initial_indent": "  ", "subsequent_indent": "  "}


@dataclass(frozen=True)
class Spaced:
    """The times τ (S,), ascending, their log SNR and σ/α (S,), and the largest possible η."""

    times: list[int] | list[float]
    log_snr: NDArray[np.float64]
    noise_level: NDArray[np.float64]
    largest_eta: float


@dataclass(frozen=True)
class Steps(FigureData):
    """τ of S steps by each spacing, for a process with times from `first` to `last` and this `schedule`."""

    first: float
    last: float
    schedule: str
    spacings: dict[str, Spaced]

    @figure_style()
    def draw(self) -> Figure:
        """Draw a row per spacing with a mark per step: by t on the left, by log SNR on the right."""
        figure = new_figure(0.9 + 0.45 * len(self.spacings))
        left, right = figure.subplots(1, 2, sharey=True)
        for row, spaced in enumerate(self.spacings.values()):
            style: dict[str, Any] = {"color": line_colour(row), "linewidths": 1.5, "linelengths": 0.6}
            left.eventplot(np.array(spaced.times, dtype=float), lineoffsets=row, **style)
            right.eventplot(spaced.log_snr, lineoffsets=row, **style)
        margin = 0.03 * (self.last - self.first)
        left.set(xlabel="t", xlim=(self.first - margin, self.last + margin))
        left.set(yticks=range(len(self.spacings)), yticklabels=list(self.spacings))
        left.invert_yaxis()
        right.set(xlabel=f"log SNR of {self.schedule}")
        right.invert_xaxis()
        for axes in (left, right):
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
        return figure

    def lines(self, width: int) -> list[str]:
        """List each spacing's times and their σ/α."""
        steps = len(next(iter(self.spacings.values())).times)
        lines = [f"{steps} times from {self.first:g} to {self.last:g}, {self.schedule}"]
        for name, spaced in self.spacings.items():
            lines += ["", f"{name}, η up to {spaced.largest_eta:.4g}"]
            lines += wrap(" ".join(f"{time:g}" for time in spaced.times), width, **INDENT)
            lines.append("  σ/α at these times, as for a guidance interval:")
            lines += wrap(" ".join(f"{level:.4g}" for level in spaced.noise_level), width, **INDENT)
        return lines


def steps(config: ProcessConfig, count: int) -> Steps:
    """Return the times of `count` steps by every spacing that allows it; UsageError for too many."""
    process = build_process(config)
    spacings = {}
    for name, entry in SPACINGS.items():
        if entry.has_levels:
            continue
        try:
            times = spaced_times(SampleSettings(spacing=name, steps=count), process)
        except UsageError:
            if not entry.is_paper_grid:
                raise
            continue
        grid = process.grid(times)
        levels = (grid.sigma / grid.alpha).numpy()
        spacings[name] = Spaced(times, 2 * grid.log_snr.numpy(), levels, max_eta(grid))
    title = f"The {count} times of each spacing by t and by noise, {config.schedule}"
    return Steps(title, process.t_min, process.t_max, config.schedule, spacings)
