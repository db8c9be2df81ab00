"""Servers: `diffctl serve`, `playground`, `up`, `down`, `status` and `ui`."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from cli.shared.command import Options, command
from cli.shared.options import JsonOptions, ModelOptions, StorePath
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_BATCH, MAX_HELD, MAX_STEPS

SERVE_PORT, PLAYGROUND_PORT = 8080, 8081


def require_packages() -> None:
    """Raise UsageError if a package of the extra `serve` is missing."""
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise UsageError(f"serving needs {' and '.join(missing)}: pip install 'diffctl[serve]'")


@command("cli.actions.model_server:serve_model", "loading the model")
class Serve(ModelOptions):
    """Serve a model over HTTP (POST /v1/images) until Ctrl-C.

    Requests share forward passes.

    With --champion, a new champion is loaded without losing a request.
    """

    address: Annotated[
        str | None,
        typer.Argument(
            metavar="[ADDRESS]", help="With --ray: the cluster. [default: RAY_ADDRESS, or a local Ray]"
        ),
    ] = None
    ray: Annotated[bool, typer.Option("--ray", help="Run replicas on Ray Serve.")] = False
    replicas: Annotated[
        str | None, typer.Option(metavar="N|MIN:MAX", help="With --ray: replicas. [default: 1]")
    ] = None
    gpus: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-replica", min=0, max=64, help="With --ray; at 0.5 two share one. [default: 1 if any]"
        ),
    ] = None
    host: Annotated[str, typer.Option(help="Address to listen on; all but loopback need a token.")] = (
        "127.0.0.1"
    )
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = SERVE_PORT
    token_file: Annotated[Path | None, typer.Option(help="File with the token of clients.")] = None
    images: Annotated[
        int | None,
        typer.Option("--max-images", min=1, max=1024, help="Images per request at most. [default: 64]"),
    ] = None
    steps: Annotated[
        int | None,
        typer.Option("--max-steps", min=1, max=MAX_STEPS, help="Steps per request at most. [default: 1000]"),
    ] = None
    rows: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=2, max=MAX_BATCH, help="Rows per forward pass of all requests. [default: 64]"
        ),
    ] = None
    queue: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_HELD, help="Open images at most; more get 429. [default: 1024]"),
    ] = None
    poll: Annotated[
        float | None,
        typer.Option(min=0.1, max=86_400, help="Seconds between checks for a new champion. [default: 10]"),
    ] = None
    drain: Annotated[
        float | None,
        typer.Option(min=0, max=3600, help="Seconds to finish open requests at the end. [default: 60]"),
    ] = None

    def check(self) -> None:
        """Raise UsageError for options of Ray without --ray, two models, or missing packages."""
        if not self.ray and (self.address, self.replicas, self.gpus) != (None, None, None):
            raise UsageError(
                "ADDRESS, --replicas and --gpus-per-replica need --ray: add it, or leave them out"
            )
        require_packages()
        super().check()


@command("cli.actions.model_server:serve_playground", "loading the model")
class Playground(ModelOptions):
    """Try a model in the browser until Ctrl-C.

    The page is served on this machine only and loads nothing from the network.
    """

    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free port.")] = PLAYGROUND_PORT
    store: StorePath = None

    def check(self) -> None:
        """Raise UsageError for two models, or missing packages."""
        require_packages()
        super().check()


@command("cli.actions.local_services:start_servers", at_root=True)
class Up(Options):
    """Start MLflow and Prefect on this machine, until `diffctl down`.

    `diffctl run` uses them. A server in MLFLOW_TRACKING_URI or PREFECT_API_URL is used instead.
    """

    mlflow_port: Annotated[
        int, typer.Option(envvar="DIFFCTL_MLFLOW_PORT", min=1, max=65535, help="Port of MLflow.")
    ] = 5000
    prefect_port: Annotated[
        int, typer.Option(envvar="DIFFCTL_PREFECT_PORT", min=1, max=65535, help="Port of Prefect.")
    ] = 4200


@command("cli.actions.local_services:stop_servers", at_root=True)
class Down(Options):
    """Stop the servers of `diffctl up` in this folder."""


@command("cli.actions.service_status:show_status", at_root=True)
class Status(JsonOptions):
    """Show servers, scheduled runs, the last champion move, disk and undelivered metrics."""

    check_problems: Annotated[
        bool, typer.Option("--check", help="List problems and exit with 1 if there are any, for monitoring.")
    ] = False


@command("cli.actions.local_services:open_ui", at_root=True)
class Ui(Options):
    """Open the MLflow UI until Ctrl-C.

    If one runs already, only its address is printed.
    """

    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the UI.")] = 5000
