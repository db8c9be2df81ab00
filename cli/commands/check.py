"""`diffctl check`: problems of params.yaml and the machine, found in seconds; `diffctl schema`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import check_output_suffix, file_option
from cli.shared.startup_message import begin


def check(
    measure: Annotated[
        bool, typer.Option("--measure", help="Estimate the durations from a few measured steps and images.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check data, model, disk, memory and weights for errors before a run.

    With --measure also estimate how long training, sampling and scoring take.
    """
    begin("checking the project", as_json)
    from cli.actions import project_check

    project_check.check_project(measure, as_json)


def schema(
    out: Annotated[
        Path | None, file_option("--out", "-o", help="FILE.json. [default: standard output]")
    ] = None,
) -> None:
    """Print the JSON schema of params.yaml, for editors."""
    if out is not None:
        check_output_suffix(out, (".json",))
    begin("loading the schema")
    from cli.actions import project_check

    project_check.write_schema(out)
