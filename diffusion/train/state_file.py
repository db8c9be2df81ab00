"""The resumable state of a training: a sealed file each, of which the two newest are kept.

A state counts from when its file has its name, and only while its seal is of that name and of all that is in
it: a truncated, altered or renamed one is reported and set aside, and the one before is used.
"""

import shutil
import warnings
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from diffusion.system.documents import parse_document
from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.system.files import write_atomic
from diffusion.system.seals import Broken, read_sealed, write_sealed
from diffusion.system.section import brief, canonical
from diffusion.train.state_values import StateValues
from diffusion.train.tensor_stream import write_tensors

KEPT = 2
PREFIX, SUFFIX = "state-", ".sealed"
ASIDE = "damaged-"  # before the name of a damaged state: it counts no more, and the next good save drops it
VALUES = "values"  # the name under which the counters lie among the tensors, as the bytes of their JSON


class SavedState(NamedTuple):
    """Named tensors, and the counters beside them."""

    tensors: dict[str, Tensor]
    values: StateValues


def save_state(folder: Path, state: SavedState) -> Path:
    """Write the state after its step, drop all but it and the newest other; a failure drops none."""
    path = _place(folder, state.values.step)
    try:
        write_sealed(path, lambda file: write_tensors(file, {**state.tensors, VALUES: _bytes(state.values)}))
    except OSError as error:
        raise DiffctlError(
            f"cannot save the training's state in {folder} ({error.strerror}): make room and run it again; "
            "it goes on from the state before"
        ) from error
    others = [other for other in _states(folder) if other != path]
    for old in [*others[: 1 - KEPT], *folder.glob(f"{ASIDE}*")]:
        old.unlink(missing_ok=True)
    return path


def newest_step(folder: Path) -> int:
    """After how many steps the newest state was saved; 0 without one."""
    return max((_step(path) for path in _states(folder)), default=0)


def copy_states(source: Path, folder: Path) -> None:
    """Bring the states of another folder into this one, each whole or not at all."""
    for path in _states(source):
        write_atomic(folder / path.name, partial(_write_bytes, path))


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
        except (ValueError, OSError, DiffctlError) as error:
            none = "no state is left, so the training begins again at step 0"
            then = "using the state before it" if states else none
            warnings.warn(f"{path} is damaged ({error}): {then}", DiffctlWarning, stacklevel=2)
            path.replace(path.with_name(ASIDE + path.name))  # it may be newer than all that is still to come
    return None


def _read(path: Path) -> SavedState:
    try:
        tensors = load(read_sealed(path))
    except SafetensorError as error:
        raise Broken(f"it holds no tensors: {brief(error, str)}") from None
    if VALUES not in tensors:
        raise Broken("it has no counters")
    values = parse_document(tensors.pop(VALUES).numpy().tobytes(), StateValues, "the list of its counters")
    if values.step != _step(path):
        raise Broken(f"it is of step {values.step:,}")
    return SavedState(tensors, values)


def _bytes(values: StateValues) -> Tensor:
    return torch.frombuffer(bytearray(canonical(values).encode()), dtype=torch.uint8)


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob(f"{PREFIX}*{SUFFIX}") if _number(path).isdecimal())


def _place(folder: Path, step: int) -> Path:
    return folder / f"{PREFIX}{step:09d}{SUFFIX}"


def _step(path: Path) -> int:
    return int(_number(path))


def _number(path: Path) -> str:
    return path.name.removeprefix(PREFIX).removesuffix(SUFFIX)
