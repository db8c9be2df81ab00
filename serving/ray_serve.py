"""The application as a deployment of Ray Serve, which places, scales and routes to the replicas."""

import io
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from typing import Any, NamedTuple

import numpy as np

from diffusion.code_digest import library_version
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.signals import StopRequest, stop_request
from serving.http_server import FLUSH_SECONDS, MAX_CONNECTIONS
from serving.model_source import ModelSource, PublishedModel
from serving.ray_replica import Replica, ReplicaSpec
from serving.requests import ServeConfig

NAME = "diffctl"
MAX_STARTS = 3  # of a replica, before the deployment fails
POLL_SECONDS = 0.2
FORWARD_SECONDS = 1.0  # for the proxies to forward the last response
STATUS_SECONDS = 10.0  # between checks that Ray Serve still runs
ROWS_PER_REQUEST = 4  # of a usual request; scaling aims at full passes
UPSCALE_SECONDS = 30.0
DOWNSCALE_SECONDS = 600.0  # a replica starts slowly
RETRY_SECONDS = 5  # Retry-After if no replica has room
RUNNING = ("RUNNING", "DEPLOYING", "UNHEALTHY")  # UNHEALTHY: a replica is being replaced


class Replicas(NamedTuple):
    """The least and greatest number of replicas, and the GPUs of each."""

    least: int
    most: int
    gpus: float


def parse_replicas(text: str) -> tuple[int, int]:
    """Return N or MIN:MAX as (least, most); raise UsageError if it is neither."""
    parts = text.split(":")
    if len(parts) <= 2 and all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
        least, most = int(parts[0]), int(parts[-1])
        if 1 <= least <= most:
            return least, most
    raise UsageError(f"--replicas takes a number, or a range such as 1:4 (got {text!r})")


def check_capacity(replicas: Replicas) -> None:
    """Raise UsageError if this machine's Ray is too small for the replicas."""
    import ray

    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for kind, each in (("CPU", 1), ("GPU", replicas.gpus)):
        if replicas.most * each > there.get(kind, 0):
            raise UsageError(
                f"{replicas.most} replicas need {replicas.most * each:g} {kind}s, and this machine has "
                f"{there.get(kind, 0):g}: give fewer --replicas, or a cluster"
            )


def serve_on_ray(
    model: PublishedModel | ModelSource,
    tracking: str,
    config: ServeConfig,
    token: bytes | None,
    address: tuple[str, int],
    replicas: Replicas,
    on_start: Callable[[], object],
) -> None:
    """Serve on the connected Ray until SIGINT or SIGTERM; call `on_start` once the application is up.

    Running requests are answered first. Raise UsageError if Ray Serve is missing or already running there,
    DiffctlError if no replica starts or the deployment ends by itself.
    """
    serve = _import_serve()
    with stop_request() as stop:
        with _ray_serve(serve, *address) as thread:
            weights = _put_weights(model)
            spec = ReplicaSpec(model, weights, tracking, config, token, replicas.gpus, library_version())
            start = thread.submit(serve.run, _application(serve, spec, replicas), name=NAME)
            while stop.signal is None and not start.done():
                time.sleep(POLL_SECONDS)
            if start.done():
                handle = _handle(start)
                on_start()
                _wait_for_stop(serve, stop)
                _drain(handle, config)
        stop.clear()


def _import_serve() -> Any:
    try:
        from ray import serve
    except ImportError:
        raise UsageError("serve --ray needs Ray Serve: pip install 'diffctl[serve-ray]'") from None
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return serve


@contextmanager
def _ray_serve(serve: Any, host: str, port: int) -> Iterator[ThreadPoolExecutor]:
    """Start Ray Serve with proxies at the address; yield a thread that starts the application.

    At the end of the block, stop Ray Serve and disconnect from Ray.
    """
    if serve.status().proxies:
        raise UsageError("Ray Serve already runs on that cluster: `serve shutdown -y` ends it")
    thread = ThreadPoolExecutor(1)
    try:
        try:
            serve.start(
                proxy_location="EveryNode",
                http_options={"host": host, "port": port},
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
        except (RuntimeError, TimeoutError) as error:
            raise DiffctlError(f"Ray Serve does not start: {_cause(error)}") from None
        yield thread
    finally:
        _shut_down(serve, thread)


def _shut_down(serve: Any, thread: ThreadPoolExecutor) -> None:
    """Stop Ray Serve, then a pending start, then the connection, without Ray's messages about either."""
    import ray

    with redirect_stdout(io.StringIO()):
        serve.shutdown()
        thread.shutdown()
        ray.shutdown()


def _application(serve: Any, spec: ReplicaSpec, replicas: Replicas) -> Any:
    """Return the deployment; Ray's limits are above those of the application, which has clearer errors."""
    scaling: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most > replicas.least:
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas.least,
                "max_replicas": replicas.most,
                "target_ongoing_requests": max(1, spec.config.rows // ROWS_PER_REQUEST),
                "upscale_delay_s": UPSCALE_SECONDS,
                "downscale_delay_s": DOWNSCALE_SECONDS,
            }
        }
    deployed = serve.deployment(
        serve.ingress(None)(Replica),
        name=NAME,
        max_ongoing_requests=MAX_CONNECTIONS,  # Ray's default of 5 would leave passes nearly empty
        max_queued_requests=MAX_CONNECTIONS,
        backpressure_config={"status_code": 429, "retry_after_s": RETRY_SECONDS},
        graceful_shutdown_timeout_s=spec.config.drain + FLUSH_SECONDS,
        max_constructor_retry_count=MAX_STARTS,
        ray_actor_options={"num_cpus": 1, "num_gpus": replicas.gpus},
        **scaling,
    )
    return deployed.bind(spec)


def _put_weights(model: PublishedModel | ModelSource) -> Any:
    """Put the file of a fixed model into Ray's object store; return None for other sources."""
    import ray

    return ray.put(np.fromfile(model.file, dtype=np.uint8)) if isinstance(model, PublishedModel) else None


def _handle(start: "Future[Any]") -> Any:
    """Return the deployment's handle; raise DiffctlError if no replica started."""
    try:
        return start.result()
    except (RuntimeError, TimeoutError) as error:
        raise DiffctlError(f"no replica starts: {_cause(error)}") from None


def _wait_for_stop(serve: Any, stop: StopRequest) -> None:
    """Wait for a signal; raise DiffctlError if the deployment ends by itself."""
    from ray.exceptions import RayError

    next_check = time.monotonic() + STATUS_SECONDS
    while stop.signal is None:
        time.sleep(POLL_SECONDS)
        if time.monotonic() < next_check:
            continue
        next_check = time.monotonic() + STATUS_SECONDS
        try:
            found = serve.status().applications.get(NAME)
        except RayError:
            found = None
        if found is None or found.status not in RUNNING:
            raise DiffctlError("Ray Serve ended the deployment: the cluster stopped, or someone shut it down")


def _drain(handle: Any, config: ServeConfig) -> None:
    """Let every replica answer its running requests, and the proxies forward the responses."""
    drained = handle.broadcast("drain")
    with suppress(TimeoutError):
        drained.results(timeout_s=config.drain + FLUSH_SECONDS, return_exceptions=True)
    time.sleep(FORWARD_SECONDS)


def _cause(error: BaseException) -> str:
    """Return the message of a DiffctlError in the replica, else the last line of the error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("diffusion.system.errors.")]
    return own[-1].partition(": ")[2] if own else (lines or [type(error).__name__])[-1]
