"""What every figure can do, and a figure as a file of its own."""

import html
import re
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FigureData(Protocol):
    """The data of a figure, which is computed before anything is drawn."""

    @property
    def title(self) -> str:
        """What the figure shows, in a line."""

    def draw(self) -> "Figure":
        """The figure, in the report's style and light colours."""

    def lines(self, width: int) -> list[str]:
        """The same as plain text in lines of at most `width` characters, where that is 72 or more."""

    def values(self) -> dict[str, Any]:
        """The data as JSON has it."""


def png_of(shown: FigureData) -> bytes:
    """The figure as PNG on white, the same bytes every time."""
    from diffusion.report.figures import as_png

    return as_png(shown.draw())


def svg_of(shown: FigureData) -> bytes:
    """The figure as an SVG file, light or dark as its reader's screen; the same bytes every time."""
    from diffusion.report.figures import as_svg
    from diffusion.report.theme import DARK, LIGHT, css_variables

    drawn = as_svg(shown.draw(), "show", html.escape(shown.title))
    style = (
        f"<style>:root{{{css_variables(LIGHT)} background:var(--paper);font-family:sans-serif}}"
        f"@media (prefers-color-scheme: dark){{:root{{{css_variables(DARK)}}}}}</style>"
    )
    opening, body = drawn.split(">", 1)
    opening = opening.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    lines = (line.strip() for line in f"{opening}>{style}{body}".splitlines())
    return re.sub(r"\n+", "\n", "\n".join(lines) + "\n").encode()


WRITERS = {".png": png_of, ".svg": svg_of}
