"""`diffctl check`: what would fail later, in seconds."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import check_output_suffix, file_option
from cli.shared.startup_message import begin


def check(
    measure: Annotated[
        bool, typer.Option("--measure", help="Say how long it takes, by a few steps and images; kept.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Look for what would fail later, in seconds, and what it costs: data, model, disk, memory, weights."""
    begin("looking for what would fail later", as_json)
    from cli.actions import project_check

    project_check.check_project(measure, as_json)


def schema(
    out: Annotated[
        Path | None, file_option("--out", "-o", help="FILE.json. [default: standard output]")
    ] = None,
) -> None:
    """Print the JSON schema of params.yaml, for editors to complete its keys and check its values."""
    if out is not None:
        check_output_suffix(out, (".json",))
    begin("collecting what params.yaml may hold")
    from cli.actions import project_check

    project_check.write_schema(out)
