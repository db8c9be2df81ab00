"""The resumable state of a training: a sealed file each, of which the two newest are kept.

A state counts from when its file has its name, and only while its seal is of that name and of all that is in
it: a truncated, altered or renamed one is reported and set aside, and the one before is used.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from diffusion.system.checksums import Corrupted, open_checksummed, write_checksummed
from diffusion.system.errors import DiffctlError, DiffctlWarning
from diffusion.system.files import copy_file
from diffusion.system.json_files import parse_json
from diffusion.system.section import brief, canonical_json
from diffusion.train.checkpoint.lazy_tensors import without_prefix
from diffusion.train.checkpoint.state_values import StateValues
from diffusion.train.checkpoint.tensor_stream import StoredTensors, write_tensors

KEPT_STATES = 2
PREFIX, SUFFIX = "state-", ".sealed"
QUARANTINED = (
    "damaged-"  # before the name of a damaged state: it counts no more, and the next good save drops it
)
READ_ERRORS = (ValueError, OSError, DiffctlError)  # what reading a state may raise
VALUES = "values"  # the name under which the counters lie among the tensors, as the bytes of their JSON


class SavedState(NamedTuple):
    """Named tensors, and the counters beside them; `is_copy` where nothing else changes the tensors."""

    tensors: Mapping[str, Tensor]
    values: StateValues
    is_copy: bool = False


def save_state(folder: Path, state: SavedState) -> Path:
    """Write the state after its step, drop all but it and the newest other; a failure drops none."""
    path = _place(folder, state.values.step)
    try:
        write_checksummed(
            path, lambda file: write_tensors(file, {**state.tensors, VALUES: _bytes(state.values)})
        )
    except OSError as error:
        raise DiffctlError(
            f"cannot save the training's state in {folder} ({error.strerror}): make room and run it again; "
            "it goes on from the state before"
        ) from error
    others = [other for other in state_files(folder) if other != path]
    for old in [*others[: 1 - KEPT_STATES], *folder.glob(f"{QUARANTINED}*")]:
        old.unlink(missing_ok=True)
    return path


def newest_step(folder: Path) -> int:
    """After how many steps the newest state was saved; 0 without one."""
    return max((step_of(path) for path in state_files(folder)), default=0)


def copy_states(source: Path, folder: Path) -> None:
    """Bring the states of another folder into this one, each whole or not at all."""
    for path in state_files(source):
        copy_state(path, folder)


def copy_state(path: Path, folder: Path) -> None:
    """Bring one state into another folder, whole or not at all; FileNotFoundError when it is gone."""
    copy_file(path, folder / path.name)


def newest_state(folder: Path) -> SavedState | None:
    """The newest whole state, None when there is none; a damaged one is reported and set aside."""
    states = state_files(folder)
    while states:
        path = states.pop()
        try:
            return read_state(path)
        except READ_ERRORS as error:
            none = "no state is left, so the training begins again at step 0"
            then = "using the state before it" if states else none
            warnings.warn(f"{path} is damaged ({error}): {then}", DiffctlWarning, stacklevel=2)
            path.replace(
                path.with_name(QUARANTINED + path.name)
            )  # it may be newer than all that is still to come
    return None


def read_state(path: Path) -> SavedState:
    """The state in a file, looked through now; one of UNREADABLE where it is damaged or not there.

    Its tensors are read when they are asked for, from the file that was looked through, whatever has its name
    by then.
    """
    file, size = open_checksummed(path)
    try:
        tensors = StoredTensors(file, size)
    except ValueError as error:
        file.close()
        raise Corrupted(f"it holds no tensors: {brief(error, str)}") from None
    if VALUES not in tensors:
        raise Corrupted("it has no counters")
    data = tensors[VALUES].flatten().view(torch.uint8).numpy().tobytes()
    values = parse_json(data, StateValues, "the list of its counters")
    if values.step != step_of(path):
        raise Corrupted(f"it is of step {values.step:,}")
    return SavedState(without_prefix(tensors, VALUES), values)


def _bytes(values: StateValues) -> Tensor:
    return torch.frombuffer(bytearray(canonical_json(values).encode()), dtype=torch.uint8)


def state_files(folder: Path) -> list[Path]:
    """The files of the states in a folder, the newest last."""
    return sorted(path for path in folder.glob(f"{PREFIX}*{SUFFIX}") if _number(path).isdecimal())


def _place(folder: Path, step: int) -> Path:
    return folder / f"{PREFIX}{step:09d}{SUFFIX}"


def step_of(path: Path) -> int:
    """After how many steps a state was saved, by its file's name."""
    return int(_number(path))


def _number(path: Path) -> str:
    return path.name.removeprefix(PREFIX).removesuffix(SUFFIX)
