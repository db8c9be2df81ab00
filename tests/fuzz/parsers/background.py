"""The record of a server in the background."""

import json
from pathlib import Path

from diffusion.system.documents import read_document
from flows.background import MOST_BYTES, Background


def seeds() -> list[bytes]:
    """A record as it is written."""
    record = Background(name="mlflow", pid=1234, start="0a1b-2c3d 64768", port=5000)
    return [json.dumps(record.model_dump(), indent=2).encode()]


def parse(path: Path) -> None:
    """Read it."""
    read_document(path, Background, most=MOST_BYTES)
