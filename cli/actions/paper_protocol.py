"""The protocol of a paper, written into params.yaml."""

import typer

from cli.actions.params_file import replace_values
from diffusion.check.adopt_protocol import adopt_protocol
from diffusion.config import load, parse
from diffusion.layout import PARAMS
from diffusion.system.files import write_atomic
from diffusion.system.yaml_text import parse_yaml


def use_protocol(name: str) -> None:
    """Set each field that differs from the paper; print the changes, and what cannot be set."""
    config = load()
    changes, left = adopt_protocol(name, config.model_dump(mode="json"))
    text = replace_values({tuple(one.field.split(".")): one.new for one in changes})
    parse(parse_yaml(text), f"{PARAMS} by the protocol {name}")  # validated before the file is written
    if changes:
        write_atomic(PARAMS, lambda file: file.write(text.encode()))
    else:
        typer.echo(f"{PARAMS} follows the protocol {name} already")
    for change in changes:
        typer.echo(str(change))
    if any(one.field.startswith("process.") for one in changes):
        typer.echo("process has changed: the next `diffctl run` trains from scratch")
    if left:
        typer.echo("not set:")
    for one in left:
        typer.echo(f"  {one}")
