"""`diffctl up`, `down`, `status`: MLflow and Prefect in the background; `ui`: MLflow in the foreground."""

from typing import Annotated

import typer

from cli.shared.options import AsJson

MlflowPort = Annotated[
    int, typer.Option("--mlflow-port", envvar="DIFFCTL_MLFLOW_PORT", min=1, max=65535, help="Port of MLflow.")
]


PrefectPort = Annotated[
    int,
    typer.Option("--prefect-port", envvar="DIFFCTL_PREFECT_PORT", min=1, max=65535, help="Port of Prefect."),
]


def up(mlflow_port: MlflowPort = 5000, prefect_port: PrefectPort = 4200) -> None:
    """Start MLflow and Prefect on this machine, until `diffctl down`.

    `diffctl run` uses them. A server in MLFLOW_TRACKING_URI or PREFECT_API_URL is used instead.
    """
    from cli.actions import local_services

    local_services.start_servers(mlflow_port, prefect_port)


def down() -> None:
    """Stop the servers of `diffctl up` in this folder."""
    from cli.actions import local_services

    local_services.stop_servers()


def status(as_json: AsJson = False) -> None:
    """Show this folder's servers, and Prefect's active and scheduled runs."""
    from cli.actions import local_services

    local_services.show_status(as_json)


def ui(port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the UI.")] = 5000) -> None:
    """Open the MLflow UI until Ctrl-C.

    If one runs already, only its address is printed.
    """
    from cli.actions import local_services

    local_services.open_ui(port)
