"""Whether images are still those of their digests, hashed only where their files changed since.

A note outside of what DVC tracks holds size and time of change of files that were found right. Another time
means nothing by itself (`dvc checkout` and a copy give new ones), so that such files are hashed once more.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusion.evaluate.features.extract import verify
from diffusion.images.store import ImageStore
from diffusion.system.files import write_json

FILES = ("images.npy", "labels.npy")  # what a digest is of


def verify_where_changed(stores: Sequence[ImageStore], note: Path) -> None:
    """`verify` the stores unless the note is of them as they are; then write it, where that is allowed."""
    now = [_state(store) for store in stores]
    if _read(note) == now:
        return
    for store in stores:
        verify(store)
    with contextlib.suppress(OSError):  # a folder to read only: hashed again the next time
        write_json(note, now)


def _state(store: ImageStore) -> dict[str, Any]:
    """Path, digest, and each file's size in bytes and time of change in nanoseconds."""
    found = {name: (store.path / name).stat() for name in FILES if (store.path / name).exists()}
    files = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}
    return {"path": str(store.path.resolve()), "digest": store.digest, "files": files}


def _read(note: Path) -> Any:
    try:
        return json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
