"""`diffctl serve`: a model over HTTP; `diffctl playground`: the same with a page."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import Champion, ModelFile, RunId, Selection, StorePath
from cli.shared.startup_message import begin
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_BATCH, MAX_HELD, MAX_STEPS

SERVE_PORT = 8080


def serve(
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="[ADDRESS]", help="With --ray: the cluster. [default: RAY_ADDRESS, or a local Ray]"
        ),
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Run replicas on Ray Serve.")] = False,
    replicas: Annotated[
        str | None,
        typer.Option("--replicas", metavar="N|MIN:MAX", help="With --ray: replicas. [default: 1]"),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-replica", min=0, max=64, help="With --ray; at 0.5 two share one. [default: 1 if any]"
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", help="Address to listen on; all but loopback need a token."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free port.")] = SERVE_PORT,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="File with the token of clients.")
    ] = None,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    images: Annotated[
        int | None,
        typer.Option("--max-images", min=1, max=1024, help="Images per request at most. [default: 64]"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--max-steps", min=1, max=MAX_STEPS, help="Steps per request at most. [default: 1000]"),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            min=2,
            max=MAX_BATCH,
            help="Rows per forward pass of all requests. [default: 64]",
        ),
    ] = None,
    queue: Annotated[
        int | None,
        typer.Option(
            "--queue",
            min=1,
            max=MAX_HELD,
            help="Open images at most; more get 429. [default: 1024]",
        ),
    ] = None,
    poll: Annotated[
        float | None,
        typer.Option(
            "--poll", min=0.1, max=86_400, help="Seconds between checks for a new champion. [default: 10]"
        ),
    ] = None,
    drain: Annotated[
        float | None,
        typer.Option(
            "--drain", min=0, max=3600, help="Seconds to finish open requests at the end. [default: 60]"
        ),
    ] = None,
) -> None:
    """Serve a model over HTTP (POST /v1/images) until Ctrl-C.

    Requests share forward passes.

    With --champion, a new champion is loaded without losing a request.
    """
    if not ray and (address, replicas, gpus) != (None, None, None):
        raise UsageError("ADDRESS, --replicas and --gpus-per-replica need --ray: add it, or leave them out")
    require_packages()
    selection = Selection(model, run_id, champion)
    selection.check()
    limits = {"images": images, "steps": steps, "rows": rows, "queue": queue, "poll": poll, "drain": drain}
    begin("loading the model")
    from cli.actions import model_server

    model_server.serve_model(address, ray, replicas, gpus, host, port, token_file, selection, limits)


def require_packages() -> None:
    """Raise UsageError if a package of the extra `serve` is missing."""
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise UsageError(f"serving needs {' and '.join(missing)}: pip install 'diffctl[serve]'")


PLAYGROUND_PORT = 8081


def playground(
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0: any free port.")
    ] = PLAYGROUND_PORT,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    store: StorePath = None,
) -> None:
    """Try a model in the browser until Ctrl-C.

    The page is served on this machine only and loads nothing from the network.
    """
    require_packages()
    selection = Selection(model, run_id, champion)
    selection.check()
    begin("loading the model")
    from cli.actions import playground_server

    playground_server.serve_playground(port, selection, store)
