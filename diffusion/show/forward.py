"""The forward process: every schedule by ᾱ and by its signal-to-noise ratio, and what it does to an image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from diffusion.images.pictures import to_pil
from diffusion.images.pixels import to_model, to_nchw, to_nhwc, to_uint8
from diffusion.images.store import Images
from diffusion.process.noise import ImageNoise
from diffusion.process.noise_process import NoiseProcess
from diffusion.process.process_config import ProcessConfig
from diffusion.process.process_registry import PROCESSES, build_process
from diffusion.protocol.spacing import spaced_timesteps
from diffusion.show import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8  # times at which an image is shown
MAX_SIDE = 256  # pixels: a larger image is made smaller, as it would be on the page


class Schedule(NamedTuple):
    """A process at its whole times: ᾱ and log SNR = log ᾱ/(1 − ᾱ), each (T,)."""

    alphas_cumprod: NDArray[np.float64]
    log_snr: NDArray[np.float64]


@dataclass(frozen=True)
class Forward:
    """`schedules` by name, the configuration's own first; of each an image (K, H, W, C) at the K `times`.

    `noised` is empty where there was no image to show.
    """

    schedules: dict[str, Schedule]
    times: list[int]
    noised: dict[str, Images]

    @property
    def title(self) -> str:
        """What the figure shows."""
        names = " and ".join(self.schedules)
        seen = ", and an image on its way into noise" if self.noised else ""
        return f"The forward process: ᾱ and the signal-to-noise ratio of {names} by t{seen}"

    def draw(self) -> "Figure":
        """Both curves beside each other; below them a row of images for each schedule."""
        from matplotlib.figure import Figure

        from diffusion.show.drawing import DASHED, DOTTED, colour, image_row, legend, styled

        def fill(figure: Figure) -> None:
            curves: Any = figure
            images: Any = None
            if self.noised:
                ratios = (2.6, 0.95 * len(self.noised))
                curves, images = figure.subfigures(2, 1, squeeze=False, height_ratios=ratios)[:, 0]
            left, right = curves.subplots(1, 2)
            for number, (name, schedule) in enumerate(self.schedules.items()):
                style: dict[str, Any] = {"color": colour(number), "linewidth": 1.8, "label": name}
                style["linestyle"] = ("-", DASHED, DOTTED)[number % 3]
                left.plot(schedule.alphas_cumprod, **style)
                right.plot(schedule.log_snr, **style)
            left.set(xlabel="t", ylabel="ᾱ")
            right.set(xlabel="t", ylabel="log ᾱ/(1−ᾱ)")
            legend(left)
            if images is None:
                return
            rows = images.subplots(len(self.noised), len(self.times), squeeze=False)
            for row, (name, noised) in zip(rows, self.noised.items(), strict=True):
                image_row(list(row), noised, name)
            for axes, t in zip(rows[0], self.times, strict=True):
                axes.set_title(f"t = {t}", fontsize=9)

        return styled(2.6 + 0.95 * len(self.noised), fill)

    def lines(self, width: int) -> list[str]:
        """The two curves, a table at the shown times, and the images in shades."""
        ts = np.arange(len(next(iter(self.schedules.values())).log_snr), dtype=np.float64)
        bars = {name: (ts, schedule.alphas_cumprod) for name, schedule in self.schedules.items()}
        ratios = {name: (ts, schedule.log_snr) for name, schedule in self.schedules.items()}
        rows = [["t", *(f"{kind} {name}" for kind in ("ᾱ", "log SNR") for name in self.schedules)]]
        for t in self.times:
            bar = [f"{schedule.alphas_cumprod[t]:.4f}" for schedule in self.schedules.values()]
            snr = [f"{schedule.log_snr[t]:.2f}" for schedule in self.schedules.values()]
            rows.append([str(t), *bar, *snr])
        lines = [
            *text_table.plot(bars, width, about="ᾱ by t"),
            "",
            *text_table.plot(ratios, width, about="log SNR by t"),
            "",
            *text_table.columns(rows, len(rows[0])),
            "",
        ]
        for name, images in self.noised.items():
            lines += text_table.strip(images, [f"{name}, t = {t}" for t in self.times], width)
        return lines

    def values(self) -> dict[str, Any]:
        """The curves at every t; images as nested lists at the shown times."""
        curves = {
            name: {"alphas_cumprod": schedule.alphas_cumprod.tolist(), "log_snr": schedule.log_snr.tolist()}
            for name, schedule in self.schedules.items()
        }
        noised = {name: images.tolist() for name, images in self.noised.items()}
        return {"schedules": curves, "times": self.times, "noised": noised}


def forward(config: ProcessConfig, image: Images | None = None, seed: int = 0) -> Forward:
    """The configuration's process beside the others of as many timesteps, and an image (H, W, C) in each."""
    processes = {config.schedule: build_process(config)}
    for name in PROCESSES:
        if name != config.schedule:
            processes[name] = build_process(ProcessConfig(schedule=name, timesteps=config.timesteps))
    times = spaced_timesteps("uniform", min(COLUMNS, config.timesteps), config.timesteps)
    noised = {}
    if image is not None:
        small = shrunk(image)
        noised = {name: noised_image(process, small, times, seed) for name, process in processes.items()}
    return Forward({name: schedule_of(process) for name, process in processes.items()}, times, noised)


def schedule_of(process: NoiseProcess) -> Schedule:
    """ᾱ and log SNR of a process at all of its whole times."""
    grid = process.full_grid()
    return Schedule(grid.alphas_cumprod.numpy(), 2 * grid.log_snr.numpy())


def shrunk(image: Images) -> Images:
    """The image (H, W, C) with sides of at most MOST_SIDE pixels."""
    picture = to_pil(image)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(picture, dtype=np.uint8).reshape(picture.height, picture.width, image.shape[2])


def noised_image(process: NoiseProcess, image: Images, times: list[int], seed: int) -> Images:
    """x_t of an image (H, W, C) at each time, (K, H, W, C), by one and the same ε (DDPM eq. 4)."""
    x_0 = to_model(to_nchw(image[None])).expand(len(times), -1, -1, -1)
    height, width, channels = image.shape
    noise = ImageNoise(seed, [0], (channels, height, width)).draw()
    x_t = process.q_sample(x_0, torch.tensor(times), noise.expand_as(x_0))
    return to_nhwc(to_uint8(x_t))
