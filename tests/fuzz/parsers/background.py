"""The record of a background server."""

import json
from pathlib import Path

from diffusion.system.json_files import read_json
from flows.prefect_server.local_servers import MAX_BYTES, LocalServer


def seeds() -> list[bytes]:
    """Return a valid record."""
    record = LocalServer(name="mlflow", pid=1234, start="0a1b-2c3d 64768", port=5000)
    return [json.dumps(record.model_dump(), indent=2).encode()]


def parse(path: Path) -> None:
    """Read it."""
    read_json(path, LocalServer, max_bytes=MAX_BYTES)
