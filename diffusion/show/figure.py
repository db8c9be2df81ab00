"""The common interface of the figures of `diffctl show`, and figures as files."""

import html
import re
from typing import Any, Protocol

from matplotlib.figure import Figure

from diffusion.report.figure_base import as_png, as_svg
from diffusion.report.theme import DARK, LIGHT, css_variables


class FigureData(Protocol):
    """The data of a figure, computed before anything is drawn."""

    @property
    def title(self) -> str:
        """A description of the figure in one line."""

    def draw(self) -> Figure:
        """Draw the figure in the style of the report."""

    def lines(self, width: int) -> list[str]:
        """Return the data as text tables with lines of at most `width` characters, at least 72."""

    def values(self) -> dict[str, Any]:
        """Return the data as JSON values."""


def png_of(figure: FigureData) -> bytes:
    """Return the figure as PNG on white, reproducible to the byte."""
    return as_png(figure.draw())


def svg_of(figure: FigureData) -> bytes:
    """Return the figure as an SVG file that follows the reader's colour scheme, reproducible to the byte."""
    drawn = as_svg(figure.draw(), "show", html.escape(figure.title))
    style = (
        f"<style>:root{{{css_variables(LIGHT)} background:var(--paper);font-family:sans-serif}}"
        f"@media (prefers-color-scheme: dark){{:root{{{css_variables(DARK)}}}}}</style>"
    )
    opening, body = drawn.split(">", 1)
    opening = opening.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    lines = (line.strip() for line in f"{opening}>{style}{body}".splitlines())
    return re.sub(r"\n+", "\n", "\n".join(lines) + "\n").encode()


WRITERS = {".png": png_of, ".svg": svg_of}
