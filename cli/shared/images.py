"""The option that says which store images are numbered in."""

from pathlib import Path
from typing import Annotated

import typer

StorePath = Annotated[
    Path | None,
    typer.Option("--images", help="The store that image numbers refer to. [default: data/prepared/test]"),
]
