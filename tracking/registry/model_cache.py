"""Models out of MLflow, into a cache that is addressed by content and checked."""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from diffusion.layout import MODEL_RUNS
from diffusion.system.errors import DiffctlError
from diffusion.system.files import sha256_file
from diffusion.system.section import brief
from tracking.keys import FILE_SHA256

WEIGHTS = "unet.safetensors"
SHA256_DIGITS = 64


def check_digest(value: str, digits: int, where: str) -> str:
    """The value, which is to be a part of a path: hex digits alone, so that no tag leads out of a folder.

    DiffctlError where it is anything else.
    """
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", value):
        raise DiffctlError(
            f"{where}: {digits} hex digits are wanted (got {brief(value)}): somebody has changed it, "
            "do not use it"
        )
    return value


def cached_model(sha256: str, download: Callable[[Path], Path]) -> Path:
    """The model file with this SHA-256; `download` puts it into a folder when the cache does not have it.

    DiffctlError when that is none, or what comes is another file.
    """
    target = MODEL_RUNS / check_digest(sha256, SHA256_DIGITS, f"MLflow's tag {FILE_SHA256}") / WEIGHTS
    if target.exists() and sha256_file(target) == sha256:
        return target
    MODEL_RUNS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=MODEL_RUNS, prefix=".download-") as scratch:
        path = download(Path(scratch))
        if (found := sha256_file(path)) != sha256:
            raise DiffctlError(
                f"the model that MLflow gives is not the one that was logged: its SHA-256 is {found[:16]}…, "
                f"not {sha256[:16]}…: do not use it"
            )
        target.parent.mkdir(exist_ok=True)
        os.replace(path, target)
    return target
