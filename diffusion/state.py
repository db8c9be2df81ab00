"""The resumable state of a training: safetensors files with a checksummed manifest each, the two newest kept.

A state counts only when its manifest, written last, agrees with it: a truncated or altered one is reported
and the one before is used.
"""

import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load, save
from torch import Tensor

from diffusion.errors import DiffctlError, DiffctlWarning
from diffusion.files import sha256_file, write_atomic, write_json

KEPT = 2


class SavedState(NamedTuple):
    """Named tensors, and plain values for the counters beside them."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_state(folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
    """Write the state after `step` steps and drop all but the two newest; a failure drops none."""
    path = folder / f"state-{step:09d}.safetensors"
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    try:
        write_atomic(path, lambda file: file.write(data))
        write_json(_manifest(path), {"step": step, "sha256": sha256_file(path), "values": values})
    except OSError as error:
        raise DiffctlError(
            f"cannot save the training's state in {folder} ({error.strerror}): make room and run it again; "
            "it goes on from the state before"
        ) from error
    for old in _states(folder)[:-KEPT]:
        _manifest(old).unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return path


def newest_state(folder: Path) -> SavedState | None:
    """The newest whole state, or None when there is none; each damaged one is reported by a warning."""
    for path in reversed(_states(folder)):
        try:
            return _read(path)
        except (ValueError, OSError, KeyError) as error:
            warnings.warn(
                f"{path} is damaged ({error}): using the state before it", DiffctlWarning, stacklevel=2
            )
    return None


def _read(path: Path) -> SavedState:
    manifest = json.loads(_manifest(path).read_text(encoding="utf-8"))
    data = path.read_bytes()
    if sha256_file(path) != manifest["sha256"]:
        raise ValueError("its checksum does not match")
    return SavedState(load(data), manifest["values"])


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.safetensors"))


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")
