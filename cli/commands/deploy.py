"""`diffctl deploy`: prefect.yaml on a Prefect server; `diffctl emit`: events for its automations."""

from typing import Annotated

import typer

from cli.shared.startup_message import begin


def deploy(
    params: Annotated[
        bool, typer.Option("--params", help="Also list the parameters of each deployment.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False,
) -> None:
    """Create or update the deployments of prefect.yaml on Prefect.

    This includes their work pool and automations.

    The server is PREFECT_API_URL, or the one of `diffctl up`.
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
        str | None, typer.Option("--data", help="The name of the data set. [default: from params.yaml]")
    ] = None,
) -> None:
    """Report changed data, such as after `dvc push`: this starts the deployment `retrain`."""
    begin("connecting to Prefect")
    from cli.actions import deployment

    deployment.emit_event(data)
