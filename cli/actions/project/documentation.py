"""The pages of docs/ and the files of deploy/, which are package data."""

import sys
from pathlib import Path

import typer

from cli.commands.project import Docs, pages
from cli.shared.console import print_table
from diffusion.system.errors import UsageError
from diffusion.system.registry import nearest
from diffusion.system.section import brief


def show_page(options: Docs) -> None:
    found = pages()
    if options.topic is None:
        rows = ((topic, _title(path)) for topic, path in found.items())
        print_table(("TOPIC", ""), rows)
        return typer.echo("`diffctl docs TOPIC` prints a page")
    path = found.get(options.topic.removeprefix("docs/").removesuffix(".md"))
    if path is None:
        near = nearest(options.topic, found)
        hint = f" (did you mean {near}?)" if near else ""
        raise UsageError(f"there is no page {brief(options.topic, str)}{hint}: `diffctl docs` lists them")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md" and sys.stdout.isatty():
        from rich.console import Console
        from rich.markdown import Markdown

        return Console().print(Markdown(text, hyperlinks=False))
    typer.echo(text, nl=False)


def _title(path: Path) -> str:
    """Return a page's heading; the first comment of other files."""
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("# ") if first.startswith("# ") else ""
