"""Pages from templates: one file each, with the style inside and nothing that needs a network."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from diffusion.report.theme import DARK, LIGHT, css_variables

FOLDER = Path(__file__).parent


def render(template: Path, **content: Any) -> str:
    """The page of a template that extends base.html.j2; texts are escaped, Markup is not."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    css = Markup((FOLDER / "page.css").read_text(encoding="utf-8"))
    colours = {"light": css_variables(LIGHT), "dark": css_variables(DARK)}
    return environment.get_template(template.name).render(css=css, **colours, **content)
