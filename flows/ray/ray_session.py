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
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from diffusion.system.errors import DiffctlError, UsageError
from flows.prefect_server.prefect_settings import environment

CHECK_SECONDS = 10
# A call without arguments that each kind of server answers if the token is right.
HEAD_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
CLIENT_CALL = "/ray.rpc.RayletDriver/ClusterInfo"


def cluster_address(given: str | None) -> str | None:
    """Return the given cluster, else RAY_ADDRESS, else None for a local Ray."""
    return given or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def ray_session(address: str | None, missing: str) -> Iterator[None]:
    """Connect to the cluster at `address`, else to a local Ray, for the block.

    Raise UsageError with the text `missing` if Ray is not installed, and for a wrong token; DiffctlError if
    the cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster_address(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        if address is None:
            folder = tempfile.TemporaryDirectory(prefix="diffctl-ray-", ignore_cleanup_errors=True)
            options |= {"_temp_dir": stack.enter_context(folder), "include_dashboard": False}
            stack.enter_context(environment(local_token()))  # the import reads it
        ray = _imported(missing)
        stack.callback(ray.shutdown)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            _check_reachable(address)
            ray.init(address or "local", **options)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise _failure(address, error) from None
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray installs its own
        yield


def _imported(missing: str) -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError(missing) from None
    return ray


def resolve_gpus(wanted: float | None, option: str, of: str) -> float:
    """Return the GPUs per shard or replica (the word `of`): by default one if Ray has any.

    Raise UsageError with the name of the `option` if the cluster has fewer.
    """
    import ray

    there = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    gpus = min(1, there) if wanted is None else wanted
    if gpus > there:
        raise UsageError(f"{option} is {gpus:g} GPUs per {of}, and Ray has {there:g}")
    return gpus


@functools.cache  # Ray reads it once per process
def local_token() -> dict[str, str]:
    """Return variables with a random token for a local Ray.

    Without them Ray stores a token in ~/.ray/auth_token, for all later Rays.
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _failure(address: str | None, error: Exception) -> DiffctlError:
    if address is None:
        return DiffctlError(f"Ray does not start here: {first_line(error)}")
    if "authentication" in first_line(error).lower():  # RAY_AUTH_MODE=token, but no token
        return _wrong_token(address)
    return DiffctlError(f"the Ray cluster at {address} is out of reach: {first_line(error)}")


def _wrong_token(address: str) -> UsageError:
    return UsageError(
        f"the Ray cluster at {address} does not let us in: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
        "or RAY_AUTH_TOKEN_PATH to the cluster's token"
    )


def _check_reachable(address: str | None) -> None:
    """Raise OSError if nothing listens at HOST:PORT, where Ray would wait for minutes.

    Raise UsageError if it requires another token, which Ray would report as unreachable.
    """
    match = re.fullmatch(r"(ray://)?\[?([^/]+?)\]?:(\d+)", address or "")
    if address is None or match is None:
        return
    host, port = match[2], int(match[3])
    socket.create_connection((host, port), timeout=CHECK_SECONDS).close()
    if _is_unauthenticated(host, port, CLIENT_CALL if match[1] else HEAD_CALL):
        raise _wrong_token(address)


def _is_unauthenticated(host: str, port: int, call: str) -> bool:
    """Return whether a Ray server rejects our token."""
    import grpc

    token = _token()
    sent = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
        try:
            channel.unary_unary(call)(b"", metadata=sent, timeout=CHECK_SECONDS)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def _token() -> str | None:
    """Return the token that Ray would send to a cluster, by Ray's rules."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if given := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token")
    with suppress(OSError):
        return path.read_text().strip() or None
    return None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type without one."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
