"""The reverse process of one image: x_t and the predicted x̂_0 along the sampler's trajectory."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from diffusion.images.pixels import to_nhwc, to_uint8
from diffusion.images.store import Images
from diffusion.model.model_file import LoadedModel
from diffusion.process.denoiser import Condition
from diffusion.protocol.grid import describe_cell, effective_axes
from diffusion.protocol.settings import SampleSettings
from diffusion.report.figure_base import figure_style, image_row, new_figure
from diffusion.sample.generate import check_settings, generate
from diffusion.sample.guides import NO_GUIDES, Guides
from diffusion.sample.low_res import image_noise
from diffusion.sample.sampler import Step
from diffusion.show.figure import FigureData, columns

COLUMNS = 8  # shown steps


@dataclass(frozen=True)
class Reverse(FigureData):
    """K steps of a trajectory: falling `times`, x_t and x̂_0 (K, H, W, C), and the final image."""

    settings: SampleSettings
    index: int
    times: list[int] | list[float]
    x: Images
    x0_hat: Images
    image: Images

    @figure_style()
    def draw(self) -> Figure:
        """Draw a row of x_t and a row of x̂_0, with the image at the end."""
        height, width = self.image.shape[:2]
        figure = new_figure(0.35 + 2 * 0.72 * height / width)
        upper, lower = figure.subplots(2, len(self.times) + 1)
        image_row(list(upper), np.concatenate([self.x, self.image[None]]), "x_t")
        image_row(list(lower[:-1]), self.x0_hat, "x̂_0")
        lower[-1].set_axis_off()
        for axes, t in zip(upper, self.times, strict=False):
            axes.set_title(f"t = {_format(t)}", fontsize=9)
        upper[-1].set_title("image", fontsize=9)
        return figure

    def lines(self, width: int) -> list[str]:
        """Return a table of the mean and standard deviation of the pixels at each shown step."""
        rows = [["t", "x_t mean", "std", "x̂_0 mean", "std"]]
        for t, x, x0_hat in zip(self.times, self.x, self.x0_hat, strict=True):
            numbers = (value for images in (x, x0_hat) for value in (images.mean(), images.std()))
            rows.append([_format(t), *(f"{value:.1f}" for value in numbers)])
        table = columns(rows, len(rows[0]))
        how = describe_cell(effective_axes(self.settings))
        return [f"image {self.index} of seed {self.settings.seed}, {how}", "", *table]


def _format(t: float) -> str:
    return f"{t:.4g}" if isinstance(t, float) else str(t)


def reverse(
    loaded: LoadedModel,
    settings: SampleSettings,
    index: int,
    condition: Condition,
    device: torch.device,
    guides: Guides = NO_GUIDES,
) -> Reverse:
    """Return image `index` as `generate` makes it, at up to COLUMNS of its steps; errors as `generate`."""
    grid = check_settings(loaded.artefact, settings)
    start = image_noise(loaded.artefact.network, settings, [index], grid).draw()
    visited: list[Step] = []
    image = generate(loaded, settings, [index], condition, device, visited.append, guides)
    before = [start, *(step.x.cpu() for step in visited[:-1])]
    chosen = np.unique(np.linspace(0, len(visited) - 1, COLUMNS).round().astype(int)).tolist()
    times = grid.times.flip(0).tolist()
    how = describe_cell(effective_axes(settings))
    return Reverse(
        f"The reverse process of image {index}: x_t and the predicted x̂_0, {how}",
        settings,
        index,
        [times[place] for place in chosen],
        to_nhwc(to_uint8(torch.cat([before[place] for place in chosen]))),
        to_nhwc(to_uint8(torch.cat([visited[place].x0_hat.cpu() for place in chosen]))),
        to_nhwc(image)[0],
    )
