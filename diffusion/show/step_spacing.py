"""Which times each spacing walks along, and how far apart they lie in noise."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffusion.process.process_config import ProcessConfig
from diffusion.process.process_registry import build_process
from diffusion.protocol.spacing import SPACINGS, spaced_timesteps
from diffusion.sample.eta import max_eta
from diffusion.show import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Spaced(NamedTuple):
    """τ (S,) of a spacing, increasing; log SNR and σ/α (S,) there; the largest η that the walk allows."""

    times: list[int]
    log_snr: NDArray[np.float64]
    noise_level: NDArray[np.float64]
    largest_eta: float


@dataclass(frozen=True)
class Steps:
    """τ of S steps by each spacing, on the process of T whole `timesteps` by the named `schedule`."""

    timesteps: int
    schedule: str
    spacings: dict[str, Spaced]

    @property
    def steps(self) -> int:
        """S."""
        return len(next(iter(self.spacings.values())).times)

    @property
    def title(self) -> str:
        """What the figure shows."""
        return f"The {self.steps} times of each spacing by t and by noise, {self.schedule}"

    def draw(self) -> "Figure":
        """A row a spacing, a mark a step: by t on the left, by log SNR on the right."""
        from matplotlib.figure import Figure

        from diffusion.show.drawing import colour, styled

        def fill(figure: Figure) -> None:
            left, right = figure.subplots(1, 2, sharey=True)
            for row, spaced in enumerate(self.spacings.values()):
                style: dict[str, Any] = {"color": colour(row), "linewidths": 1.5, "linelengths": 0.6}
                left.eventplot(np.array(spaced.times, dtype=float), lineoffsets=row, **style)
                right.eventplot(spaced.log_snr, lineoffsets=row, **style)
            left.set(xlabel="t", xlim=(-0.03 * self.timesteps, 1.03 * self.timesteps))
            left.set(yticks=range(len(self.spacings)), yticklabels=list(self.spacings))
            left.tick_params(axis="y", length=0)
            left.grid(axis="y", visible=False)
            right.set(xlabel=f"log SNR of {self.schedule}")
            right.grid(axis="y", visible=False)
            right.tick_params(axis="y", length=0)
            left.invert_yaxis()
            for axes in (left, right):
                axes.invert_xaxis() if axes is right else None
                axes.spines["left"].set_visible(False)

        return styled(0.9 + 0.45 * len(self.spacings), fill)

    def lines(self, width: int) -> list[str]:
        """Each spacing's times as marks by t and by noise, and as numbers."""
        ratios = np.concatenate([spaced.log_snr for spaced in self.spacings.values()])
        margin = max(map(len, self.spacings)) + 2
        by_t, by_noise = (
            text_table.Axis(0, self.timesteps - 1),
            text_table.Axis(-float(ratios.max()), -float(ratios.min())),
        )
        bars = width - margin
        lines = [f"{self.steps} of {self.timesteps} times, by t from 0 to {self.timesteps - 1}"]
        for name, spaced in self.spacings.items():
            times = np.array(spaced.times, dtype=np.float64)
            lines.append(f"{name:<{margin}}{text_table.marks(times, by_t, bars)}")
        lines += ["", f"by log SNR of {self.schedule} from {ratios.max():.2f} to {ratios.min():.2f}"]
        for name, spaced in self.spacings.items():
            lines.append(f"{name:<{margin}}{text_table.marks(-spaced.log_snr, by_noise, bars)}")
        lines.append("")
        for name, spaced in self.spacings.items():
            lines.append(f"{name}, η up to {spaced.largest_eta:.4g}")
            lines += text_table.wrapped(map(str, spaced.times), width, indent=2)
            lines.append("  σ/α there, in which a guidance interval is given:")
            lines += text_table.wrapped((f"{level:.4g}" for level in spaced.noise_level), width, indent=2)
        return lines

    def values(self) -> dict[str, Any]:
        """The times, their log SNR and σ/α by spacing; the largest η is null where there is none."""
        return {
            "timesteps": self.timesteps,
            "schedule": self.schedule,
            "spacings": {
                name: {
                    "times": spaced.times,
                    "log_snr": spaced.log_snr.tolist(),
                    "noise_level": spaced.noise_level.tolist(),
                    "largest_eta": spaced.largest_eta if np.isfinite(spaced.largest_eta) else None,
                }
                for name, spaced in self.spacings.items()
            },
        }


def steps(config: ProcessConfig, count: int) -> Steps:
    """The times of `count` steps by every spacing; UsageError unless the process has as many."""
    process = build_process(config)
    spacings = {}
    for name in SPACINGS:
        times = spaced_timesteps(name, count, process.timesteps)
        grid = process.grid(times)
        levels = (grid.sigma / grid.alpha).numpy()
        spacings[name] = Spaced(times, 2 * grid.log_snr.numpy(), levels, max_eta(grid))
    return Steps(process.timesteps, config.schedule, spacings)
