"""`diffctl serve`: a model behind an address."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.commands.sample import Champion, ModelFile, RunId, refuse_two_models
from cli.shared.first_word import begin
from diffusion.system.limits import MAX_BATCH, MAX_HELD, MAX_STEPS

if TYPE_CHECKING:
    from serving.model_source import ModelSource
    from serving.serve_config import ServeConfig

USUAL_PORT = 8080
ON_RAY = "pip install 'diffctl[serve-ray]'"


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
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any free one.")] = USUAL_PORT,
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
    from diffusion.system.errors import UsageError

    if not ray and (address, replicas, gpus) != (None, None, None):
        raise UsageError("an address, --replicas and --gpus-per-replica go with --ray")
    require_packages()
    refuse_two_models(model, run_id, champion)
    begin("loading the model")
    from serving.http_server import read_token
    from serving.serve_config import ServeConfig

    given = {"images": images, "steps": steps, "rows": rows, "queue": queue, "poll": poll, "drain": drain}
    config = ServeConfig.model_validate({key: value for key, value in given.items() if value is not None})
    token = None if token_file is None else read_token(token_file)
    source = functools.partial(source_of, model, run_id, champion)
    if ray:
        _on_ray(source, config, token, (host, port), address, (replicas or "1", gpus))
    else:
        _here(source, config, token, (host, port))


def _here(
    source: "Callable[[], ModelSource]", config: "ServeConfig", token: bytes | None, at: tuple[str, int]
) -> None:
    """Serve in this process."""
    from diffusion.system.devices import default_device
    from serving.app import create_app
    from serving.http_server import bind_socket
    from serving.http_server import serve as serve_app
    from serving.service import Service

    bound = bind_socket(*at, token is not None)
    service = Service(source(), default_device(), config, say)
    serve_app(
        create_app(service, token), service, bound, lambda: _tell(service.name.name, *bound.getsockname()[:2])
    )


def _on_ray(
    source: "Callable[[], ModelSource]",
    config: "ServeConfig",
    token: bytes | None,
    at: tuple[str, int],
    address: str | None,
    asked: tuple[str, float | None],
) -> None:
    """Serve on Ray, which stands for as long as this process does where no cluster is named.

    `asked` has how many replicas, as text, and the GPUs of each.
    """
    from flows.ray.ray_session import cluster_address, ray_session, resolve_gpus
    from serving.model_source import FixedSource
    from serving.ray_serve import Replicas, check_capacity, parse_replicas, serve_on_ray
    from tracking.store import tracking_uri

    cluster, (least, most) = cluster_address(address), parse_replicas(asked[0])
    place = _place(*at, token is not None, cluster)
    found = source()
    published = found.fetch()
    with ray_session(cluster, f"serve --ray needs Ray Serve: {ON_RAY}"):
        replicas = Replicas(least, most, resolve_gpus(asked[1], "--gpus-per-replica", "replica"))
        if cluster is None:
            check_capacity(replicas)
        serve_on_ray(
            published if isinstance(found, FixedSource) else found,
            tracking_uri(),
            config,
            token,
            place,
            replicas,
            lambda: _tell(published.name, *place),
        )


def _place(host: str, port: int, has_token: bool, cluster: str | None) -> tuple[str, int]:
    """Where Ray's proxies are to listen: each machine of a cluster at the same host and port.

    UsageError where others would reach it and no token is asked, or where a cluster's port is left open.
    """
    from diffusion.system.errors import UsageError
    from serving.http_server import bind_socket, require_token

    if cluster is None:
        with bind_socket(host, port, has_token) as bound:
            shown, number, *_ = bound.getsockname()
            return shown, number
    if cluster.startswith("ray://"):
        raise UsageError("serve --ray takes a cluster's own address, such as 10.0.0.1:6379, not ray://")
    require_token(host, host, has_token)
    if not port:
        raise UsageError("on a cluster --port must be a certain one: each machine listens there")
    return host, port


def _tell(name: str, address: str, port: int) -> None:
    """Say where the model is to be had."""
    typer.echo(f"{name}: {address_of(address, port)}/v1/images (Ctrl-C ends it)")


def address_of(address: str, port: int) -> str:
    """What a browser is given for an IP address and a port."""
    shown = f"[{address}]" if ":" in address else address
    return f"http://{shown}:{port}"


def require_packages() -> None:
    """UsageError when a package that serving needs is missing."""
    from importlib.util import find_spec

    from diffusion.system.errors import UsageError

    if missing := [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]:
        raise UsageError(f"serving needs {' and '.join(missing)}: pip install 'diffctl[serve]'")


def say(sentence: str) -> None:
    """Tell what happened to the models, on stderr."""
    typer.echo(f"diffctl: {sentence}", err=True)


def source_of(model: Path | None, run_id: str | None, champion: bool) -> "ModelSource":
    """Where the model comes from; UsageError when there is none."""
    from diffusion.layout import MODEL
    from serving.model_source import ChampionSource, FixedSource, model_of_file, model_of_run

    if champion:
        from diffusion.config import load
        from tracking.keys import model_name

        return ChampionSource(model_name(load().data.name))
    return FixedSource(model_of_file(model or MODEL, say) if run_id is None else model_of_run(run_id))
