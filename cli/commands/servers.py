"""Servers: `diffctl serve`, `playground`, `up`, `down`, `status` and `ui`."""

from importlib.util import find_spec
from pathlib import Path

import typer

from cli.shared.command import CommandOptions, argument, command, option
from cli.shared.options import JsonOptions, ModelSourceOptions, StorePath
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_BATCH, MAX_HELD, MAX_STEPS

app = typer.Typer()

SERVE_PORT, PLAYGROUND_PORT = 8080, 8081


class ServerOptions(ModelSourceOptions):
    """The options of a server of models."""

    def __post_init__(self) -> None:
        names = ("fastapi", "uvicorn", "prometheus_client")
        if missing := [name for name in names if find_spec(name) is None]:
            raise UsageError(f"serving needs {' and '.join(missing)}: pip install 'diffctl[serve]'")
        super().__post_init__()


@command(app, "cli.actions.servers.model_server:serve_model", "loading the model")
class Serve(ServerOptions):
    """Serve a model over HTTP (POST /v1/images) until Ctrl-C.

    Requests share forward passes. With --champion, a new champion is loaded without losing a request.
    """

    address: str | None = argument("With --ray: the cluster. [default: RAY_ADDRESS, or a local Ray]")
    ray: bool = option("Run replicas on Ray Serve.")
    replicas: str | None = option("With --ray: replicas. [default: 1]", metavar="N|MIN:MAX")
    gpus: float | None = option(
        "With --ray; at 0.5 two share one. [default: 1 if any]", "--gpus-per-replica", min=0, max=64
    )
    host: str = option("Address to listen on; all but loopback need a token.", default="127.0.0.1")
    port: int = option("0: any free port.", min=0, max=65535, default=SERVE_PORT)
    token_file: Path | None = option("File with the token of clients.")
    images: int | None = option("Images per request at most. [default: 64]", "--max-images", min=1, max=1024)
    steps: int | None = option(
        "Steps per request at most. [default: 1000]", "--max-steps", min=1, max=MAX_STEPS
    )
    rows: int | None = option("Rows per forward pass. [default: 64]", "--batch-size", min=2, max=MAX_BATCH)
    queue: int | None = option("Open images, else 429. [default: 1024]", min=1, max=MAX_HELD)
    poll: float | None = option("Seconds between checks for a champion. [default: 10]", min=0.1, max=86_400)
    drain: float | None = option("Seconds to finish open requests at the end. [default: 60]", min=0, max=3600)

    def __post_init__(self) -> None:
        if not self.ray and (self.address, self.replicas, self.gpus) != (None, None, None):
            raise UsageError("ADDRESS, --replicas and --gpus-per-replica need --ray: add it, or omit them")
        super().__post_init__()


@command(app, "cli.actions.servers.model_server:serve_playground", "loading the model")
class Playground(ServerOptions):
    """Try a model in the browser until Ctrl-C.

    The page is served on this machine only and loads nothing from the network.
    """

    port: int = option("0: any free port.", min=0, max=65535, default=PLAYGROUND_PORT)
    store: StorePath = None


@command(app, "cli.actions.servers.local_servers:start_servers")
class Up(CommandOptions):
    """Start MLflow and Prefect on this machine, until `diffctl down`.

    `diffctl run` uses them. A server in MLFLOW_TRACKING_URI or PREFECT_API_URL is used instead.
    """

    mlflow_port: int = option("Port of MLflow.", envvar="DIFFCTL_MLFLOW_PORT", min=1, max=65535, default=5000)
    prefect_port: int = option(
        "Port of Prefect.", envvar="DIFFCTL_PREFECT_PORT", min=1, max=65535, default=4200
    )


@command(app, "cli.actions.servers.local_servers:stop_servers")
class Down(CommandOptions):
    """Stop the servers of `diffctl up` in this folder."""


@command(app, "cli.actions.servers.local_servers:show_status")
class Status(JsonOptions):
    """Show servers, scheduled runs, the last champion move, disk and undelivered metrics."""

    check_problems: bool = option("List problems and exit with 1 if there are any.", "--check")


@command(app, "cli.actions.servers.local_servers:open_ui")
class Ui(CommandOptions):
    """Open the MLflow UI until Ctrl-C. If one runs already, only its address is printed."""

    port: int = option("Port of the UI.", min=1, max=65535, default=5000)
