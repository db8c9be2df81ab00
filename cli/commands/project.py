"""The documentation that diffctl is installed with: `diffctl docs`."""

import typer

from cli.actions import documentation
from cli.shared.command import Options, argument, command

app = typer.Typer()


@command(app, lambda: documentation.show_page)
class Docs(Options):
    """Print a page of the documentation, or list the pages and files."""

    topic: str | None = argument(
        "A page such as training, or a file such as deploy/nginx.conf.",
        autocompletion=lambda: list(documentation.pages()),
    )
