"""The page and its parts, all from this machine: a browser that follows its policy asks nobody else."""

from pathlib import Path

from fastapi import Response
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from diffusion.report.theme import render

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; connect-src 'self'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a newer diffctl's page asks for a newer script
}


def page() -> Response:
    """The page."""
    style = Markup((STATIC / "playground.css").read_text(encoding="utf-8"))
    return HTMLResponse(render(FOLDER / "page.html.j2", style=style), headers=HEADERS)


def script(name: str) -> Response | None:
    """A script of the page; None where there is none of that name."""
    names = {path.name: path for path in STATIC.glob("*.js")}
    if name not in names:
        return None
    return Response(names[name].read_bytes(), media_type=KINDS[".js"], headers=HEADERS)
