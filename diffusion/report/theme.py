"""Colours of the report and pages from templates.

Figures use the light colours; on a page they become CSS variables. Any two line colours differ for every kind
of colour vision, by a CIE 1976 distance of at least 10 (simulated by Machado et al. 2009).
"""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

FOLDER = Path(__file__).parent
COLOURS = {  # in the light and in the dark scheme
    "paper": ("#ffffff", "#12181f"),
    "panel": ("#f5f7f9", "#1b232c"),
    "ink": ("#17212b", "#e6ebf0"),
    "muted": ("#55626f", "#a3b0bd"),
    "rule": ("#d3dae1", "#36424e"),
    "accent": ("#0a5fa5", "#7cc0ff"),
    "line0": ("#0b62a8", "#6cb6ff"),
    "line1": ("#c2410d", "#ff9a5c"),
    "line2": ("#0f766d", "#4fd1c1"),
    "line3": ("#7832e6", "#a06ebe"),
    "line4": ("#a06e46", "#fac83c"),
    "line5": ("#8c003c", "#f0648c"),
}
LIGHT = {name: light for name, (light, _) in COLOURS.items()}
DARK = {name: dark for name, (_, dark) in COLOURS.items()}
LINES = [name for name in LIGHT if name.startswith("line")]
MARKERS = ["o", "s", "^", "D", "v", "P"]


def css_variables(colours: dict[str, str]) -> str:
    """Return the colours as CSS declarations."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())


def render(template: Path, **content: Any) -> str:
    """Render a template that extends base.html.j2 into one file; text is escaped, Markup is not."""
    css = Markup((FOLDER / "page.css").read_text(encoding="utf-8"))
    colours = {"light": css_variables(LIGHT), "dark": css_variables(DARK)}
    return render_text(template, autoescape=True, css=css, **colours, **content)


def render_text(template: Path, *, autoescape: bool = False, **content: Any) -> str:
    """Render a template, by default of plain text; an undefined name is an error."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, FOLDER]),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**content)
