"""What the figures share when they are drawn: the report's style, a canvas, and rows of images."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from diffusion.images.store import Images
from diffusion.report.figures import STYLE
from diffusion.report.theme import LIGHT, LINES

WIDTH = 7.2  # inches, of which a page of text shows all
DASHED, DOTTED = (0, (5, 2)), (0, (1, 1.2))


def styled(height: float, fill: Callable[[Figure], None]) -> Figure:
    """A figure of that height in inches, filled within the report's style."""
    with matplotlib.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(h_pad=0.05, w_pad=0.05, hspace=0.02, wspace=0.02)
        figure = Figure((WIDTH, height), layout=layout)
        fill(figure)
    return figure


def colour(number: int) -> str:
    """The colour of a figure's lines by their order."""
    return LIGHT[LINES[number % len(LINES)]]


def legend(axes: Axes) -> None:
    """Names of lines above the drawing, in one row."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1.0), "ncols": 4}
    axes.legend(fontsize=9, handlelength=1.6, columnspacing=1.0, borderaxespad=0.2, **place)


def plain_log(axes: Axes, which: str) -> None:
    """A logarithmic axis, `x` or `y`, whose ticks are written as plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))


def image_row(row: Sequence[Axes], images: Images, label: str) -> None:
    """Images (N, H, W, C), one in each of the axes; the row's name stands before the first."""
    for axes, image in zip(row, images, strict=True):
        grey = image.shape[2] <= 2
        axes.imshow(
            image[:, :, 0] if grey else image,
            cmap="gray" if grey else None,
            vmin=0,
            vmax=255,
            interpolation="none",  # the pixels as they are, also in an svg
        )
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    row[0].set_ylabel(label)
