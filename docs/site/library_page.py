"""The reference of the library: the docstrings of all names that pages and notebooks use.

The page lists the names; mkdocstrings reads their docstrings from the source without imports.
"""

import json
import re
from collections.abc import Iterator

from docs.site.tables import ROOT

HEAD = """# Library

The names of `diffusion/` that the [theory](../theory.md), [the library's page](../library.md) and the
notebooks use, by package. Shapes are B images of C×H×W; ε, x̂_0, α and σ are those of the theory.

"""
REFERENCE = re.compile(r"`(diffusion(?:\.\w+)+):(\w+)([\w.]*)`")
IMPORT = re.compile(r"^ *from (diffusion(?:\.\w+)+) import ([\w, ]+)$", re.M)
NOT_EXTENDED = "extending.md"  # its blocks are new files


def text() -> str:
    """Return the page."""
    packages: dict[str, list[str]] = {}
    for module, name in sorted(set(named())):
        packages.setdefault(".".join(module.split(".")[:2]), []).append(f"::: {module}.{name}\n")
    return HEAD + "\n".join(f"## {name}\n\n" + "\n".join(found) for name, found in packages.items())


def with_links(markdown: str) -> str:
    """Link the names of the library on a page to the reference."""
    return REFERENCE.sub(lambda name: f"[{name[0]}][{name[1]}.{name[2]}{name[3]}]", markdown)


def named() -> Iterator[tuple[str, str]]:
    """Yield the modules and names of the library that pages and notebooks refer to or import."""
    for page in sorted((ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for reference in REFERENCE.finditer(text):
            yield reference[1], reference[2]
        if page.name != NOT_EXTENDED:
            yield from imports(text)
    for notebook in sorted((ROOT / "docs/notebooks").glob("*.ipynb")):
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            yield from imports("".join(cell["source"]))


def imports(text: str) -> Iterator[tuple[str, str]]:
    """Yield the modules and names that code in a text imports from the library."""
    for line in IMPORT.finditer(text):
        for name in line[2].split(","):
            yield line[1], name.strip()
