"""The application as a deployment of Ray Serve: replicas, machines, scaling and routing are Ray's.

Its proxies listen, and pass each request on to the replica that has fewest of them.
"""

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
from serving.serve_config import ServeConfig

NAME = "diffctl"
TRIES = 3  # to start a replica, before it is told that it cannot be
POLL_SECONDS = 0.2
PASS_ON_SECONDS = 1.0  # from the last image made to the last byte that a proxy has sent
LOOK_SECONDS = 10.0  # between looks whether Ray still serves
ROWS_EACH = 4  # of a usual request: so many requests fill a pass, and more than that want another replica
GROW_SECONDS = 30.0  # of more work than that, until there is another one
QUIET_SECONDS = 600.0  # of less, until there is one fewer: a start takes long
BUSY_SECONDS = 5  # until a client that no replica had room for is to ask again
RUNNING = ("RUNNING", "DEPLOYING", "UNHEALTHY")  # it will be well again, or is


class Replicas(NamedTuple):
    """How many replicas there are at least and at most, and the share of GPUs that each of them has."""

    least: int
    most: int
    gpus: float


def parse_replicas(text: str) -> tuple[int, int]:
    """N or MIN:MAX as the least and the most; UsageError when it is neither."""
    parts = text.split(":")
    if len(parts) <= 2 and all(part.isascii() and part.isdigit() and len(part) < 5 for part in parts):
        least, most = int(parts[0]), int(parts[-1])
        if 1 <= least <= most:
            return least, most
    raise UsageError(f"--replicas takes a number, or the least and the most as 1:4 (got {text!r})")


def check_capacity(replicas: Replicas) -> None:
    """UsageError where this Ray, which no machine will join, has no room for as many replicas."""
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
    at: tuple[str, int],
    replicas: Replicas,
    started: Callable[[], object],
) -> None:
    """Serve on the Ray that this process is connected to until it is told to stop; `started` once it answers.

    What was begun by then is made and answered, as without Ray. UsageError where Ray Serve is not installed
    or runs there already; DiffctlError where no replica starts, or the deployment ends by itself.
    """
    serve = _imported()
    with stop_request() as stop:
        with _ray_serve(serve, *at) as thread:
            plan = ReplicaSpec(
                model, _stored(model), tracking, config, token, replicas.gpus, library_version()
            )
            begun = thread.submit(serve.run, _application(serve, plan, replicas), name=NAME)
            while stop.signal is None and not begun.done():
                time.sleep(POLL_SECONDS)
            if begun.done():
                handle = _handle(begun)
                started()
                _watch(serve, stop)
                _drain(handle, config)
        stop.clear()


def _imported() -> Any:
    try:
        from ray import serve
    except ImportError:
        raise UsageError("serve --ray needs Ray Serve: pip install 'diffctl[serve-ray]'") from None
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return serve


@contextmanager
def _ray_serve(serve: Any, host: str, port: int) -> Iterator[ThreadPoolExecutor]:
    """Ray Serve with its proxies at that address, and a thread to start what it serves.

    Nothing of it is left after the block, nor the connection to Ray.
    """
    if serve.status().proxies:
        raise UsageError(
            "Ray Serve runs on that cluster already, for whoever started it: `serve shutdown -y` ends it"
        )
    thread = ThreadPoolExecutor(1)
    try:
        try:
            serve.start(
                proxy_location="EveryNode",
                http_options={"host": host, "port": port},
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
        except (RuntimeError, TimeoutError) as error:
            raise DiffctlError(f"Ray Serve does not start: {_sentence(error)}") from None
        yield thread
    finally:
        _end(serve, thread)


def _end(serve: Any, thread: ThreadPoolExecutor) -> None:
    """End Ray Serve; then a start that is under way, which ends with it; then the connection.

    The connection would print that Ray Serve's last call was never answered, and the start make a new one.
    """
    import ray

    with redirect_stdout(io.StringIO()):
        serve.shutdown()
        thread.shutdown()
        ray.shutdown()


def _application(serve: Any, plan: ReplicaSpec, replicas: Replicas) -> Any:
    """The deployment. Ray's own limits lie beyond the application's, which says better what it refuses."""
    scaling: dict[str, Any] = {"num_replicas": replicas.least}
    if replicas.most > replicas.least:
        busy = max(1, plan.config.rows // ROWS_EACH)
        scaling = {
            "autoscaling_config": {
                "min_replicas": replicas.least,
                "max_replicas": replicas.most,
                "target_ongoing_requests": busy,
                "upscale_delay_s": GROW_SECONDS,
                "downscale_delay_s": QUIET_SECONDS,
            }
        }
    deployed = serve.deployment(
        serve.ingress(None)(Replica),
        name=NAME,
        max_ongoing_requests=MAX_CONNECTIONS,  # 5 as it comes: passes would be nearly empty
        max_queued_requests=MAX_CONNECTIONS,
        backpressure_config={"status_code": 429, "retry_after_s": BUSY_SECONDS},
        graceful_shutdown_timeout_s=plan.config.drain + FLUSH_SECONDS,
        max_constructor_retry_count=TRIES,
        ray_actor_options={"num_cpus": 1, "num_gpus": replicas.gpus},
        **scaling,
    )
    return deployed.bind(plan)


def _stored(model: PublishedModel | ModelSource) -> Any:
    """The file of a model that stays, in Ray's store."""
    import ray

    return ray.put(np.fromfile(model.file, dtype=np.uint8)) if isinstance(model, PublishedModel) else None


def _handle(begun: "Future[Any]") -> Any:
    """The deployment's handle; DiffctlError where no replica started."""
    try:
        return begun.result()
    except (RuntimeError, TimeoutError) as error:
        raise DiffctlError(f"no replica starts: {_sentence(error)}") from None


def _watch(serve: Any, stop: StopRequest) -> None:
    """Wait until this process is told to stop; DiffctlError where the deployment ends by itself."""
    from ray.exceptions import RayError

    look = time.monotonic() + LOOK_SECONDS
    while stop.signal is None:
        time.sleep(POLL_SECONDS)
        if time.monotonic() < look:
            continue
        look = time.monotonic() + LOOK_SECONDS
        try:
            found = serve.status().applications.get(NAME)
        except RayError:
            found = None
        if found is None or found.status not in RUNNING:
            raise DiffctlError("Ray Serve has ended it: the cluster stopped, or someone shut it down")


def _drain(handle: Any, config: ServeConfig) -> None:
    """Let every replica answer what it has begun, and the proxies pass it on."""
    answers = handle.broadcast("drain")
    with suppress(TimeoutError):
        answers.results(timeout_s=config.drain + FLUSH_SECONDS, return_exceptions=True)
    time.sleep(PASS_ON_SECONDS)


def _sentence(error: BaseException) -> str:
    """What our own code said in the replica where it did, else the error's last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("diffusion.system.errors.")]
    return own[-1].partition(": ")[2] if own else (lines or [type(error).__name__])[-1]
