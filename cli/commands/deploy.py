"""`diffctl deploy`: prefect.yaml on a Prefect server, with the pool and the automations that it needs."""

from typing import Annotated

import typer

from cli.shared.startup_message import begin


def deploy(
    params: Annotated[
        bool, typer.Option("--params", help="Show the parameters that each deployment takes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Create or update on Prefect the work pool, deployments and automations of prefect.yaml.

    The server is that of PREFECT_API_URL, else that of `diffctl up`.
    """
    begin("connecting to Prefect", as_json)
    from cli.actions import deployment

    deployment.deploy_to_prefect(params, as_json)


emit_app = typer.Typer(
    name="emit", help="Send an event to Prefect, which may start a run.", no_args_is_help=True
)


@emit_app.callback()
def emit() -> None:
    """Send an event to Prefect, which may start a run."""


@emit_app.command("data-changed")
def data_changed(
    data: Annotated[
        str | None, typer.Option("--data", help="The data set's name. [default: params.yaml's]")
    ] = None,
) -> None:
    """Say that the data has changed, as after `dvc push`: it starts the deployment `retrain`."""
    begin("connecting to Prefect")
    from cli.actions import deployment

    deployment.emit_event(data)
