"""Verification of a store's images against their digest, cached for large stores.

A note in the project has the size, change times and inodes of a large store's files when they were verified.
Other values do not prove a change (`dvc checkout` and a copy give new ones), so the files are hashed again.
"""

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffusion.images.digests import content_digest
from diffusion.layout import VERIFIED_RUNS
from diffusion.system.errors import DiffctlError
from diffusion.system.files import write_json
from diffusion.system.json_files import JsonObject, read_json
from diffusion.system.section import fingerprint

CHANGES_RESULTS = False  # diffusion/code_digest.py

FILES = ("images.npy", "labels.npy")  # covered by the digest
LARGE = 2**26  # bytes: a smaller store is hashed quickly


def verify(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64] | None, digest: str) -> None:
    """Raise DiffctlError unless images and labels of the store at `path` have this digest."""
    if is_verified(path, images, digest):
        return
    now = _state(path, digest)
    if content_digest(images, labels) != digest:
        raise DiffctlError(f"the images in {path} changed after they were written: make them again")
    if images.nbytes >= LARGE and VERIFIED_RUNS.parent.is_dir():
        with contextlib.suppress(OSError):  # a read-only folder: hashed again the next time
            write_json(_note(path), now)


def is_verified(path: Path, images: NDArray[np.uint8], digest: str) -> bool:
    """Return whether the store is large and its files are unchanged since they were verified."""
    return images.nbytes >= LARGE and read_note(path) == _state(path, digest)


def read_note(path: Path) -> JsonObject | None:
    """Return the state of the store's files when they were verified; None if unknown."""
    try:
        return read_json(_note(path), JsonObject)
    except (OSError, DiffctlError):
        return None


def _note(path: Path) -> Path:
    return VERIFIED_RUNS / f"{fingerprint(str(path.resolve()))}.json"


def _state(path: Path, digest: str) -> dict[str, Any]:
    found = {name: (path / name).stat() for name in FILES if (path / name).exists()}
    files = {
        name: [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino] for name, stat in found.items()
    }
    return {"path": str(path.resolve()), "digest": digest, "files": files}
