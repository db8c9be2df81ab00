"""The resumable state of a training: safetensors files with a checksummed manifest each, the two newest kept.

A state counts only when its manifest, written last, agrees with it: a truncated or altered one is reported
and set aside, and the one before is used.
"""

import hashlib
import json
import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

from safetensors.torch import load, save
from torch import Tensor

from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.system.files import write_atomic, write_json

KEPT = 2
ASIDE = "damaged-"  # before the name of a damaged state: it counts no more, and the next good save drops it


class SavedState(NamedTuple):
    """Named tensors, and plain values for the counters beside them."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save_state(folder: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
    """Write the state after `step` steps, drop all but it and the newest other; a failure drops none."""
    path = folder / f"state-{step:09d}.safetensors"
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    try:
        write_atomic(path, lambda file: file.write(data))
        # Of the bytes that are meant: what a disk has made of them would always agree with itself.
        digest = hashlib.sha256(data).hexdigest()
        write_json(_manifest(path), {"step": step, "sha256": digest, "values": values})
    except OSError as error:
        raise DiffctlError(
            f"cannot save the training's state in {folder} ({error.strerror}): make room and run it again; "
            "it goes on from the state before"
        ) from error
    others = [state for state in _states(folder) if state != path]
    for old in [*others[: 1 - KEPT], *folder.glob(f"{ASIDE}*.safetensors")]:
        _manifest(old).unlink(missing_ok=True)
        old.unlink(missing_ok=True)
    return path


def newest_step(folder: Path) -> int:
    """After how many steps the newest state was saved; 0 without one."""
    whole = (path for path in _states(folder) if _manifest(path).exists())
    return max((int(path.stem.removeprefix("state-")) for path in whole), default=0)


def copy_states(source: Path, folder: Path) -> None:
    """Bring the states of another folder into this one, each whole or not at all."""
    for path in _states(source):
        for file in (path, _manifest(path)) if _manifest(path).exists() else ():
            write_atomic(folder / file.name, partial(_write_bytes, file))


def _write_bytes(source: Path, file: IO[bytes]) -> None:
    with open(source, "rb") as other:
        shutil.copyfileobj(other, file)


def newest_state(folder: Path) -> SavedState | None:
    """The newest whole state, None when there is none; a damaged one is reported and set aside."""
    states = _states(folder)
    while states:
        path = states.pop()
        try:
            return _read(path)
        except (ValueError, OSError, KeyError) as error:
            none = "no state is left, so the training begins again at step 0"
            then = "using the state before it" if states else none
            warnings.warn(f"{path} is damaged ({error}): {then}", DiffctlWarning, stacklevel=2)
            _set_aside(path)
    return None


def _read(path: Path) -> SavedState:
    manifest = json.loads(_manifest(path).read_text(encoding="utf-8"))
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != manifest["sha256"]:
        raise ValueError("its checksum does not match")
    return SavedState(load(data), manifest["values"])


def _set_aside(path: Path) -> None:
    """Take a damaged state out of the count: by its step it may be newer than all that is still to come."""
    for file in (path, _manifest(path)):
        if file.exists():
            file.replace(file.with_name(ASIDE + file.name))


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("state-*.safetensors"))


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")
