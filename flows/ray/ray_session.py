"""A connection to a Ray cluster, or to a local Ray that ends with this process."""

import functools
import logging
import os
import re
import secrets
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from diffusion.system.errors import DiffctlError, UsageError, first_line, reason
from flows.run_lock import environment

CHECK_SECONDS = 10
LOAD_PLUGINS = "diffusion.project.load_worker_project"
RETRIES = 3  # of a task after its worker died


def cluster_address(given: str | None) -> str | None:
    """Return the given cluster, else RAY_ADDRESS, else None for a local Ray."""
    return given or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def ray_session(address: str | None, missing: str) -> Iterator[None]:
    """Connect to the cluster at `address`, else to a local Ray, for the block.

    Raise UsageError with the text `missing` without Ray, DiffctlError if the cluster is not available.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster_address(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    options["runtime_env"] = {"worker_process_setup_hook": LOAD_PLUGINS}  # arguments are unpickled after it
    with ExitStack() as stack:
        if address is None:
            folder = tempfile.TemporaryDirectory(prefix="diffctl-ray-", ignore_cleanup_errors=True)
            options |= {"_temp_dir": stack.enter_context(folder), "include_dashboard": False}
            stack.enter_context(environment(local_token()))  # the import reads it
        try:
            import ray
        except ImportError:
            raise UsageError(missing) from None
        stack.callback(ray.shutdown)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            # Without a listener at HOST:PORT Ray would wait for minutes.
            if match := re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address or ""):
                socket.create_connection((match[1], int(match[2])), timeout=CHECK_SECONDS).close()
            ray.init(address or "local", **options)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            where = f"the Ray cluster at {address} is out of reach" if address else "Ray does not start here"
            raise DiffctlError(f"{where} ({first_line(error)}); see `diffctl docs sweep` on tokens") from None
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray installs its own
        yield


def resolve_gpus(wanted: float | None, option: str, of: str) -> float:
    """Return the GPUs per shard or replica (the word `of`); raise UsageError if Ray has fewer."""
    import ray

    there = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    gpus = min(1, there) if wanted is None else wanted
    if gpus > there:
        raise UsageError(f"{option} is {gpus:g} GPUs per {of}, and Ray has {there:g}")
    return gpus


@functools.cache  # Ray reads it once per process
def local_token() -> dict[str, str]:
    """Return variables with a random token for a local Ray, which else stores one in ~/.ray."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def get_result(reference: Any, subject: str) -> Any:
    """Return the result of a task; raise the DiffctlError of its worker, or one with the `subject`."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, DiffctlError):
            raise error.cause from None
        raise DiffctlError(f"{subject} failed: {reason(error.cause)}") from None
    except ray.exceptions.RayError as error:
        text = f"{subject} failed after {RETRIES} retries ({first_line(error)}): run it again to resume"
        raise DiffctlError(text) from None
