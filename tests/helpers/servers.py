"""The project's servers in a test's folder, and requests to Prefect's API."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from tests.conftest import diffctl
from tests.helpers.mlflow_server import free_port


@dataclass(frozen=True)
class Servers:
    """What `diffctl up` started in `folder`: the addresses, and the environment that chose the ports."""

    folder: Path
    env: dict[str, str]

    @property
    def mlflow(self) -> str:
        return f"http://127.0.0.1:{self.env['DIFFCTL_MLFLOW_PORT']}"

    @property
    def prefect(self) -> str:
        return f"http://127.0.0.1:{self.env['DIFFCTL_PREFECT_PORT']}/api"


@contextmanager
def servers_up(folder: Path, env: dict[str, str] | None = None) -> Iterator[Servers]:
    """Start both servers in the folder; they are stopped with the block."""
    ports = {"DIFFCTL_MLFLOW_PORT": str(free_port()), "DIFFCTL_PREFECT_PORT": str(free_port())}
    made = Servers(folder, {"PREFECT_API_URL": "", "MLFLOW_TRACKING_URI": "", **(env or {}), **ports})
    try:
        started = diffctl(folder, "up", env=made.env)
        assert started.returncode == 0, started.stderr
        yield made
    finally:
        stopped = diffctl(folder, "down", env=made.env)
        assert stopped.returncode == 0, stopped.stderr


def post(url: str, body: dict[str, Any]) -> Any:
    """POST to Prefect's API; return the answer. Retry a 503 (locked database), as its client does."""
    retry = Retry(5, backoff_factor=0.5, status_forcelist=[503], allowed_methods=None)
    with requests.Session() as session:
        session.mount("http://", HTTPAdapter(max_retries=retry))
        reply = session.post(url, json=body, timeout=30)
        reply.raise_for_status()
        return reply.json()
