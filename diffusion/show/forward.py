"""The forward process: ᾱ and signal-to-noise ratio of every schedule, and noised images."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from diffusion.images.pictures import to_pil
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.images.store import Images
from diffusion.process.discrete import require_discrete
from diffusion.process.noise import ImageNoise
from diffusion.process.process_registry import PROCESSES, DiscreteConfig, ProcessConfig, build_process
from diffusion.protocol.spacing import spaced_timesteps
from diffusion.report import figure_base
from diffusion.show.figure import FigureData, columns
from diffusion.system.registry import load_reference

COLUMNS = 8  # shown times
MAX_SIDE = 256  # pixels; larger images are shrunk


@dataclass(frozen=True)
class Schedule:
    """A schedule at all timesteps: ᾱ and log SNR = log ᾱ/(1 − ᾱ), each (T,)."""

    alphas_cumprod: NDArray[np.float64]
    log_snr: NDArray[np.float64]


@dataclass(frozen=True)
class Forward(FigureData):
    """The `schedules` by name, the configured one first, and images (K, H, W, C) noised to the K `times`."""

    schedules: dict[str, Schedule]
    times: list[int]
    noised: dict[str, Images]

    @figure_base.figure_style()
    def draw(self) -> Figure:
        """Draw both curves, and below them a row of images for each schedule."""
        figure = figure_base.new_figure(2.6 + 0.95 * len(self.noised))
        curves: Any = figure
        if self.noised:
            ratios = (2.6, 0.95 * len(self.noised))
            curves, images = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios)[:, 0]
            rows = images.subplots(len(self.noised), len(self.times), squeeze=False)
            for row, (name, noised) in zip(rows, self.noised.items(), strict=True):
                figure_base.image_row(list(row), noised, name)
            for axes, t in zip(rows[0], self.times, strict=True):
                axes.set_title(f"t = {t}", fontsize=9)
        left, right = curves.subplots(1, 2)
        for number, (name, schedule) in enumerate(self.schedules.items()):
            style: dict[str, Any] = {"linewidth": 1.8, "color": figure_base.line_colour(number)}
            style["linestyle"] = ("-", figure_base.DASHED, figure_base.DOTTED)[number % 3]
            left.plot(schedule.alphas_cumprod, label=name, **style)
            right.plot(schedule.log_snr, **style)
        left.set(xlabel="t", ylabel="ᾱ")
        right.set(xlabel="t", ylabel="log ᾱ/(1−ᾱ)")
        figure_base.legend_above(left)
        return figure

    def lines(self, width: int) -> list[str]:
        """Return a table of ᾱ and log SNR at the shown times."""
        rows = [["t", *(f"{kind} {name}" for kind in ("ᾱ", "log SNR") for name in self.schedules)]]
        for t in self.times:
            bar = [f"{schedule.alphas_cumprod[t]:.4f}" for schedule in self.schedules.values()]
            snr = [f"{schedule.log_snr[t]:.2f}" for schedule in self.schedules.values()]
            rows.append([str(t), *bar, *snr])
        return columns(rows, len(rows[0]))


def forward(config: ProcessConfig, image: Images | None = None, seed: int = 0) -> Forward:
    """Return all schedules with the same T, and an image (H, W, C) noised by each."""
    config = require_discrete(build_process(config), "show forward").config
    processes = {config.schedule: build_process(config)}
    for name, entry in PROCESSES.items():
        if name != config.schedule and issubclass(load_reference(entry.config), DiscreteConfig):
            processes[name] = build_process(DiscreteConfig(schedule=name, timesteps=config.timesteps))
    times = spaced_timesteps("uniform", min(COLUMNS, config.timesteps), config.timesteps)
    noised = {}
    if image is not None:
        picture = to_pil(image)
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
        shape = (image.shape[2], picture.height, picture.width)
        small = np.asarray(picture, np.uint8).reshape(1, *shape[1:], shape[0])
        x_0, noise = to_model(to_nchw(small)), ImageNoise(seed, [0], shape).draw()
        for name, process in processes.items():  # x_t at each time with the same ε (DDPM eq. 4)
            x_t = [process.q_sample(x_0, torch.tensor(t), noise) for t in times]
            noised[name] = to_nhwc(to_uint8(torch.cat(x_t)))
    schedules = {}
    for name, process in processes.items():
        grid = process.probe_grid()
        schedules[name] = Schedule(grid.alphas_cumprod.numpy(), 2 * grid.log_snr.numpy())
    seen = ", and a noised image" if noised else ""
    title = f"The forward process: ᾱ and the signal-to-noise ratio of {' and '.join(schedules)} by t{seen}"
    return Forward(title, schedules, times, noised)
