"""`diffctl emit`: tell Prefect what happened, from a Git hook or CI."""

from typing import Annotated

import typer

from cli.shared.first_word import begin
from diffusion.system.limits import MAX_NAME

app = typer.Typer(help="Tell Prefect what has happened; it may start a run.", no_args_is_help=True)


@app.callback()
def emit() -> None:
    """Tell Prefect what has happened; it may start a run."""


@app.command("data-changed")
def data_changed(
    data: Annotated[
        str | None, typer.Option("--data", help="The data set's name. [default: params.yaml's]")
    ] = None,
) -> None:
    """Say that the data has changed, as after `dvc push`: it starts the deployment `retrain`."""
    from diffusion.config import load
    from diffusion.system.errors import UsageError
    from flows.prefect_server.local_servers import require_prefect_url
    from tracking.connectivity import redact_uri

    name = data or load().data.name
    if not 0 < len(name) <= MAX_NAME:
        raise UsageError(f"--data has {len(name):,} characters: give at most {MAX_NAME}")
    url = require_prefect_url()
    begin(f"telling Prefect at {redact_uri(url)}")
    from flows.prefect_server.deployments import emit_data_changed

    emit_data_changed(url, name)
    typer.echo(f"told Prefect at {redact_uri(url)} that {name} has changed")
