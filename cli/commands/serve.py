"""`diffctl serve`: a model behind an address."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from cli.shared.options import Champion, ModelFile, RunId, StorePath, refuse_two_models
from cli.shared.startup_message import begin
from diffusion.system.errors import UsageError
from diffusion.system.limits import MAX_BATCH, MAX_HELD, MAX_STEPS

SERVE_PORT = 8080


def serve(
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="[ADDRESS]", help="With --ray: a cluster's. [default: RAY_ADDRESS, or a Ray of its own]"
        ),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Replicas on Ray Serve, on one machine or many.")
    ] = False,
    replicas: Annotated[
        str | None, typer.Option("--replicas", metavar="N|MIN:MAX", help="With --ray: how many. [default: 1]")
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-replica", min=0, max=64, help="With --ray; 0.5: two share one. [default: 1 if any]"
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option("--host", help="The address to listen on; any but this machine's own needs a token."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = SERVE_PORT,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="A file with the token that clients must send.")
    ] = None,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    images: Annotated[
        int | None,
        typer.Option("--max-images", min=1, max=1024, help="The most of one request. [default: 64]"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option("--max-steps", min=1, max=MAX_STEPS, help="The most of one request. [default: 1000]"),
    ] = None,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows", min=2, max=MAX_BATCH, help="Rows of a network pass, over all requests. [default: 64]"
        ),
    ] = None,
    queue: Annotated[
        int | None,
        typer.Option(
            "--queue", min=1, max=MAX_HELD, help="Images at work and waiting; more get 429. [default: 1024]"
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
            "--drain", min=0, max=3600, help="Seconds to finish begun requests at the end. [default: 60]"
        ),
    ] = None,
) -> None:
    """Serve a model's images over HTTP, until Ctrl-C: POST /v1/images. Requests share network passes.

    With --champion, a new champion is loaded as soon as there is one, and no request is lost.
    """
    if not ray and (address, replicas, gpus) != (None, None, None):
        raise UsageError("an address, --replicas and --gpus-per-replica go with --ray")
    require_packages()
    refuse_two_models(model, run_id, champion)
    limits = {"images": images, "steps": steps, "rows": rows, "queue": queue, "poll": poll, "drain": drain}
    begin("loading the model")
    from cli.actions import model_server

    model_server.serve_model(
        address, ray, replicas, gpus, host, port, token_file, model, run_id, champion, limits
    )


def require_packages() -> None:
    """UsageError when a package that serving needs is missing."""
    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise UsageError(f"serving needs {' and '.join(missing)}: pip install 'diffctl[serve]'")


PLAYGROUND_PORT = 8081


def playground(
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = PLAYGROUND_PORT,
    model: ModelFile = None,
    run_id: RunId = None,
    champion: Champion = False,
    store: StorePath = None,
) -> None:
    """Try a model in the browser, until Ctrl-C: images as they form, steps × η, the way between two.

    The page is served on this machine alone and loads nothing from elsewhere.
    """
    require_packages()
    refuse_two_models(model, run_id, champion)
    begin("loading the model")
    from cli.actions import playground_server

    playground_server.serve_playground(port, model, run_id, champion, store)
