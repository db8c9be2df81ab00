"""One image's way back: x_t as a sampler passes through it, and the x̂_0 that the model sees in it there."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from diffusion.images.pixels import to_nhwc, to_uint8
from diffusion.images.store import Images
from diffusion.model.model_file import LoadedModel
from diffusion.process.condition import Condition
from diffusion.process.noise import ImageNoise
from diffusion.protocol.grid import describe_cell, effective_axes
from diffusion.protocol.settings import SampleSettings
from diffusion.sample.generate import check_settings, generate
from diffusion.sample.sampler import Step
from diffusion.show import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 8  # steps that are shown


@dataclass(frozen=True)
class Reverse:
    """At K of a walk's steps: the `times`, falling; x_t and x̂_0 (K, H, W, C) there; at its end the image."""

    settings: SampleSettings
    index: int
    times: list[int]
    x: Images
    x0_hat: Images
    image: Images

    @property
    def title(self) -> str:
        """What the figure shows."""
        return f"The way back of image {self.index}: x_t and what the model makes of it, {self._how()}"

    def _how(self) -> str:
        return describe_cell(effective_axes(self.settings))

    def draw(self) -> "Figure":
        """A row of x_t above a row of x̂_0, and the image itself at the end of the first."""
        from matplotlib.figure import Figure

        from diffusion.show.drawing import image_row, styled

        def fill(figure: Figure) -> None:
            upper, lower = figure.subplots(2, len(self.times) + 1)
            image_row(list(upper), np.concatenate([self.x, self.image[None]]), "x_t")
            image_row(list(lower[:-1]), self.x0_hat, "x̂_0")
            lower[-1].set_axis_off()
            for axes, t in zip(upper, self.times, strict=False):
                axes.set_title(f"t = {t}", fontsize=9)
            upper[-1].set_title("image", fontsize=9)

        height, width = self.image.shape[:2]
        return styled(0.35 + 2 * 0.72 * height / width, fill)

    def lines(self, width: int) -> list[str]:
        """Both rows in shades, and the image."""
        lines = [f"image {self.index} of seed {self.settings.seed}, {self._how()}", ""]
        titles = [f"t = {t}" for t in self.times]
        lines += text_table.strip(self.x, [f"x, {title}" for title in titles], width)
        lines += text_table.strip(self.x0_hat, [f"x̂_0, {title}" for title in titles], width)
        return lines + text_table.strip(self.image[None], ["the image"], width)

    def values(self) -> dict[str, Any]:
        """The settings, the times, and all images as nested lists of their bytes."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            "index": self.index,
            "times": self.times,
            "x": self.x.tolist(),
            "x0_hat": self.x0_hat.tolist(),
            "image": self.image.tolist(),
        }


def reverse(
    loaded: LoadedModel,
    settings: SampleSettings,
    index: int,
    condition: Condition,
    device: torch.device,
    columns: int = COLUMNS,
) -> Reverse:
    """Image `index` as `generate` makes it, seen at up to `columns` of its steps; UsageError as there."""
    grid = check_settings(loaded.artefact, settings)
    spec = loaded.artefact.network
    start = ImageNoise(settings.seed, [index], (spec.in_channels, spec.image_size, spec.image_size)).draw()
    passed: list[Step] = []
    image = generate(loaded, settings, [index], condition, device, passed.append)
    before = [start, *(step.x.cpu() for step in passed[:-1])]
    chosen = np.unique(np.linspace(0, len(passed) - 1, columns).round().astype(int)).tolist()
    times = grid.times.flip(0).tolist()
    return Reverse(
        settings,
        index,
        [times[place] for place in chosen],
        to_nhwc(to_uint8(torch.cat([before[place] for place in chosen]))),
        to_nhwc(to_uint8(torch.cat([passed[place].x0_hat.cpu() for place in chosen]))),
        to_nhwc(image)[0],
    )
