"""The application as a deployment of Ray Serve, which places, scales and routes to the replicas."""

import io
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fastapi import FastAPI

from diffusion.code_digest import check_worker_version
from diffusion.sample.network_files import NetworkFiles
from diffusion.system.devices import default_device
from diffusion.system.errors import DiffctlError, UsageError
from diffusion.system.signals import StopRequest, stop_request
from serving.app import create_app
from serving.http_server import FLUSH_SECONDS, MAX_CONNECTIONS
from serving.model_source import FixedSource, ModelSource, PublishedModel
from serving.schemas import RETRY_SECONDS, ServeConfig
from serving.service import Service

NAME = "diffctl"
MAX_STARTS = 3  # of a replica, before the deployment fails
POLL_SECONDS = 0.2
FORWARD_SECONDS = 1.0  # for the proxies to forward the last response
STATUS_SECONDS = 10.0  # between checks that Ray Serve still runs
ROWS_PER_REQUEST = 4  # of a usual request; scaling aims at full passes
UPSCALE_SECONDS = 30.0
DOWNSCALE_SECONDS = 600.0  # a replica starts slowly
RUNNING = ("RUNNING", "DEPLOYING", "UNHEALTHY")  # UNHEALTHY: a replica is being replaced


class ReplicaSpec(NamedTuple):
    """What a replica serves, and how.

    `contents` are a fixed model's files in Ray's object store by their fields of NetworkFiles, so machines
    share no files; None for a champion, which each replica fetches from the MLflow at `tracking`. `version`
    is the driver's `library_version`.
    """

    model: PublishedModel | ModelSource
    tracking: str
    config: ServeConfig
    token: bytes | None
    gpus: float
    version: str
    contents: Mapping[str, Any] | None = None


class Replica:
    """The actor of Ray Serve; DiffctlError if this machine has another diffctl or torch than the driver."""

    def __init__(self, spec: ReplicaSpec) -> None:
        check_worker_version(spec.version)
        os.environ["MLFLOW_TRACKING_URI"] = spec.tracking
        device = default_device() if spec.gpus else torch.device("cpu")
        report = partial(print, "diffctl:", file=sys.stderr)  # Ray keeps it in the replica's log
        with tempfile.TemporaryDirectory() as folder:  # the file is not needed after loading
            self._service = Service(_source(spec, Path(folder)), device, spec.config, report)
        self._app = create_app(self._service, spec.token)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application: Ray Serve runs its lifespan and forwards requests."""
        return self._app

    async def check_health(self) -> None:
        """Raise RuntimeError if the engine has failed; Ray Serve then replaces this replica."""
        if not self._service.draining and not self._service.is_ready:
            raise RuntimeError("the engine has failed")

    async def drain(self) -> None:
        """Answer running requests within the allowed time, and new ones with 503."""
        await self._service.drain()
        await self._service.stop()


def _source(spec: ReplicaSpec, folder: Path) -> ModelSource:
    if not isinstance(spec.model, PublishedModel):
        return spec.model
    import ray

    files: dict[str, Any] = {}
    for name, content in (spec.contents or {}).items():
        files[name] = folder / f"{name}.safetensors"
        files[name].write_bytes(ray.get(content).data)
    return FixedSource(spec.model._replace(files=NetworkFiles(**files)))


def parse_replicas(text: str) -> tuple[int, int]:
    """Return N or MIN:MAX as (least, most); raise UsageError if it is neither."""
    parts = text.split(":")
    if len(parts) <= 2 and all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
        least, most = int(parts[0]), int(parts[-1])
        if 1 <= least <= most:
            return least, most
    raise UsageError(f"--replicas takes a number, or a range such as 1:4 (got {text!r})")


def check_capacity(most: int, gpus: float) -> None:
    """Raise UsageError if this machine's Ray is too small for the replicas."""
    import ray

    there = ray.cluster_resources()  # type: ignore[no-untyped-call]
    for kind, each in (("CPU", 1), ("GPU", gpus)):
        need, has = most * each, there.get(kind, 0)
        if need > has:
            raise UsageError(f"{most} replicas need {need:g} {kind}s, and this machine has {has:g}")


def serve_on_ray(
    spec: ReplicaSpec, address: tuple[str, int], replicas: tuple[int, int], on_start: Callable[[], object]
) -> None:
    """Serve on the connected Ray until SIGINT or SIGTERM; call `on_start` once the application is up.

    Running requests are answered first. Raise UsageError if Ray Serve is missing or already running there,
    DiffctlError if no replica starts or the deployment ends by itself.
    """
    try:
        import ray
        from ray import serve
    except ImportError:
        raise UsageError("serve --ray needs Ray Serve: pip install 'diffctl[serve-ray]'") from None
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    with stop_request() as stop:
        with _ray_serve(serve, *address) as thread:
            if isinstance(spec.model, PublishedModel):
                files = spec.model.files.networks()
                contents = {name: ray.put(np.fromfile(path, np.uint8)) for name, path in files.items()}
                spec = spec._replace(contents=contents)
            start = thread.submit(serve.run, _application(serve, spec, *replicas), name=NAME)
            while stop.signal is None and not start.done():
                time.sleep(POLL_SECONDS)
            if start.done():
                try:
                    handle = start.result()
                except (RuntimeError, TimeoutError) as error:
                    raise DiffctlError(f"no replica starts: {_cause(error)}") from None
                on_start()
                _wait_for_stop(serve, stop)
                _drain(handle, spec.config)
        stop.clear()


@contextmanager
def _ray_serve(serve: Any, host: str, port: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a thread for the application, with Ray Serve's proxies at the address; then stop both."""
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
        with redirect_stdout(io.StringIO()):  # without Ray's messages
            serve.shutdown()
            thread.shutdown()  # after a pending start


def _application(serve: Any, spec: ReplicaSpec, least: int, most: int) -> Any:
    """Return the deployment; Ray's limits are above those of the application, which has clearer errors."""
    scaling = {
        "min_replicas": least,
        "max_replicas": most,
        "target_ongoing_requests": max(1, spec.config.rows // ROWS_PER_REQUEST),
        "upscale_delay_s": UPSCALE_SECONDS,
        "downscale_delay_s": DOWNSCALE_SECONDS,
    }
    return serve.deployment(
        serve.ingress(None)(Replica),
        name=NAME,
        max_ongoing_requests=MAX_CONNECTIONS,  # Ray's default of 5 would leave passes nearly empty
        max_queued_requests=MAX_CONNECTIONS,
        backpressure_config={"status_code": 429, "retry_after_s": RETRY_SECONDS},
        graceful_shutdown_timeout_s=spec.config.drain + FLUSH_SECONDS,
        max_constructor_retry_count=MAX_STARTS,
        ray_actor_options={"num_cpus": 1, "num_gpus": spec.gpus},
        autoscaling_config=scaling,
    ).bind(spec)


def _wait_for_stop(serve: Any, stop: StopRequest) -> None:
    """Wait for a signal; raise DiffctlError if the deployment ends by itself."""
    from ray.exceptions import RayError

    next_check = time.monotonic() + STATUS_SECONDS
    while stop.signal is None:
        time.sleep(POLL_SECONDS)
        if time.monotonic() < next_check:
            continue
        next_check = time.monotonic() + STATUS_SECONDS
        found = None
        with suppress(RayError):
            found = serve.status().applications.get(NAME)
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
