"""A connection to Ray: to a cluster, or to a Ray of this process's own, of which nothing is left."""

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

KNOCK_SECONDS = 10
# A call without arguments that each kind of server answers, if it takes who calls.
HEAD_CALL = "/ray.rpc.NodeInfoGcsService/GetClusterId"
CLIENT_CALL = "/ray.rpc.RayletDriver/ClusterInfo"


def cluster_address(given: str | None) -> str | None:
    """The cluster that is asked for, by the environment where by nothing else; None for Ray of our own."""
    return given or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def ray_session(address: str | None, missing: str) -> Iterator[None]:
    """Connected to the cluster at `address`, else to Ray of this process's own, which ends with it.

    UsageError, which says what is `missing`, when Ray is not installed, and when the cluster takes another
    token; DiffctlError when it does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster_address(address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        if address is None:
            folder = tempfile.TemporaryDirectory(prefix="diffctl-ray-", ignore_cleanup_errors=True)
            options |= {"_temp_dir": stack.enter_context(folder), "include_dashboard": False}
            stack.enter_context(environment(local_token()))  # before the import, which reads it
        ray = _imported(missing)
        stack.callback(ray.shutdown)
        handler = signal.getsignal(signal.SIGTERM)
        try:
            _check_reachable(address)
            ray.init(address or "local", **options)
        except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise _failure(address, error) from None
        finally:
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place
        yield


def _imported(missing: str) -> Any:
    try:
        import ray
    except ImportError:
        raise UsageError(missing) from None
    return ray


def resolve_gpus(wanted: float | None, option: str, of: str) -> float:
    """The GPUs of a shard or replica, as it is called by `of`: one where Ray has any and none is asked for.

    UsageError where the cluster has not as many, which names the `option` that asks for them.
    """
    import ray

    there = ray.cluster_resources().get("GPU", 0)  # type: ignore[no-untyped-call]
    gpus = min(1, there) if wanted is None else wanted
    if gpus > there:
        raise UsageError(f"{option} asks for {gpus:g} GPUs a {of}, and Ray has {there:g}")
    return gpus


@functools.cache  # as Ray itself reads it once a process
def local_token() -> dict[str, str]:
    """Variables by which a Ray of our own asks for a token that only it and its processes have.

    Without them Ray keeps one in ~/.ray/auth_token, for all Rays to come and for whoever reads it.
    """
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _failure(address: str | None, error: Exception) -> DiffctlError:
    if address is None:
        return DiffctlError(f"Ray does not start here: {first_line(error)}")
    if "authentication" in first_line(error).lower():  # RAY_AUTH_MODE=token without a token
        return _refused(address)
    return DiffctlError(f"the Ray cluster at {address} is out of reach: {first_line(error)}")


def _refused(address: str) -> UsageError:
    return UsageError(
        f"the Ray cluster at {address} does not let us in: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
        "or RAY_AUTH_TOKEN_PATH to the token that it was started with"
    )


def _check_reachable(address: str | None) -> None:
    """OSError when nothing listens at a HOST:PORT, for which Ray would wait for minutes.

    UsageError when another token is wanted there, which Ray takes for a cluster that it cannot reach.
    """
    match = re.fullmatch(r"(ray://)?\[?([^/]+?)\]?:(\d+)", address or "")
    if address is None or match is None:
        return
    host, port = match[2], int(match[3])
    socket.create_connection((host, port), timeout=KNOCK_SECONDS).close()
    if _is_kept_out(host, port, CLIENT_CALL if match[1] else HEAD_CALL):
        raise _refused(address)


def _is_kept_out(host: str, port: int, call: str) -> bool:
    """Whether a server of Ray's answers a call of ours by asking for another token."""
    import grpc

    token = _token()
    sent = [("authorization", f"Bearer {token}")] if token else []
    with grpc.insecure_channel(f"[{host}]:{port}" if ":" in host else f"{host}:{port}") as channel:
        try:
            channel.unary_unary(call)(b"", metadata=sent, timeout=KNOCK_SECONDS)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def _token() -> str | None:
    """The token that Ray sends to a cluster whose address is given, by its own rules, if any."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if given := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return given
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray/auth_token")
    with suppress(OSError):
        return path.read_text().strip() or None
    return None


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its kind where it is mute."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
