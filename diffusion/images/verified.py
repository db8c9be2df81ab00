"""Whether a store's images are those of its digest: hashed when it is opened, a large one when it changed.

A note in the project holds what the files of a large store were when they were found right: sizes, times of
change, inodes. Others mean nothing by themselves (`dvc checkout` and a copy give new ones), so that such
files are hashed once more.
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

FILES = ("images.npy", "labels.npy")  # what a digest is of
LARGE = 2**26  # bytes: less is hashed in a moment


def verify(path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64] | None, digest: str) -> None:
    """DiffctlError where the images and labels of the store at `path` are not those of its digest."""
    if is_verified(path, images, digest):
        return
    now = _state(path, digest)
    if content_digest(images, labels) != digest:
        raise DiffctlError(f"the images in {path} changed after they were written: make them again")
    if images.nbytes >= LARGE and VERIFIED_RUNS.parent.is_dir():
        with contextlib.suppress(OSError):  # a folder to read only: hashed again the next time
            write_json(_note(path), now)


def is_verified(path: Path, images: NDArray[np.uint8], digest: str) -> bool:
    """Whether the store is a large one whose files are as they were when they were found right."""
    return images.nbytes >= LARGE and read_note(path) == _state(path, digest)


def read_note(path: Path) -> JsonObject | None:
    """What the files of the store were when they were found right; None where that is not known."""
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
