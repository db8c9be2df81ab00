"""A model over HTTP: in this process, on Ray Serve, or with the playground's page."""

import socket
from typing import Any

import typer

from cli.commands.servers import Playground, Serve
from cli.models.model_choice import selected_source
from cli.shared.options import ModelSourceOptions
from cli.shared.process import print_message
from diffusion.code_digest import library_version
from diffusion.layout import PREPARED
from diffusion.system.devices import default_device
from diffusion.system.errors import UsageError
from flows.ray.ray_session import cluster_address, ray_session, resolve_gpus
from serving.app import create_app
from serving.http_server import bind_socket, read_token, require_token, serve
from serving.model_source import ChampionSource, FixedSource, ModelSource, published_model
from serving.playground.router import playground as routes
from serving.ray_serve import ReplicaSpec, check_capacity, parse_replicas, serve_on_ray
from serving.schemas import ServeConfig
from serving.service import Service
from tracking.registry.registered_models import champion_model
from tracking.store import tracking_uri

PLAYGROUND_DRAIN = 5  # seconds to finish open requests at the end


def serve_model(options: Serve) -> None:
    limits = {name: getattr(options, name) for name in ("images", "steps", "rows", "queue", "poll", "drain")}
    config = ServeConfig.model_validate({key: value for key, value in limits.items() if value is not None})
    token = None if options.token_file is None else read_token(options.token_file)
    if options.ray:
        return _serve_on_ray(options, config, token)
    bound = bind_socket(options.host, options.port, token is not None)
    service = Service(_source(options), default_device(), config, print_message)
    _serve_here(create_app(service, token), service, bound)


def serve_playground(options: Playground) -> None:
    bound = bind_socket("127.0.0.1", options.port, has_token=False)
    config, store = ServeConfig(drain=PLAYGROUND_DRAIN), options.store or PREPARED / "test"
    service = Service(_source(options), default_device(), config, print_message, store)
    app = create_app(service, None, routes(service, store))
    _serve_here(app, service, bound, path="/")


def _serve_here(app: Any, service: Service, bound: socket.socket, path: str = "/v1/images") -> None:
    serve(app, service, bound, lambda: _print_url(service.current.ref.name, bound.getsockname(), path))


def _serve_on_ray(options: Serve, config: ServeConfig, token: bytes | None) -> None:
    """Serve on Ray; a local Ray ends with this process."""
    cluster, (least, most) = cluster_address(options.address), parse_replicas(options.replicas or "1")
    address = _proxy_address(options.host, options.port, token is not None, cluster)
    source = _source(options)
    published = source.fetch()
    with ray_session(cluster, "serve --ray needs Ray Serve: pip install 'diffctl[serve-ray]'"):
        gpus = resolve_gpus(options.gpus, "--gpus-per-replica", "replica")
        if cluster is None:
            check_capacity(most, gpus)
        model = published if isinstance(source, FixedSource) else source
        spec = ReplicaSpec(model, tracking_uri(), config, token, gpus, library_version())
        serve_on_ray(spec, address, (least, most), lambda: _print_url(published.name, address))


def _proxy_address(host: str, port: int, has_token: bool, cluster: str | None) -> tuple[str, int]:
    """Return the address of Ray's proxies; UsageError if it is public without a token, or has no port."""
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


def _source(options: ModelSourceOptions) -> ModelSource:
    """Return the source of the model; UsageError if there is none."""
    if options.champion:
        return ChampionSource(champion_model(force=options.force))
    return FixedSource(published_model(selected_source(options), print_message))


def _print_url(name: str, address: tuple[Any, ...], path: str = "/v1/images") -> None:
    host, port, *_ = address
    typer.echo(f"{name}: http://{f'[{host}]' if ':' in host else host}:{port}{path} (Ctrl-C ends it)")
