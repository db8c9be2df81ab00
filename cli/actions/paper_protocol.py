"""params.yaml as the protocol of a paper needs it."""

import typer

from cli.actions.params_file import replace_values
from diffusion.check.adopt_protocol import adopt_protocol
from diffusion.config import load, parse
from diffusion.layout import PARAMS
from diffusion.system.files import write_atomic
from diffusion.system.yaml_text import parse_yaml


def use_protocol(name: str) -> None:
    """Write each field in which params.yaml departs from the paper, and say what stays and why."""
    config = load()
    changes, left = adopt_protocol(name, config.model_dump(mode="json"))
    text = replace_values({tuple(one.field.split(".")): one.new for one in changes})
    parse(parse_yaml(text), f"{PARAMS} by the protocol {name}")  # before anything is written
    if changes:
        write_atomic(PARAMS, lambda file: file.write(text.encode()))
    else:
        typer.echo(f"{PARAMS} has all of the protocol {name} that can be set")
    for change in changes:
        typer.echo(str(change))
    if any(one.field.startswith("process.") for one in changes):
        typer.echo("process decides the training: the next `diffctl run` trains anew")
    if left:
        typer.echo("not set:")
    for one in left:
        typer.echo(f"  {one}")
