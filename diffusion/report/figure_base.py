"""The base of all figures of the report and of `diffctl show`: style, colours, axes, PNG and SVG.

Figures are drawn in the light colours. In an SVG the colours become CSS variables.
"""

import functools
import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter

from diffusion.images.store import Images
from diffusion.report.theme import DARK, LIGHT, LINES, css_variables

WIDTH = 7.2  # inches, the width of a page of text
STYLE: Any = {  # matplotlib has a type for the name of each setting
    "svg.fonttype": "none",
    "svg.hashsalt": "diffctl",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": LIGHT["ink"],
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": LIGHT["rule"],
    "grid.linewidth": 0.7,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "legend.frameon": False,
}


figure_style = functools.partial(matplotlib.rc_context, STYLE)  # a decorator of functions that draw


def new_figure(height: float) -> Figure:
    """Return an empty figure of this height in inches."""
    layout = ConstrainedLayoutEngine(h_pad=0.05, w_pad=0.05, hspace=0.02, wspace=0.02)
    return Figure((WIDTH, height), layout=layout)


def line_colour(number: int) -> str:
    """Return the colour of a figure's line by its order."""
    return LIGHT[LINES[number % len(LINES)]]


def log_axis(axes: Axes, which: str, minor: Callable[[float], str] = lambda value: "") -> None:
    """Make the axis `x` or `y` logarithmic, with plain numbers as tick labels."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(FuncFormatter(lambda value, _: minor(value)))


def image_axes(axes: Axes, image: Images, interpolation: str | None = None) -> None:
    """Show an image (H, W, C) without ticks and frame. Interpolation `none` keeps its pixels in an SVG."""
    grey = image.shape[2] <= 2
    pixels, cmap = (image[:, :, 0], "gray") if grey else (image, None)
    axes.imshow(pixels, cmap=cmap, vmin=0, vmax=255, interpolation=interpolation)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def image_row(row: Sequence[Axes], images: Images, label: str) -> None:
    """Show images (N, H, W, C), one per axes, with a label on the left."""
    for axes, image in zip(row, images, strict=True):
        image_axes(axes, image, "none")
    row[0].set_ylabel(label)


def as_png(figure: Figure) -> bytes:
    """Return the figure as PNG on white, reproducible to the byte."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


@figure_style()
def as_svg(figure: Figure, name: str, title: str) -> Markup:
    """Return the figure as an <svg> element for a page, without namespaces.

    Colours become CSS variables. `name` prefixes the ids, `title` is the label for screen readers.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'(<g) id="[^"]*"', r"\1", text)  # unused ids
    text = re.sub(r'(?<= id=")', f"{name}-", text)
    text = re.sub(r'(?<=xlink:href="#)|(?<=url\(#)', f"{name}-", text).replace("xlink:href", "href")
    for colour, value in LIGHT.items():
        text = text.replace(value, f"var(--{colour})")
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    viewbox = re.search(r'viewBox="[^"]*"', text)
    assert viewbox, "matplotlib writes a viewBox"
    body = text[text.index(">") + 1 :]
    return Markup(f'<svg {viewbox[0]} role="img" aria-label="{title}">{body}'.strip())


def svg_file(figure: Figure, title: str) -> bytes:
    """Return the figure as an SVG file that follows the reader's colour scheme, reproducible to the byte."""
    style = (
        f"<style>:root{{{css_variables(LIGHT)} background:var(--paper);font-family:sans-serif}}"
        f"@media (prefers-color-scheme: dark){{:root{{{css_variables(DARK)}}}}}</style>"
    )
    opening, body = str(as_svg(figure, "show", html.escape(title))).split(">", 1)
    opening = opening.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    lines = (line.strip() for line in f"{opening}>{style}{body}".splitlines())
    return re.sub(r"\n+", "\n", "\n".join(lines) + "\n").encode()
