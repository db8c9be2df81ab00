"""A model over HTTP: in this process or on Ray Serve."""

import functools
from collections.abc import Callable
from pathlib import Path

import typer

from cli.shared.options import Selection
from diffusion.layout import MODEL
from diffusion.system.devices import default_device
from diffusion.system.errors import UsageError
from flows.ray.ray_session import cluster_address, ray_session, resolve_gpus
from serving.app import create_app
from serving.http_server import bind_socket, read_token, require_token
from serving.http_server import serve as serve_app
from serving.model_source import ChampionSource, FixedSource, ModelSource, model_of_file, model_of_run
from serving.ray_serve import Replicas, check_capacity, parse_replicas, serve_on_ray
from serving.requests import ServeConfig
from serving.service import Service
from tracking.registry.registered_models import project_model
from tracking.store import tracking_uri


def serve_model(
    address: str | None,
    ray: bool,
    replicas: str | None,
    gpus: float | None,
    host: str,
    port: int,
    token_file: Path | None,
    selection: Selection,
    limits: dict[str, float | None],
) -> None:
    """Carry out `diffctl serve`."""
    config = ServeConfig.model_validate({key: value for key, value in limits.items() if value is not None})
    token = None if token_file is None else read_token(token_file)
    source = functools.partial(source_of, selection)
    if ray:
        _on_ray(source, config, token, (host, port), address, (replicas or "1", gpus))
    else:
        _here(source, config, token, (host, port))


ON_RAY = "pip install 'diffctl[serve-ray]'"


def _here(
    source: Callable[[], ModelSource], config: ServeConfig, token: bytes | None, at: tuple[str, int]
) -> None:
    """Serve in this process."""
    bound = bind_socket(*at, token is not None)
    service = Service(source(), default_device(), config, print_message)
    serve_app(
        create_app(service, token),
        service,
        bound,
        lambda: _print_address(service.ref.name, *bound.getsockname()[:2]),
    )


def _on_ray(
    source: Callable[[], ModelSource],
    config: ServeConfig,
    token: bytes | None,
    at: tuple[str, int],
    address: str | None,
    replicas_and_gpus: tuple[str, float | None],
) -> None:
    """Serve on Ray; a local Ray ends with this process.

    `replicas_and_gpus` has the number of replicas as text, and the GPUs of each.
    """
    cluster, (least, most) = cluster_address(address), parse_replicas(replicas_and_gpus[0])
    place = _place(*at, token is not None, cluster)
    found = source()
    published = found.fetch()
    with ray_session(cluster, f"serve --ray needs Ray Serve: {ON_RAY}"):
        replicas = Replicas(least, most, resolve_gpus(replicas_and_gpus[1], "--gpus-per-replica", "replica"))
        if cluster is None:
            check_capacity(replicas)
        serve_on_ray(
            published if isinstance(found, FixedSource) else found,
            tracking_uri(),
            config,
            token,
            place,
            replicas,
            lambda: _print_address(published.name, *place),
        )


def _place(host: str, port: int, has_token: bool, cluster: str | None) -> tuple[str, int]:
    """Return the host and port of Ray's proxies, equal on each machine of a cluster.

    UsageError if the host is not loopback without a token, or if a cluster has no fixed port.
    """
    if cluster is None:
        with bind_socket(host, port, has_token) as bound:
            shown, number, *_ = bound.getsockname()
            return shown, number
    if cluster.startswith("ray://"):
        raise UsageError("serve --ray needs the address of the cluster, such as 10.0.0.1:6379, not ray://")
    require_token(host, host, has_token)
    if not port:
        raise UsageError("on a cluster --port must not be 0: give a port that is free on each machine")
    return host, port


def _print_address(name: str, address: str, port: int) -> None:
    """Print the address of the model."""
    typer.echo(f"{name}: {address_of(address, port)}/v1/images (Ctrl-C ends it)")


def address_of(address: str, port: int) -> str:
    """Return the URL of an IP address and a port."""
    shown = f"[{address}]" if ":" in address else address
    return f"http://{shown}:{port}"


def print_message(sentence: str) -> None:
    """Print a message about the models on stderr."""
    typer.echo(f"diffctl: {sentence}", err=True)


def source_of(selection: Selection) -> ModelSource:
    """Return the source of the model; UsageError if there is none."""
    if selection.champion:
        return ChampionSource(project_model())
    if selection.run_id is not None:
        return FixedSource(model_of_run(selection.run_id))
    return FixedSource(model_of_file(selection.model or MODEL, print_message))
