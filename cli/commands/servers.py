"""`diffctl up`, `down`, `status`: servers in the background; `ui`: MLflow's in the foreground."""

from typing import Annotated

import typer

MlflowPort = Annotated[
    int, typer.Option("--mlflow-port", envvar="DIFFCTL_MLFLOW_PORT", min=1, max=65535, help="MLflow's port.")
]


PrefectPort = Annotated[
    int,
    typer.Option("--prefect-port", envvar="DIFFCTL_PREFECT_PORT", min=1, max=65535, help="Prefect's port."),
]


def up(mlflow_port: MlflowPort = 5000, prefect_port: PrefectPort = 4200) -> None:
    """Start MLflow and Prefect on this machine; they stay until `diffctl down`.

    `diffctl run` uses them from then on. A server that MLFLOW_TRACKING_URI or PREFECT_API_URL names is used
    instead of one of these.
    """
    from cli.actions import local_services

    local_services.start_servers(mlflow_port, prefect_port)


def down() -> None:
    """Stop the servers that `diffctl up` started in this folder, and no others."""
    from cli.actions import local_services

    local_services.stop_servers()


def status(as_json: Annotated[bool, typer.Option("--json", help="Print JSON for a script.")] = False) -> None:
    """Show this folder's servers with their versions, and the runs that are at work or due."""
    from cli.actions import local_services

    local_services.show_status(as_json)


def ui(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="The port of the UI.")] = 5000,
) -> None:
    """Open the runs in the MLflow UI, until Ctrl-C; where one is running already, print its address."""
    from cli.actions import local_services

    local_services.open_ui(port)
